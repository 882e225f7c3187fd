"""For the tests of projects that dispatch tasks: run them on the spot, hold them back and look, or drain a queue.

All three go through the real messages: what cannot travel fails in the test as it would in production.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from asynctasq import _runtime
from asynctasq.core import codec
from asynctasq.core.dispatcher import Dispatcher
from asynctasq.core.executor import Attempt, Executor
from asynctasq.core.message import Message, encode, open_lease
from asynctasq.core.outcome import Dead, Done, Outcome, Retry
from asynctasq.core.threads import ThreadRun, Threads
from asynctasq.core.worker import Worker
from asynctasq.tasks.infrastructure import ProcessPoolManager

if TYPE_CHECKING:
    from asynctasq.drivers.base import Driver

Calls = queue.SimpleQueue[tuple[ThreadRun, asyncio.AbstractEventLoop] | None]

__all__ = ["Dispatched", "Inline", "captured", "drain", "inline"]


async def drain(queues: Sequence[str] | None = None, concurrency: int = 10) -> Worker:
    """Run what is waiting in these queues, retries and delayed tasks included, until nothing is left.

    Returns the worker: ``completed``, ``retried`` and ``dead`` say what came of it.
    """
    worker = Worker(queues=queues, concurrency=concurrency, drain=True)
    await worker.start()
    return worker


class Dispatched:
    """What was dispatched while nothing was sent."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def of(self, task: Any) -> list[Message]:
        """The messages of one task: a task function, a task class or a name."""
        name = task if isinstance(task, str) else task.task_name
        return [message for message in self.messages if message.task == name]

    def assert_dispatched(self, task: Any, *args: Any, times: int = 1, **kwargs: Any) -> None:
        """Assert that ``task`` was dispatched this often with exactly these arguments."""
        calls = [codec.decode_arguments(message.body) for message in self.of(task)]
        found = sum(call == (list(args), kwargs) for call in calls)
        if found != times:
            raise AssertionError(f"dispatched {found} times with these arguments, not {times}; its calls were {calls}")

    def assert_not_dispatched(self, task: Any) -> None:
        """Assert that ``task`` was not dispatched at all."""
        if self.of(task):
            raise AssertionError(f"dispatched {len(self.of(task))} times")


class Inline(Dispatched):
    """What was dispatched and run on the spot."""

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: dict[str, Outcome] = {}
        """How each task ended, by id: ``Done`` or ``Dead``."""

    def result(self, id: str) -> Any:
        """What the task returned. Raises AssertionError with its traceback when it failed."""
        outcome = self.outcomes[id]
        if isinstance(outcome, Dead):
            raise AssertionError(f"the task failed:\n{outcome.error.traceback or outcome.error.message}")
        packed = outcome.result if isinstance(outcome, Done) else None
        return None if packed is None else codec.decode_value(packed)


@contextlib.contextmanager
def captured() -> Iterator[Dispatched]:
    """Hold back what is dispatched in this block, to look at it."""
    dispatched = Dispatched()
    with _dispatching(lambda messages: dispatched.messages.extend(messages)):
        yield dispatched


@contextlib.contextmanager
def inline() -> Iterator[Inline]:
    """Run what is dispatched in this block at once, retries included and delays left out.

    From code that is not async, sync tasks run in the calling thread, so that they see its open transaction.
    """
    ran = Inline()

    def run(messages: Sequence[Message]) -> None:
        for message in messages:
            ran.messages.append(message)
            ran.outcomes[message.id] = _run(message)

    with _dispatching(run):
        yield ran


@contextlib.contextmanager
def _dispatching(take: Callable[[Sequence[Message]], None]) -> Iterator[None]:
    runtime = _runtime.runtime()
    before = runtime.dispatcher

    class Taking(Dispatcher):
        async def send(self, driver: str | Driver, messages: Sequence[Message]) -> None:
            await asyncio.to_thread(take, messages)

        def send_sync(self, driver: str | Driver, messages: Sequence[Message]) -> None:
            take(messages)

    runtime.dispatcher = Taking(runtime.config, runtime.drivers, runtime.events)
    try:
        yield
    finally:
        runtime.dispatcher = before


def _run(message: Message) -> Outcome:
    """From this thread; from another where a loop runs in it, for a framework may refuse sync calls under one."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run_here(message)
    with ThreadPoolExecutor(1, "asynctasq-inline") as thread:
        return thread.submit(contextvars.copy_context().run, _run_here, message).result()


def _run_here(message: Message) -> Outcome:
    """The loop is in another thread, so that what is sync finds none in this one."""
    calls: Calls = queue.SimpleQueue()

    def attempts() -> Outcome:
        try:
            return asyncio.run(_attempts(message, calls))
        finally:
            calls.put(None)

    with ThreadPoolExecutor(1, "asynctasq-inline") as thread:
        outcome = thread.submit(contextvars.copy_context().run, attempts)
        while (call := calls.get()) is not None:
            run, loop = call
            loop.call_soon_threadsafe(_deliver, run, run.run())
        return outcome.result()


def _deliver(run: ThreadRun, ended: tuple[Any, BaseException | None]) -> None:
    if not run.future.done():
        run.future.set_result(ended)


async def _attempts(message: Message, calls: Calls) -> Outcome:
    runtime = _runtime.runtime()
    executor = Executor(
        dataclasses.replace(runtime.config, keep_completed_tasks=True),
        runtime.events,
        "inline",
        _ThatThread(asyncio.get_running_loop(), calls),
        ProcessPoolManager.get_default_manager().pool,
    )
    attempt = 1
    while True:
        lease = open_lease(
            id=message.id,
            queue=message.queue,
            payload=encode(message),
            attempt=attempt,
            receipt=None,
            visibility_timeout=message.visibility_timeout,
            claimed_at=time.monotonic(),
        )
        outcome = await asyncio.create_task(executor.run(Attempt(lease)))
        if not isinstance(outcome, Retry):
            return outcome
        attempt += 1


class _ThatThread(Threads):
    """Hands calls to the thread that waits for them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, calls: Calls) -> None:
        super().__init__(1, loop)
        self._calls = calls

    def submit(self, call: Callable[[], Any]) -> ThreadRun:
        run = ThreadRun(call, self._loop.create_future())
        self._calls.put((run, self._loop))
        return run
