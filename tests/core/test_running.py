"""From dispatch to outcome: attempts, retries, delays, queues, concurrency."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import asynctasq
from asynctasq import Worker, task
from asynctasq.core.retry import JITTER, retry_delay
from asynctasq.drivers.base import TaskQuery
from asynctasq.errors import ConfigurationError
from tests.app import App, until, until_equal

SLACK = 0.5
"""Seconds by which a busy machine may be late."""


def gaps(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(times)]


# ---- attempts


@pytest.mark.behaviour(18)
@pytest.mark.parametrize("attempts", [1, 3])
async def test_a_failing_task_runs_exactly_max_attempts_times_and_then_lies_in_the_dead_letters(
    app: App, attempts: int
) -> None:
    runs: list[float] = []

    @task(max_attempts=attempts)
    async def fail() -> None:
        runs.append(time.monotonic())
        raise LookupError(f"no {len(runs)}")

    id = await fail().dispatch()
    worker = await app.work()
    assert len(runs) == attempts
    info = await app.info(id)
    assert info.error is not None
    assert (info.status, info.attempt, info.max_attempts) == ("dead", attempts, attempts)
    assert (info.error.type, info.error.message) == ("builtins.LookupError", f"no {attempts}")
    assert "in fail" in info.error.traceback
    assert info.first_failed_at is not None
    assert info.last_failed_at is not None
    assert info.first_failed_at <= info.last_failed_at
    assert (worker.processed, worker.retried, worker.dead) == (attempts, attempts - 1, 1)
    assert await app.counts() == {"dead": 1}


@pytest.mark.behaviour(18)
@pytest.mark.parametrize(("strategy", "factors"), [("fixed", [1, 1, 1]), ("exponential", [1, 2, 4])])
async def test_the_gaps_between_attempts_follow_the_strategy(app: App, strategy: Any, factors: list[int]) -> None:
    runs: list[float] = []
    delay = 0.15

    @task(max_attempts=4, retry_strategy=strategy, retry_delay=delay)
    async def fail() -> None:
        runs.append(time.monotonic())
        raise LookupError

    await fail().dispatch()
    await app.work(4)
    for gap, factor in zip(gaps(runs), factors, strict=True):
        assert factor * delay <= gap <= factor * delay * (1 + JITTER) + SLACK


@pytest.mark.behaviour(18)
def test_a_delay_is_lengthened_by_chance_never_shortened_and_bounded() -> None:
    def delay(strategy: Any, attempt: int, base: float = 60, chance: float = 0.0) -> float:
        return retry_delay(strategy, base, attempt, cap=3600, random=lambda: chance)

    assert [delay("fixed", n) for n in (1, 2, 3)] == [60, 60, 60]
    assert [delay("exponential", n) for n in (1, 2, 3, 4)] == [60, 120, 240, 480]
    assert delay("exponential", 100_000) == 3600
    assert delay("exponential", 3, base=7200) == 7200
    assert delay("fixed", 1, chance=1.0) == pytest.approx(60 * (1 + JITTER))
    assert delay("exponential", 5, base=0) == 0


@pytest.mark.behaviour(18)
async def test_the_retry_policy_is_the_message_s_and_not_the_worker_s(app: App) -> None:
    @task
    async def fail() -> None:
        raise LookupError

    app.configure(default_max_attempts=2, default_retry_delay=0)
    id = await fail().dispatch()
    app.configure(default_max_attempts=9, default_retry_delay=3600)
    await app.work(2)
    info = await app.info(id)
    assert (info.status, info.attempt) == ("dead", 2)


@pytest.mark.behaviour(18)
async def test_a_task_that_succeeds_at_last_leaves_nothing_behind(app: App) -> None:
    @task
    async def flaky(runs: int) -> None:
        current = asynctasq.current_task()
        assert current is not None
        if current.attempt < runs:
            raise OSError("not yet")

    await flaky(3).dispatch()
    worker = await app.work(3)
    assert (worker.completed, worker.retried, worker.dead) == (1, 2, 0)
    assert await app.counts() == {}
    assert app.place.traces() == 0


@pytest.mark.behaviour(18)
async def test_a_dead_letter_can_be_requeued_and_begins_anew(app: App) -> None:
    healed = False

    @task(max_attempts=1)
    async def fail() -> None:
        if not healed:
            raise LookupError

    id = await fail().dispatch()
    await app.work(1)
    healed = True
    assert await asynctasq.repository().requeue([id]) == 1
    worker = await app.work(1)
    assert worker.completed == 1
    assert await app.counts() == {}


# ---- delays


@pytest.mark.behaviour(21)
async def test_a_delayed_task_is_never_early_and_runs_once_with_four_workers(app: App) -> None:
    runs: list[tuple[int, float]] = []
    delay, count = 0.6, 40

    @task
    async def tick(number: int) -> None:
        runs.append((number, time.monotonic()))

    before = time.monotonic()
    await asynctasq.dispatch_many([tick(number).delay(delay) for number in range(count)])
    after = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(app.work())
    assert Counter(number for number, _ in runs) == Counter(range(count))
    assert min(at for _, at in runs) >= before + delay
    assert max(at for _, at in runs) <= after + delay + 2


@pytest.mark.behaviour(21)
async def test_a_task_for_an_instant_waits_for_it(app: App) -> None:
    started: list[datetime] = []

    @task
    async def tick() -> None:
        started.append(datetime.now(UTC))

    instant = datetime.now(UTC) + timedelta(seconds=0.7)
    await tick().at(instant).dispatch()
    await tick().at(datetime.now(UTC) - timedelta(days=1)).dispatch()
    await app.work(2)
    early, late = started
    assert early < instant <= late


@pytest.mark.behaviour(21)
async def test_a_task_that_a_running_task_delays_is_on_time_too(app: App) -> None:
    runs: list[float] = []

    @task
    async def child() -> None:
        runs.append(time.monotonic())

    @task
    async def parent() -> None:
        await child().delay(0.3).dispatch()
        runs.append(time.monotonic())

    await parent().dispatch()
    await app.work(2)
    (gap,) = gaps(runs)
    assert 0.3 <= gap <= 0.3 + 2


# ---- concurrency


@pytest.mark.behaviour(23)
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_concurrency_is_used_and_never_exceeded(app: App, kind: str) -> None:
    lock = threading.Lock()
    running = most = 0

    def enter(step: int) -> None:
        nonlocal running, most
        with lock:
            running += step
            most = max(most, running)

    @task
    async def on_the_loop() -> None:
        enter(1)
        await asyncio.sleep(0.02)
        enter(-1)

    @task
    def off_the_loop() -> None:
        enter(1)
        time.sleep(0.02)
        enter(-1)

    make = on_the_loop if kind == "async" else off_the_loop
    await asynctasq.dispatch_many([make() for _ in range(30)])
    worker = await app.work(30, concurrency=4)
    assert worker.completed == 30
    assert most == 4


@pytest.mark.behaviour(23)
async def test_forty_sync_tasks_run_at_once(app: App) -> None:
    together = threading.Barrier(40)

    @task
    def meet() -> None:
        together.wait(10)

    await asynctasq.dispatch_many([meet() for _ in range(40)])
    worker = await app.work(40, concurrency=40)
    assert worker.completed == 40


# ---- queues


@pytest.mark.behaviour(23)
async def test_earlier_queues_are_worked_first(app: App) -> None:
    order: list[str] = []

    @task
    async def note(label: str) -> None:
        order.append(label)
        await asyncio.sleep(0.06)  # Long enough that nothing is claimed ahead.

    for queue in ("low", "default", "high"):
        await asynctasq.dispatch_many([note(queue).on_queue(queue) for _ in range(2)])
    await app.work(6, queues=["high", "default", "low"], concurrency=1)
    assert order == ["high", "high", "default", "default", "low", "low"]


@pytest.mark.behaviour(23)
async def test_a_busy_first_queue_does_not_starve_the_later_ones(app: App) -> None:
    order: list[str] = []

    @task
    async def again() -> None:
        order.append("first")
        await again().on_queue("first").dispatch()
        await again().on_queue("first").dispatch()

    @task
    async def patient() -> None:
        order.append("last")

    await asynctasq.dispatch_many([again().on_queue("first") for _ in range(5)])
    await patient().on_queue("last").dispatch()
    async with app.working(queues=["first", "last"], concurrency=1):
        await until(lambda: "last" in order)


@pytest.mark.behaviour(23)
async def test_a_worker_leaves_other_queues_alone_and_by_default_works_the_default_one(app: App) -> None:
    @task
    async def nothing() -> None: ...

    app.configure(default_queue="mine")
    await nothing().dispatch()
    await nothing().on_queue("Mine").dispatch()
    await nothing().on_queue("theirs").dispatch()
    worker = await app.work()
    assert worker.queues == ["mine"]
    assert worker.processed == 1
    assert [await app.counts(queue) for queue in ("mine", "Mine", "theirs")] == [{}, {"pending": 1}, {"pending": 1}]


@pytest.mark.behaviour(23)
async def test_higher_priorities_come_first(app: App) -> None:
    order: list[int] = []

    @task
    async def note(priority: int) -> None:
        order.append(priority)
        await asyncio.sleep(0.06)

    for priority in (0, -5, 100, 7):
        await note(priority).priority(priority).dispatch()
    await app.work(4, concurrency=1)
    assert order == [100, 7, 0, -5]


# ---- max_tasks and what else a worker is given


@pytest.mark.behaviour(23)
@pytest.mark.parametrize("max_tasks", [1, 7])
async def test_max_tasks_are_exactly_that_many(app: App, max_tasks: int) -> None:
    runs: list[int] = []

    @task
    async def note(number: int) -> None:
        runs.append(number)

    await asynctasq.dispatch_many([note(number) for number in range(20)])
    worker = await app.work(max_tasks, concurrency=5)
    assert (len(runs), worker.processed) == (max_tasks, max_tasks)
    assert await app.counts() == {"pending": 20 - max_tasks}


@pytest.mark.behaviour(23)
@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"concurrency": 0}, "concurrency must be positive"),
        ({"concurrency": "5"}, "concurrency must be positive"),
        ({"concurrency": True}, "concurrency must be positive"),
        ({"max_tasks": 0}, "max_tasks must be positive"),
        ({"queues": [""]}, "queue name '' is not usable"),
        ({"queues": ["a b"]}, "queue name 'a b' is not usable"),
        ({"queue_driver": "kafka"}, "driver 'kafka' is not available"),
        ({"heartbeat_interval": 0}, "heartbeat_interval must be positive"),
        ({"shutdown_timeout": -1}, "shutdown_timeout must be a number of seconds"),
        ({"heartbeat_interval": "60"}, "heartbeat_interval must be a number of seconds"),
        ({"process_pool_size": 0}, "process_pool_size must be positive"),
        ({"process_pool_max_tasks_per_child": 0}, "process_pool_max_tasks_per_child must be positive"),
    ],
)
def test_wrong_arguments_of_a_worker_are_named(embedded: App, wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        Worker(**wrong)


@pytest.mark.behaviour(23)
async def test_a_worker_takes_a_driver_by_name_or_as_an_object(app: App) -> None:
    @task
    async def nothing() -> None: ...

    await asynctasq.dispatch_many([nothing(), nothing()])
    by_name = await app.work(1, queue_driver=app.place.name)
    as_object = await app.work(1, queue_driver=app.place.create(), worker_id="me")
    assert (by_name.completed, as_object.completed, as_object.worker_id) == (1, 1, "me")


@pytest.mark.behaviour(23)
async def test_a_worker_can_be_stopped_and_another_started_on_the_same_loop(app: App) -> None:
    runs: list[int] = []

    @task
    async def note(number: int) -> None:
        runs.append(number)

    for number in range(3):
        async with app.working():
            await note(number).dispatch()
            await until(lambda number=number: runs[-1:] == [number])  # type: ignore[misc]
    await until_equal(app.counts, {})


# ---- kept tasks


@pytest.mark.behaviour(5)
async def test_completed_tasks_are_kept_with_result_worker_and_times_when_configured(app: App) -> None:
    app.configure(keep_completed_tasks=True)

    @task(max_attempts=2)
    async def flaky() -> dict[str, int]:
        current = asynctasq.current_task()
        assert current is not None
        if current.attempt == 1:
            raise OSError("not yet")
        return {"answer": 42}

    before = datetime.now(UTC) - timedelta(seconds=1)
    id = await flaky().dispatch()
    await app.work(2, worker_id="worker-7")
    info = await app.info(id)
    assert (info.status, info.worker, info.attempt) == ("completed", "worker-7", 2)
    assert await app.result(id) == {"answer": 42}
    assert info.started_at is not None
    assert info.finished_at is not None
    assert before < info.started_at <= info.finished_at < datetime.now(UTC) + timedelta(seconds=1)
    # The failed attempt is not kept as a task of its own.
    assert await app.counts() == {"completed": 1}


@pytest.mark.behaviour(5)
async def test_completed_tasks_leave_nothing_behind_by_default(app: App) -> None:
    @task
    async def nothing() -> int:
        return 1

    await asynctasq.dispatch_many([nothing() for _ in range(5)])
    await app.work(5)
    assert await app.counts() == {}
    assert app.place.traces() == 0


@pytest.mark.behaviour(5)
async def test_a_repository_query_looks_at_no_more_than_task_scan_limit(app: App) -> None:
    @task
    async def nothing() -> None: ...

    await asynctasq.dispatch_many([nothing() for _ in range(12)])
    app.configure(task_scan_limit=5)
    query = TaskQuery(task="not.there", limit=3)
    page = await asynctasq.repository().find(query)
    assert (page.items, page.truncated) == ([], True)
    app.configure(task_scan_limit=50)
    page = await asynctasq.repository().find(query)
    assert (page.items, page.truncated, page.next) == ([], False, None)
