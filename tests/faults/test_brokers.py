"""Brokers that die, come back, fall silent, or answer and are not heard."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from asynctasq.drivers.base import Driver
from asynctasq.errors import BrokerError, BrokerUnavailable
from tests.drivers.conftest import message
from tests.drivers.places import PLACES, Place, Server, SqlitePlace
from tests.faults import tasks
from tests.faults.ledger import Verdict
from tests.faults.proxy import Deaf, marker
from tests.faults.servers import PATIENCE, create, place_on
from tests.faults.world import World

PRODUCER_DEADLINE = 3.0
SERVERS = [name for name, kind in PLACES.items() if issubclass(kind, Server)]


# ---- a server of our own, killed and started again


@pytest.fixture(scope="module", params=SERVERS)
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    server = create(request.param, tmp_path_factory.mktemp(request.param) / "server")
    server.start()
    yield server
    server.remove()


@pytest.fixture
async def mortal(own: Any, alone: None, tmp_path: Path, seed: int) -> AsyncIterator[World]:
    """A world on a server that may be killed, running."""
    own.start()
    with place_on(own) as place:
        place.reset()
        async with World(place, tmp_path, seed, default_visibility_timeout=4.0) as one:
            yield one
            one.report()
        # To be left clean.
        own.start()


async def keep_dispatching(world: World, count: int, prefix: str) -> None:
    """Hand over whatever the broker takes; what it did not take by the deadline counts as not accepted."""
    for number in range(0, count, 10):
        try:
            await world.dispatch(world.mixed(10, f"{prefix}-{number}-"))
        except BrokerError:
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.02)


async def resumed(world: World, since: float) -> float:
    """Seconds from ``since`` to the first start after it."""
    while not (later := [line.at for line in world.ran.lines("start") if line.at > since]):
        assert time.monotonic() - since < PATIENCE, f"nothing started {PATIENCE:g} s after the broker was back"
        await asyncio.sleep(0.02)
    return min(later) - since


async def test_a_broker_killed_under_load_is_used_again_and_has_lost_nothing_that_it_accepted(
    mortal: World, own: Any
) -> None:
    workers = await mortal.working(2)
    for round_ in range(2):
        producing = asyncio.create_task(keep_dispatching(mortal, 300, f"round{round_}"))
        await mortal.busy(workers)
        await asyncio.sleep(mortal.chance.uniform(0, 0.1))
        await asyncio.to_thread(own.kill)
        await asyncio.sleep(0.5)
        await asyncio.to_thread(own.start)
        took = await resumed(mortal, time.monotonic())
        print(f"{own.name} restart {round_}: resumed after {took:.2f} s")
        await producing
    verdict = await mortal.verdict(await mortal.drained(), released=True)
    print(verdict.line(own.name, "broker killed", mortal.seed))
    no_loss_and_no_repetition(verdict)
    for worker in workers:
        assert worker.code is None
        worker.send(signal.SIGTERM)
    for worker in workers:
        assert await worker.ended() == 0


def no_loss_and_no_repetition(verdict: Verdict) -> None:
    assert (verdict.lost, verdict.stuck, verdict.overlap, verdict.wrong, verdict.phantom) == (0, 0, 0, 0, 0), verdict
    assert verdict.duplicates == 0, verdict


async def test_a_worker_waits_for_a_broker_that_is_not_there_and_says_so(mortal: World, own: Any) -> None:
    await mortal.dispatch([tasks.nap("waiting", 0.0)])
    await asyncio.to_thread(own.kill)
    worker = mortal.spawn()
    await worker.says("waiting for the broker")
    with pytest.raises(BrokerUnavailable):
        await mortal.dispatch([tasks.nap("refused", 0.0)])
    assert worker.code is None
    await asyncio.to_thread(own.start)
    since = time.monotonic()
    await mortal.started("waiting", within=PATIENCE)
    assert time.monotonic() - since < PATIENCE
    assert await mortal.drained() == 0


async def test_a_worker_that_waits_for_its_broker_can_be_stopped(mortal: World, own: Any) -> None:
    await asyncio.to_thread(own.kill)
    worker = mortal.spawn()
    await worker.says("waiting for the broker")
    worker.send(signal.SIGTERM)
    assert await worker.ended(within=5) == 0


async def test_a_locked_database_file_holds_work_up_and_loses_nothing(
    alone: None, places: Callable[[str], Place], tmp_path: Path, seed: int
) -> None:
    place = places("sqlite")
    assert isinstance(place, SqlitePlace)
    place.reset()
    async with World(place, tmp_path, seed, default_visibility_timeout=20.0) as world:
        workers = await world.working(2)
        await world.dispatch(world.mixed(200, "before"))
        await world.busy(workers)
        with closing(sqlite3.connect(place.path, isolation_level=None, timeout=5)) as other:
            other.execute("BEGIN IMMEDIATE")
            await asyncio.sleep(6)
            other.execute("ROLLBACK")
        since = time.monotonic()
        await world.dispatch(world.mixed(50, "after"))
        print(f"sqlite locked: resumed after {await resumed(world, since):.2f} s")
        verdict = await world.verdict(await world.drained())
        no_loss_and_no_repetition(verdict)
        assert verdict.clean, verdict
        world.report()


# ---- between driver and broker


@pytest.fixture(params=SERVERS)
async def proxied(
    request: pytest.FixtureRequest, alone: None, places: Callable[[str], Place], tmp_path: Path, seed: int
) -> AsyncIterator[tuple[World, Deaf]]:
    """A world whose workers reach the broker through a proxy."""
    place = places(request.param)
    assert isinstance(place, Server)
    place.reset()
    async with World(place, tmp_path, seed, default_visibility_timeout=5.0) as world, Deaf(place) as proxy:
        yield world, proxy
        proxy.cut()
        world.report()


def through(world: World, proxy: Deaf) -> dict[str, Any]:
    assert isinstance(world.place, Server)
    options = world.place.at(proxy.host, proxy.port)
    return {name: value for name, value in options.items() if name in ("redis_url", "postgres_dsn", "mysql_dsn")}


@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
async def test_a_worker_stopped_while_its_broker_is_a_black_hole_ends_within_five_seconds_of_its_limit(
    proxied: tuple[World, Deaf], busy: bool
) -> None:
    world, proxy = proxied
    [worker] = await world.working(1, "--shutdown-timeout", "1", **through(world, proxy))
    if busy:
        await world.dispatch([tasks.nap("long", 30.0), tasks.rest("thread", 30.0)])
        for label in ("long", "thread"):
            await world.started(label)
    proxy.swallow()
    await asyncio.sleep(world.chance.uniform(0, 1))
    worker.send(signal.SIGTERM)
    since = time.monotonic()
    code = await worker.ended(within=15)
    took = time.monotonic() - since
    print(f"{world.place.name} black hole, busy={busy}: ended after {took:.2f} s")
    assert code == 0
    assert took <= 1 + 5


async def test_a_worker_stopped_while_it_connects_to_a_black_hole_ends_within_five_seconds(
    proxied: tuple[World, Deaf],
) -> None:
    world, proxy = proxied
    proxy.swallow()
    worker = world.spawn("--shutdown-timeout", "1", **through(world, proxy))
    await asyncio.sleep(1.5)
    worker.send(signal.SIGTERM)
    since = time.monotonic()
    assert await worker.ended(within=15) == 0
    assert time.monotonic() - since <= 6


async def test_a_producer_is_told_by_its_deadline_that_the_broker_is_silent(proxied: tuple[World, Deaf]) -> None:
    world, proxy = proxied
    world.configure(**through(world, proxy))
    await world.dispatch([tasks.nap("first", 0.0)])
    await asyncio.to_thread(tasks.nap("second", 0.0).dispatch_sync)
    proxy.swallow()

    async def refused(call: Callable[[], Awaitable[Any]]) -> float:
        since = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            await call()
        return time.monotonic() - since

    took = await asyncio.gather(
        refused(tasks.nap("never", 0.0).dispatch),
        refused(lambda: asyncio.to_thread(tasks.nap("never", 0.0).dispatch_sync)),
    )
    print(f"{world.place.name} producer told after {took[0]:.2f} s, sync {took[1]:.2f} s")
    assert max(took) <= PRODUCER_DEADLINE + 0.5
    proxy.cut()
    proxy.heal()
    await tasks.nap("third", 0.0).dispatch()
    await asyncio.to_thread(tasks.nap("fourth", 0.0).dispatch_sync)


async def test_an_enqueue_whose_answer_was_lost_is_one_task_however_often_it_is_repeated(
    proxied: tuple[World, Deaf],
) -> None:
    world, proxy = proxied
    driver: Driver = world.place.create(**through(world, proxy))
    await driver.connect()
    sent = [message("default") for _ in range(3)]
    proxy.marker = marker(driver.name, "enqueue")
    with suppress(BrokerUnavailable):
        await driver.enqueue(sent)
    assert proxy.heard
    assert await world.left() == 3
    await driver.enqueue(sent)
    assert await world.left() == 3
    await driver.close()


async def test_an_outcome_whose_answer_was_lost_counts_once(proxied: tuple[World, Deaf]) -> None:
    world, proxy = proxied
    proxy.marker = marker(world.place.name, "ack")
    [worker] = await world.working(1, **through(world, proxy))
    await world.dispatch([tasks.nap(f"t{number}", 0.2) for number in range(5)])
    assert await world.drained() == 0
    assert proxy.heard
    await world.dispatch([tasks.nap("next", 0.0)])
    await world.started("next", within=PATIENCE)
    assert await world.drained() == 0
    verdict = await world.verdict()
    assert verdict.clean, verdict
    assert verdict.duplicates == 0
    worker.send(signal.SIGTERM)
    assert await worker.ended() == 0
    assert "stopped after 6 attempts" in worker.output
