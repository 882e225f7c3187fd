"""SQLite, embedded: a file beside the application, or a database that lives with the process.

SQLite has one writer at a time, so every write is a short ``BEGIN IMMEDIATE`` and everything of a driver goes through
one thread. Several processes on one host may share the file; a network file system is not supported.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, TypeVar

from asynctasq.config import Config
from asynctasq.core.message import Message
from asynctasq.drivers.sql import Args, Row, SqlDriver, Steps, Tables, enqueue_rows, schema, single
from asynctasq.errors import AsyncTasQError, BrokerFull, BrokerUnavailable, ConfigurationError, DriverClosed

T = TypeVar("T")

POLL_FIRST, POLL_LAST = 0.005, 0.05
"""Seconds between looks at ``PRAGMA data_version``, which tells of another connection's commit without reading the
database (3 us): quick right after work, ten times slower when idle."""
BUSY_TIMEOUT = 5.0
"""Seconds to wait for another process's write."""

_NAMED = re.compile(r"%\((\w+)\)s")
_WRITES = re.compile(r"^\s*(INSERT|UPDATE|DELETE)\b", re.MULTILINE)


class SqliteDriver(SqlDriver):
    name: ClassVar[str] = "sqlite"
    dialect = "sqlite"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._thread: ThreadPoolExecutor | None = None
        self._connection: Connection | None = None
        self._seen: tuple[int, int] | None = None
        self._woken = asyncio.Event()
        self._sync_connection: Connection | None = None
        self._sync_lock = threading.Lock()

    async def migrate(self) -> bool:
        """``connect`` does as much: an embedded database is made where it is missing."""
        await self._in_new_thread(lambda: self._open().close())
        return True

    async def connect(self) -> None:
        self._connection = await self._in_new_thread(self._open)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="asynctasq-sqlite")

    async def close(self) -> None:
        thread, connection = self._thread, self._connection
        self._thread = self._connection = None
        if thread is not None and connection is not None:
            await asyncio.get_running_loop().run_in_executor(thread, connection.close)
            thread.shutdown()
        self.close_sync()

    def enqueue_sync(self, messages: Sequence[Message]) -> None:
        if not messages:
            return
        with self._sync_lock:
            if self._sync_connection is None:
                self._sync_connection = self._open()
            self._sync_connection.run(lambda: single("enqueue", enqueue_rows(messages)))

    def close_sync(self) -> None:
        with self._sync_lock:
            connection, self._sync_connection = self._sync_connection, None
        if connection is not None:
            connection.close()

    def _open(self) -> Connection:
        return Connection(self.config.sqlite_path, self.config.sqlite_synchronous, self.tables, self.sql)

    @staticmethod
    async def _in_new_thread(work: Callable[[], T]) -> T:
        with ThreadPoolExecutor(1) as thread:
            return await asyncio.get_running_loop().run_in_executor(thread, work)

    async def _call(self, work: Callable[[Connection], T]) -> T:
        connection, thread = self._connection, self._thread
        if connection is None or thread is None:
            raise DriverClosed("the sqlite driver is not connected")
        return await asyncio.get_running_loop().run_in_executor(thread, work, connection)

    async def _fetch(self, statement: str, /, **args: Any) -> list[Row]:
        return await self._call(lambda connection: connection.fetch(statement, args))

    async def _transaction(self, steps: Callable[[], Steps[T]]) -> T:
        return await self._call(lambda connection: connection.run(steps))

    async def _wait(self, queues: Sequence[str], timeout: float) -> bool:
        give_up = time.monotonic() + timeout
        pause = POLL_FIRST
        while not self._woken.is_set():
            # Compared with what the last wait saw, not with now: a commit since the claim must not be missed.
            version = await self._call(Connection.version)
            if version != self._seen:
                self._seen = version
                return True
            left = give_up - time.monotonic()
            if left <= 0:
                return False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(pause, left)):
                    await self._woken.wait()
            pause = min(pause * 1.5, POLL_LAST)
        self._woken.clear()
        return True

    def _wake(self) -> None:
        self._woken.set()


class Connection:
    """One SQLite connection with the named statements; used by one thread at a time.

    ``:memory:`` stands for one database per process: whoever opens it shares one connection, and it goes with the
    last that closes it.
    """

    _memory: sqlite3.Connection | None = None
    _memory_users = 0
    _memory_lock = threading.RLock()

    def __init__(self, path: str, synchronous: str, tables: Tables, statements: Mapping[str, str]) -> None:
        # %(name)s is how the clients of the other databases write what sqlite3 writes :name.
        self._text = {name: _NAMED.sub(r":\1", text) for name, text in statements.items()}
        self._reads = {name for name, text in statements.items() if not _WRITES.search(text)}
        self._in_memory = path == ":memory:"
        self._lock = Connection._memory_lock if self._in_memory else threading.RLock()
        if sqlite3.sqlite_version_info < (3, 38):
            raise ConfigurationError(f"the sqlite driver needs SQLite 3.38 or newer, this is {sqlite3.sqlite_version}")
        with _errors(path), self._lock:
            self._connection = self._connect(path)
            self._connection.execute(f"PRAGMA synchronous = {synchronous}")
            for statement in schema("sqlite", tables):
                self._connection.execute(statement)
        self._path = path

    def _connect(self, path: str) -> sqlite3.Connection:
        if self._in_memory:
            if Connection._memory is None:
                Connection._memory = self._new(path)
            Connection._memory_users += 1
            return Connection._memory
        if not path.startswith("file:"):
            # Made here and not by SQLite, so that arguments of tasks are nobody else's to read.
            with contextlib.suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        connection = self._new(path)
        connection.execute("PRAGMA journal_mode = WAL")
        return connection

    @staticmethod
    def _new(path: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False, uri=path.startswith("file:")
        )
        add_functions(connection)
        return connection

    def close(self) -> None:
        with self._lock:
            if self._in_memory:
                Connection._memory_users -= 1
                if Connection._memory_users:
                    return
                Connection._memory = None
            self._connection.close()

    def version(self) -> tuple[int, int]:
        """Differs from an earlier one when something was committed since, by anyone."""
        with _errors(self._path), self._lock:
            return self._connection.execute("PRAGMA data_version").fetchone()[0], self._connection.total_changes

    def fetch(self, statement: str, args: Args) -> list[Row]:
        """Run one statement. One that only reads waits for no writer."""
        return self.run(lambda: single(statement, args), "DEFERRED" if statement in self._reads else "IMMEDIATE")

    def run(self, steps: Callable[[], Steps[T]], mode: str = "IMMEDIATE") -> T:
        """Run the statements in one transaction and commit it."""
        with _errors(self._path), self._lock:
            self._connection.execute(f"BEGIN {mode}")
            try:
                result = self._run(steps())
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            return result

    def _run(self, steps: Steps[T]) -> T:
        rows: list[Row] | None = None
        try:
            while True:
                name, args = next(steps) if rows is None else steps.send(rows)
                rows = self._connection.execute(self._text[name], args).fetchall()
        except StopIteration as stop:
            result: T = stop.value
            return result


def add_functions(connection: sqlite3.Connection) -> None:
    """Give a connection the function ``unbase64`` that the statements use; SQLite itself has none by default."""
    connection.create_function(
        "unbase64", 1, lambda text: None if text is None else base64.b64decode(text), deterministic=True
    )


@contextlib.contextmanager
def _errors(path: str) -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except sqlite3.Error as exc:
        raise _translated(exc, path) from exc
    except OSError as exc:
        if isinstance(exc, AsyncTasQError):
            raise
        raise ConfigurationError(f"sqlite_path {path!r} cannot be opened: {exc.strerror}") from exc


def _translated(exc: sqlite3.Error, path: str) -> AsyncTasQError:
    code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return BrokerFull(f"no room on the disk of {path!r}")
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return ConfigurationError(f"sqlite_path {path!r} cannot be used: {exc}")
    return BrokerUnavailable(f"{path!r}: {exc}")
