"""The tasks of the workers that are killed, stopped and lied to. ``--app tests.faults.tasks`` brings them along.

The journal is named by the environment. With ``FAULTS_CANARIES`` set, whatever is imported, opened for writing,
compiled or run as a program while messages are handled is printed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from asynctasq import BaseTask, current_task, task
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
    journal().write("start", label, attempt=attempt())
    raise ValueError("as ever")


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event.startswith(SUSPICIOUS) and any(canary in str(arguments[:2]) for canary in CANARIES.split(",")):
        os.write(2, f"CANARY {event} {str(arguments)[:200]}\n".encode())


if CANARIES:
    sys.addaudithook(watch)
