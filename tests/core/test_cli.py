"""The command line: flags, what they do, exit codes, errors of one line."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import asynctasq
from asynctasq import cli
from asynctasq.config import Config, option_types, options
from asynctasq.core.events import WorkerEvent
from tests.app import ROOT, App, Ledger, Remembering, until
from tests.drivers.places import MySqlPlace, Place, closed_port
from tests.jobs import crunch, nap, note

SAMPLES = {
    "driver": "sqlite",
    "default_queue": "other",
    "default_retry_strategy": "fixed",
    "redis_url": "redis://h:1/2",
    "events_redis_url": "redis://h:1/2",
    "postgres_dsn": "postgresql://h/d",
    "mysql_dsn": "mysql://h/d",
    "rabbitmq_url": "amqp://h/",
    "sqs_queue_url_prefix": "https://h/1/",
    "sqs_endpoint_url": "http://h:1",
    "sqlite_synchronous": "normal",
    "redis_db": "5",
    "postgres_min_pool_size": "2",
    "mysql_min_pool_size": "2",
}


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process."""

    def command(*words: str) -> Result:
        capsys.readouterr()
        try:
            code = cli.main(words)
        except SystemExit as stop:
            code = int(str(stop.code))
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return command


def flags(app: App) -> list[str]:
    """What leads a command to the place of ``app``."""
    given = {name: value for name, value in app.options.items() if not name.startswith("default_")}
    return [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]


@pytest.fixture
def app(app_without_loop: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> App:
    """Commands begin with nothing configured and have the environment alone."""
    for name in options():
        monkeypatch.delenv(f"ASYNCTASQ_{name.upper()}", raising=False)
    return app_without_loop


# ---- worker


@pytest.mark.behaviour(30)
def test_a_worker_runs_the_tasks_of_its_queues_in_their_order(app: App, run: Run, ledger: Ledger) -> None:
    for queue in ("low", "default", "high", "other"):
        nap(str(ledger), queue, 0.06).on_queue(queue).dispatch_sync()
    asynctasq.shutdown()
    given = ["--queues", "high,default,low", "--concurrency", "1", "--drain", "--app", "tests.jobs"]
    done = run("worker", *given, *flags(app))
    assert done.code == 0, done.err
    assert [one.label for one in ledger.starts()] == ["high", "default", "low"]


@pytest.mark.behaviour(30)
def test_the_worker_s_own_flags_have_their_effect(app: App, run: Run, ledger: Ledger) -> None:
    remembering = Remembering()
    app.configure([remembering])
    asynctasq.dispatch_many_sync([nap(str(ledger), str(n), 0.2) for n in range(6)])
    words = ["--max-tasks", "4", "--concurrency", "2", "--worker-id", "me", "--heartbeat-interval", "0.05"]
    done = run("worker", *words)
    assert done.code == 0, done.err
    assert len(ledger.ends()) == 4
    times = sorted([(one.at, 1) for one in ledger.starts()] + [(one.at, -1) for one in ledger.ends()])
    running = [sum(step for _, step in times[: n + 1]) for n in range(len(times))]
    assert max(running) == 2
    asynctasq.shutdown()
    of_worker = [event for event in remembering.events if isinstance(event, WorkerEvent)]
    assert {event.worker for event in of_worker} == {"me"}
    assert [event.type for event in of_worker].count("worker_heartbeat") >= 3  # type: ignore[arg-type]


@pytest.mark.behaviour(30)
def test_flags_win_over_what_an_app_configured_and_leave_the_rest_of_it(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "configured_app.py").write_text(
        "import asynctasq\nasynctasq.init({'driver': 'sqlite', 'default_queue': 'from-app'})\n"
    )
    monkeypatch.chdir(tmp_path)
    done = run("config", "--app", "configured_app", "--default-max-attempts", "9")
    sys.modules.pop("configured_app")
    assert done.code == 0, done.err
    config = Config.get()
    assert (config.driver, config.default_queue, config.default_max_attempts) == ("sqlite", "from-app", 9)


@pytest.mark.behaviour(30)
def test_process_pool_flags_reach_the_pool(app: App, run: Run, ledger: Ledger) -> None:
    asynctasq.dispatch_many_sync([crunch(str(ledger), str(n), 0.05) for n in range(4)])
    asynctasq.shutdown()
    words = ["--max-tasks=4", "--process-pool-size=1", "--process-pool-max-tasks-per-child=2"]
    assert run("worker", "--app", "tests.jobs", *words, *flags(app)).code == 0
    assert len({one.pid for one in ledger.starts()}) == 2


@pytest.mark.behaviour(30)
@pytest.mark.parametrize("name", options())
def test_every_configuration_key_is_a_flag_with_its_effect(name: str) -> None:
    types = option_types(name)
    parser = cli.build_parser()
    words = [f"--{name.replace('_', '-')}"]
    expected: Any
    if bool in types:
        expected = True
    elif int in types or float in types:
        words.append(SAMPLES.get(name, "17"))
        expected = int(words[-1])
    else:
        words.append(SAMPLES.get(name, "some_text"))
        expected = words[-1]
    for command in ("worker", "migrate", "stats", "config"):
        namespace = parser.parse_args([command, *words])
        cli.reconfigure(cli.given_options(namespace))
        assert getattr(Config.get(), name) == expected
    if bool in types:
        cli.reconfigure(cli.given_options(parser.parse_args(["config", f"--no-{name.replace('_', '-')}"])))
        assert getattr(Config.get(), name) is False


@pytest.mark.behaviour(30)
async def test_several_processes_are_started_again_when_they_die_and_stop_together(
    embedded: App, ledger: Ledger
) -> None:
    worker = embedded.spawn("--processes", "2", "--concurrency", "1", default_visibility_timeout=60)
    await until(lambda: worker.output.count("concurrency 1") == 2, 20, worker)
    await asynctasq.dispatch_many([nap(str(ledger), str(n), 0.3) for n in range(2)])
    await until(lambda: len(ledger.ends()) == 2, 20, worker)
    first = {one.pid for one in ledger.starts()}
    assert len(first) == 2
    assert worker.pid not in first
    victim = next(iter(first))
    os.kill(victim, signal.SIGKILL)
    await until(lambda: worker.output.count("concurrency 1") == 3, 20, worker)
    assert "a worker process ended with code -9; another starts in" in worker.output
    worker.send(signal.SIGTERM)
    assert await worker.ended() == 0


# ---- migrate


@pytest.mark.behaviour(30)
def test_migrate_creates_the_tables_of_mysql_and_again_is_fine(places: Any, run: Run) -> None:
    place = places("mysql")
    assert isinstance(place, MySqlPlace)
    name = f"cli_{time.monotonic_ns()}"
    where = [
        f"--mysql-dsn={place.options['mysql_dsn']}",
        f"--mysql-queue-table={name}_queue",
        f"--mysql-dead-letter-table={name}_dead",
    ]
    try:
        for _ in range(2):
            done = run("migrate", "--driver", "mysql", *where)
            assert (done.code, done.out) == (0, "mysql: the tables are there\n"), done.err
        assert run("stats", "--driver=mysql", *where).code == 0
    finally:
        place.ask(f"DROP TABLE {name}_queue, {name}_dead")


@pytest.mark.behaviour(30)
def test_migrate_creates_the_tables_and_again_is_fine(places: Any, run: Run, tmp_path: Path) -> None:
    place: Place = places("postgres")
    name = f"cli_{time.monotonic_ns()}"
    where = [
        f"--postgres-dsn={place.options['postgres_dsn']}",
        f"--postgres-queue-table={name}_queue",
        f"--postgres-dead-letter-table={name}_dead",
    ]
    try:
        for _ in range(2):
            done = run("migrate", "--driver", "postgres", *where)
            assert (done.code, done.out) == (0, "postgres: the tables are there\n"), done.err
        assert run("stats", "--driver=postgres", *where).code == 0
    finally:
        place._connection.execute(f"DROP TABLE {name}_queue, {name}_dead")
    sqlite = ["--driver=sqlite", f"--sqlite-path={tmp_path / 'new.sqlite3'}"]
    assert run("migrate", *sqlite).out == "sqlite: the tables are there\n"
    assert (tmp_path / "new.sqlite3").exists()


@pytest.mark.behaviour(30)
def test_migrate_says_that_redis_has_nothing_to_migrate(places: Any, run: Run) -> None:
    done = run("migrate", "--driver", "redis", f"--redis-url={places('redis').options['redis_url']}")
    assert (done.code, done.out, done.err) == (0, "redis: there is nothing to migrate\n", "")


# ---- stats and dead letters


@pytest.mark.behaviour(30)
def test_stats_are_a_table_or_json(app: App, run: Run, ledger: Ledger) -> None:
    asynctasq.dispatch_many_sync([note(str(ledger), "x") for _ in range(3)])
    note(str(ledger), "x").on_queue("later").delay(60).dispatch_sync()
    asynctasq.shutdown()
    done = run("stats", *flags(app))
    assert done.code == 0, done.err
    header, *rows = [line.split() for line in done.out.splitlines()]
    assert header == ["queue", "pending", "scheduled", "processing", "completed", "dead", "cancelled"]
    assert rows == [["default", *"300000"], ["later", *"010000"]]
    done = run("stats", "--json", "--queues", "later", *flags(app))
    (later,) = json.loads(done.out)
    assert (later["queue"], later["scheduled"], later["pending"]) == ("later", 1, 0)


@pytest.mark.behaviour(30)
def test_dead_letters_are_listed_shown_requeued_and_deleted(app: App, run: Run) -> None:
    app.configure(default_max_attempts=1)

    @asynctasq.task
    def fail(secret: str, *, colour: str = "") -> None:
        raise LookupError("nothing\x1b[31m there")

    ids = asynctasq.dispatch_many_sync([fail("s", colour="red") for _ in range(3)])
    ids.append(fail("s").on_queue("other").dispatch_sync())
    assert run("worker", "--queues=default,other", "--drain").code == 0

    listed = run("dead", "list")
    assert listed.code == 0
    assert [line.split()[0] for line in listed.out.splitlines()[1:]] == ids[::-1]
    assert "builtins.LookupError" in listed.out
    assert len(run("dead", "list", "--queue", "other").out.splitlines()) == 2
    assert len(run("dead", "list", "--limit", "2").out.splitlines()) == 3

    shown = run("dead", "show", ids[0])
    assert shown.code == 0
    assert "arguments: 's', colour='red'" in shown.out
    assert "in fail" in shown.out
    assert "\x1b" not in shown.out

    assert (run("dead", "requeue", ids[0]).out, run("dead", "delete", ids[1]).out) == ("requeued 1\n", "deleted 1\n")
    again = run("dead", "requeue", ids[0], ids[2])
    assert (again.code, again.out) == (1, "requeued 1\n")
    assert "1 ids are not among the dead letters" in again.err
    # A command about the dead leaves the living alone.
    assert run("dead", "delete", ids[0]).code == 1
    assert asyncio.run(app.counts()) == {"pending": 2}
    assert run("dead", "delete", "--all", "--queue", "other").out == "deleted 1\n"
    assert run("dead", "delete", "--all").out == "deleted 0\n"
    assert run("dead", "requeue").code == 2
    assert run("dead", "requeue", ids[0], "--all").code == 2
    assert run("dead", "show", "nonsense").code == 1
    assert asyncio.run(app.counts()) == {"pending": 2}


# ---- errors


@pytest.mark.behaviour(31)
@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["worker", "--concurrency", "0"], "must be positive, got '0'"),
        (["worker", "--concurrency", "many"], "must be positive, got 'many'"),
        (["worker", "--queues", ""], "queue name '' is not usable"),
        (["worker", "--queues", "a,,b"], "queue name '' is not usable"),
        (["worker", "--max-tasks", "-1"], "must be positive"),
        (["worker", "--heartbeat-interval", "0"], "must be positive"),
        (["worker", "--shutdown-timeout", "nan"], "must be a number of seconds"),
        (["worker", "--driver", "kafka"], "driver must be 'redis'"),
        (["worker", "--redis-db", "99"], "redis_db must be between 0 and 15, got 99"),
        (["worker", "--default-timeout", "soon"], "default_timeout must be float or None"),
        (["worker", "--colour", "red"], "unrecognized arguments: --colour red"),
        (["worker", "--app", "no.such.module"], "No module named 'no'"),
        (["migrate", "--driver", "sqs"], "driver 'sqs' is not available"),
        (
            ["worker", "--driver=sqlite", "--sqlite-path=/nonexistent/x"],
            "sqlite_path '/nonexistent/x' cannot be opened",
        ),
        (["dance"], "invalid choice: 'dance'"),
        ([], "the following arguments are required: command"),
    ],
)
def test_what_a_user_got_wrong_is_one_line_and_exit_code_2(run: Run, words: list[str], text: str) -> None:
    done = run(*words)
    assert done.code == 2
    assert text in done.err
    assert "Traceback" not in done.err
    said = [line for line in done.err.splitlines() if not line.startswith(("usage:", " "))]
    assert len(said) == 1


@pytest.mark.behaviour(31)
@pytest.mark.parametrize("driver", ["redis", "postgres", "mysql"])
def test_a_broker_that_does_not_answer_is_one_line_without_its_password(run: Run, driver: str) -> None:
    url = {
        "redis": f"--redis-url=redis://:canary@127.0.0.1:{closed_port()}",
        "postgres": f"--postgres-dsn=postgresql://test:canary@127.0.0.1:{closed_port()}/d",
        "mysql": f"--mysql-dsn=mysql://test:canary@127.0.0.1:{closed_port()}/d",
    }[driver]
    done = run("stats", "--driver", driver, url)
    assert (done.code, done.out) == (1, "")
    warning, line = done.err.splitlines()
    assert "shows a secret to everyone on this host" in warning
    assert line.startswith("asynctasq: ")
    assert "canary" not in done.err
    assert "***" in line
    done = run("stats", "--driver", driver, url, "--traceback")
    assert done.code == 1
    assert "Traceback (most recent call last)" in done.err


@pytest.mark.behaviour(31)
@pytest.mark.parametrize("command", ["stats", "migrate", "worker"])
def test_a_dsn_that_the_client_cannot_read_is_one_line_without_its_password(run: Run, command: str) -> None:
    dsn = "--postgres-dsn=postgresql://test:canary%zz@127.0.0.1/d"
    done = run(command, "--driver=postgres", dsn, "--traceback")
    assert done.code == 2
    assert "postgres_dsn postgresql://test:***@127.0.0.1/d cannot be read" in done.err
    assert "canary" not in done.err


@pytest.mark.behaviour(31)
def test_missing_tables_say_what_to_run(places: Any, run: Run) -> None:
    dsn = places("postgres").options["postgres_dsn"]
    words = ["--driver=postgres", f"--postgres-dsn={dsn}", "--postgres-queue-table=not_there"]
    for command in ("worker", "stats"):
        done = run(command, *words)
        assert done.code == 2
        assert "run 'asynctasq migrate'" in done.err
        assert "Traceback" not in done.err


@pytest.mark.behaviour(31)
@pytest.mark.parametrize("name", ["redis_password", "aws_secret_access_key"])
def test_a_secret_on_the_command_line_is_warned_of_and_not_shown(run: Run, name: str) -> None:
    done = run("config", f"--{name.replace('_', '-')}", "canary")
    assert done.code == 0
    assert f"use ASYNCTASQ_{name.upper()}" in done.err
    assert "canary" not in done.out + done.err
    assert "***" in done.out


@pytest.mark.behaviour(30)
def test_config_shows_every_option_and_which_are_defaults(run: Run) -> None:
    done = run("config", "--driver", "sqlite")
    rows = {line.split()[0]: line.split()[1:] for line in done.out.splitlines()[1:]}
    assert list(rows) == list(options())
    assert rows["driver"] == ["'sqlite'"]
    assert rows["default_queue"] == ["'default'", "default"]


@pytest.mark.behaviour(30)
def test_the_command_is_installed_and_runs_as_a_module_too() -> None:
    for command in (["-m", "asynctasq"], ["-m", "asynctasq.cli"]):
        done = subprocess.run(
            [sys.executable, *command, "--help"], capture_output=True, text=True, check=True, cwd=ROOT
        )
        for name in ("worker", "migrate", "stats", "dead"):
            assert name in done.stdout
