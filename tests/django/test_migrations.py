"""The queue tables come with ``migrate``, from the drivers' own SQL, on every database that has a driver."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import psycopg
import pytest
from django.core.management import call_command
from django.db import connections
from django.test import TransactionTestCase

from asynctasq import _sync, drivers
from asynctasq.config import Config
from asynctasq_django.models import DeadLetter, Task
from tests.django.app.tasks import accept
from tests.django.conftest import Broker, Manage
from tests.django.settings import UNIQUE, VARIABLES

TABLES = {"task_queue", "dead_letter_queue"}
GENERATED = {"urgency"}
"""Columns that the database fills in itself, for its indexes."""
NAMES = {"queue_table": "shop_tasks", "dead_letter_table": "shop_dead"}


class Database:
    """An empty one on a service, and what is in it."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.name = str(folder / "migrated.sqlite3") if kind == "sqlite" else f"test_{UNIQUE}_migrated"
        if kind != "sqlite":
            self.close()
            self._on_server(f"CREATE DATABASE {self.name}")

    def _connect(self, name: str | None) -> Any:
        if self.kind == "sqlite":
            return sqlite3.connect(self.name)
        variable, default = VARIABLES[self.kind]
        dsn = os.environ.get(variable, default)
        parts = urlsplit(dsn)
        if self.kind == "postgres":
            return psycopg.connect(dsn, autocommit=True, **({"dbname": name} if name else {}))
        import MySQLdb

        return MySQLdb.connect(
            host=parts.hostname or "",
            port=parts.port or 3306,
            user=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            database=name or parts.path.lstrip("/"),
        )

    def _on_server(self, statement: str) -> None:
        with closing(self._connect(None)) as connection:
            connection.cursor().execute(statement)

    def close(self) -> None:
        if self.kind != "sqlite":
            self._on_server(f"DROP DATABASE IF EXISTS {self.name}")

    def manage(self, **settings: Any) -> Manage:
        return Manage.at(self.kind, self.name, {"database": "default", **settings})


@pytest.fixture(params=["sqlite", "postgres", "mysql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "mysql" and "CI" not in os.environ:
        pytest.importorskip("MySQLdb")
    one = Database(request.param, tmp_path)
    yield one
    one.close()


def test_shown_forwards_backwards_and_twice(database: Database) -> None:
    forwards, backwards = "migrate asynctasq_django", "migrate asynctasq_django zero"
    shown, first, second, back, again = database.manage().all(
        "sqlmigrate asynctasq_django 0001", forwards, forwards, backwards, forwards
    )
    assert "CREATE TABLE IF NOT EXISTS" in shown[0]
    assert not shown[1] & TABLES
    assert first[1] >= TABLES
    assert "No migrations to apply" in second[0]
    assert not back[1] & TABLES
    assert again[1] >= TABLES


def test_the_tables_have_the_names_that_the_settings_give(database: Database) -> None:
    manage = database.manage(**{f"{database.kind}_{name}": value for name, value in NAMES.items()})
    made, look, check, back = manage.all(
        "migrate asynctasq_django",
        "makemigrations --check --dry-run",
        "check --database default",
        "migrate asynctasq_django zero",
    )
    assert made[1] >= set(NAMES.values())
    assert not made[1] & TABLES
    assert "No changes detected" in look[0]
    assert "no issues" in check[0]
    assert not back[1] & set(NAMES.values())


def test_tables_that_the_drivers_own_command_made_are_taken_over(tmp_path: Path) -> None:
    database = Database("sqlite", tmp_path)
    config = Config.make({"driver": "sqlite", "sqlite_path": database.name})
    _sync.run(drivers.create("sqlite", config).migrate())
    there, gone = database.manage().all("migrate asynctasq_django", "migrate asynctasq_django zero")
    assert there[1] >= TABLES
    assert not gone[1] & TABLES


def test_tables_that_someone_dropped_do_not_stop_the_way_back(tmp_path: Path) -> None:
    database = Database("sqlite", tmp_path)
    database.manage().all("migrate asynctasq_django")
    with closing(sqlite3.connect(database.name)) as connection:
        connection.execute("DROP TABLE task_queue")
    ((_, tables),) = database.manage().all("migrate asynctasq_django zero")
    assert not tables & TABLES


@pytest.mark.django_db(databases="__all__")
def test_models_and_migrations_agree() -> None:
    call_command("makemigrations", "--check", "--dry-run", stdout=StringIO())


@pytest.mark.django_db(databases="__all__")
def test_the_columns_are_those_of_the_models() -> None:
    for alias in connections:
        connection = connections[alias]
        with connection.cursor() as cursor:
            for model in (Task, DeadLetter):
                table = model._meta.db_table
                columns = {c.name: c for c in connection.introspection.get_table_description(cursor, table)}
                fields = {field.column: field for field in model._meta.local_fields}
                assert set(columns) - GENERATED == set(fields)


class Flushed(TransactionTestCase):
    databases = {"default", "postgres"}

    def _one_task(self) -> None:
        with self.settings(ASYNCTASQ={"database": "postgres"}):
            assert self._count("postgres") == 0
            accept().dispatch_sync()
            assert self._count("postgres") == 1
        with self.settings(ASYNCTASQ={"database": "default"}):
            assert self._count("default") == 0
            accept().dispatch_sync()
            assert self._count("default") == 1

    def _count(self, alias: str) -> int:
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT count(*) FROM task_queue")
            return int(cursor.fetchone()[0])

    def test_the_flush_after_a_test_empties_the_tables(self) -> None:
        self._one_task()

    def test_and_this_one_finds_them_empty_too(self) -> None:
        self._one_task()


@pytest.mark.django_db(transaction=True)
def test_dumpdata_passes_over_tasks(use: Any) -> None:
    broker: Broker = use("sqlite")
    accept().dispatch_sync()
    out = StringIO()
    call_command("dumpdata", stdout=out)
    assert not [row for row in json.loads(out.getvalue()) if row["model"].startswith("asynctasq_django")]
    assert len(broker.tasks()) == 1


def test_a_router_may_keep_the_tables_off_a_database(tmp_path: Path) -> None:
    database = Database("sqlite", tmp_path)
    manage = database.manage()
    manage.environment["ASYNCTASQ_TEST_ROUTER"] = "tests.django.routers.Nowhere"
    ((_, tables),) = manage.all("migrate asynctasq_django")
    assert not tables & TABLES
