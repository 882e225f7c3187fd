"""A worker of a Django project."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.db import connections, transaction

from asynctasq_django import db
from tests.django.app import tasks as watched
from tests.django.app.models import Note
from tests.django.app.tasks import (
    Shout,
    accept,
    fail,
    linger,
    note_backend,
    note_backend_async,
    note_backend_in_process,
    relay,
    relay_async,
    rename_in_process,
    speak,
    write,
    write_async,
    write_in_process,
)
from tests.django.conftest import Broker, Manage, notes

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


def eventually(probe: Callable[[], Any], within: float = 20) -> None:
    deadline = time.monotonic() + within
    while not probe():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.behaviour(12)
def test_tasks_of_all_kinds_run_in_a_worker_of_its_own_process(broker: Broker) -> None:
    """Redis has its rows in SQLite."""
    note = Note.objects.using(broker.alias).create(text="old")
    write("sync").dispatch_sync()
    write_async("async").dispatch_sync()
    write_in_process("process", os.getpid()).dispatch_sync()
    relay("relayed").dispatch_sync()
    relay_async("relayed async").dispatch_sync()
    Shout(text="class").dispatch_sync()
    fail("dead").dispatch_sync()
    # Its own default is what we call by another name: the reference is to where the row is for the worker.
    note._state.db = "default"
    rename_in_process(note, text="renamed").dispatch_sync()
    Manage.on(broker.alias, broker.settings)("asynctasq_worker", "--drain", "--process-pool-size", "1")
    expected = ["CLASS", "async", "process elsewhere", "relayed", "relayed async", "renamed", "sync"]
    assert sorted(notes(broker.alias)) == expected
    (info,) = broker.tasks()
    assert (info.status, info.task) == ("dead", "tests.django.app.tasks.fail")


def test_a_worker_ends_at_sigterm_and_gives_back_nothing_undone(use: Callable[..., Broker]) -> None:
    broker = use("sqlite")
    process = Manage.on("default", broker.settings).start("asynctasq_worker")
    write("seen").dispatch_sync()
    eventually(lambda: notes() == ["seen"])
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert broker.tasks() == []


def test_a_worker_that_reloads_runs_tasks_and_ends_at_sigterm(use: Callable[..., Broker], tmp_path: Path) -> None:
    broker = use("sqlite")
    process = Manage.on("default", broker.settings).start("asynctasq_worker", "--reload")
    write("reloading").dispatch_sync()
    eventually(lambda: notes() == ["reloading"])
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_what_runs_when_code_changes_is_run_again_at_once(use: Callable[..., Broker]) -> None:
    """And not when its lease has run out."""

    def change() -> bool:
        """More than once, for the reloader may not have been looking yet."""
        Path(watched.__file__).touch()
        time.sleep(3)
        return notes() == ["x", "x again"]

    broker = use("sqlite", default_visibility_timeout=300)
    process = Manage.on("default", broker.settings).start("asynctasq_worker", "--reload")
    try:
        linger("x").dispatch_sync()
        eventually(lambda: notes() == ["x"])
        eventually(change)
        eventually(lambda: broker.tasks() == [])
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


def test_a_worker_that_reloads_says_in_one_line_what_is_wrong(use: Callable[..., Broker]) -> None:
    broker = use("postgres", postgres_queue_table="nowhere")
    code, errors = Manage.on("postgres", broker.settings).fails("asynctasq_worker", "--reload")
    assert code == 2
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("CommandError: the queue tables are missing")


def test_several_processes_share_a_queue(use: Callable[..., Broker]) -> None:
    broker = use("postgres")
    for number in range(20):
        write(str(number)).dispatch_sync()
    Manage.on("postgres", broker.settings)("asynctasq_worker", "--drain", "--processes", "2")
    assert sorted(map(int, notes("postgres"))) == list(range(20))


# Connections


def kill_backends(alias: str) -> None:
    """End every other connection to this database, as a restarted server would."""
    with connections[alias].cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name = 'doomed'"
        )


@pytest.mark.parametrize("work", [note_backend, note_backend_async, note_backend_in_process])
@pytest.mark.parametrize(
    ("options", "kept", "attempts"),
    [
        pytest.param({"CONN_MAX_AGE": 0}, False, ["1", "1"], id="closed after each task"),
        pytest.param({"CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": True}, True, ["1", "1"], id="checked"),
        pytest.param({"CONN_MAX_AGE": None}, True, ["1", "2"], id="unchecked"),
    ],
)
def test_a_connection_that_was_killed_between_tasks_is_replaced(
    use: Callable[..., Broker], work: Any, options: dict[str, Any], kept: bool, attempts: list[str]
) -> None:
    """Without health checks the first task to meet the dead connection fails, and its retry has another."""
    broker = use("postgres")
    manage = Manage.on("postgres", broker.settings, OPTIONS={"application_name": "doomed"}, **options)
    process = manage.start("asynctasq_worker", "--concurrency", "1", "--process-pool-size", "1")
    try:
        work().dispatch_sync()
        eventually(lambda: len(notes("postgres")) == 1)
        work().dispatch_sync()
        eventually(lambda: len(notes("postgres")) == 2)
        first, second = (note.split()[1] for note in notes("postgres"))
        assert (first == second) is kept
        Note.objects.using("postgres").first().delete()  # type: ignore[union-attr]
        kill_backends("postgres")
        work().dispatch_sync()
        eventually(lambda: len(notes("postgres")) == 2)
        assert [note.split()[0] for note in notes("postgres")] == attempts
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert broker.dead() == []


def test_care_leaves_a_tests_own_transaction_alone() -> None:
    with transaction.atomic():
        Note.objects.create(text="in a transaction")
        with db.care():
            pass
        assert notes() == ["in a transaction"]


def test_nothing_of_one_task_leaks_into_the_next(use: Callable[..., Broker]) -> None:
    broker = use("sqlite")
    speak("de").dispatch_sync()
    speak(None).dispatch_sync()
    Manage.on("default", broker.settings)("asynctasq_worker", "--drain", "--concurrency", "1")
    assert notes() == ["en-us", "en-us"]


def test_a_worker_opens_no_connection_that_its_tasks_do_not_need(use: Callable[..., Broker]) -> None:
    broker = use("redis")
    manage = Manage.at("postgres", "no_such_database", broker.settings)
    accept().dispatch_sync()
    manage("asynctasq_worker", "--drain")
    assert broker.tasks() == []
