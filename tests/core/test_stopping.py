"""Signals, and a broker that goes away and comes back."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import asynctasq
from asynctasq import task
from asynctasq.core.message import Message
from asynctasq.core.worker import FLUSH_LIMIT
from asynctasq.errors import BrokerUnavailable
from asynctasq.tasks import BaseTask
from scripts.services import SERVICES, Service
from tests.app import App, Ledger, until, until_equal
from tests.drivers.places import Place, closed_port
from tests.faults.servers import DRIVERS
from tests.jobs import nap, nap_the_first_time, note

# ---- signals


@pytest.mark.behaviour(23)
async def test_sigterm_under_load_ends_with_0_and_what_ran_is_neither_lost_nor_run_twice(
    app: App, ledger: Ledger
) -> None:
    names = [f"task {number}" for number in range(400)]
    await asynctasq.dispatch_many([nap(str(ledger), name, 0.03) for name in names])
    worker = app.spawn("--concurrency", "20")
    await until(lambda: len(ledger.starts()) > 40, 20, worker)
    worker.send(signal.SIGTERM)
    assert await worker.ended(10) == 0
    ran = len(ledger.starts())
    assert ran < len(names)
    assert ledger.counts("start") == ledger.counts("end")
    assert await app.counts() == {"pending": len(names) - ran}
    rest = await app.work(len(names) - ran, concurrency=50)
    assert rest.completed == len(names) - ran
    assert ledger.counts("end") == dict.fromkeys(names, 1)
    # What was claimed ahead and given back did not count as an attempt.
    assert {one.attempt for one in ledger.starts()} == {1}


@pytest.mark.behaviour(23)
async def test_a_task_longer_than_the_shutdown_timeout_is_given_back_and_its_attempt_not_counted(
    app: App, ledger: Ledger
) -> None:
    await nap_the_first_time(str(ledger), "long", 60).dispatch()
    worker = app.spawn("--shutdown-timeout", "0.3")
    await until(ledger.starts, 20, worker)
    told = time.monotonic()
    worker.send(signal.SIGTERM)
    assert await worker.ended(10) == 0
    assert 0.3 <= time.monotonic() - told <= 0.3 + 5
    assert await app.counts() == {"pending": 1}
    second = await app.work(1, within=2)
    assert second.completed == 1
    assert [one.attempt for one in ledger.starts("long")] == [1, 1]


@pytest.mark.behaviour(23)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_it_at_once(embedded: App, ledger: Ledger, number: signal.Signals) -> None:
    await nap_the_first_time(str(ledger), "long", 60).dispatch()
    worker = embedded.spawn("--shutdown-timeout", "60")
    await until(ledger.starts, 20, worker)
    worker.send(number)
    await asyncio.sleep(0.2)
    assert worker.code is None
    worker.send(number)
    assert await worker.ended(5) == 0
    assert await embedded.counts() == {"pending": 1}


@pytest.mark.behaviour(23)
async def test_a_thread_that_does_not_end_does_not_hold_the_stop(app: App) -> None:
    released = asyncio.Event()
    loop = asyncio.get_running_loop()

    @task
    def stubborn() -> None:
        loop.call_soon_threadsafe(released.set)
        time.sleep(2)  # In C: no interrupt reaches it.

    await stubborn().dispatch()
    async with app.working(shutdown_timeout=0.1):
        await released.wait()
        before = time.monotonic()
    assert time.monotonic() - before < 0.1 + 5
    assert await app.counts() == {"pending": 1}


@pytest.mark.behaviour(23)
async def test_a_worker_that_is_cancelled_gives_back_what_it_holds_and_writes_down_what_ended(app: App) -> None:
    ends: list[str] = []

    @task
    async def long() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ends.append("long")

    @task
    async def short() -> None:
        ends.append("short")

    await long().dispatch()
    await short().dispatch()
    worker = asynctasq.Worker(concurrency=2, shutdown_timeout=60)
    running = asyncio.create_task(worker.start())
    await until(lambda: ends)
    running.cancel()
    before = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert time.monotonic() - before < 5
    assert ends == ["short", "long"]
    assert await app.counts() == {"pending": 1}


@pytest.mark.behaviour(23)
async def test_a_draining_worker_writes_its_outcomes_however_long_the_broker_is_away(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    @task
    async def quick() -> None: ...

    await quick().dispatch()
    worker = asynctasq.Worker(drain=True)
    ack = worker._driver.ack
    back = time.monotonic() + FLUSH_LIMIT + 1

    async def away(done: Any) -> Any:
        if time.monotonic() < back:
            raise BrokerUnavailable("not there")
        return await ack(done)

    monkeypatch.setattr(worker._driver, "ack", away)
    async with asyncio.timeout(20):
        await worker.start()
    assert worker.completed == 1
    assert await app.counts() == {}


# ---- the broker restarts


class OwnServer(Place):
    """A place on a server that may be restarted and killed; empty for each test."""

    numbers = itertools.count()

    def __init__(self, server: Service) -> None:
        # A ClassVar elsewhere; here one class stands for several servers.
        self.name = DRIVERS.get(server.name, server.name)  # type: ignore[misc]
        self.server = server
        number = next(self.numbers)
        options: dict[str, dict[str, Any]] = {
            "postgres": {
                "postgres_dsn": server.url,
                "postgres_queue_table": f"queue_{number}",
                "postgres_dead_letter_table": f"dead_{number}",
                "postgres_min_pool_size": 1,
            },
            "mariadb": {
                "mysql_dsn": server.url,
                "mysql_queue_table": f"queue_{number}",
                "mysql_dead_letter_table": f"dead_{number}",
                "mysql_min_pool_size": 1,
            },
            "redis": {"redis_url": f"{server.url}/{number % 16}"},
        }
        self.options = options[server.name]

    def reset(self) -> None: ...

    def put(self, message: Message, payload: bytes) -> None: ...

    def traces(self) -> int:
        return 0


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Service]]:
    """Servers of our own, each started when it is first asked for."""
    made: dict[str, Service] = {}

    def server(name: str) -> Service:
        if name not in made:
            made[name] = SERVICES[name](tmp_path_factory.mktemp(name) / "server")
        made[name].start()
        return made[name]

    yield server
    for one in made.values():
        one.remove()


@pytest.fixture(params=["postgres", "mariadb", "redis"])
async def private(
    request: pytest.FixtureRequest, alone: None, servers: Callable[[str], Service], tmp_path: Path
) -> AsyncIterator[App]:
    """An application on a server of our own."""
    place = OwnServer(servers(request.param))
    await place.prepare()
    app = App(place, tmp_path)
    yield app
    app.end()


def server_of(app: App) -> Service:
    assert isinstance(app.place, OwnServer)
    return app.place.server


@pytest.mark.behaviour(23)
async def test_a_broker_that_is_gone_does_not_hold_the_stop(private: App) -> None:
    worker = private.spawn("--shutdown-timeout", "0.5")
    await worker.ready()
    server_of(private).kill()
    told = time.monotonic()
    worker.send(signal.SIGTERM)
    assert await worker.ended(10) == 0
    assert time.monotonic() - told <= 0.5 + 5


@pytest.mark.behaviour(24)
@pytest.mark.parametrize(("when", "how"), [("idle", "cleanly"), ("busy", "by kill -9")])
async def test_a_worker_carries_on_when_the_broker_was_restarted(
    private: App, ledger: Ledger, how: str, when: str
) -> None:
    server = server_of(private)
    names = [f"task {number}" for number in range(30 if when == "busy" else 0)]
    worker = private.spawn("--concurrency", "2")
    await worker.ready()
    await asynctasq.dispatch_many([nap(str(ledger), name, 0.05) for name in names])
    if when == "busy":
        await until(lambda: len(ledger.ends()) > 3, 20, worker)
    await asyncio.to_thread(server.stop if how == "cleanly" else server.kill)
    await asyncio.sleep(0.3)
    await asyncio.to_thread(server.start)
    up = time.monotonic()
    await _dispatch_when_possible(note(str(ledger), "after"))
    await until(lambda: ledger.ends("after"), 20, worker)
    assert time.monotonic() - up <= 10
    await until(lambda: {one.label for one in ledger.ends()} >= set(names), 20, worker)
    await until_equal(private.counts, {})
    assert worker.code is None
    assert worker.output.count("waiting for the broker") <= 20
    worker.send(signal.SIGTERM)
    assert await worker.ended() == 0


async def _dispatch_when_possible(call: BaseTask[Any]) -> None:
    """A producer is told that the broker is not there, and tries again."""
    for _ in range(20):
        try:
            await call.dispatch()
        except BrokerUnavailable:
            await asyncio.sleep(0.2)
        else:
            return
    raise AssertionError("the producer never reached the broker again")


@pytest.mark.behaviour(24)
async def test_a_worker_waits_for_a_broker_that_is_not_there_yet(private: App, ledger: Ledger) -> None:
    server = server_of(private)
    await asyncio.to_thread(server.stop)
    worker = private.spawn()
    await until(lambda: "waiting for the broker" in worker.output, 20, worker)
    await asyncio.to_thread(server.start)
    await _dispatch_when_possible(note(str(ledger), "late"))
    await until(lambda: ledger.ends("late"), 20, worker)


@pytest.mark.behaviour(24)
async def test_a_producer_gets_its_error_by_the_deadline_when_the_broker_is_not_there(
    alone: None, tmp_path: Path
) -> None:
    port = closed_port()

    @task
    async def nothing() -> None: ...

    for options in (
        {"driver": "redis", "redis_url": f"redis://127.0.0.1:{port}"},
        {"driver": "postgres", "postgres_dsn": f"postgresql://test:canary@127.0.0.1:{port}/test_db"},
        {"driver": "mysql", "mysql_dsn": f"mysql://test:canary@127.0.0.1:{port}/test_db"},
    ):
        asynctasq.init(options)
        before = time.monotonic()
        with pytest.raises(BrokerUnavailable) as error:
            await nothing().dispatch()
        with pytest.raises(BrokerUnavailable):
            await asyncio.to_thread(nothing().dispatch_sync)
        assert time.monotonic() - before < 2 * 3.5
        assert "canary" not in str(error.value)
