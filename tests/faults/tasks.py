"""The tasks of the workers that are killed, stopped and lied to. ``--app tests.faults.tasks`` brings them along.

The environment names the journal. It may ask for the worker to be killed at one of its steps (``FAULTS_CRASH_AT``) and
name words (``FAULTS_CANARIES``) that no import, program or compiled code of the worker may have to do with.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from asynctasq import current_task, task
from asynctasq.tasks.base import BaseTask
from tests.faults.ledger import Journal, runs_of

CANARIES = os.environ.get("FAULTS_CANARIES", "")
Kind = Callable[[str, float], BaseTask[None]]
"""What most of these are to whoever calls them."""
SUSPICIOUS = ("import", "exec", "compile", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle")


def journal() -> Journal:
    return Journal(os.environ["FAULTS_JOURNAL"])


def attempt() -> int:
    current = current_task()
    assert current is not None
    return current.attempt


@task
async def nap(label: str, seconds: float, data: bytes = b"") -> None:
    with journal().run(label, attempt(), data):
        await asyncio.sleep(seconds)


@task
def rest(label: str, seconds: float, data: bytes = b"") -> None:
    """Waits in C, all of it."""
    with journal().run(label, attempt(), data):
        time.sleep(seconds)


@task
async def block(label: str, seconds: float, data: bytes = b"") -> None:
    """Keeps the event loop from doing anything else."""
    with journal().run(label, attempt(), data):
        time.sleep(seconds)  # noqa: ASYNC251 - that is the point


@task
async def nap_once(label: str, seconds: float, data: bytes = b"") -> None:
    """Long on its first start, short on any further one."""
    again = label in runs_of(journal().lines())
    with journal().run(label, attempt(), data):
        await asyncio.sleep(0 if again else seconds)


@task
def rest_once(label: str, seconds: float, data: bytes = b"") -> None:
    again = label in runs_of(journal().lines())
    with journal().run(label, attempt(), data):
        time.sleep(0 if again else seconds)


@task
async def poison(label: str, seconds: float = 0.0, data: bytes = b"") -> None:
    """Ends its worker, every time."""
    with journal().run(label, attempt(), data):
        await asyncio.sleep(seconds)
        journal().write("kill", "worker")
        os.kill(os.getpid(), signal.SIGKILL)


@task
async def fail(label: str, seconds: float = 0.0, data: bytes = b"") -> None:
    """Fails on every attempt."""
    with journal().run(label, attempt(), data):
        raise ValueError("as ever")


def crash_at(point: int) -> None:
    """Have this process killed at one of its own steps towards the broker, just before or just after it is taken."""
    steps = itertools.count(1)

    def step(*_: object) -> None:
        if next(steps) == point:
            journal().write("kill", "worker")
            os.kill(os.getpid(), signal.SIGKILL)

    def around(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def stepping(*args: Any, **kwargs: Any) -> Any:
            step()
            result = await call(*args, **kwargs)
            step()
            return result

        return stepping

    driver = os.environ["ASYNCTASQ_DRIVER"]
    if driver == "redis":
        from redis.asyncio.connection import AbstractConnection

        AbstractConnection.send_packed_command = around(AbstractConnection.send_packed_command)  # type: ignore[assignment, method-assign]
    elif driver == "postgres":
        from asynctasq.drivers.postgres import PostgresDriver

        PostgresDriver._execute = around(PostgresDriver._execute)  # type: ignore[assignment, method-assign]
    elif driver == "mysql":
        from asynctasq.drivers.mysql.connection import Connection

        send = Connection.send

        def stepping(self: Any, *args: Any) -> Any:
            step()
            rows = send(self, *args)
            step()
            return rows

        # Between any two statements, on whatever path: only the method itself sees them all.
        Connection.send = stepping  # type: ignore[method-assign]
    else:
        from asynctasq.drivers.sqlite import Connection as Embedded

        opened = Embedded._new

        def traced(path: str) -> Any:
            connection = opened(path)
            # Each statement as it begins, the end of a transaction too. The looks for changes are not steps.
            connection.set_trace_callback(lambda sql: None if sql.startswith("PRAGMA") else step())
            return connection

        # Likewise: whoever opens one.
        Embedded._new = staticmethod(traced)  # type: ignore[method-assign]


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event.startswith(SUSPICIOUS) and any(canary in str(arguments[:2]) for canary in CANARIES.split(",")):
        os.write(2, f"CANARY {event} {str(arguments)[:200]}\n".encode())


if point := os.environ.get("FAULTS_CRASH_AT"):
    crash_at(int(point))
if CANARIES:
    sys.addaudithook(watch)
