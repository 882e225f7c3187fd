"""Django's database connections around the attempts of tasks: what a request gets from Django, a task gets here."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from asgiref.sync import sync_to_async
from django.db import DatabaseError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from asynctasq.core import context
from asynctasq.drivers.sqlite import add_functions
from asynctasq.errors import ConfigurationError


def install() -> None:
    """Take care of connections around every attempt, and of new connections, from now on."""
    if care not in context.surroundings:
        context.surroundings.append(care)
        context.async_surroundings.append(async_care)
    connection_created.connect(_connected, dispatch_uid="asynctasq_django.db")
    for connection in connections.all(initialized_only=True):
        if connection.connection is not None:
            _connected(connection)


@contextmanager
def care() -> Iterator[None]:
    """Around an attempt, on its thread: connections that broke or are too old are closed before and after."""
    close_unusable()
    try:
        yield
    finally:
        close_unusable()


@asynccontextmanager
async def async_care() -> AsyncIterator[None]:
    """The same around an async attempt, whose queries run in the thread of ``sync_to_async``."""
    # A hop to that thread costs more than a small task: there is none before the first query there.
    if _used_by_async:
        await sync_to_async(close_unusable)()
    try:
        yield
    finally:
        if _used_by_async:
            await sync_to_async(close_unusable)()


def close_unusable() -> None:
    """Close this thread's connections that cannot or should not be used again.

    Not ``close_old_connections()``: inside a test's atomic block that would close the test's connection.
    """
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()


@contextmanager
def needs_table(table: str, alias: str, what: str) -> Iterator[None]:
    """Around statements on ``table``. When it is not there: ConfigurationError, saying that ``what`` is missing."""
    try:
        yield
    except DatabaseError as exc:
        if table not in str(exc) or "unique" in str(exc).lower():
            raise
        raise ConfigurationError(f"{what} missing in the database {alias!r}: run 'manage.py migrate' ({exc})") from exc


_used_by_async: set[str] = set()
"""Names of the threads that are neither ours nor the main one and have opened a connection."""


def _connected(connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
    if connection.vendor == "sqlite":
        # Here and not at each dispatch: SQLite refuses it while a query of the connection is being read.
        add_functions(connection.connection)
    thread = threading.current_thread()
    if thread is not threading.main_thread() and not thread.name.startswith("asynctasq-"):
        _used_by_async.add(thread.name)
