"""Which task is running here: for user code, for child tasks and for log records."""

from __future__ import annotations

import contextvars
import logging
import threading
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


class _MarkedRecords:
    """While at least one is within this block, log records know their task. Those who leave need not be the last
    who came: workers of one process end in any order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._within = 0
        self._before: Callable[..., logging.LogRecord] = logging.LogRecord

    def __enter__(self) -> None:
        with self._lock:
            self._within += 1
            if self._within == 1:
                self._before = logging.getLogRecordFactory()
                logging.setLogRecordFactory(record_factory(self._before))

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._within -= 1
            if not self._within:
                logging.setLogRecordFactory(self._before)


marked_records = _MarkedRecords()
"""Entered by whoever runs tasks."""


surroundings: list[Callable[[], AbstractContextManager[object]]] = []
"""Entered around every attempt of a sync or process task, in the thread or process that runs it."""

async_surroundings: list[Callable[[], AbstractAsyncContextManager[object]]] = []
"""Entered around every attempt of an async task, on its loop; also in a child process."""
