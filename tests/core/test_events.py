"""What emitters receive, and what they cannot harm."""

from __future__ import annotations

import asyncio
import collections
import json
import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

import asynctasq
from asynctasq import task
from asynctasq.core import events
from asynctasq.core.events import (
    Event,
    EventBus,
    EventEmitter,
    EventType,
    LoggingEventEmitter,
    RedisEventEmitter,
    TaskEvent,
    WorkerEvent,
)
from tests.app import App, Remembering, until
from tests.drivers.places import RedisPlace, closed_port


@task
async def nothing() -> str:
    return "done"


@task(max_attempts=2)
async def flaky() -> None:
    current = asynctasq.current_task()
    assert current is not None
    if current.attempt == 1:
        raise OSError("not yet")


@task(max_attempts=2)
def hopeless() -> None:
    raise LookupError("never")


@pytest.fixture
def remembering(app: App) -> Remembering:
    emitter = Remembering()
    app.configure([emitter])
    return emitter


@pytest.mark.behaviour(25)
def test_the_names_of_the_specification_are_there() -> None:
    for name in ("EventEmitter", "EventType", "LoggingEventEmitter", "RedisEventEmitter", "TaskEvent", "WorkerEvent"):
        assert hasattr(events, name)
    assert issubclass(LoggingEventEmitter, EventEmitter)
    assert isinstance(LoggingEventEmitter(), EventEmitter)


@pytest.mark.behaviour(25)
@pytest.mark.behaviour(26)
async def test_each_outcome_has_its_sequence_of_events(app: App, remembering: Remembering) -> None:
    good = await nothing().dispatch()
    again = await flaky().dispatch()
    bad = await asyncio.to_thread(hopeless().dispatch_sync)
    await app.work(5)
    await until(lambda: "worker_offline" in remembering.types())
    assert remembering.types(good) == ["task_enqueued", "task_started", "task_completed"]
    assert remembering.types(again) == [
        "task_enqueued",
        "task_started",
        "task_reenqueued",
        "task_started",
        "task_completed",
    ]
    assert remembering.types(bad) == [
        "task_enqueued",
        "task_started",
        "task_reenqueued",
        "task_started",
        "task_failed",
    ]
    of_worker = [type for type in remembering.types() if type.startswith("worker")]
    assert (of_worker[0], of_worker[-1]) == ("worker_online", "worker_offline")


@pytest.mark.behaviour(26)
async def test_events_carry_what_happened(app: App, remembering: Remembering) -> None:
    before = datetime.now(UTC)
    good = await nothing().on_queue("q").correlation_id("corr").dispatch()
    bad = await hopeless().on_queue("q").max_attempts(1).dispatch()
    await app.work(2, queues=["q"], worker_id="me")
    await until(lambda: "worker_offline" in remembering.types())
    enqueued, started, completed = remembering.of(good)
    for event in (enqueued, started, completed):
        assert (event.task_id, event.task_name, event.queue) == (good, nothing.task_name, "q")
        assert event.correlation_id == "corr"
        assert event.time.utcoffset() == UTC.utcoffset(None)
        assert before <= event.time <= datetime.now(UTC)
    assert (enqueued.worker, enqueued.attempt) == (None, None)
    assert (started.worker, started.attempt) == ("me", 1)
    assert completed.duration is not None
    assert 0 <= completed.duration < 5
    assert (completed.result_size, completed.error) == (5, None)
    failed = remembering.of(bad)[-1]
    assert failed.error is not None
    assert (failed.type, failed.error.type, failed.error.message) == (
        EventType.TASK_FAILED,
        "builtins.LookupError",
        "never",
    )
    assert "in hopeless" in failed.error.traceback
    assert (failed.attempt, failed.worker) == (1, "me")


@pytest.mark.behaviour(26)
async def test_a_cancelled_task_is_told(app: App, remembering: Remembering) -> None:
    id = await nothing().dispatch()
    assert await asynctasq.repository().cancel([id]) == 1
    await until(lambda: len(remembering.of(id)) == 2)
    cancelled = remembering.of(id)[-1]
    assert (cancelled.type, cancelled.task_name, cancelled.queue) == (
        EventType.TASK_CANCELLED,
        nothing.task_name,
        "default",
    )
    # What is not there any more, or runs, is not cancelled.
    assert await asynctasq.repository().cancel([id]) == 0
    assert len(remembering.of(id)) == 2


@pytest.mark.behaviour(26)
async def test_a_worker_tells_its_heartbeats(app: App, remembering: Remembering) -> None:
    async with app.working(heartbeat_interval=0.05, worker_id="me"):
        await until(lambda: remembering.types().count("worker_heartbeat") >= 3)
    await until(lambda: "worker_offline" in remembering.types())
    of_worker = [event for event in remembering.events if isinstance(event, WorkerEvent)]
    assert {event.worker for event in of_worker} == {"me"}
    assert {event.queues for event in of_worker} == {("default",)}


@pytest.mark.behaviour(25)
async def test_an_emitter_receives_everything_from_the_first_task_to_the_last(
    app: App, remembering: Remembering
) -> None:
    ids = await asynctasq.dispatch_many([nothing() for _ in range(200)])
    await app.work(200)
    asynctasq.shutdown()  # Waits for what is under way.
    for id in ids:
        assert remembering.types(id) == ["task_enqueued", "task_started", "task_completed"]


@pytest.mark.behaviour(26)
async def test_emitters_that_are_slow_or_raise_delay_and_harm_nothing(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    slowness = 0.3

    class Slow(EventEmitter):
        async def emit(self, event: Event) -> None:
            time.sleep(slowness)  # noqa: ASYNC251 - a badly written one

    class Raising(EventEmitter):
        async def emit(self, event: Event) -> None:
            raise ValueError("an emitter's own")

    remembering = Remembering()
    app.configure([Raising(), remembering])
    id = await nothing().dispatch()
    worker = await app.work(1)
    assert worker.completed == 1
    await until(lambda: len(remembering.of(id)) == 3)
    assert "emitter Raising failed: ValueError: an emitter's own" in caplog.text

    app.configure([Slow()])
    before = time.monotonic()
    await asynctasq.dispatch_many([nothing() for _ in range(50)])
    worker = await app.work(50)
    assert worker.completed == 50
    assert time.monotonic() - before < slowness * 50
    slowness = 0


async def test_events_put_by_several_threads_at_once_are_all_taken() -> None:
    class Interrupted(collections.deque[Event]):
        """Lets other threads go first after each append, as the interpreter may at any time."""

        def append(self, event: Event) -> None:
            super().append(event)
            time.sleep(0.005)

    remembering = Remembering()
    bus = EventBus([remembering])
    beat = WorkerEvent(type=EventType.WORKER_HEARTBEAT, worker="one", time=datetime.now(UTC))
    bus.emit(beat)
    await until(lambda: len(remembering.events) == 1)
    bus._lanes[0].backlog = Interrupted()
    await asyncio.gather(*(asyncio.to_thread(bus.emit, beat) for _ in range(4)))
    await until(lambda: len(remembering.events) == 5)
    await asyncio.to_thread(bus.close)


@pytest.mark.behaviour(26)
async def test_an_emitter_that_does_not_keep_up_loses_the_oldest_and_is_named(
    embedded: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate = asyncio.Event()
    loop = asyncio.get_running_loop()

    class Stuck(EventEmitter):
        async def emit(self, event: Event) -> None:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(gate.wait(), loop))

    monkeypatch.setattr(events, "BACKLOG", 5)
    embedded.configure([Stuck()])
    await asynctasq.dispatch_many([nothing() for _ in range(20)])
    gate.set()
    await until(lambda: "events dropped" in caplog.text)
    assert "emitter Stuck is too slow" in caplog.text


@pytest.mark.behaviour(25)
async def test_the_logging_emitter_writes_one_line_an_event(embedded: App, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "asynctasq.events")
    embedded.configure([LoggingEventEmitter()])

    @task(name="bad\nname\u202e", max_attempts=1)
    async def odd() -> None:
        raise ValueError("a\nb")

    id = await odd().dispatch()
    await embedded.work(1)
    asynctasq.shutdown()
    lines = [record.getMessage() for record in caplog.records if record.name == "asynctasq.events"]
    of_task = [line for line in lines if id in line]
    assert [line.split()[0] for line in of_task] == ["task_enqueued", "task_started", "task_failed"]
    assert not any("\n" in line or "\u202e" in line for line in lines)
    assert "error=builtins.ValueError" in of_task[-1]


# ---- Redis


@pytest.fixture
def channel(places: Any) -> Iterator[Any]:
    """Messages of a channel: (options, read) of a subscriber on the tests' Redis."""
    place = places("redis")
    assert isinstance(place, RedisPlace)
    client: Any = place._client
    with client.pubsub(ignore_subscribe_messages=True) as subscriber:
        subscriber.subscribe("shop:events", "asynctasq:events")
        # The answer to the subscription comes first.
        while subscriber.get_message(timeout=1) is not None:
            pass
        yield place.options["redis_url"], subscriber


def published(subscriber: Any, count: int) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    deadline = time.monotonic() + 10
    while len(found) < count:
        assert time.monotonic() < deadline, found
        message = subscriber.get_message(timeout=0.1)
        if message is not None:
            found.append((message["channel"].decode(), json.loads(message["data"])))
    return found


@pytest.mark.behaviour(27)
async def test_each_event_is_published_to_the_configured_channel(embedded: App, channel: Any) -> None:
    url, subscriber = channel
    embedded.configure(enable_event_emitter_redis=True, events_redis_url=url, events_channel="shop:events")
    id = await nothing().dispatch()
    await embedded.work(1)
    found = await asyncio.to_thread(published, subscriber, 5)
    assert {name for name, _ in found} == {"shop:events"}
    of_task = [event for _, event in found if event.get("task_id") == id]
    assert [event["type"] for event in of_task] == ["task_enqueued", "task_started", "task_completed"]
    assert of_task[-1]["task_name"] == nothing.task_name
    assert {event["type"] for _, event in found} >= {"worker_online", "worker_offline"}


@pytest.mark.behaviour(27)
async def test_events_go_to_the_queue_s_redis_and_the_default_channel_unless_told_otherwise(
    embedded: App, channel: Any
) -> None:
    url, subscriber = channel
    embedded.configure(enable_event_emitter_redis=True, redis_url=url)
    await nothing().dispatch()
    ((name, event),) = await asyncio.to_thread(published, subscriber, 1)
    assert (name, event["type"]) == ("asynctasq:events", "task_enqueued")


@pytest.mark.behaviour(27)
async def test_nothing_is_published_when_the_emitter_is_off(embedded: App, channel: Any) -> None:
    url, subscriber = channel
    embedded.configure(enable_event_emitter_redis=False, redis_url=url, events_redis_url=url)
    await nothing().dispatch()
    await embedded.work(1)
    asynctasq.shutdown()
    assert await asyncio.to_thread(subscriber.get_message, timeout=0.2) is None


@pytest.mark.behaviour(27)
async def test_a_redis_for_events_that_is_not_there_harms_nothing_and_shows_no_password(
    embedded: App, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"redis://:canary@127.0.0.1:{closed_port()}"
    remembering = Remembering()
    embedded.configure([remembering, RedisEventEmitter(url)])
    id = await nothing().dispatch()
    worker = await embedded.work(1)
    assert worker.completed == 1
    await until(lambda: len(remembering.of(id)) == 3)
    await until(lambda: "emitter RedisEventEmitter failed" in caplog.text)
    assert "canary" not in caplog.text


@pytest.mark.behaviour(26)
def test_events_are_data() -> None:
    event = TaskEvent(
        type=EventType.TASK_STARTED, task_id="1", task_name="t", queue="q", time=datetime(2030, 1, 1, tzinfo=UTC)
    )
    frozen: Any = event
    with pytest.raises(AttributeError):
        frozen.queue = "x"
