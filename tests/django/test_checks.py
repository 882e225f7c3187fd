"""``manage.py check``: settings that cannot work are found before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
from django.core import checks
from django.db import connections

from asynctasq import task
from asynctasq.core import registry
from asynctasq_django import checks as ours


def found(**options: Any) -> list[checks.CheckMessage]:
    return [message for message in checks.run_checks(**options) if str(message.id).startswith("asynctasq.")]


@pytest.fixture
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_tasks", registry._tasks.copy())


@pytest.mark.parametrize("given", [{"driver": "redis"}, {"database": "default"}, {"database": "postgres"}, {}])
def test_right_settings_pass(settings: Any, given: dict[str, Any]) -> None:
    settings.ASYNCTASQ = given
    assert found() == []


def test_e001_finds_an_unknown_key_and_suggests_another(settings: Any) -> None:
    settings.ASYNCTASQ = {"DEFAULT_QEUE": "mail"}
    (message,) = found()
    assert (message.id, message.level) == ("asynctasq.E001", checks.ERROR)
    assert message.msg == "ASYNCTASQ: unknown option 'default_qeue' (did you mean 'default_queue'?)"


@pytest.mark.parametrize("given", [{"driver": "redis", "redis_db": 16}, {"database": "no such"}, ["driver", "redis"]])
def test_e002_finds_a_wrong_value(settings: Any, given: Any) -> None:
    settings.ASYNCTASQ = given
    (message,) = found()
    assert (message.id, message.level) == ("asynctasq.E002", checks.ERROR)


def test_e002_shows_no_password(settings: Any) -> None:
    settings.ASYNCTASQ = {"driver": "redis", "redis_url": "http://user:hunter2@host", "redis_password": 5}
    assert "hunter2" not in str(found())


@pytest.mark.usefixtures("_own_registry")
def test_w001_finds_a_visibility_timeout_not_longer_than_a_timeout(settings: Any) -> None:
    @task(name="tests.slow", timeout=100, visibility_timeout=60)
    def slow() -> None: ...

    @task(name="tests.quick", timeout=10, visibility_timeout=60)
    def quick() -> None: ...

    settings.ASYNCTASQ = {"driver": "redis"}
    (message,) = found()
    assert (message.id, message.level) == ("asynctasq.W001", checks.WARNING)
    assert message.msg == "task tests.slow: visibility timeout 60 s is not longer than timeout 100 s"


def test_w001_looks_at_the_defaults(settings: Any) -> None:
    settings.ASYNCTASQ = {"driver": "redis", "default_timeout": 60, "default_visibility_timeout": 60}
    messages = found()
    assert [m.id for m in messages][:1] == ["asynctasq.W001"]
    assert messages[0].msg.startswith("the defaults: visibility timeout 60 s")


@pytest.mark.django_db(databases="__all__")
@pytest.mark.parametrize("alias", ["default", "postgres", "mysql"])
def test_w002_finds_tables_that_are_missing_in_the_database_in_use(settings: Any, alias: str) -> None:
    vendor = {"sqlite": "sqlite", "postgresql": "postgres", "mysql": "mysql"}[connections[alias].vendor]
    settings.ASYNCTASQ = {"database": alias}
    assert found(databases=[alias]) == []
    settings.ASYNCTASQ = {"database": alias, f"{vendor}_queue_table": "elsewhere"}
    assert found() == []
    (message,) = found(databases=[alias])
    assert (message.id, message.level) == ("asynctasq.W002", checks.WARNING)
    assert "elsewhere are missing" in message.msg
    assert (f"--database {alias}" in (message.hint or "")) is (alias != "default")


@pytest.mark.django_db(databases="__all__")
def test_w002_finds_tables_in_another_schema(settings: Any) -> None:
    names = {"postgres_queue_table": "elsewhere.tasks", "postgres_dead_letter_table": "elsewhere.dead"}
    settings.ASYNCTASQ = {"database": "postgres", **names}
    with connections["postgres"].cursor() as cursor:
        cursor.execute("CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.tasks ()")
        (message,) = found(databases=["postgres"])
        assert "the queue tables elsewhere.dead are missing" in message.msg
        cursor.execute("CREATE TABLE elsewhere.dead ()")
        assert found(databases=["postgres"]) == []


@pytest.mark.django_db(databases="__all__")
def test_w002_looks_at_no_database_that_the_queue_is_not_in(settings: Any, django_assert_num_queries: Any) -> None:
    settings.ASYNCTASQ = {"driver": "redis"}
    with django_assert_num_queries(0):
        assert ours.tables_exist(databases=["default", "postgres"]) == []
    settings.ASYNCTASQ = {"database": "postgres"}
    with django_assert_num_queries(0):
        assert ours.tables_exist(databases=["default"]) == []
