"""Tasks for workers in other processes. Each writes into the ledger whose path it is given."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from typing import Any

from asynctasq import AsyncProcessTask, SyncProcessTask, current_task, task
from tests.app import Ledger


@task
async def note(ledger: str, label: str) -> None:
    with Ledger(ledger).run(label):
        pass


@task
async def nap(ledger: str, label: str, seconds: float) -> None:
    with Ledger(ledger).run(label):
        await asyncio.sleep(seconds)


@task
async def block(ledger: str, label: str, seconds: float) -> None:
    """Keeps the event loop from doing anything else."""
    with Ledger(ledger).run(label):
        time.sleep(seconds)  # noqa: ASYNC251 - that is the point


@task
def rest(ledger: str, label: str, seconds: float) -> None:
    """A sync task that can be interrupted."""
    with Ledger(ledger).run(label):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.01)


@task
async def nap_the_first_time(ledger: str, label: str, seconds: float) -> None:
    """Long on its first start, short on any further one."""
    first = not Ledger(ledger).starts(label)
    with Ledger(ledger).run(label):
        await asyncio.sleep(seconds if first else 0)


@task
async def poison(ledger: str, label: str) -> None:
    """Ends its worker, every time."""
    with Ledger(ledger).run(label):
        os.kill(os.getpid(), signal.SIGKILL)


@task(process=True)
def crunch(ledger: str, label: str, seconds: float = 0.0) -> int:
    with Ledger(ledger).run(label):
        time.sleep(seconds)
    return os.getpid()


@task(process=True)
def die(ledger: str, label: str, how: str) -> None:
    """Ends the child process it runs in."""
    with Ledger(ledger).run(label):
        if how == "exit":
            os._exit(3)
        os.kill(os.getpid(), {"killed": signal.SIGKILL, "segfault": signal.SIGSEGV}[how])


@task(process=True)
def leave(code: int) -> None:
    sys.exit(code)


@task(process=True)
def pid_of_child() -> int:
    return os.getpid()


@task(process=True)
def record_of_child() -> tuple[str, str | None, str | None]:
    """What a log record made here says of its task."""
    record: Any = logging.getLogRecordFactory()("shop", logging.INFO, __file__, 1, "text", (), None)
    return record.task_id, record.task_name, record.correlation_id


@task(process=True)
def unpackable() -> object:
    return object()


class LoopOfChild(AsyncProcessTask[tuple[int, int]]):
    """Where it ran: the process and its event loop."""

    async def execute(self) -> tuple[int, int]:
        await asyncio.sleep(0)
        return os.getpid(), id(asyncio.get_running_loop())


class Doubling(SyncProcessTask[dict[str, Any]]):
    number: int

    def execute(self) -> dict[str, Any]:
        current = current_task()
        assert current is not None
        return {
            "double": self.number * 2,
            "pid": os.getpid(),
            "attempt": self.current_attempt,
            "id": current.id,
            "correlation_id": current.correlation_id,
        }


class Hooked(SyncProcessTask[None]):
    """Fails, and writes what its hooks are told."""

    ledger: str
    retry: bool = True

    def execute(self) -> None:
        raise LookupError("nothing there")

    def should_retry(self, exception: BaseException) -> bool:
        Ledger(self.ledger).write("should_retry", type(exception).__name__)
        return self.retry

    def failed(self, exception: BaseException) -> None:
        Ledger(self.ledger).write("failed", type(exception).__name__)
