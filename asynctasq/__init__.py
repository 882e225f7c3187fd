"""AsyncTasQ: an async-first task queue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from asynctasq import _current
from asynctasq._runtime import init, runtime, shutdown
from asynctasq.config import Config
from asynctasq.core.codec import register_type
from asynctasq.core.context import CurrentTask, current_task
from asynctasq.core.repository import Repository
from asynctasq.core.worker import Worker
from asynctasq.tasks import (
    AsyncProcessTask,
    AsyncTask,
    BaseTask,
    SyncProcessTask,
    SyncTask,
    TaskConfig,
    TaskFunction,
    task,
)

__version__ = "0.1.0"

__all__ = [
    "AsyncProcessTask",
    "AsyncTask",
    "Config",
    "CurrentTask",
    "Repository",
    "SyncProcessTask",
    "SyncTask",
    "TaskConfig",
    "TaskFunction",
    "Worker",
    "current_task",
    "dispatch_many",
    "dispatch_many_sync",
    "init",
    "register_type",
    "repository",
    "shutdown",
    "task",
]


async def dispatch_many(tasks: Sequence[BaseTask[Any]]) -> list[str]:
    """Dispatch all in as few calls to the broker as it takes; their ids, in this order.

    Nothing is sent when one of them cannot be.
    """
    return await _current.get().dispatch(tasks)


def dispatch_many_sync(tasks: Sequence[BaseTask[Any]]) -> list[str]:
    """The same from code that is not async."""
    return _current.get().dispatch_sync(tasks)


def repository(driver: str | None = None) -> Repository:
    """Find, read and repair tasks; of another driver than the configured one when named."""
    current = runtime().repository
    return current if driver is None else current.on(driver)
