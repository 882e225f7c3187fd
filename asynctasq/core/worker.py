"""Claims, runs and settles: one process, one loop."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import random
import signal
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from asynctasq import _runtime, drivers
from asynctasq.core import context
from asynctasq.core.events import EventType, WorkerEvent, printable
from asynctasq.core.executor import Attempt, Executor, task_event
from asynctasq.core.janitor import Janitor
from asynctasq.core.keeper import Keeper
from asynctasq.core.message import Lease, check_queue_name, utcnow
from asynctasq.core.outcome import Done, ErrorInfo, Outcome, Release, Retry, decide, describe
from asynctasq.core.settler import Settler
from asynctasq.core.threads import Threads
from asynctasq.drivers.base import Driver
from asynctasq.drivers.base import worker_id as new_worker_id
from asynctasq.errors import AsyncTasQError, BrokerError, ConfigurationError
from asynctasq.tasks.infrastructure import ProcessPoolManager

logger = logging.getLogger("asynctasq.worker")

CLAIM_WAIT = 5.0
"""Seconds that a claim waits in the broker."""
ROTATE_EVERY = 10
"""Every so many claims the queues are asked in another order, so that a busy first one does not starve the last."""
LONG_TASK = 0.05
"""Seconds; when tasks take longer than this on average nothing is claimed ahead, lest it sit here while another
worker is free."""
AHEAD_SECONDS = 0.1
MAX_AHEAD = 500
"""Claim ahead as much as will be done in this time, and never more than this many."""
DRAIN_WAIT = 0.2
SUSPECT_WAIT = 0.02
"""Seconds that a claim waits at least while a suspect runs."""
CLAIM_LIMIT, CALL_OFF_LIMIT, FLUSH_LIMIT, CLOSE_LIMIT = 1.0, 0.5, 2.0, 0.5
"""Seconds at a stop for the last claim to return, for what is called off to end, for the last outcomes to be taken:
less than 5 in all, whatever the broker does."""
BACKOFF_FIRST, BACKOFF_LAST = 0.1, 5.0


class Worker:
    """Runs the tasks of some queues until it is stopped.

    ``queue_driver`` is a driver's name (by default the configured one) or an unconnected driver, ``queues`` are asked
    in this order (by default ``default_queue`` alone), ``concurrency`` attempts run at once. ``max_tasks`` ends it
    after exactly that many attempts, ``drain`` when nothing is left to do. ``heartbeat_interval`` and
    ``shutdown_timeout`` are seconds; the latter is what running tasks are given to end at a stop.
    """

    def __init__(
        self,
        queue_driver: str | Driver | None = None,
        queues: Sequence[str] | None = None,
        concurrency: int = 10,
        max_tasks: int | None = None,
        worker_id: str | None = None,
        heartbeat_interval: float = 60.0,
        process_pool_size: int | None = None,
        process_pool_max_tasks_per_child: int | None = None,
        *,
        shutdown_timeout: float = 30.0,
        drain: bool = False,
    ) -> None:
        runtime = _runtime.runtime()
        self.config = runtime.config
        self.queues = [check_queue_name(name) for name in queues or (self.config.default_queue,)]
        self.concurrency = _positive("concurrency", concurrency)
        self.max_tasks = _positive_or_none("max_tasks", max_tasks)
        self.worker_id = worker_id or new_worker_id()
        self.heartbeat_interval = _seconds("heartbeat_interval", heartbeat_interval)
        self.shutdown_timeout = _seconds("shutdown_timeout", shutdown_timeout, or_zero=True)
        self.drain = drain
        self.processed = 0
        """Attempts that ended, whatever came of them."""
        self.completed = 0
        self.retried = 0
        self.dead = 0
        self._runtime = runtime
        self._events = runtime.events
        self._driver = self._make_driver(queue_driver or self.config.driver)
        self._pool_sizes = (
            _positive_or_none("process_pool_size", process_pool_size),
            _positive_or_none("process_pool_max_tasks_per_child", process_pool_max_tasks_per_child),
        )
        self._buffer: collections.deque[Lease] = collections.deque()
        self._running: dict[Lease, Attempt] = {}
        self._taken = 0
        """Leases claimed and not given back."""
        self._suspect_since: float | None = None
        """When the suspect that is held was claimed, on the monotonic clock; None while there is none."""
        self._typical = 0.0
        """Moving average of an attempt's duration, in seconds."""
        self._claims = 0
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._room = asyncio.Event()
        self._nothing_runs = asyncio.Event()
        self._nothing_runs.set()

    def _make_driver(self, which: str | Driver) -> Driver:
        driver = drivers.create(which, self.config) if isinstance(which, str) else which
        driver.worker_id = self.worker_id
        return driver

    async def start(self) -> None:
        """Run until ``stop``, SIGTERM, SIGINT, ``max_tasks`` or ``drain`` ends it. Returns when all is settled.

        Waits for a broker that is not there; raises ConfigurationError for what only a person can mend.
        """
        loop = asyncio.get_running_loop()
        self._threads = Threads(self.concurrency + 1, loop)
        self._executor = Executor(
            self.config,
            self._events,
            self.worker_id,
            self._threads,
            lambda: ProcessPoolManager.get_default_manager().pool(*self._pool_sizes),
        )
        self._settler = Settler(self._driver, self._settled)
        self._janitor = Janitor(self._driver, self.queues)
        # The same worker id: on Redis it is the consumer whose entries are extended.
        self._keeper = Keeper(
            lambda: self._make_driver(type(self._driver)(self._driver.config)),
            loop,
            self._lease_lost,
            self._loop_blocked,
        )
        try:
            with context.marked_records, self._signals(loop):
                if await self._connect():
                    await self._work()
                else:
                    with contextlib.suppress(AsyncTasQError, TimeoutError):
                        await asyncio.wait_for(self._driver.close(), CLOSE_LIMIT)
        finally:
            self._threads.stop()

    def stop(self) -> None:
        """Claim no more and end when what runs has ended, at the latest after ``shutdown_timeout``. Called again:
        at once. On the worker's own loop."""
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()
        self._room.set()

    @contextlib.contextmanager
    def _signals(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        added = []
        for number in (signal.SIGTERM, signal.SIGINT):
            # Not possible outside the main thread, where whoever runs the worker calls stop().
            with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
                loop.add_signal_handler(number, self.stop)
                added.append(number)
        try:
            yield
        finally:
            for number in added:
                loop.remove_signal_handler(number)

    async def _connect(self) -> bool:
        """Connect, however long it takes. False: the worker was stopped meanwhile."""
        pause = BACKOFF_FIRST
        while not self._stopping.is_set():
            connecting = asyncio.create_task(self._driver.connect(), name="asynctasq-connect")
            stopped = asyncio.create_task(self._stopping.wait(), name="asynctasq-stop")
            await asyncio.wait([connecting, stopped], return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if not connecting.done():
                # A broker that is silent does not hold up the stop.
                connecting.cancel()
                await asyncio.wait([connecting], timeout=CLOSE_LIMIT)
                return False
            try:
                connecting.result()
            except BrokerError as exc:
                logger.warning("waiting for the broker: %s", exc)
                pause = await self._back_off(pause)
            else:
                return True
        return False

    async def _back_off(self, pause: float) -> float:
        """Wait about ``pause`` seconds, or until the worker is stopped; the next pause."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause * random.uniform(0.5, 1.5)):
                await self._stopping.wait()
        return min(pause * 2, BACKOFF_LAST)

    async def _work(self) -> None:
        self._runtime.drivers.move_in(self._driver)
        logger.info(
            "worker %s: %s, queues %s, concurrency %d",
            self.worker_id,
            self._driver.name,
            ", ".join(self.queues),
            self.concurrency,
        )
        self._tell(EventType.WORKER_ONLINE)
        claiming = asyncio.create_task(self._claim_all(), name="asynctasq-claim")
        background = [
            asyncio.create_task(self._janitor.run(), name="asynctasq-janitor"),
            asyncio.create_task(self._heartbeat(), name="asynctasq-heartbeat"),
        ]
        stopped = asyncio.create_task(self._stopping.wait(), name="asynctasq-stop")
        try:
            await asyncio.wait([claiming, stopped, *background], return_when=asyncio.FIRST_COMPLETED)
            await self._wind_down(claiming)
        except asyncio.CancelledError:
            # Whoever runs us wants it ended: at once, but what is held is given back and what ended is written down.
            self._hurry.set()
            self._stopping.set()
            await self._wind_down(claiming)
            raise
        finally:
            for task in (claiming, stopped, *background):
                task.cancel()
            ended = await asyncio.gather(claiming, stopped, *background, return_exceptions=True)
            self._keeper.stop(CLOSE_LIMIT)
            self._tell(EventType.WORKER_OFFLINE)
            await self._runtime.move_out(self._driver)
            with contextlib.suppress(BrokerError):
                await self._driver.close()
            logger.info("worker %s: stopped after %d attempts", self.worker_id, self.processed)
        for error in ended:
            if isinstance(error, Exception):
                raise error

    async def _claim_all(self) -> None:
        """Claim whenever there is room, until the worker is to stop."""
        pause = BACKOFF_FIRST
        wait = DRAIN_WAIT if self.drain else CLAIM_WAIT
        while not self._stopping.is_set():
            room = self._wanted()
            if room <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            try:
                leases = await self._claim(room, wait)
            except BrokerError as exc:
                logger.warning("waiting for the broker: %s", exc)
                pause = await self._back_off(pause)
                continue
            pause = BACKOFF_FIRST
            if leases:
                self._take(leases)
            elif self.drain and await self._is_drained():
                return
            if self.max_tasks is not None and self._taken >= self.max_tasks:
                return

    async def _claim(self, room: int, wait: float) -> list[Lease]:
        if self._suspect_since is None:
            return await self._driver.claim(self._queue_order(), room, wait, suspects=1)
        # Not for long, lest it wait on when the suspect has ended and the next one may come: after a crash they are
        # all there is. No longer than that one has taken so far, so that they take twice their time at most.
        wait = min(wait, max(time.monotonic() - self._suspect_since, SUSPECT_WAIT))
        return await self._driver.claim(self._queue_order(), room, wait, suspects=0)

    def _wanted(self) -> int:
        """How many leases to claim now."""
        ahead = 0
        if self.processed and self._typical < LONG_TASK:
            ahead = min(int(self.concurrency * AHEAD_SECONDS / max(self._typical, 1e-6)), MAX_AHEAD)
        if len(self._buffer) > ahead // 2:
            return 0
        wanted = self.concurrency + ahead - len(self._running) - len(self._buffer)
        return wanted if self.max_tasks is None else min(wanted, self.max_tasks - self._taken)

    def _queue_order(self) -> list[str]:
        self._claims += 1
        turn = self._claims // ROTATE_EVERY % len(self.queues) if self._claims % ROTATE_EVERY == 0 else 0
        return self.queues[turn:] + self.queues[:turn]

    def _take(self, leases: list[Lease]) -> None:
        self._taken += len(leases)
        if any(lease.suspect for lease in leases):
            self._suspect_since = time.monotonic()
        self._keeper.watch(leases)
        if self._stopping.is_set():
            self._give_back(leases)
        else:
            self._buffer.extend(leases)
            self._start_ready()

    def _give_back(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            self._settler.put(Release(lease=lease))

    def _start_ready(self) -> None:
        """Start what is claimed, as far as there are free slots."""
        loop = asyncio.get_running_loop()
        while self._buffer and len(self._running) < self.concurrency:
            lease = self._buffer.popleft()
            attempt = self._running[lease] = Attempt(lease)
            self._nothing_runs.clear()
            # A task for each attempt: its context is its own, and it can be cancelled alone.
            task = loop.create_task(self._executor.run(attempt))
            task.add_done_callback(partial(self._ended, attempt))

    def _ended(self, attempt: Attempt, task: asyncio.Task[Outcome]) -> None:
        lease = attempt.lease
        if self._running.pop(lease, None) is None:
            return  # Given back at the stop, while its thread would not end.
        self.processed += 1
        # Of the first ones the plain mean: begun at zero, it would claim hundreds ahead before it knew better.
        weight = max(0.1, 1 / self.processed)
        self._typical += weight * (time.monotonic() - attempt.started - self._typical)
        self._settler.put(self._outcome(attempt, task))
        if lease.suspect:
            self._suspect_since = None
        if not self._stopping.is_set():
            self._start_ready()
        if not self._running:
            self._nothing_runs.set()
        self._room.set()

    def _outcome(self, attempt: Attempt, task: asyncio.Task[Outcome]) -> Outcome:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            return task.result()
        logger.error("attempt of task %s ended in the worker's own code", attempt.lease.id, exc_info=error)
        return decide(attempt.lease, describe(error), cap=self.config.max_retry_delay)

    def _settled(self, outcome: Outcome, lost: bool) -> None:
        """The broker has the outcome, or says that the lease was not ours any more."""
        lease = outcome.lease
        self._keeper.let_go(lease)
        if lost:
            logger.warning("task %s: its lease was lost before it was settled; another run counts", lease.id)
        elif isinstance(outcome, Release):
            self._taken -= 1
        elif isinstance(outcome, Done):
            self.completed += 1
            logger.debug("task %s %s: done in %.3f s", _name(lease), lease.id, outcome.duration)
            size = None if outcome.result is None else len(outcome.result)
            self._tell_of(EventType.TASK_COMPLETED, lease, duration=outcome.duration, result_size=size)
        elif isinstance(outcome, Retry):
            self.retried += 1
            self._janitor.expect(outcome.delay)
            self._log_failure(lease, f"failed, again in {outcome.delay:.1f} s", outcome.error)
            self._tell_of(EventType.TASK_REENQUEUED, lease, duration=outcome.duration, error=outcome.error)
        else:
            self.dead += 1
            self._log_failure(lease, "failed for good", outcome.error)
            self._tell_of(EventType.TASK_FAILED, lease, duration=outcome.duration, error=outcome.error)

    @staticmethod
    def _log_failure(lease: Lease, what: str, error: ErrorInfo) -> None:
        summary = printable(f"{error.type}: {error.message}")
        logger.warning("task %s %s: attempt %d %s: %s", _name(lease), lease.id, lease.attempt, what, summary)
        logger.debug("%s", error.traceback)

    def _lease_lost(self, lease: Lease) -> None:
        attempt = self._running.get(lease)
        if attempt is not None:
            logger.warning("task %s: its lease was lost while it ran; it is called off", lease.id)
            attempt.call_off()
        elif lease in self._buffer:
            self._buffer.remove(lease)
            self._taken -= 1
            if lease.suspect:
                self._suspect_since = None
            self._room.set()

    def _loop_blocked(self, seconds: float) -> None:
        """Called from the keeper's thread."""
        names = {attempt.lease.message.task for attempt in list(self._running.values()) if attempt.lease.message}
        logger.warning(
            "the event loop has been blocked for %.1f s, by one of: %s", seconds, printable(", ".join(sorted(names)))
        )

    async def _is_drained(self) -> bool:
        if self._running or self._buffer or not await self._settler.written(FLUSH_LIMIT):
            return False
        stats = await self._driver.stats(self.queues)
        return not any(s.pending or s.scheduled or s.processing for s in stats)

    async def _wind_down(self, claiming: asyncio.Task[None]) -> None:
        """Let what runs end, within its limit; give back the rest; write everything down."""
        if claiming.done() and not claiming.cancelled() and claiming.exception() is None:
            # max_tasks or drain: what was claimed is to be done first, however long it takes.
            await _first_of(self._nothing_runs, self._stopping)
        self._stopping.set()
        self._room.set()
        give_up = time.monotonic() + self.shutdown_timeout
        # What a claim under way brings is given back by _take.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLAIM_LIMIT):
                await self._driver.interrupt()
                await asyncio.wait([claiming])
        self._give_back(self._buffer)
        self._buffer.clear()
        await _first_of(self._nothing_runs, self._hurry, timeout=max(give_up - time.monotonic(), 0))
        for attempt in list(self._running.values()):
            attempt.call_off()
        await _first_of(self._nothing_runs, timeout=CALL_OFF_LIMIT)
        for lease in list(self._running):
            logger.warning("task %s does not end; its lease is given back, its thread ends with the process", lease.id)
            del self._running[lease]
            self._give_back([lease])
        if not await self._settler.written(FLUSH_LIMIT):
            self._settler.give_up()
            logger.error("the broker did not take the last outcomes in time; their tasks will run again")

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(self.heartbeat_interval)
            self._tell(EventType.WORKER_HEARTBEAT)

    def _tell(self, type: EventType) -> None:
        if self._events.active:
            self._events.emit(
                WorkerEvent(
                    type=type,
                    worker=self.worker_id,
                    time=utcnow(),
                    queues=tuple(self.queues),
                    active=len(self._running),
                    processed=self.processed,
                )
            )

    def _tell_of(self, type: EventType, lease: Lease, **more: Any) -> None:
        if self._events.active:
            self._events.emit(task_event(type, lease, self.worker_id, **more))


def _name(lease: Lease) -> str:
    return printable(lease.message.task) if lease.message else "without a name"


async def _first_of(*events: asyncio.Event, timeout: float | None = None) -> None:
    """Wait until one of them is set, or ``timeout`` seconds."""
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


def _positive(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{name} must be positive, got {value!r}")
    return value


def _positive_or_none(name: str, value: object) -> int | None:
    return None if value is None else _positive(name, value)


def _seconds(name: str, value: object, *, or_zero: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ConfigurationError(f"{name} must be a number of seconds, got {value!r}")
    if value == 0 and not or_zero:
        raise ConfigurationError(f"{name} must be positive, got {value!r}")
    return value
