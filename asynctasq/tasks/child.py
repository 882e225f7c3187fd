"""What runs in a child process: ``python -m asynctasq.tasks.child <socket>``. See :mod:`asynctasq.tasks.process`."""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import importlib.util
import inspect
import signal
import socket
import sys
from collections.abc import Coroutine
from contextlib import AsyncExitStack, ExitStack
from typing import Any

import msgspec

from asynctasq.core import codec, context, registry
from asynctasq.core.outcome import describe
from asynctasq.errors import DecodeError, EncodeError
from asynctasq.tasks.base import BaseTask
from asynctasq.tasks.process import Reply, Request, Setup, receive, send


def main() -> None:
    sock = socket.socket(fileno=int(sys.argv[1]))
    # Ctrl-C in a terminal reaches the whole group; when to end is the parent's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    setup = msgspec.msgpack.decode(receive(sock), type=Setup)
    sys.path[:] = setup.path
    for initializer in setup.initializers:
        module, _, function = initializer.partition(":")
        getattr(importlib.import_module(module), function)()
    runner = asyncio.Runner() if setup.warm else None
    if runner is not None:
        runner.get_loop()
    send(sock, b"ready")
    with context.marked_records:
        serve(sock, setup, runner)


def serve(sock: socket.socket, setup: Setup, runner: asyncio.Runner | None) -> None:
    """Run what is asked for until the parent is gone."""
    while True:
        try:
            data = receive(sock)
        except (EOFError, OSError):
            return
        request = msgspec.msgpack.decode(data, type=Request)
        # A context of its own, so that nothing leaks from one task into the next.
        reply = contextvars.copy_context().run(run, request, setup, runner)
        send(sock, msgspec.msgpack.encode(reply))


def run(request: Request, setup: Setup, runner: asyncio.Runner | None) -> Reply:
    """One attempt, from its request to its reply, whatever the task does short of ending the process."""
    task: BaseTask[Any] | None = None
    try:
        load(request.module, setup)
        args, kwargs = codec.decode_arguments(request.body)
        context.running.set(
            context.CurrentTask(
                id=request.id,
                name=request.task,
                queue=request.queue,
                attempt=request.attempt,
                max_attempts=request.max_attempts,
                correlation_id=request.correlation_id,
            )
        )
        with ExitStack() as stack:
            for surrounding in context.surroundings:
                stack.enter_context(surrounding())
            task = registry.get(request.task).build(args, kwargs, request.attempt)
            result = call(task.run, runner)
    except BaseException as exc:  # noqa: BLE001 - SystemExit in a task is the task's failure
        return failure(exc, task, request, runner)
    on_demand = runner is None and task.kind == "async_process"
    if not request.keep:
        return Reply(on_demand_loop=on_demand)
    try:
        packed = codec.encode_result(result)
    except EncodeError as exc:
        return Reply(on_demand_loop=on_demand, problem=f"its result is not kept: {exc}")
    return Reply(result=packed, result_size=len(packed), on_demand_loop=on_demand)


def failure(exc: BaseException, task: BaseTask[Any] | None, request: Request, runner: asyncio.Runner | None) -> Reply:
    """The reply for an attempt that raised; asks the task's hooks."""
    problem = None
    retryable = not isinstance(exc, DecodeError)
    if task is not None:
        try:
            if request.attempt < request.max_attempts:
                retryable = bool(task.should_retry(exc))
            if request.attempt >= request.max_attempts or not retryable:
                call(lambda: task.failed(exc), runner)
        except BaseException as hook:  # noqa: BLE001 - a failing hook changes nothing, nor is it to end the child
            problem = f"a hook of it raised {type(hook).__name__}: {describe(hook).message[:200]}"
    on_demand = runner is None and task is not None and task.kind == "async_process"
    return Reply(error=describe(exc), retryable=retryable, problem=problem, on_demand_loop=on_demand)


def call(function: Any, runner: asyncio.Runner | None) -> Any:
    """Call it, and run what it returns on an event loop if that is a coroutine."""
    result = function()
    if not inspect.iscoroutine(result):
        return result
    work = surrounded(result)
    return asyncio.run(work) if runner is None else runner.run(work, context=contextvars.copy_context())


async def surrounded(work: Coroutine[Any, Any, Any]) -> Any:
    """Await it within what surrounds async tasks on their loop."""
    try:
        async with AsyncExitStack() as stack:
            for surrounding in context.async_surroundings:
                await stack.enter_async_context(surrounding())
            return await work
    finally:
        # Where a surrounding could not be entered it has not begun.
        work.close()


def load(module: str, setup: Setup) -> None:
    """Import the module that the parent's registry named."""
    if module in sys.modules:
        return
    if module != setup.main_name or setup.main is None:
        importlib.import_module(module)
        return
    spec = importlib.util.spec_from_file_location(module, setup.main)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {setup.main}")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[module] = loaded
    spec.loader.exec_module(loaded)


if __name__ == "__main__":
    main()
