"""MySQL 8 or MariaDB 10.6 and newer, on mysqlclient in a few threads: each holds one connection at a time.

MySQL tells nobody of new work, so a claim that waits looks again: at once when this process made work, else in steps
that grow while there is none.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec
import MySQLdb
from MySQLdb.constants import CR, ER

from asynctasq.config import Config, did_you_mean, mask_url
from asynctasq.core.message import MAX_MESSAGE_BYTES, Lease, Message, encode
from asynctasq.core.outcome import Dead
from asynctasq.drivers.base import CALL_DEADLINE, Capabilities
from asynctasq.drivers.sql import Args, Row, SqlDriver, Steps, enqueue_rows, schema, to_json
from asynctasq.errors import (
    AsyncTasQError,
    BrokerFull,
    BrokerUnavailable,
    ConfigurationError,
    DriverClosed,
    EncodeError,
    PayloadTooLarge,
)

T = TypeVar("T")

CONNECT_TIMEOUT = 3
"""Seconds; a producer is told within this time that the server is not there."""
PRODUCER_DEADLINE = 3
"""Seconds after which ``enqueue_sync`` is given up: somebody's web request is waiting for it."""
CANCEL_LIMIT = 0.3
"""Seconds that a call which is cancelled or late is given to come to its end."""
REPEATS = 5
POLL_FIRST, POLL_LAST = 0.01, 1.25
"""Seconds between looks of a claim that waits, the first and the longest. With the janitor's one a second an idle
worker stays under two statements a second."""
OVERHEAD = 8_000
"""Bytes of a statement, or of a message in one, beside the payload, at the most."""

SETTINGS = (
    # Local time made a lease an hour too long when the clocks changed.
    "SET time_zone = '+00:00', sql_mode = 'STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION', wait_timeout = 86400, "
    # A wait for a lock ends before the call's deadline.
    "innodb_lock_wait_timeout = 5;\n"
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED;\n"
    "SELECT @@max_allowed_packet"
)
ROLLED_BACK = {ER.LOCK_DEADLOCK, ER.LOCK_WAIT_TIMEOUT, ER.CHECKREAD}
"""The server has done nothing, and asks for a repetition."""
READ_ONLY = {ER.OPTION_PREVENTS_STATEMENT, ER.CANT_EXECUTE_IN_READ_ONLY_TRANSACTION, ER.READ_ONLY_MODE}
GONE = {
    0,  # The client's own: the connection is closed.
    CR.SERVER_GONE_ERROR,
    CR.SERVER_LOST,
    CR.SERVER_LOST_EXTENDED,
    CR.CONNECTION_ERROR,
    CR.CONN_HOST_ERROR,
    CR.UNKNOWN_HOST,
    CR.COMMANDS_OUT_OF_SYNC,
    ER.SERVER_SHUTDOWN,
    ER.QUERY_INTERRUPTED,
    1927,  # MariaDB: the connection was killed.
    3169,  # MySQL: the session was killed.
    4031,  # MySQL: it was idle for too long.
} | READ_ONLY
"""The connection is of no more use, nor are most likely the others; or the server became a replica."""
FULL = {ER.RECORD_FILE_FULL, 1021, ER.OUT_OF_RESOURCES}
OTHER_TABLES = {ER.NO_SUCH_TABLE, ER.BAD_FIELD_ERROR}
NEEDS_A_PERSON = {
    ER.DBACCESS_DENIED_ERROR,
    ER.ACCESS_DENIED_ERROR,
    ER.BAD_DB_ERROR,
    ER.TABLEACCESS_DENIED_ERROR,
    ER.COLUMNACCESS_DENIED_ERROR,
    ER.SPECIFIC_ACCESS_DENIED_ERROR,
    ER.HOST_NOT_PRIVILEGED,
    ER.ACCESS_DENIED_NO_PASSWORD_ERROR,
    ER.PARSE_ERROR,
    CR.SSL_CONNECTION_ERROR,
    CR.AUTH_PLUGIN_CANNOT_LOAD,
}
PARAMETERS = ("unix_socket", "ssl_mode", "ssl_ca", "ssl_capath", "ssl_cert", "ssl_key", "ssl_cipher")
"""What the query of ``mysql_dsn`` may name."""


class MySqlDriver(SqlDriver):
    name: ClassVar[str] = "mysql"
    dialect = "mysql"
    capabilities: ClassVar[Capabilities] = Capabilities(
        idempotent=True,
        ordered=True,
        timed_leases=True,
        priority=True,
        transactions=True,
        listing=True,
        results=True,
        exact_counts=True,
        max_payload=MAX_MESSAGE_BYTES,
    )

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._text = {name: Text.of(text) for name, text in self.sql.items()}
        self._threads: ThreadPoolExecutor | None = None
        self._slots = asyncio.Semaphore(config.mysql_max_pool_size)
        self._idle: list[Connection] = []
        self._calls: dict[asyncio.Task[Any], list[Connection]] = {}
        """What is under way, each with the connection it has, if it has one yet."""
        self._woken = asyncio.Event()
        self._pause = POLL_FIRST
        self._quiet = False
        """Whether the last claim found nothing."""
        self._packet = 2**20
        """Bytes of the largest statement that the server takes; until it was asked, a cautious guess."""
        self._of_thread = threading.local()
        self._synchronous: weakref.WeakSet[Connection] = weakref.WeakSet()

    async def migrate(self) -> bool:
        def create(connection: Connection) -> None:
            for statement in schema(self.dialect, self.tables):
                connection.send(statement)

        self._threads = ThreadPoolExecutor(1)
        try:
            await self._call(create, True)
        finally:
            await self.close()
        return True

    async def connect(self) -> None:
        self._threads = ThreadPoolExecutor(self.config.mysql_max_pool_size, thread_name_prefix="asynctasq-mysql")
        try:
            await self._fetch("check")
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        threads, self._threads = self._threads, None
        for connections in self._calls.values():
            for connection in connections:
                connection.hang_up()
        if self._calls:
            await asyncio.wait([*self._calls], timeout=1)
        for call in self._calls:
            # It opens a connection, which cannot be ended from outside and goes when it is there.
            call.cancel()
        self._drop_idle()
        if threads is not None:
            threads.shutdown(wait=False)
        self.close_sync()

    # ---- calls

    async def _fetch(self, statement: str, /, **args: Any) -> list[Row]:
        # A claim whose answer was lost is not repeated: what it took comes back when its leases run out.
        text = self._text[statement]
        return await self._call(lambda connection: connection.fetch(text, args), statement != "claim")

    async def _transaction(self, steps: Callable[[], Steps[T]]) -> T:
        return await self._call(lambda connection: connection.run(self._text, steps), True)

    async def _call(self, work: Callable[[Connection], T], repeatable: bool) -> T:
        """Do ``work`` on a connection, by the deadline; repeated where that is safe and the server asks for it."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + CALL_DEADLINE
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._once(work, give_up)
            except MySQLdb.Error as exc:
                if _code(exc) in GONE:
                    self._drop_idle()
                if not _may_repeat(exc, attempt, repeatable) or loop.time() >= give_up:
                    raise _translated(exc, self.config) from exc
                await asyncio.sleep(random.uniform(0, 0.01 * 2**attempt))

    async def _once(self, work: Callable[[Connection], T], give_up: float) -> T:
        loop = asyncio.get_running_loop()
        if self._threads is None:
            raise DriverClosed("the mysql driver is not connected")
        late = BrokerUnavailable(f"{mask_url(self.config.mysql_dsn)}: no answer within {CALL_DEADLINE:g} s")
        try:
            async with asyncio.timeout_at(give_up):
                await self._slots.acquire()
        except TimeoutError:
            raise late from None
        having: list[Connection] = []
        call = loop.create_task(self._use(self._threads, work, having))
        self._calls[call] = having
        call.add_done_callback(self._ended)
        try:
            # Neither the deadline nor a cancellation reaches the thread.
            await asyncio.wait([call], timeout=give_up - loop.time())
        finally:
            if not call.done():
                await _end(call, having)
        if not call.done():
            raise late
        return call.result()

    async def _use(self, threads: ThreadPoolExecutor, work: Callable[[Connection], T], having: list[Connection]) -> T:
        loop = asyncio.get_running_loop()
        if self._idle:
            connection = self._idle.pop()
        else:
            connection = await loop.run_in_executor(threads, partial(Connection, self.config, CALL_DEADLINE + 1))
            self._packet = connection.packet
        having.append(connection)
        try:
            return await loop.run_in_executor(threads, work, connection)
        finally:
            if connection.usable and self._threads is threads and len(self._idle) < self.config.mysql_min_pool_size:
                self._idle.append(connection)
            else:
                connection.close()

    def _ended(self, call: asyncio.Task[Any]) -> None:
        del self._calls[call]
        self._slots.release()
        if not call.cancelled():
            # Nobody may be left to ask for it.
            call.exception()

    def _drop_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    # ---- statements that would be larger than the server takes go in parts

    async def enqueue(self, messages: Sequence[Message]) -> None:
        for part in _in_parts(messages, self._packet, _size):
            await super().enqueue(part)

    async def _settle(self, statement: str, leases: Sequence[tuple[Lease, Args]]) -> list[Lease]:
        lost: list[Lease] = []
        for part in _in_parts(leases, self._packet, lambda pair: OVERHEAD + _text_size(pair[1].values())):
            lost += await super()._settle(statement, part)
        return lost

    async def dead_letter(self, dead: Sequence[Dead]) -> list[Lease]:
        lost: list[Lease] = []
        for part in _in_parts(dead, self._packet, lambda d: OVERHEAD + _text_size(msgspec.structs.astuple(d.error))):
            lost += await super().dead_letter(part)
        return lost

    # ---- waiting

    async def claim(self, queues: Sequence[str], limit: int, wait: float, suspects: int = 1) -> list[Lease]:
        leases = await super().claim(queues, limit, wait, suspects)
        if leases:
            self._pause = POLL_FIRST
        return leases

    async def _claim_now(self, queues: Sequence[str], limit: int, suspects: int) -> list[Lease]:
        if self._quiet and not await self._is_waiting(queues):
            return []
        leases = await super()._claim_now(queues, limit, suspects)
        self._quiet = not leases
        return leases

    async def _is_waiting(self, queues: Sequence[str]) -> bool:
        return bool(await self._fetch("waiting", queues=to_json(list(queues))))

    async def _wait(self, queues: Sequence[str], timeout: float) -> bool:
        give_up = time.monotonic() + timeout
        while not self._woken.is_set():
            left = give_up - time.monotonic()
            if left <= 0:
                return False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(self._pause * random.uniform(0.8, 1.2), left)):
                    await self._woken.wait()
            self._pause = min(self._pause * 1.5, POLL_LAST)
            if time.monotonic() < give_up and not self._woken.is_set() and await self._is_waiting(queues):
                self._quiet = False
                return True
        self._woken.clear()
        self._quiet, self._pause = False, POLL_FIRST
        return True

    def _wake(self) -> None:
        self._woken.set()

    # ---- the synchronous door

    def enqueue_sync(self, messages: Sequence[Message]) -> None:
        give_up = time.monotonic() + PRODUCER_DEADLINE
        attempt = 0
        while messages:
            attempt += 1
            try:
                connection = self._connection_of_thread()
                for part in _in_parts(messages, connection.packet, _size):
                    connection.fetch(self._text["enqueue"], enqueue_rows(part))
                return
            except MySQLdb.Error as exc:
                if not _may_repeat(exc, attempt, True) or time.monotonic() >= give_up:
                    raise _translated(exc, self.config) from exc
                time.sleep(random.uniform(0, 0.01 * 2**attempt))

    def _connection_of_thread(self) -> Connection:
        connection: Connection | None = getattr(self._of_thread, "connection", None)
        if connection is None or not connection.usable:
            connection = self._of_thread.connection = Connection(self.config, PRODUCER_DEADLINE)
            self._synchronous.add(connection)
        return connection

    def close_sync(self) -> None:
        for connection in list(self._synchronous):
            connection.close()


class Text:
    """A named statement as it is sent: alone, or in two steps of which the second gets the ids of the first."""

    def __init__(self, select: str, change: str) -> None:
        self.select = select
        self.change = change

    @classmethod
    def of(cls, text: str) -> Text:
        select, _, change = text.partition(";\n")
        return cls(select, change)


class Connection:
    """One connection; used by one thread at a time. Several statements are sent at once where that saves a round trip;
    every value in them is escaped by the client."""

    def __init__(self, config: Config, timeout: float) -> None:
        self._lock = threading.Lock()
        self._db = MySQLdb.connect(
            **options(config),
            charset="utf8mb4",
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=int(timeout),
            write_timeout=int(timeout),
            autocommit=True,
        )
        self._socket = socket.socket(fileno=os.dup(self._db.fileno()))
        """The connection's own: the client closes the other in mid-call when it fails."""
        self.usable = True
        self.packet = 2**20
        ((self.packet,),) = self.send(SETTINGS)
        _open.add(self)

    def fetch(self, text: Text, args: Args) -> list[Row]:
        """Run one named statement in a transaction of its own."""
        with self._in_order():
            if not text.change:
                return self.send(text.select, args)
            rows = self.send(f"START TRANSACTION;\n{text.select}", args)
            if rows:
                self.send(f"{text.change};\nCOMMIT", {**args, "held": _ids(rows)})
            else:
                self.send("ROLLBACK")
            return rows

    def run(self, texts: Mapping[str, Text], steps: Callable[[], Steps[T]]) -> T:
        """Run the statements in one transaction and commit it."""
        running = steps()
        with self._in_order():
            self.send("START TRANSACTION")
            try:
                name, args = next(running)
                while True:
                    text = texts[name]
                    rows = self.send(text.select, args)
                    if text.change and rows:
                        self.send(text.change, {**args, "held": _ids(rows)})
                    name, args = running.send(rows)
            except StopIteration as stop:
                self.send("COMMIT")
                result: T = stop.value
                return result

    def send(self, text: str, args: Args | None = None) -> list[Row]:
        """Send statements; the rows of the one that returns some."""
        query = text.encode()
        if args is not None:
            query %= {name.encode(): self._db.literal(value) for name, value in args.items()}
        if len(query) > self.packet:
            raise PayloadTooLarge(
                f"a statement of {len(query)} bytes, the server's max_allowed_packet is {self.packet} bytes"
            )
        self._db.query(query)
        rows: list[Row] = []
        while True:
            result = self._db.store_result()
            if result is not None:
                rows += result.fetch_row(0)
            if self._db.next_result() == -1:
                return rows

    @contextlib.contextmanager
    def _in_order(self) -> Iterator[None]:
        """Whatever goes wrong, no transaction is left open; a connection on which that fails is of no more use."""
        with self._lock:
            try:
                yield
            except BaseException as exc:
                self.usable = isinstance(exc, MySQLdb.Error) and _code(exc) not in GONE and self._rolled_back()
                raise

    def _rolled_back(self) -> bool:
        try:
            self.send("ROLLBACK")
        except MySQLdb.Error:
            return False
        return True

    def hang_up(self) -> None:
        """End a call that gets no answer, from another thread."""
        self.usable = False
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Again is fine."""
        with self._lock:
            self.usable = False
            self._socket.close()
            with contextlib.suppress(MySQLdb.Error):
                self._db.close()

    def forsake(self) -> None:
        """In a child after a fork: end it without a word to the server, for the parent goes on using it."""
        self.usable = False
        with contextlib.suppress(OSError, MySQLdb.Error), Path(os.devnull).open("rb+") as nowhere:
            os.dup2(nowhere.fileno(), self._db.fileno())


_open: weakref.WeakSet[Connection] = weakref.WeakSet()


def _forsake_all() -> None:
    for connection in list(_open):
        connection.forsake()


os.register_at_fork(after_in_child=_forsake_all)


def options(config: Config) -> dict[str, Any]:
    """What the client is to connect with. Raises ConfigurationError for a parameter that is none of ours."""
    parts = urlsplit(config.mysql_dsn)
    given: dict[str, Any] = dict(parse_qsl(parts.query))
    for name in given:
        if name not in PARAMETERS:
            raise ConfigurationError(
                f"mysql_dsn: parameter {name!r} is not known; there are {', '.join(PARAMETERS)}"
                f"{did_you_mean(name, PARAMETERS)}"
            )
    tls = {name.removeprefix("ssl_"): given.pop(name) for name in list(given) if name.startswith("ssl_")}
    mode = tls.pop("mode", None)
    password = config.mysql_password if parts.password is None else unquote(parts.password)
    named = {
        "host": unquote(parts.hostname or ""),
        "user": unquote(parts.username or ""),
        "password": password,
        "database": unquote(parts.path[1:]),
        "ssl_mode": mode and mode.upper(),
        "ssl": tls,
        **given,
    }
    # To the client "localhost" means a socket in the file system, whatever the port.
    named["host"] = {"localhost": "127.0.0.1"}.get(named["host"], named["host"])
    return {name: value for name, value in named.items() if value} | {"port": parts.port or 3306}


async def _end(call: asyncio.Task[Any], having: Sequence[Connection]) -> None:
    """Let a call come to its end, which is but a moment away unless the server is silent; then its connection is
    ended. One that is only being opened is left behind: it ends by its own time-out."""
    await asyncio.wait([call], timeout=CANCEL_LIMIT)
    for connection in having:
        if not call.done():
            connection.hang_up()
    await asyncio.wait([call], timeout=CANCEL_LIMIT)


def _in_parts(items: Sequence[T], packet: int, size: Callable[[T], int]) -> list[Sequence[T]]:
    """``items`` in their order, in parts that are no larger than a statement may be unless one alone is."""
    parts: list[list[T]] = []
    room = 0
    for item in items:
        wanted = size(item)
        if wanted > room:
            parts.append([])
            room = packet - OVERHEAD
        parts[-1].append(item)
        room -= wanted
    return list(parts)


def _size(message: Message) -> int:
    return OVERHEAD + len(encode(message)) * 4 // 3


def _text_size(values: Iterable[object]) -> int:
    """Bytes of texts at the most: four a character, or two for one that is escaped."""
    return sum(4 * len(value) for value in values if isinstance(value, str))


def _ids(rows: Sequence[Row]) -> str:
    return to_json([row[0] for row in rows])


def _code(exc: MySQLdb.Error) -> int:
    return exc.args[0] if exc.args and isinstance(exc.args[0], int) else 0


def _may_repeat(exc: MySQLdb.Error, attempt: int, repeatable: bool) -> bool:
    code = _code(exc)
    return attempt < REPEATS if code in ROLLED_BACK else repeatable and code in GONE and attempt == 1


def _translated(exc: MySQLdb.Error, config: Config) -> AsyncTasQError:
    """The client's errors as ours. Its texts name host and user but not the password."""
    where, code = mask_url(config.mysql_dsn), _code(exc)
    text = str(exc.args[-1] if exc.args else exc).strip() or type(exc).__name__
    if code in OTHER_TABLES:
        return ConfigurationError(
            f"the queue tables are missing or of another version at {where}: run 'asynctasq migrate', "
            f"or 'manage.py migrate' in a Django project ({text})"
        )
    if code in FULL or (code == ER.GET_ERRNO and "28" in text):
        return BrokerFull(f"{where}: {text}")
    if code in NEEDS_A_PERSON:
        return ConfigurationError(f"{where}: {text}")
    if code == ER.NET_PACKET_TOO_LARGE:
        return PayloadTooLarge(f"{where}: {text}")
    if isinstance(exc, MySQLdb.DataError):
        return EncodeError(f"{where} cannot store this: {text}")
    return BrokerUnavailable(f"{where}: {text}")
