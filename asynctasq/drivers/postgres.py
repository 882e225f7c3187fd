"""PostgreSQL 13 or newer, on psycopg 3 with a pool. LISTEN tells of new work; the polls are the truth."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit

import psycopg
import psycopg.errors as pg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from asynctasq.config import Config, mask_url
from asynctasq.core.message import Lease
from asynctasq.drivers.base import CALL_DEADLINE
from asynctasq.drivers.sql import Args, Row, SqlDriver, Steps, schema
from asynctasq.errors import (
    AsyncTasQError,
    BrokerFull,
    BrokerUnavailable,
    ConfigurationError,
    DriverClosed,
    EncodeError,
)

T = TypeVar("T")
Connection = psycopg.AsyncConnection[Row]

CHANNEL = "asynctasq"
CONNECT_TIMEOUT = 3
"""Seconds; a producer is told within this time that the server is not there."""
CANCEL_LIMIT = 0.3
"""Seconds that a cancelled call is given to come to its end."""
REPEATS = 5

SETTINGS = (
    # The plan of every statement must be its index, whatever the statistics say: on a table that was never analysed
    # the planner sorts all that is ready at each claim, 6 to 9 times slower.
    "enable_sort = off",
    "enable_bitmapscan = off",
    "enable_seqscan = off",
    "enable_hashjoin = off",
    "enable_mergejoin = off",
    "jit = off",
    "plan_cache_mode = force_generic_plan",
)
REPEAT = (pg.SerializationFailure, pg.DeadlockDetected, pg.LockNotAvailable)
DROP_POOL = (pg.ReadOnlySqlTransaction, pg.AdminShutdown, pg.CrashShutdown, pg.CannotConnectNow)
"""A server that is going down or became a replica: the pool's connections are of no more use."""
FULL = (pg.DiskFull, pg.OutOfMemory)
NEEDS_A_PERSON = (
    pg.InvalidCatalogName,
    pg.InvalidSchemaName,
    pg.InvalidPassword,
    pg.InvalidAuthorizationSpecification,
    pg.InsufficientPrivilege,
)


class PostgresDriver(SqlDriver):
    name: ClassVar[str] = "postgres"
    dialect = "postgres"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._text = {name: text.encode() for name, text in self.sql.items()}
        self._pool: AsyncConnectionPool[Connection] | None = None
        self._busy: set[Connection] = set()
        """The connections on which something is under way."""
        self._woken = asyncio.Event()
        self._listener: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    async def migrate(self) -> bool:
        async with _errors(self.config), await self._connect_one() as connection:
            for statement in schema(self.dialect, self.tables):
                await connection.execute(statement.encode())
        return True

    async def connect(self) -> None:
        # By hand first: the pool would only say that it timed out, not why.
        async with _errors(self.config), await self._connect_one() as connection:
            await connection.execute(self._text["check"])
        await self._open_pool()

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.cancel()
            await asyncio.wait([listener])
        for connection in self._busy:
            # A pool that fills itself would otherwise wait for a server that is silent.
            _hang_up(connection)
        if pool is not None:
            await pool.close(timeout=1)
        if self._closing is not None:
            await self._closing

    async def claim(self, queues: Sequence[str], limit: int, wait: float, suspects: int = 1) -> list[Lease]:
        if self._pool is not None and self._pool.min_size < self.config.postgres_min_pool_size:
            # A process that claims is a worker; one that only dispatches is content with a connection or two.
            await self._pool.resize(self.config.postgres_min_pool_size, self.config.postgres_max_pool_size)
        return await super().claim(queues, limit, wait, suspects)

    def _options(self) -> dict[str, Any]:
        password = self.config.postgres_password
        given = password is None or urlsplit(self.config.postgres_dsn).password is not None
        extra = {} if given else {"password": password}
        return {
            "autocommit": True,
            "connect_timeout": CONNECT_TIMEOUT,
            "application_name": "asynctasq",
            "keepalives_idle": 30,
            "tcp_user_timeout": int(CALL_DEADLINE * 1000),
            **extra,
        }

    async def _connect_one(self) -> psycopg.AsyncConnection[Row]:
        try:
            return await psycopg.AsyncConnection.connect(self.config.postgres_dsn, **self._options())
        except psycopg.ProgrammingError:
            # The client's text quotes what it does not understand, which may be a part of the password.
            raise ConfigurationError(
                f"postgres_dsn {mask_url(self.config.postgres_dsn)} cannot be read: percent-encode special characters "
                "in its password, and look at its parameters"
            ) from None

    async def _open_pool(self) -> None:
        self._pool = AsyncConnectionPool(
            self.config.postgres_dsn,
            kwargs=self._options() | {"prepare_threshold": 0},
            connection_class=Connection,
            configure=lambda connection: self._get_ready(connection, _configure(connection)),
            min_size=1,
            max_size=self.config.postgres_max_pool_size,
            timeout=CONNECT_TIMEOUT,
            open=False,
            name="asynctasq",
        )
        await self._pool.open()

    async def _fetch(self, statement: str, /, **args: Any) -> list[Row]:
        # A claim whose answer was lost is not repeated: what it took comes back when its leases run out.
        return await self._call(lambda connection: self._execute(connection, statement, args), statement != "claim")

    async def _transaction(self, steps: Callable[[], Steps[T]]) -> T:
        return await self._call(lambda connection: self._run(connection, steps()), True)

    async def _run(self, connection: Connection, steps: Steps[T]) -> T:
        rows: list[Row] | None = None
        async with connection.transaction():
            try:
                while True:
                    name, args = next(steps) if rows is None else steps.send(rows)
                    rows = await self._execute(connection, name, args)
            except StopIteration as stop:
                result: T = stop.value
                return result

    async def _execute(self, connection: Connection, statement: str, args: Args) -> list[Row]:
        cursor = connection.cursor(binary=True)
        await cursor.execute(self._text[statement], args)
        return await cursor.fetchall() if cursor.description else []

    async def _call(self, work: Callable[[Connection], Awaitable[T]], repeatable: bool) -> T:
        """Do ``work`` on a connection, by the deadline; repeated where that is safe and the server asks for it."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + CALL_DEADLINE
        async with _errors(self.config):
            for attempt in range(1, REPEATS + 1):
                pool = self._pool
                try:
                    return await self._once(work, give_up)
                except REPEAT:
                    if attempt == REPEATS:
                        raise
                    await asyncio.sleep(random.uniform(0, 0.01 * 2**attempt))
                except psycopg.OperationalError as exc:
                    # The connection is gone, as are most likely the pool's others: one repetition, on a new pool.
                    if exc.sqlstate is not None and not isinstance(exc, DROP_POOL):
                        raise
                    await self._replace(pool)
                    if not repeatable or attempt > 1 or loop.time() >= give_up:
                        raise
        raise AssertionError("the last repetition raises")

    async def _once(self, work: Callable[[Connection], Awaitable[T]], give_up: float) -> T:
        pool = self._pool
        if pool is None:
            raise DriverClosed("the postgres driver is not connected")
        loop = asyncio.get_running_loop()
        async with pool.connection(max(min(CONNECT_TIMEOUT, give_up - loop.time()), 0.01)) as connection:
            return await self._by(give_up, connection, work(connection))

    async def _get_ready(self, connection: Connection, work: Awaitable[T]) -> T:
        """Prepare a new connection."""
        return await self._by(asyncio.get_running_loop().time() + CONNECT_TIMEOUT, connection, work)

    async def _by(self, deadline: float, connection: Connection, work: Awaitable[T]) -> T:
        """Await ``work`` on a connection until then, on the loop's clock. Neither the deadline nor a cancellation
        reaches psycopg: it would ask the server to cancel, and wait for its answer. What is cancelled may come to its
        end, which is but a moment away unless the server is silent; then its connection is ended.
        """
        working = asyncio.ensure_future(work)
        timer = asyncio.get_running_loop().call_at(deadline, _hang_up, connection)
        self._busy.add(connection)
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            try:
                await asyncio.wait([working], timeout=CANCEL_LIMIT)
            finally:
                if not working.done():
                    _hang_up(connection)
            await asyncio.gather(working, return_exceptions=True)
            raise
        finally:
            timer.cancel()
            self._busy.discard(connection)

    async def _replace(self, old: AsyncConnectionPool[Connection] | None) -> None:
        """Have a new pool instead of this one, unless another call that failed on it has seen to that."""
        if old is not None and self._pool is old:
            await self._open_pool()
            # Its own workers may be waiting for the server too; nobody else has to wait for them.
            self._closing = asyncio.create_task(old.close(timeout=1))

    async def _wait(self, queues: Sequence[str], timeout: float) -> bool:
        if self._listener is None:
            self._listener = asyncio.create_task(self._listen(), name="asynctasq-listen")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._woken.wait()
        woken = self._woken.is_set()
        # Cleared before the next claim and not after it: what is notified meanwhile is not missed.
        self._woken.clear()
        return woken

    def _wake(self) -> None:
        self._woken.set()

    async def _listen(self) -> None:
        """Turn notifications into wake-ups for as long as the driver is open. Without them the polls still come."""
        while True:
            with contextlib.suppress(psycopg.Error):
                async with await psycopg.AsyncConnection.connect(
                    self.config.postgres_dsn, **self._options()
                ) as connection:
                    await self._get_ready(connection, connection.execute(f"LISTEN {CHANNEL}".encode()))
                    self._woken.set()
                    async for _ in connection.notifies():
                        self._woken.set()
            await asyncio.sleep(random.uniform(1, 3))


async def _configure(connection: Connection) -> None:
    for setting in SETTINGS:
        await connection.execute(f"SET {setting}".encode())


def _hang_up(connection: Connection) -> None:
    """End a call that got no answer: its socket reports the end of the stream."""
    with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)


@contextlib.asynccontextmanager
async def _errors(config: Config) -> AsyncIterator[None]:
    """psycopg's errors as ours. Its texts name host and user but not the password."""
    try:
        yield
    except (psycopg.Error, PoolTimeout) as exc:
        raise _translated(exc, mask_url(config.postgres_dsn)) from exc


def _translated(exc: Exception, where: str) -> AsyncTasQError:
    text = str(exc).strip().partition("\n")[0]
    if isinstance(exc, pg.UndefinedTable | pg.UndefinedColumn):
        return ConfigurationError(
            f"the queue tables are missing or of another version at {where}: run 'asynctasq migrate', "
            f"or 'manage.py migrate' in a Django project ({text})"
        )
    if isinstance(exc, psycopg.DataError):
        # Not to be repeated: NUL in a text, for example.
        return EncodeError(f"{where} cannot store this: {text}")
    if isinstance(exc, FULL):
        return BrokerFull(f"{where}: {text}")
    if isinstance(exc, NEEDS_A_PERSON) or "authentication failed" in text:
        return ConfigurationError(f"{where}: {text}")
    return BrokerUnavailable(f"{where}: {text}")
