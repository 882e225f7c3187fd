"""Which task is running here: for user code, for child tasks and for log records."""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager

import msgspec


class CurrentTask(msgspec.Struct, frozen=True, kw_only=True):
    """The running task, as its own code sees it."""

    id: str
    """Stays the same over all attempts: use it as the idempotency key of side effects."""
    name: str
    queue: str
    attempt: int
    """From 1."""
    max_attempts: int
    correlation_id: str | None = None


running: contextvars.ContextVar[CurrentTask | None] = contextvars.ContextVar("asynctasq_running", default=None)


def current_task() -> CurrentTask | None:
    """The task this code runs in; None outside any."""
    return running.get()


def record_factory(inner: Callable[..., logging.LogRecord]) -> Callable[..., logging.LogRecord]:
    """A log record factory that adds ``task_id``, ``task_name`` and ``correlation_id`` (None outside a task)."""

    def make(*args: object, **kwargs: object) -> logging.LogRecord:
        record = inner(*args, **kwargs)
        task = running.get()
        record.task_id = task and task.id
        record.task_name = task and task.name
        record.correlation_id = task and task.correlation_id
        return record

    return make


surroundings: list[Callable[[], AbstractContextManager[object]]] = []
"""Entered around every attempt of a sync or process task, in the thread or process that runs it."""

async_surroundings: list[Callable[[], AbstractAsyncContextManager[object]]] = []
"""Entered around every attempt of an async task, on its loop."""
