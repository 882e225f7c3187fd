"""Workers that die, freeze or are slow: what another takes over, and when."""

from __future__ import annotations

import asyncio
import signal
import time
from datetime import UTC, datetime
from typing import Any

import pytest

import asynctasq
from asynctasq import task
from tests.app import App, Ledger, until, until_equal
from tests.jobs import block, nap, nap_the_first_time, note, poison, rest

LEASE = 1.0
"""Seconds of a lease that is meant to run out."""
RECOVERY = 5.0
"""Seconds within which a lost task runs again once its lease is over."""


@pytest.mark.behaviour(19)
async def test_the_timeline_of_the_specification_happens_scaled_down(app: App, ledger: Ledger) -> None:
    """Claimed and locked; the worker dies; hidden while locked; run by another once the lock is over."""
    app.configure(default_visibility_timeout=LEASE)
    names = [f"payment {number}" for number in range(3)]
    ids = await asynctasq.dispatch_many([nap_the_first_time(str(ledger), name, 60) for name in names])
    first = app.spawn()
    await until(lambda: len(ledger.starts()) == 3, 20, first)
    info = await app.info(ids[0])
    assert info.status == "processing"
    assert info.locked_until is not None
    assert info.started_at is not None
    # It may have been extended by now, at most by what has passed.
    assert LEASE - 0.01 <= (info.locked_until - info.started_at).total_seconds() <= 2 * LEASE
    first.send(signal.SIGKILL)
    await first.ended()
    locked = [(await app.info(id)).locked_until for id in ids]
    worker = await app.work(3)
    assert worker.completed == 3
    assert ledger.counts("start") == dict.fromkeys(names, 2)
    assert ledger.counts("end") == dict.fromkeys(names, 1)
    for name, until_then in zip(names, locked, strict=True):
        again = ledger.starts(name)[1]
        assert until_then is not None
        assert until_then.timestamp() - 0.01 <= again.at <= until_then.timestamp() + RECOVERY
        assert again.attempt == 2
    assert await app.counts() == {}


@pytest.mark.behaviour(20)
async def test_tasks_of_five_leases_run_once(app: App, ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    """Also when one of them blocks the event loop, and beside a worker that would take over."""
    lease = 0.4
    app.configure(default_visibility_timeout=lease)
    await asynctasq.dispatch_many([kind(str(ledger), kind.__name__, 5 * lease) for kind in (nap, rest, block)])
    other = app.spawn()
    await other.ready()
    await app.work()
    other.send(signal.SIGTERM)
    assert await other.ended() == 0
    assert ledger.counts("start") == ledger.counts("end") == {"nap": 1, "rest": 1, "block": 1}
    assert await app.counts() == {}
    said = other.output + caplog.text
    assert "the event loop has been blocked for" in said
    assert block.task_name in said


@pytest.mark.behaviour(20)
async def test_a_keeper_survives_whatever_its_driver_raises(
    app: App, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lease = 1.0
    app.configure(default_visibility_timeout=lease)
    await nap(str(ledger), "long", 3 * lease).dispatch()
    worker = asynctasq.Worker(max_tasks=1)
    extend = type(worker._driver).extend
    failures = [RuntimeError("can't start new thread")]

    async def failing(self: Any, leases: Any) -> Any:
        if failures:
            raise failures.pop()
        return await extend(self, leases)

    monkeypatch.setattr(type(worker._driver), "extend", failing)
    await worker.start()
    assert (worker.completed, failures) == (1, [])
    assert "could not be extended, trying again: can't start new thread" in caplog.text
    assert len(ledger.starts()) == 1


@pytest.mark.behaviour(20)
async def test_tasks_that_wait_behind_one_that_blocks_the_loop_keep_their_leases(app: App, ledger: Ledger) -> None:
    lease = 0.4
    app.configure(default_visibility_timeout=lease)
    await asynctasq.dispatch_many([block(str(ledger), str(number), 1.5 * lease) for number in range(2)])
    worker = await app.work()
    assert worker.completed == 2
    assert len(ledger.starts()) == 2


@pytest.mark.behaviour(19)
async def test_a_frozen_worker_loses_its_task_and_its_late_word_counts_for_nothing(app: App, ledger: Ledger) -> None:
    app.configure(default_visibility_timeout=LEASE, keep_completed_tasks=True)
    id = await nap_the_first_time(str(ledger), "task", 1.5).dispatch()
    frozen = app.spawn()
    await until(ledger.starts, 20, frozen)
    frozen.send(signal.SIGSTOP)
    worker = await app.work(1, worker_id="second")
    assert worker.completed == 1
    frozen.send(signal.SIGCONT)
    frozen.send(signal.SIGTERM)
    assert await frozen.ended() == 0
    assert len(ledger.starts("task")) == 2
    info = await app.info(id)
    assert (info.status, info.worker) == ("completed", "second")
    # A claim of the frozen worker that waits in Redis is handed one more.
    assert info.attempt in ((2, 3) if app.place.name == "redis" else (2,))
    assert await app.counts() == {"completed": 1}


@pytest.mark.behaviour(19)
@pytest.mark.behaviour(18)
async def test_a_task_that_kills_its_worker_every_time_ends_in_the_dead_letters_and_takes_nobody_with_it(
    app: App, ledger: Ledger
) -> None:
    app.configure(default_visibility_timeout=0.6, default_max_attempts=2)
    innocents = [f"innocent {number}" for number in range(100)]
    await asynctasq.dispatch_many([note(str(ledger), name) for name in innocents[:50]])
    id = await poison(str(ledger), "poison").dispatch()
    await asynctasq.dispatch_many([note(str(ledger), name) for name in innocents[50:]])

    async def settled() -> bool:
        return await app.counts() == {"dead": 1}

    worker = app.spawn("--concurrency", "5")
    deadline = time.monotonic() + 40
    while not await settled():
        assert time.monotonic() < deadline, (await app.counts(), worker)
        if worker.code is not None:
            worker = app.spawn("--concurrency", "5")
        await asyncio.sleep(0.02)
    worker.send(signal.SIGTERM)
    await worker.ended()
    assert len(ledger.starts("poison")) == 2
    assert ledger.ends("poison") == []
    assert {one.label for one in ledger.ends()} == set(innocents)
    info = await app.info(id)
    assert info.error is not None
    assert (info.attempt, info.error.type) == (2, "asynctasq.errors.WorkerLost")


@pytest.mark.behaviour(5)
@pytest.mark.behaviour(19)
async def test_the_visibility_timeout_configured_at_dispatch_is_the_lease_s(app: App) -> None:
    found: list[float] = []

    @task
    async def look() -> None:
        current = asynctasq.current_task()
        assert current is not None
        info = await app.info(current.id)
        assert info.locked_until is not None
        found.append((info.locked_until - datetime.now(UTC)).total_seconds())

    app.configure(default_visibility_timeout=120)
    await look().dispatch()
    await look().visibility_timeout(30).dispatch()
    app.configure(default_visibility_timeout=5)
    await app.work(2, concurrency=1)
    assert found == [pytest.approx(120, abs=3), pytest.approx(30, abs=3)]
    await until_equal(app.counts, {})
