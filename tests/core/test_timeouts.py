"""``timeout``: an attempt that runs longer fails, and does not run on beside the next."""

from __future__ import annotations

import asyncio
import itertools
import time

import pytest

import asynctasq
from asynctasq import task
from asynctasq.tasks.infrastructure import ProcessPoolManager
from scripts.services import birth
from tests.app import App, Ledger
from tests.jobs import crunch


def overlaps(spans: list[tuple[float, float]]) -> bool:
    ordered = sorted(spans)
    return any(later[0] < earlier[1] for earlier, later in itertools.pairwise(ordered))


@pytest.mark.behaviour(22)
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_an_attempt_that_takes_too_long_fails_and_does_not_run_on_beside_its_retry(app: App, kind: str) -> None:
    spans: list[tuple[float, float]] = []

    @task(timeout=0.15, max_attempts=2, retry_delay=0)
    async def on_the_loop() -> None:
        began = time.monotonic()
        try:
            await asyncio.sleep(20)
        finally:
            spans.append((began, time.monotonic()))

    @task(timeout=0.15, max_attempts=2, retry_delay=0)
    def off_the_loop() -> None:
        began = time.monotonic()
        try:
            while time.monotonic() < began + 20:
                time.sleep(0.01)
        finally:
            spans.append((began, time.monotonic()))

    id = await (on_the_loop if kind == "async" else off_the_loop)().dispatch()
    await app.work(2)
    info = await app.info(id)
    assert info.error is not None
    assert (info.status, info.attempt, info.error.type) == ("dead", 2, "asynctasq.errors.TaskTimeout")
    assert info.error.message == "attempt 2 ran longer than its timeout of 0.15 s"
    assert [0.15 <= end - began < 2 for began, end in spans] == [True, True]
    assert not overlaps(spans)


@pytest.mark.behaviour(22)
async def test_a_thread_that_cannot_be_interrupted_keeps_its_slot_until_it_ends(app: App) -> None:
    spans: list[tuple[float, float]] = []

    @task(timeout=0.1, max_attempts=2, retry_delay=0)
    def stubborn() -> None:
        began = time.monotonic()
        try:
            time.sleep(0.5)  # In C: no interrupt reaches it before its end.
        finally:
            spans.append((began, time.monotonic()))

    id = await stubborn().dispatch()
    await app.work(2)
    assert (await app.info(id)).status == "dead"
    assert len(spans) == 2
    assert not overlaps(spans)


@pytest.mark.behaviour(22)
@pytest.mark.behaviour(29)
async def test_the_process_of_a_task_that_takes_too_long_is_killed(app: App, ledger: Ledger) -> None:
    app.configure(process_pool_size=1)
    id = await crunch(str(ledger), "long", 30).timeout(0.3).max_attempts(2).dispatch()
    await crunch(str(ledger), "short").timeout(20).dispatch()
    worker = await app.work(3)
    assert worker.completed == 1
    info = await app.info(id)
    assert info.error is not None
    assert (info.status, info.error.type) == ("dead", "asynctasq.errors.TaskTimeout")
    assert ledger.ends("long") == []
    pids = {one.pid for one in ledger.starts("long")}
    assert len(pids) == 2
    assert not any(birth(pid) for pid in pids)
    assert all(birth(pid) for pid in ProcessPoolManager.get_default_manager().pool().pids())


@pytest.mark.behaviour(22)
async def test_a_task_that_swallows_its_cancellation_still_counts_as_timed_out_once_it_ends(app: App) -> None:
    swallowed: list[str] = []

    @task(timeout=0.1, max_attempts=1)
    async def swallow() -> None:
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            swallowed.append("once")
            raise ValueError("something else") from None

    id = await swallow().dispatch()
    await app.work(1)
    info = await app.info(id)
    assert info.error is not None
    assert (info.status, info.error.type) == ("dead", "asynctasq.errors.TaskTimeout")
    assert swallowed == ["once"]
    # The cause is not lost.
    assert "something else" in info.error.traceback


@pytest.mark.behaviour(22)
async def test_a_task_that_is_in_time_is_not_disturbed(app: App) -> None:
    @task(timeout=5)
    async def on_the_loop() -> None:
        await asyncio.sleep(0.01)

    @task(timeout=5)
    def off_the_loop() -> None:
        time.sleep(0.01)

    await asynctasq.dispatch_many([make() for make in (on_the_loop, off_the_loop) for _ in range(10)])
    worker = await app.work(20)
    assert (worker.completed, worker.retried, worker.dead) == (20, 0, 0)


@pytest.mark.behaviour(22)
async def test_a_timeout_of_a_task_s_own_is_an_ordinary_failure(app: App) -> None:
    @task(timeout=5, max_attempts=1)
    async def own() -> None:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(5)

    id = await own().dispatch()
    await app.work(1)
    info = await app.info(id)
    assert info.error is not None
    assert (info.status, info.error.type) == ("dead", "builtins.TimeoutError")
