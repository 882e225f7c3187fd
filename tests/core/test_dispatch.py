"""Handing tasks over: from any thread, from any loop or none, many at once, after a fork, to another driver."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

import asynctasq
from asynctasq import task
from asynctasq.config import Config
from asynctasq.core.message import MAX_MESSAGE_BYTES
from asynctasq.drivers.base import TaskQuery
from asynctasq.errors import ConfigurationError, PayloadTooLarge
from tests.app import App
from tests.drivers.places import Place


@task
async def number(n: int) -> None: ...


async def ids_in(queue: str = "default") -> list[str]:
    """Every task of a queue, oldest first."""
    found: list[str] = []
    query = TaskQuery(queue=queue, limit=1000)
    while True:
        page = await asynctasq.repository().find(query)
        found += [info.id for info in page.items]
        if page.next is None:
            return found[::-1]
        query = TaskQuery(queue=queue, limit=1000, cursor=page.next)


@pytest.mark.behaviour(15)
async def test_a_dispatched_task_is_in_the_broker_when_dispatch_returns(app: App) -> None:
    id = await number(1).dispatch()
    info = await app.info(id)
    assert (info.id, info.status, info.task, info.queue) == (id, "pending", number.task_name, "default")


@pytest.mark.behaviour(15)
async def test_many_are_dispatched_in_one_call_and_their_ids_come_in_order(app: App) -> None:
    ids = await asynctasq.dispatch_many([number(n) for n in range(2_500)])
    assert len(set(ids)) == 2_500
    assert await ids_in() == ids == sorted(ids)
    more = await asyncio.to_thread(asynctasq.dispatch_many_sync, [number(n).on_queue("q") for n in range(3)])
    assert await ids_in("q") == more
    assert await asynctasq.dispatch_many([]) == []
    assert asynctasq.dispatch_many_sync([]) == []


@pytest.mark.behaviour(15)
def test_dispatch_sync_works_a_thousand_times_from_eight_threads(app_without_loop: App) -> None:
    made: list[list[str]] = [[] for _ in range(8)]
    failures: list[BaseException] = []

    def produce(mine: list[str]) -> None:
        try:
            mine.extend(number(n).dispatch_sync() for n in range(125))
        except BaseException as exc:  # noqa: BLE001 - shown below
            failures.append(exc)

    threads = [threading.Thread(target=produce, args=(mine,)) for mine in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(asyncio.run(ids_in())) == sorted(id for mine in made for id in mine)
    assert sum(map(len, made)) == 1_000


@pytest.mark.behaviour(15)
async def test_dispatch_sync_works_from_under_a_running_loop(app: App) -> None:
    ids = [number(n).dispatch_sync() for n in range(20)]
    assert await ids_in() == ids


@pytest.mark.behaviour(15)
async def test_dispatch_sync_works_inside_tasks_of_every_kind(app: App) -> None:
    @task
    async def on_the_loop() -> None:
        number(1).on_queue("children").dispatch_sync()

    @task
    def off_the_loop() -> None:
        number(2).on_queue("children").dispatch_sync()

    await asynctasq.dispatch_many([on_the_loop(), off_the_loop()])
    worker = await app.work(2)
    assert worker.completed == 2
    assert await app.counts("children") == {"pending": 2}


@pytest.mark.behaviour(15)
def test_a_hundred_loops_in_a_row_dispatch_each(app_without_loop: App) -> None:
    ids = [asyncio.run(number(n).dispatch()) for n in range(100)]
    assert asyncio.run(ids_in()) == ids


@pytest.mark.behaviour(15)
async def test_many_coroutines_dispatch_at_once(app: App) -> None:
    ids = await asyncio.gather(*(number(n).dispatch() for n in range(500)))
    assert sorted(await ids_in()) == sorted(ids)


@pytest.mark.behaviour(15)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_parent_and_child_both_dispatch_after_a_fork(app_without_loop: App) -> None:
    def produce() -> None:
        for n in range(25):
            number(n).dispatch_sync()
        asyncio.run(dispatch_async())

    async def dispatch_async() -> None:
        await asynctasq.dispatch_many([number(n) for n in range(25)])

    produce()
    child = _fork(produce)
    produce()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    produce()
    assert len(set(asyncio.run(ids_in()))) == 4 * 50


def _fork(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


@pytest.mark.behaviour(15)
async def test_one_that_cannot_be_sent_keeps_the_others_from_being_sent(app: App) -> None:
    loose: Any = number
    with pytest.raises(TypeError):
        await asynctasq.dispatch_many([number(1), loose(object())])
    with pytest.raises(TypeError):
        await asynctasq.dispatch_many([number(1), loose(1, 2)])
    assert await ids_in() == []


@pytest.mark.behaviour(15)
async def test_a_cancelled_dispatch_does_not_harm_the_next(app: App) -> None:
    for _ in range(20):
        dispatching = asyncio.create_task(number(1).dispatch())
        await asyncio.sleep(0)
        dispatching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dispatching
    id = await number(2).dispatch()
    assert (await app.info(id)).status == "pending"


@pytest.mark.behaviour(15)
async def test_what_is_too_large_is_refused_before_anything_is_sent(app: App) -> None:
    loose: Any = number
    large = bytes(MAX_MESSAGE_BYTES)
    with pytest.raises(PayloadTooLarge, match=f"{number.task_name}.* bytes"):
        await asynctasq.dispatch_many([number(1), loose(large)])
    with pytest.raises(PayloadTooLarge):
        await asyncio.to_thread(loose(large).dispatch_sync)
    assert await app.counts() == {}


# ---- another driver for one task


@pytest.mark.behaviour(16)
@pytest.mark.parametrize("by", ["name", "instance"])
async def test_a_task_s_own_driver_routes_that_task_alone(app: App, places: Callable[[str], Place], by: str) -> None:
    other = places({"sqlite": "redis", "redis": "postgres"}.get(app.place.name, "sqlite"))
    other.reset()
    await other.prepare()
    app.configure(**other.options)
    elsewhere = other.create()
    await elsewhere.connect()

    @task(driver=other.name if by == "name" else elsewhere)
    async def routed() -> None: ...

    before = Config.get()
    ids = await asynctasq.dispatch_many([number(1), routed(), number(2)])
    assert Config.get() is before
    assert await ids_in() == [ids[0], ids[2]]
    there = await asynctasq.repository(other.name).get(ids)
    assert [info.id for info in there] == [ids[1]]
    if by == "name":
        await asyncio.to_thread(routed().dispatch_sync)
        assert [s.pending for s in await asynctasq.repository(other.name).stats(["default"])] == [2]
    await elsewhere.close()


@pytest.mark.behaviour(16)
async def test_an_unknown_driver_of_a_task_is_named_at_dispatch(embedded: App) -> None:
    @task(driver="kafka")
    async def routed() -> None: ...

    with pytest.raises(ConfigurationError, match="driver 'kafka' is not available"):
        await routed().dispatch()
