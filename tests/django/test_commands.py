"""``manage.py asynctasq_*``."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connections

from asynctasq.core import supervisor
from asynctasq_django.management import base
from tests.django.app.tasks import accept, fail, write
from tests.django.conftest import Broker, Manage, notes

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _logger() -> Iterator[None]:
    """As it was: a command may give it a handler."""
    logger = logging.getLogger("asynctasq")
    before = (logger.handlers[:], logger.level, logger.propagate)
    yield
    logger.handlers[:], logger.level, logger.propagate = before[0], before[1], before[2]


@pytest.fixture
def here(use: Callable[..., Broker]) -> Broker:
    """The queue in the default database: what the commands do is the same on all."""
    return use("sqlite")


def run(name: str, *arguments: str) -> str:
    """What the command prints, called in this process."""
    out = StringIO()
    call_command(f"asynctasq_{name}", *arguments, stdout=out, stderr=out)
    return out.getvalue()


def exit_code(name: str, *arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        run(name, *arguments)
    return int(caught.value.code or 0)


@pytest.fixture
def dead(here: Broker) -> list[str]:
    """The ids of three dead letters."""
    ids = [fail(f"reason {n}").dispatch_sync() for n in range(3)]
    here.drain()
    return ids


def test_stats_are_a_table(here: Broker) -> None:
    accept().dispatch_sync()
    head, row = run("stats").splitlines()
    assert head.split()[:3] == ["queue", "pending", "scheduled"]
    assert row.split()[:3] == [here.queue, "1", "0"]


def test_stats_are_json_for_programs(here: Broker) -> None:
    accept().dispatch_sync()
    accept().delay(60).dispatch_sync()
    (row,) = json.loads(run("stats", "--json"))
    assert (row["queue"], row["pending"], row["scheduled"], row["dead"]) == (here.queue, 1, 1, 0)


@pytest.mark.behaviour(30)
def test_dead_letters_are_listed_shown_requeued_and_deleted(here: Broker, dead: list[str]) -> None:
    listed = run("dead", "list")
    assert all(id in listed for id in dead)
    shown = run("dead", "show", dead[0])
    assert "builtins.RuntimeError: reason 0" in shown or "RuntimeError: reason 0" in shown
    assert "Traceback" in shown
    assert run("dead", "requeue", dead[0]) == "requeued 1\n"
    assert run("dead", "delete", dead[1]) == "deleted 1\n"
    assert [info.id for info in here.dead()] == [dead[2]]
    assert run("dead", "delete", "--all") == "deleted 1\n"
    assert here.dead() == []


def test_dead_letters_that_are_not_there_are_a_failure(here: Broker) -> None:
    assert exit_code("dead", "requeue", "no-such-id") == 1
    assert exit_code("dead", "requeue") == 2


def test_config_masks_secrets(settings: Any) -> None:
    settings.ASYNCTASQ = {
        "driver": "redis",
        "redis_password": "hunter2",
        "redis_url": "redis://:hunter3@example.org",
        "postgres_dsn": "postgresql://u:hunter4@example.org/db?sslpassword=hunter5",
    }
    shown = run("config")
    assert "hunter" not in shown
    assert "example.org" in shown
    assert "***" in shown


def test_config_shows_where_the_queue_is_and_our_own_settings(settings: Any) -> None:
    settings.ASYNCTASQ = {"database": "postgres", "enqueue_on_commit": False}
    database = connections["postgres"].settings_dict
    shown = {line.split()[0]: line for line in run("config").splitlines()}
    assert f"/{database['NAME']}'" in shown["postgres_dsn"]
    assert "from DATABASES['postgres']" in shown["postgres_dsn"]
    assert str(database["PASSWORD"]) + "@" not in shown["postgres_dsn"]
    assert shown["database"].split() == ["database", "'postgres'"]
    assert shown["enqueue_on_commit"].split() == ["enqueue_on_commit", "False"]
    assert shown["default_queue"].split() == ["default_queue", "'default'", "default"]


def test_flags_go_before_the_settings(here: Broker) -> None:
    assert "'from a flag'" not in run("config")
    assert "'from-a-flag'" in run("config", "--default-queue", "from-a-flag")


def test_an_address_in_a_flag_goes_before_the_alias_in_the_settings(use: Callable[..., Broker], tmp_path: Any) -> None:
    use("sqlite")
    accept().dispatch_sync()
    other = tmp_path / "other.sqlite3"
    assert json.loads(run("stats", "--json", "--sqlite-path", str(other))) == []
    assert other.exists()


@pytest.mark.django_db(transaction=True, databases="__all__")
@pytest.mark.parametrize("name", ["sqlite", "postgres", "mysql", "redis"])
def test_health_is_0_when_the_broker_answers(use: Callable[..., Broker], name: str) -> None:
    use(name)
    assert run("health").strip() == f"{name}: answers"


@pytest.mark.parametrize(
    "given",
    [
        {"driver": "redis", "redis_url": "redis://127.0.0.1:9"},
        {"driver": "postgres", "postgres_dsn": "postgresql://127.0.0.1:9/nowhere"},
    ],
)
def test_health_is_1_when_it_does_not(settings: Any, given: dict[str, Any]) -> None:
    settings.ASYNCTASQ = given
    with pytest.raises(CommandError) as caught:
        run("health")
    assert caught.value.returncode == 1


@pytest.mark.django_db(transaction=True, databases="__all__")
def test_health_says_when_the_tables_are_missing(use: Callable[..., Broker]) -> None:
    use("postgres", postgres_queue_table="nowhere")
    with pytest.raises(CommandError, match="nowhere") as caught:
        run("health")
    assert caught.value.returncode == 2


@pytest.mark.behaviour(31)
@pytest.mark.parametrize("name", ["worker", "stats", "dead list", "health", "config"])
def test_wrong_settings_are_one_line(settings: Any, name: str) -> None:
    settings.ASYNCTASQ = {"defualt_queue": "x"}
    with pytest.raises(CommandError) as caught:
        run(*name.split())
    assert caught.value.returncode == 2
    assert str(caught.value) == "unknown option 'defualt_queue' (did you mean 'default_queue'?)"


@pytest.mark.behaviour(31)
def test_a_command_with_wrong_settings_shows_no_traceback() -> None:
    manage = Manage.at("sqlite", "unused.sqlite3", {"driver": "redis", "redis_db": 99})
    code, errors = manage.fails("asynctasq_worker", "--drain")
    assert code == 2
    assert errors.splitlines() == ["CommandError: redis_db must be between 0 and 15, got 99"]


@pytest.mark.parametrize("arguments", [("--concurrency", "0"), ("--redis-db", "x"), ("--queues", "a,,b")])
def test_wrong_flags_are_errors_of_usage(here: Broker, arguments: tuple[str, str]) -> None:
    with pytest.raises(CommandError):
        run("worker", "--drain", *arguments)


def test_a_worker_drains_a_queue_in_a_process_of_its_own(here: Broker) -> None:
    write("drained").dispatch_sync()
    Manage.on("default", here.settings)("asynctasq_worker", "--drain")
    assert notes() == ["drained"]
    assert here.tasks() == []


def test_the_copies_of_a_worker_do_not_reload(here: Broker, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[Any] = []
    monkeypatch.setattr(supervisor, "run", lambda processes, command: commands.append((processes, command)) or 0)
    settings.DEBUG = True
    run("worker", "--processes", "2")
    ((processes, command),) = commands
    assert (processes, command[-3:]) == (2, ["--processes", "1", "--no-reload"])


def test_a_worker_tells_of_what_the_checks_find(here: Broker) -> None:
    manage = Manage.on("default", {**here.settings, "default_timeout": 60, "default_visibility_timeout": 60})
    process = manage.start("asynctasq_worker", "--drain")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "asynctasq.W001" in errors


@pytest.mark.parametrize(("verbosity", "level"), [(0, logging.WARNING), (1, logging.INFO), (2, logging.DEBUG)])
def test_our_logger_gets_a_handler_when_the_project_says_nothing(verbosity: int, level: int) -> None:
    logger, root = logging.getLogger("asynctasq"), logging.getLogger()
    handlers = root.handlers[:]
    logger.handlers[:] = []
    logger.setLevel(logging.NOTSET)
    base.log(verbosity)
    base.log(verbosity)
    assert (len(logger.handlers), logger.level) == (1, level)
    assert root.handlers == handlers


def test_a_project_that_logs_is_left_alone() -> None:
    logger = logging.getLogger("asynctasq")
    logger.handlers[:] = [logging.NullHandler()]
    logger.setLevel(logging.ERROR)
    base.log(2)
    assert (len(logger.handlers), logger.level) == (1, logging.ERROR)
