"""A task commits or rolls back with the rows it is about."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import connections, transaction
from django.test import TestCase, override_settings
from django.test.utils import CaptureQueriesContext

import asynctasq
from asynctasq import _sync
from asynctasq.drivers.base import TaskQuery
from asynctasq.errors import BrokerUnavailable, ConfigurationError
from tests.django.app.models import Note
from tests.django.app.tasks import accept, accept_on_redis, relay, relay_async, write
from tests.django.conftest import REDIS_DATABASE, Broker, notes

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


class Undo(Exception):
    """Ends a transaction."""


@contextlib.contextmanager
def undone(alias: str = "default") -> Iterator[None]:
    """A transaction that rolls back."""
    with contextlib.suppress(Undo), transaction.atomic(using=alias):
        yield
        raise Undo


def test_a_rollback_leaves_no_task(broker: Broker) -> None:
    with undone(broker.alias):
        Note.objects.using(broker.alias).create(text="gone")
        accept("gone").dispatch_sync()
    assert broker.tasks() == []
    assert notes(broker.alias) == []


def test_a_commit_leaves_exactly_one_task(broker: Broker) -> None:
    with transaction.atomic(using=broker.alias):
        id = accept("kept").dispatch_sync()
    assert [info.id for info in broker.tasks()] == [id]


def test_outside_of_transactions_a_task_is_there_at_once(broker: Broker) -> None:
    id = accept("now").dispatch_sync()
    assert [info.id for info in broker.tasks()] == [id]


def test_nobody_sees_a_task_before_the_commit(broker: Broker) -> None:
    with transaction.atomic(using=broker.alias):
        id = accept("soon").dispatch_sync()
        assert broker.tasks() == []
    assert [info.id for info in broker.tasks()] == [id]


def test_a_rolled_back_savepoint_takes_its_task_along(broker: Broker) -> None:
    with transaction.atomic(using=broker.alias):
        outer = accept("outer").dispatch_sync()
        with undone(broker.alias):
            accept("inner").dispatch_sync()
    assert [info.id for info in broker.tasks()] == [outer]


def test_many_are_dispatched_as_one(broker: Broker) -> None:
    with undone(broker.alias):
        asynctasq.dispatch_many_sync([accept(n) for n in range(20)])
    assert broker.tasks() == []
    with transaction.atomic(using=broker.alias):
        ids = asynctasq.dispatch_many_sync([accept(n) for n in range(20)])
    assert sorted(ids) == [info.id for info in broker.tasks()]


@pytest.mark.parametrize("name", ["sqlite", "postgres", "mysql"])
@pytest.mark.parametrize("count", [1, 50])
def test_on_a_database_a_dispatch_is_one_query(use: Callable[..., Broker], name: str, count: int) -> None:
    broker = use(name)
    accept().dispatch_sync()
    with (
        transaction.atomic(using=broker.alias),
        CaptureQueriesContext(connections[broker.alias]) as queries,
    ):
        asynctasq.dispatch_many_sync([accept() for _ in range(count)])
    assert len(queries) == 1
    with CaptureQueriesContext(connections[broker.alias]) as queries:
        asynctasq.dispatch_many_sync([accept() for _ in range(count)])
    assert len(queries) == 1


def test_tasks_are_dispatched_while_a_query_is_being_read(broker: Broker) -> None:
    Note.objects.using(broker.alias).bulk_create([Note(text=str(n)) for n in range(50)])
    with transaction.atomic(using=broker.alias):
        for note in Note.objects.using(broker.alias).iterator(chunk_size=5):
            accept(note.text).dispatch_sync()
    assert len(broker.tasks()) == 50


def test_the_driver_of_a_single_task_may_be_another_broker(use: Callable[..., Broker]) -> None:
    redis = use("redis")
    use("sqlite", redis_db=REDIS_DATABASE, default_queue=redis.queue)
    elsewhere = asynctasq.repository().on("redis")
    with undone():
        accept_on_redis().on_queue(redis.queue).dispatch_sync()
    assert _sync.run(elsewhere.find(TaskQuery(queue=redis.queue))).items == []
    with transaction.atomic():
        id = accept_on_redis().on_queue(redis.queue).dispatch_sync()
        assert _sync.run(elsewhere.get([id])) == []
    assert [info.id for info in _sync.run(elsewhere.get([id]))] == [id]
    # What the configured driver holds.
    assert redis.tasks() == []


# Brokers without Django's transactions


def test_on_another_broker_the_id_is_known_before_the_commit(use: Callable[..., Broker]) -> None:
    broker = use("redis")
    with transaction.atomic():
        id = accept().dispatch_sync()
        assert isinstance(id, str)
        assert broker.tasks() == []
    assert [info.id for info in broker.tasks()] == [id]


def test_a_task_waits_for_the_commit_of_the_alias_that_is_in_a_transaction(use: Callable[..., Broker]) -> None:
    broker = use("redis")
    with transaction.atomic(using="postgres"):
        id = accept().dispatch_sync()
        assert broker.tasks() == []
    assert [info.id for info in broker.tasks()] == [id]


def test_a_setting_sends_at_once_in_transactions_too(use: Callable[..., Broker]) -> None:
    broker = use("redis", enqueue_on_commit=False)
    with undone():
        id = accept().dispatch_sync()
    assert [info.id for info in broker.tasks()] == [id]


def test_in_transactions_on_several_aliases_one_must_be_named(use: Callable[..., Broker]) -> None:
    use("redis")
    told = pytest.raises(ConfigurationError, match="transactions are open on default, postgres: name the one")
    with transaction.atomic(using="default"), transaction.atomic(using="postgres"), told:
        accept().dispatch_sync()
    broker = use("redis", database="postgres")
    with transaction.atomic(using="default"):
        with transaction.atomic(using="postgres"):
            id = accept().dispatch_sync()
            assert broker.tasks() == []
        assert [info.id for info in broker.tasks()] == [id]


def test_a_broker_that_is_down_raises_where_the_task_is_sent(use: Callable[..., Broker]) -> None:
    use("redis", redis_url="redis://127.0.0.1:9")
    with pytest.raises(BrokerUnavailable):
        accept().dispatch_sync()

    def save() -> None:
        with transaction.atomic():
            Note.objects.create(text="kept")
            accept().dispatch_sync()

    with pytest.raises(BrokerUnavailable):
        save()
    assert notes() == ["kept"]


class InTestCases(TestCase):
    databases = {"default", "postgres"}

    def test_the_transactions_around_a_test_are_not_several_to_choose_from(self) -> None:
        given = {"driver": "redis", "redis_db": 5, "default_queue": "django-testcase"}
        with override_settings(ASYNCTASQ=given):
            with self.captureOnCommitCallbacks() as callbacks:
                accept().dispatch_sync()
            assert len(callbacks) == 1
            with self.captureOnCommitCallbacks(using="postgres") as callbacks, transaction.atomic(using="postgres"):
                accept().dispatch_sync()
            assert len(callbacks) == 1


# From other threads and under loops


@pytest.mark.behaviour(15)
def test_tasks_are_dispatched_synchronously_under_a_running_loop(broker: Broker) -> None:
    async def main() -> str:
        return accept("under a loop").dispatch_sync()

    id = asyncio.run(main())
    assert [info.id for info in broker.tasks()] == [id]


def test_async_code_reaches_the_transaction_through_sync_to_async(broker: Broker) -> None:
    @sync_to_async
    def save() -> None:
        with transaction.atomic(using=broker.alias):
            accept("undone").dispatch_sync()
            raise Undo

    async def main() -> None:
        with pytest.raises(Undo):
            await save()

    async_to_sync(main)()
    assert broker.tasks() == []


def test_awaited_dispatch_sends_at_once(broker: Broker) -> None:
    async def main() -> str:
        return await accept("at once").dispatch()

    id = asyncio.run(main())
    assert [info.id for info in broker.tasks()] == [id]


def test_each_thread_has_its_own_transaction(use: Callable[..., Broker]) -> None:
    broker = use("postgres")

    def work(number: int) -> None:
        with undone("postgres") if number % 2 else transaction.atomic(using="postgres"):
            accept(number).dispatch_sync()
        connections.close_all()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(broker.tasks()) == 4


@pytest.mark.parametrize("parent", [relay, relay_async])
def test_tasks_dispatch_tasks(broker: Broker, parent: Any) -> None:
    parent("relayed").dispatch_sync()
    worker = broker.drain()
    assert (worker.completed, worker.dead) == (2, 0)
    # A task writes to the default database wherever it was queued.
    assert notes() == ["relayed"]


def test_a_missing_table_says_to_migrate(use: Callable[..., Broker]) -> None:
    use("postgres", postgres_queue_table="nowhere")
    with pytest.raises(ConfigurationError, match="the queue tables are missing in the database 'postgres'"):
        write("x").dispatch_sync()
