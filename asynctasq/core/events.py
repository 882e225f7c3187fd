"""What happened, for whoever wants to know. An emitter that is slow or raises delays nothing and harms nothing."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import enum
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from asynctasq.core.outcome import ErrorInfo

logger = logging.getLogger("asynctasq.events")

BACKLOG = 10_000
"""Events kept for one emitter that does not keep up; the oldest go first, and their number is logged."""


class EventType(enum.StrEnum):
    """What an event tells."""

    TASK_ENQUEUED = "task_enqueued"
    TASK_STARTED = "task_started"
    TASK_COMPLETED = "task_completed"
    TASK_REENQUEUED = "task_reenqueued"
    """An attempt failed, another follows."""
    TASK_FAILED = "task_failed"
    """It failed for good."""
    TASK_CANCELLED = "task_cancelled"
    WORKER_ONLINE = "worker_online"
    WORKER_HEARTBEAT = "worker_heartbeat"
    WORKER_OFFLINE = "worker_offline"


class TaskEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something happened to a task. Durations are seconds, instants aware UTC, sizes bytes."""

    type: EventType
    task_id: str
    task_name: str
    queue: str
    time: datetime
    worker: str | None = None
    attempt: int | None = None
    duration: float | None = None
    result_size: int | None = None
    error: ErrorInfo | None = None
    correlation_id: str | None = None


class WorkerEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something happened to a worker."""

    type: EventType
    worker: str
    time: datetime
    queues: tuple[str, ...] = ()
    active: int = 0
    """Tasks running now."""
    processed: int = 0
    """Attempts ended since the start."""


Event = TaskEvent | WorkerEvent


class EventEmitter(ABC):
    """Receives every event of this process, in order. Runs on a loop and thread of its own."""

    @abstractmethod
    async def emit(self, event: Event) -> None:
        """Take one event. What is raised is logged and nothing else."""

    async def close(self) -> None:
        """Called once, after the last event."""


class LoggingEventEmitter(EventEmitter):
    """Logs each event, by default at INFO on ``asynctasq.events``."""

    def __init__(self, level: int = logging.INFO, log: logging.Logger = logger) -> None:
        self.level = level
        self.logger = log

    async def emit(self, event: Event) -> None:
        if isinstance(event, WorkerEvent):
            self.logger.log(self.level, "%s worker=%s active=%d", event.type.value, event.worker, event.active)
            return
        error = "" if event.error is None else f" error={event.error.type}"
        self.logger.log(
            self.level,
            "%s task=%s id=%s queue=%s attempt=%s%s",
            event.type.value,
            printable(event.task_name),
            event.task_id,
            event.queue,
            event.attempt,
            printable(error),
        )


class RedisEventEmitter(EventEmitter):
    """Publishes each event as JSON to a Redis channel."""

    def __init__(self, url: str, channel: str = "asynctasq:events") -> None:
        self._url = url
        self.channel = channel
        self._client: Any = None

    async def emit(self, event: Event) -> None:
        if self._client is None:
            from redis.asyncio import Redis

            self._client = Redis.from_url(self._url, socket_timeout=5, socket_connect_timeout=3)
        await self._client.publish(self.channel, msgspec.json.encode(event))

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


class EventBus:
    """Carries events from any thread to the emitters, on a thread of its own that starts with the first event."""

    def __init__(self, emitters: Sequence[EventEmitter] = ()) -> None:
        self.emitters = list(emitters)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lanes: list[_Lane] = []

    @property
    def active(self) -> bool:
        """Whether anyone listens: when not, events need not even be made."""
        return bool(self.emitters)

    def emit(self, event: Event) -> None:
        """Hand an event over; returns at once."""
        if not self.emitters:
            return
        if self._loop is None:
            self._start()
        for lane in self._lanes:
            lane.put(event)

    def _start(self) -> None:
        with self._lock:
            if self._loop is not None:
                return
            loop = asyncio.new_event_loop()
            self._lanes = [_Lane(emitter, loop) for emitter in self.emitters]
            self._thread = threading.Thread(target=self._main, args=(loop,), name="asynctasq-events", daemon=True)
            self._loop = loop
            self._thread.start()

    def _main(self, loop: asyncio.AbstractEventLoop) -> None:
        async def carry() -> None:
            await asyncio.gather(*(lane.run() for lane in self._lanes))

        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(carry())

    def close(self, timeout: float = 5.0) -> None:
        """Let the emitters take what is under way, for up to ``timeout`` seconds, then end."""
        with self._lock:
            thread, self._thread, self._loop = self._thread, None, None
            lanes, self._lanes = self._lanes, []
        if thread is not None:
            for lane in lanes:
                lane.end()
            thread.join(timeout)

    def forget(self) -> None:
        """In the child of a fork: the thread is not here."""
        self._thread = self._loop = None
        self._lanes = []
        self._lock = threading.Lock()


class _Lane:
    """One emitter with its backlog."""

    def __init__(self, emitter: EventEmitter, loop: asyncio.AbstractEventLoop) -> None:
        self.emitter = emitter
        self.loop = loop
        self.backlog: collections.deque[Event] = collections.deque(maxlen=BACKLOG)
        self.dropped = 0
        self.ended = False
        self.awake = asyncio.Event()
        self.putting = threading.Lock()

    def put(self, event: Event) -> None:
        # In one step: of two threads that put at once, each would else see the other's event and neither wake it.
        with self.putting:
            self.dropped += len(self.backlog) == BACKLOG
            self.backlog.append(event)
            first = len(self.backlog) == 1
        # One wake-up for all that is put while the emitter is busy.
        if first:
            self._wake()

    def end(self) -> None:
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        # The loop may just have ended: whoever puts an event is not to suffer for it.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.awake.set)

    async def run(self) -> None:
        while self.backlog or not self.ended:
            self.awake.clear()
            if not self.backlog and not self.ended:
                await self.awake.wait()
            while self.backlog:
                event = self.backlog[0]
                await self._emit(event)
                # Taken off only now, so that put() sees whether a wake-up is needed.
                if self.backlog and self.backlog[0] is event:
                    self.backlog.popleft()
            if self.dropped:
                logger.warning("emitter %s is too slow: %d events dropped", type(self.emitter).__name__, self.dropped)
                self.dropped = 0
        await self._guard(self.emitter.close())

    async def _emit(self, event: Event) -> None:
        await self._guard(self.emitter.emit(event))

    async def _guard(self, work: Any) -> None:
        try:
            await work
        except Exception as exc:  # noqa: BLE001 - an observer's failure is its own
            logger.warning("emitter %s failed: %s: %s", type(self.emitter).__name__, type(exc).__name__, exc)


def printable(text: str, limit: int = 500) -> str:
    """``text`` on one line, bounded, with control and direction-changing characters written out: fit for a log."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text[:limit])
