"""What waits for a commit to go to another broker is in the transaction too, and sent whatever dies after it."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext

import asynctasq
from asynctasq import _runtime, _sync
from asynctasq.drivers.redis import RedisDriver
from asynctasq.errors import BrokerUnavailable, ConfigurationError, PayloadTooLarge
from asynctasq_django import outbox
from asynctasq_django.dispatch import DjangoDispatcher
from asynctasq_django.models import OutboxEntry
from tests.django.app.tasks import accept, write
from tests.django.conftest import Broker, Manage, notes
from tests.django.test_transactions import undone
from tests.drivers.places import closed_port

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")

NOW = timedelta(0)


@pytest.fixture(params=["default", "postgres"])
def broker(request: pytest.FixtureRequest, use: Callable[..., Broker]) -> Broker:
    """Redis, beside a database of each kind."""
    return use("redis", outbox=True, database=request.param)


def sweep(alias: str, older: timedelta = NOW) -> int:
    dispatcher = _runtime.runtime().dispatcher
    assert isinstance(dispatcher, DjangoDispatcher)
    return outbox.sweep(alias, dispatcher.send_now, older)


def waited_until(true: Callable[[], bool], within: float = 30.0) -> None:
    give_up = time.monotonic() + within
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.05)


def entries(broker: Broker) -> list[OutboxEntry]:
    return list(OutboxEntry.objects.using(broker.settings["database"]))


def test_a_task_is_in_the_transaction_and_leaves_the_outbox_when_it_is_sent(broker: Broker) -> None:
    with transaction.atomic(using=broker.settings["database"]):
        id = accept("kept").dispatch_sync()
        [entry] = entries(broker)
        assert [message.id for message in entry.read()] == [id]
        assert broker.tasks() == []
    assert [info.id for info in broker.tasks()] == [id]
    assert entries(broker) == []


def test_a_rollback_takes_the_entry_along(broker: Broker) -> None:
    with undone(broker.settings["database"]):
        accept("gone").dispatch_sync()
    assert entries(broker) == []
    assert broker.tasks() == []


def test_outside_of_transactions_the_outbox_is_not_used(broker: Broker) -> None:
    with CaptureQueriesContext(connections[broker.settings["database"]]) as queries:
        accept("now").dispatch_sync()
    assert len(queries) == 0
    assert len(broker.tasks()) == 1


def test_a_dispatch_of_many_is_one_query_in_the_transaction(broker: Broker) -> None:
    alias = broker.settings["database"]
    with transaction.atomic(using=alias):
        with CaptureQueriesContext(connections[alias]) as queries:
            asynctasq.dispatch_many_sync([accept(number) for number in range(50)])
        assert len(queries) == 1
    assert len(broker.tasks()) == 50


def test_when_the_broker_is_away_a_commit_succeeds_and_a_sweep_sends_later(
    use: Callable[..., Broker], caplog: pytest.LogCaptureFixture
) -> None:
    use("redis", outbox=True, redis_url=f"redis://127.0.0.1:{closed_port()}/5")
    with transaction.atomic():
        id = accept("late").dispatch_sync()
    assert "1 tasks wait for a worker to send them" in caplog.text
    with pytest.raises(BrokerUnavailable):
        sweep("default")
    assert OutboxEntry.objects.count() == 1
    broker = use("redis", outbox=True)
    entry = OutboxEntry.objects.get()
    message = entry.read()[0]
    assert message.id == id
    assert sweep("default") == 1
    found = asynctasq.repository()
    [info] = _sync.run(found.get([id]))
    assert info.status == "pending"
    _sync.run(found.delete([id]))
    assert broker.tasks() == []
    assert OutboxEntry.objects.count() == 0


def test_a_sweep_leaves_what_is_young(broker: Broker) -> None:
    alias = broker.settings["database"]
    with transaction.atomic(using=alias):
        accept("young").dispatch_sync()
        connections[alias].run_on_commit.clear()
    assert sweep(alias, outbox.GRACE) == 0
    assert sweep(alias) == 1
    assert len(broker.tasks()) == 1


def test_a_swept_entry_is_not_sent_again_by_its_own_process(broker: Broker) -> None:
    alias = broker.settings["database"]
    with transaction.atomic(using=alias):
        accept("once").dispatch_sync()
        [callback] = [entry[1] for entry in connections[alias].run_on_commit]
        connections[alias].run_on_commit.clear()
    assert sweep(alias) == 1
    broker.drain()
    callback()
    assert broker.tasks() == []


def test_what_can_never_be_sent_stays_and_holds_up_nothing(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alias = broker.settings["database"]
    ids = []
    for number in range(3):
        with transaction.atomic(using=alias):
            ids.append(accept(number).dispatch_sync())
            connections[alias].run_on_commit.clear()
    enqueue = RedisDriver.enqueue_sync

    def refusing(self: RedisDriver, messages: Any) -> None:
        if any(message.id == ids[1] for message in messages):
            raise PayloadTooLarge("too large for this one")
        enqueue(self, messages)

    monkeypatch.setattr(RedisDriver, "enqueue_sync", refusing)
    assert sweep(alias) == 2
    assert [info.id for info in broker.tasks()] == [ids[0], ids[2]]
    assert [entry.id for entry in entries(broker)] == [ids[1]]
    assert f"entry {ids[1]} cannot be sent and stays: too large for this one" in caplog.text


def test_an_entry_that_is_no_list_of_messages_stays_and_holds_up_nothing(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    alias = broker.settings["database"]
    OutboxEntry.objects.using(alias).create(id="0", driver="redis", messages=b"\xc1")
    with transaction.atomic(using=alias):
        id = accept("readable").dispatch_sync()
        connections[alias].run_on_commit.clear()
    assert sweep(alias) == 1
    assert [info.id for info in broker.tasks()] == [id]
    assert [entry.id for entry in entries(broker)] == ["0"]
    assert "entry 0 cannot be sent and stays: not a list of messages" in caplog.text


def test_a_broker_that_is_away_neither_holds_up_nor_repeats_what_is_for_another(broker: Broker) -> None:
    alias = broker.settings["database"]
    sent: list[str] = []

    def send(driver: str, messages: Any) -> None:
        if driver == "away":
            raise BrokerUnavailable("away")
        sent.extend(message.id for message in messages)

    ids = []
    for _ in range(2):
        with transaction.atomic(using=alias):
            ids.append(accept().dispatch_sync())
            connections[alias].run_on_commit.clear()
    OutboxEntry.objects.using(alias).filter(pk=ids[0]).update(driver="away")
    for _ in range(2):
        with pytest.raises(BrokerUnavailable):
            outbox.sweep(alias, send, NOW)
        assert sent == ids[1:]
    assert [entry.id for entry in entries(broker)] == ids[:1]


@pytest.mark.parametrize("count", [200])
def test_nothing_is_lost_when_processes_are_killed_between_commit_and_send(broker: Broker, count: int) -> None:
    alias = broker.settings["database"]
    connections.close_all()
    for number in range(count):
        child = os.fork()
        if child == 0:
            try:
                with transaction.atomic(using=alias):
                    # What runs first after the commit is the end of the process.
                    transaction.on_commit(lambda: os.kill(os.getpid(), signal.SIGKILL), using=alias)
                    accept(f"survivor{number}").dispatch_sync()
            finally:
                traceback.print_exc()
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert broker.tasks() == []
    assert sweep(alias) == count
    assert len({info.id for info in broker.tasks()}) == count
    broker.drain()
    assert broker.tasks() == []
    assert entries(broker) == []


def test_a_worker_sweeps(use: Callable[..., Broker]) -> None:
    broker = use("redis", outbox=True, database="postgres")
    with transaction.atomic(using="postgres"):
        write("swept").dispatch_sync()
        connections["postgres"].run_on_commit.clear()
    worker = Manage.on("postgres", broker.settings).start("asynctasq_worker")
    try:
        waited_until(lambda: notes("postgres") == ["swept"])
    finally:
        worker.terminate()
        worker.communicate(timeout=30)
    assert OutboxEntry.objects.using("postgres").count() == 0


def test_without_its_table_a_dispatch_names_the_command(use: Callable[..., Broker]) -> None:
    use("redis", outbox=True)
    with connection.schema_editor() as editor:
        editor.delete_model(OutboxEntry)
    try:
        with pytest.raises(ConfigurationError, match=r"manage\.py migrate"), transaction.atomic():
            accept().dispatch_sync()
    finally:
        with connection.schema_editor() as editor:
            editor.create_model(OutboxEntry)
