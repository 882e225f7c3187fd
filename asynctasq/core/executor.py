"""Runs one attempt: in the loop, in a thread or in a child process; and says what it came to."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import logging
import time
from collections.abc import Callable
from typing import Any, cast

from asynctasq.config import Config
from asynctasq.core import codec, context, registry
from asynctasq.core.events import EventBus, EventType, TaskEvent, printable
from asynctasq.core.message import Lease, Message, utcnow
from asynctasq.core.outcome import Dead, Done, ErrorInfo, Outcome, Release, decide, describe
from asynctasq.core.registry import Runnable
from asynctasq.core.threads import Interrupt, Threads
from asynctasq.errors import DecodeError, EncodeError, TaskCancelled, TaskTimeout, UnknownTask
from asynctasq.tasks.base import BaseTask
from asynctasq.tasks.process import ProcessPool, Reply, Request

logger = logging.getLogger("asynctasq.worker")


class Attempt:
    """One attempt under way, and how to end it from outside."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.started = time.monotonic()
        self.timed_out = False
        self.called_off = False
        """The worker gives the task back: neither success nor failure."""
        self._stop: Callable[[], Any] | None = None

    def on_stop(self, stop: Callable[[], Any]) -> None:
        """``stop`` ends the code of the attempt; it may be called from the loop's thread only."""
        self._stop = stop
        if self.called_off or self.timed_out:
            stop()

    def call_off(self) -> None:
        """End it as if it had not been."""
        self.called_off = True
        if self._stop is not None:
            self._stop()

    def time_out(self) -> None:
        """End it as a failure."""
        self.timed_out = True
        if self._stop is not None:
            self._stop()


class Executor:
    """Runs attempts. One per worker; belongs to its loop."""

    def __init__(
        self, config: Config, events: EventBus, worker_id: str, threads: Threads, processes: Callable[[], ProcessPool]
    ) -> None:
        self.config = config
        self.events = events
        self.worker_id = worker_id
        self._threads = threads
        self._processes = processes
        self._warned_on_demand = False

    async def run(self, attempt: Attempt) -> Outcome:
        """The outcome of one attempt, whatever the task does. Cancelled only through ``attempt``."""
        lease = attempt.lease
        message = lease.message
        if message is None:
            return Dead(lease=lease, error=ErrorInfo(type=_path(DecodeError), message=lease.fault or ""))
        try:
            runnable = registry.get(message.task)
        except UnknownTask as exc:
            # Not at once to the dead letters: in a rolling deploy another worker may have it already.
            return decide(lease, describe(exc), cap=self.config.max_retry_delay)
        context.running.set(
            context.CurrentTask(
                id=message.id,
                name=message.task,
                queue=message.queue,
                attempt=lease.attempt,
                max_attempts=message.max_attempts,
                correlation_id=message.correlation_id,
            )
        )
        if self.events.active:
            self.events.emit(task_event(EventType.TASK_STARTED, lease, self.worker_id))
        if runnable.kind.endswith("_process"):
            return await self._in_process(attempt, message, runnable)
        task: BaseTask[Any] | None = None
        try:
            if runnable.kind == "async":
                args, kwargs = await self._arguments(message.body)
                task = runnable.build(args, kwargs, lease.attempt)
                result = await self._in_loop(attempt, message, task)
            else:
                task, result = await self._in_thread(attempt, message, runnable)
        except BaseException as exc:  # noqa: BLE001 - whatever it is, it is this task's and not the worker's end
            if isinstance(exc, _Raised):
                task, exc = exc.task, exc.error
            if attempt.called_off:
                return Release(lease=lease)
            return await self._failed(
                attempt, message, task, self._reason(attempt, message, exc), in_loop=runnable.kind == "async"
            )
        return self._done(attempt, result)

    async def _arguments(self, body: bytes) -> tuple[list[Any], dict[str, Any]]:
        try:
            return codec.decode_arguments(body, blocking=False)
        except codec.NeedsThread:
            return cast("tuple[list[Any], dict[str, Any]]", await self._call(lambda: codec.decode_arguments(body)))

    async def _in_loop(self, attempt: Attempt, message: Message, task: BaseTask[Any]) -> Any:
        if attempt.called_off:
            # Before it began: while its arguments were read, or before its first step.
            raise asyncio.CancelledError
        current = cast("asyncio.Task[Any]", asyncio.current_task())
        attempt.on_stop(current.cancel)
        timer = None
        if message.timeout is not None:
            timer = asyncio.get_running_loop().call_later(message.timeout, attempt.time_out)
        try:
            if not context.async_surroundings:
                return await task.run()
            async with contextlib.AsyncExitStack() as stack:
                for surrounding in context.async_surroundings:
                    await stack.enter_async_context(surrounding())
                return await task.run()
        finally:
            attempt.on_stop(_nothing)
            if timer is not None:
                timer.cancel()
            # A task that cancelled itself, or that we did: the cancellation is not to hit what follows. One that is
            # still on its way arrives here; Python before 3.13 would else take what returned for cancelled.
            if current.cancelling():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0)
            while current.cancelling():
                current.uncancel()

    async def _in_thread(self, attempt: Attempt, message: Message, runnable: Runnable) -> tuple[BaseTask[Any], Any]:
        task: BaseTask[Any] | None = None

        def work() -> Any:
            nonlocal task
            with contextlib.ExitStack() as stack:
                for surrounding in context.surroundings:
                    stack.enter_context(surrounding())
                args, kwargs = codec.decode_arguments(message.body)
                task = runnable.build(args, kwargs, attempt.lease.attempt)
                return task.run()

        run = self._threads.submit(self._with_context(work))
        attempt.on_stop(run.interrupt)
        timer = None
        if message.timeout is not None:
            timer = asyncio.get_running_loop().call_later(message.timeout, attempt.time_out)
        try:
            # The slot stays taken until the thread is really done with it: a retry must not run beside it.
            result, error = await run.future
        finally:
            attempt.on_stop(_nothing)
            if timer is not None:
                timer.cancel()
        if error is not None:
            raise _Raised(task, error)
        return cast("BaseTask[Any]", task), result

    async def _in_process(self, attempt: Attempt, message: Message, runnable: Runnable) -> Outcome:
        lease = attempt.lease
        request = Request(
            module=runnable.module,
            task=message.task,
            body=message.body,
            attempt=lease.attempt,
            max_attempts=message.max_attempts,
            id=message.id,
            queue=message.queue,
            correlation_id=message.correlation_id,
            keep=self.config.keep_completed_tasks or self.events.active,
        )
        loop = asyncio.get_running_loop()

        def work() -> Reply:
            def attach(kill: Callable[[], None]) -> None:
                if attempt.called_off:
                    # While it waited for a free child: its lease may be another's by now.
                    raise Interrupt
                loop.call_soon_threadsafe(attempt.on_stop, kill)

            return self._processes().run(request, message.timeout, attach)

        attempt.on_stop(_nothing)
        reply, error = await self._threads.submit(work).future
        if error is not None:
            if attempt.called_off:
                return Release(lease=lease)

            # Its process is gone, and with it whoever could have asked the task's hooks: they are asked here.
            def build() -> BaseTask[Any]:
                args, kwargs = codec.decode_arguments(message.body)
                task: BaseTask[Any] = runnable.build(args, kwargs, lease.attempt)
                return task

            task = None
            with contextlib.suppress(Exception):
                task = await self._call(build)
            return await self._failed(attempt, message, task, self._reason(attempt, message, error), in_loop=False)
        return self._answered(attempt, message, reply)

    def _answered(self, attempt: Attempt, message: Message, reply: Reply) -> Outcome:
        if reply.on_demand_loop and not self._warned_on_demand:
            self._warned_on_demand = True
            logger.warning(
                "task %s: falling back to on-demand event loop; call ProcessPoolManager.initialize() at worker start "
                "to keep one warm in each process",
                printable(message.task),
            )
        if reply.problem:
            logger.warning("task %s %s: %s", printable(message.task), message.id, printable(reply.problem))
        duration = time.monotonic() - attempt.started
        if reply.error is not None:
            return decide(
                attempt.lease,
                reply.error,
                retryable=reply.retryable,
                cap=self.config.max_retry_delay,
                duration=duration,
            )
        keep = self.config.keep_completed_tasks
        return Done(lease=attempt.lease, result=reply.result, keep=keep, duration=duration)

    def _done(self, attempt: Attempt, result: Any) -> Outcome:
        packed = None
        keep = self.config.keep_completed_tasks
        if keep or self.events.active:
            try:
                packed = codec.encode_result(result)
            except EncodeError as exc:
                # It did its work: running it again would not make the result any better.
                logger.warning("task %s: its result is not kept: %s", attempt.lease.id, printable(str(exc)))
        return Done(lease=attempt.lease, result=packed, keep=keep, duration=time.monotonic() - attempt.started)

    def _reason(self, attempt: Attempt, message: Message, error: BaseException) -> BaseException:
        """What is to be recorded for ``error``."""
        if attempt.timed_out or (isinstance(error, TaskTimeout) and message.timeout is not None):
            timeout = TaskTimeout(
                f"attempt {attempt.lease.attempt} ran longer than its timeout of {message.timeout:g} s"
            )
            timeout.__cause__ = None if isinstance(error, Interrupt | TaskTimeout) else error
            return timeout
        if isinstance(error, asyncio.CancelledError | Interrupt):
            return TaskCancelled("the task was cancelled from within")
        return error

    async def _failed(
        self, attempt: Attempt, message: Message, task: BaseTask[Any] | None, error: BaseException, *, in_loop: bool
    ) -> Outcome:
        """The outcome of a failure; asks the task's hooks where its code runs. What they raise changes nothing."""
        lease = attempt.lease
        retryable = not isinstance(error, DecodeError)
        last = lease.attempt >= message.max_attempts
        if task is not None and type(task).should_retry is not BaseTask.should_retry and not last:
            retryable = bool(await self._hook(lambda: task.should_retry(error), in_loop, default=retryable))
        if task is not None and type(task).failed is not BaseTask.failed and (last or not retryable):
            await self._hook(lambda: task.failed(error), in_loop, default=None)
        return decide(
            lease,
            describe(error),
            retryable=retryable,
            cap=self.config.max_retry_delay,
            duration=time.monotonic() - attempt.started,
        )

    async def _hook(self, hook: Callable[[], Any], in_loop: bool, default: Any) -> Any:
        try:
            result = hook() if in_loop else await self._call(hook)
            return await result if inspect.isawaitable(result) else result
        except BaseException as exc:  # noqa: BLE001 - it may raise anything, and SystemExit would end the worker
            logger.warning("a hook of the task raised %s: %s", type(exc).__name__, printable(describe(exc).message))
            return default

    async def _call(self, function: Callable[[], Any]) -> Any:
        """Run ``function`` in a thread, with what surrounds tasks there."""

        def work() -> Any:
            with contextlib.ExitStack() as stack:
                for surrounding in context.surroundings:
                    stack.enter_context(surrounding())
                return function()

        result, error = await self._threads.submit(self._with_context(work)).future
        if error is not None:
            raise error
        return result

    @staticmethod
    def _with_context(function: Callable[[], Any]) -> Callable[[], Any]:
        run_in = contextvars.copy_context().run
        return lambda: run_in(function)


class _Raised(Exception):
    """Carries what a thread's task raised, of whatever class, with the task for its hooks."""

    def __init__(self, task: BaseTask[Any] | None, error: BaseException) -> None:
        self.task = task
        self.error = error


def _nothing() -> None:
    """Ends nothing: the attempt has no code under way."""


def _path(cls: type[BaseException]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def task_event(type: EventType, lease: Lease, worker: str, **more: Any) -> TaskEvent:
    """An event about the task of ``lease``."""
    message = lease.message
    return TaskEvent(
        type=type,
        task_id=lease.id,
        task_name=message.task if message else "",
        queue=lease.queue,
        time=utcnow(),
        worker=worker,
        attempt=lease.attempt,
        correlation_id=message.correlation_id if message else None,
        **more,
    )
