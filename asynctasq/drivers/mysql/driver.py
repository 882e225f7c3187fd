"""The driver: calls on connections in threads, parts, and waiting without a wake-up."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, TypeVar

import msgspec
import MySQLdb

from asynctasq.config import Config, mask_url
from asynctasq.core.message import Lease, Message, encode
from asynctasq.core.outcome import Dead
from asynctasq.drivers.base import CALL_DEADLINE
from asynctasq.drivers.mysql.connection import Connection, Text
from asynctasq.drivers.mysql.errors import errors, is_gone, may_repeat, translated
from asynctasq.drivers.sql import Args, Row, SqlDriver, Steps, enqueue_rows, schema, to_json
from asynctasq.errors import BrokerUnavailable, DriverClosed, PayloadTooLarge

T = TypeVar("T")

PRODUCER_DEADLINE = 3
"""Seconds after which ``enqueue_sync`` is given up: somebody's web request is waiting for it."""
CANCEL_LIMIT = 0.3
"""Seconds that a call which is cancelled or late is given to come to its end."""
POLL_FIRST, POLL_LAST = 0.01, 1.4
"""Seconds between looks of a claim that waits, the first and the longest. With the janitor's one a second an idle
worker stays under two statements a second."""
ANY_PACKET = 2**20
"""Bytes that every server takes in one statement."""
OVERHEAD = 8_000
"""Bytes of a statement, or of a message in one, beside the payload, at the most."""


class MySqlDriver(SqlDriver):
    name: ClassVar[str] = "mysql"
    dialect = "mysql"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._text = {name: Text.of(text) for name, text in self.sql.items()}
        self._threads: ThreadPoolExecutor | None = None
        self._slots = asyncio.Semaphore(config.mysql_max_pool_size)
        self._idle: list[Connection] = []
        self._calls: dict[asyncio.Task[Any], list[Connection]] = {}
        """What is under way, each with the connection it has, if it has one yet."""
        self._filling: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop
        self._woken = asyncio.Event()
        self._pause = POLL_FIRST
        self._quiet = False
        """Whether the last claim found nothing."""
        self._packet: int | None = None
        """Bytes of the largest statement that the server takes; None until it was asked."""
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
        self._loop = asyncio.get_running_loop()
        _connected.add(self)

    async def close(self) -> None:
        threads, self._threads = self._threads, None
        filling, self._filling = self._filling, None
        _connected.discard(self)
        if filling is not None:
            filling.cancel()
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
                if is_gone(exc):
                    self._drop_idle()
                if not may_repeat(exc, attempt, repeatable) or loop.time() >= give_up:
                    raise translated(exc, self.config) from exc
                await asyncio.sleep(random.uniform(0, 0.01 * 2**attempt))

    async def _once(self, work: Callable[[Connection], T], give_up: float) -> T:
        loop = asyncio.get_running_loop()
        late = BrokerUnavailable(f"{mask_url(self.config.mysql_dsn)}: no answer within {CALL_DEADLINE:g} s")
        try:
            async with asyncio.timeout_at(give_up):
                await self._slots.acquire()
        except TimeoutError:
            raise late from None
        threads, having = self._threads, list[Connection]()
        if threads is None:
            self._slots.release()
            raise DriverClosed("the mysql driver is not connected")
        call = loop.create_task(self._use(threads, work, having))
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
            connection = await _in_thread_of_its_own(lambda: self._open(threads))
        having.append(connection)
        try:
            return await loop.run_in_executor(threads, work, connection)
        finally:
            if connection.usable and self._threads is threads and len(self._idle) < self.config.mysql_min_pool_size:
                self._idle.append(connection)
            else:
                connection.close()

    def _open(self, threads: ThreadPoolExecutor) -> Connection:
        connection = Connection(self.config, CALL_DEADLINE + 1)
        self._packet = connection.packet
        if self._threads is not threads:
            # The driver was closed meanwhile.
            connection.close()
        return connection

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

    def enqueue_parts(self, messages: Sequence[Message]) -> list[Args]:
        sizes = [OVERHEAD + len(encode(message)) * 4 // 3 for message in messages]
        if self._packet is None and max(sizes, default=0) > ANY_PACKET:
            # They are for a connection that is not ours.
            with errors(self.config):
                self._packet = self._connection_of_thread().packet
        packet = self._packet or ANY_PACKET
        for message, size in zip(messages, sizes, strict=True):
            if size > packet:
                raise PayloadTooLarge(
                    f"task {message.task}: a message takes {size} bytes in a statement, the server's "
                    f"max_allowed_packet is {packet} bytes"
                )
        return [enqueue_rows(part) for part in _in_parts(messages, sizes, packet)]

    async def _settle(self, statement: str, leases: Sequence[tuple[Lease, Args]]) -> list[Lease]:
        lost: list[Lease] = []
        for part in _in_parts(leases, [_size(args.values()) for _, args in leases], self._packet or ANY_PACKET):
            lost += await super()._settle(statement, part)
        return lost

    async def dead_letter(self, dead: Sequence[Dead]) -> list[Lease]:
        lost: list[Lease] = []
        sizes = [_size(msgspec.structs.astuple(one.error)) for one in dead]
        for part in _in_parts(dead, sizes, self._packet or ANY_PACKET):
            lost += await super().dead_letter(part)
        return lost

    # ---- waiting

    async def claim(self, queues: Sequence[str], limit: int, wait: float, suspects: int = 1) -> list[Lease]:
        if self._filling is None:
            self._filling = asyncio.create_task(self._fill())
        leases = await super().claim(queues, limit, wait, suspects)
        if leases:
            self._pause = POLL_FIRST
        return leases

    async def _fill(self) -> None:
        """A process that claims is a worker, whose pool keeps its connections open."""
        calls = (self._call(lambda connection: None, False) for _ in range(self.config.mysql_min_pool_size))
        await asyncio.gather(*calls, return_exceptions=True)

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
        """Wakes every driver of this process to these tables, for a task may dispatch through another than claims."""
        for driver in tuple(_connected):
            if driver.tables == self.tables and driver.config.mysql_dsn == self.config.mysql_dsn:
                with contextlib.suppress(RuntimeError):
                    # Its loop may have been closed meanwhile.
                    driver._loop.call_soon_threadsafe(driver._woken.set)

    # ---- the synchronous door

    def enqueue_sync(self, messages: Sequence[Message]) -> None:
        give_up = time.monotonic() + PRODUCER_DEADLINE
        attempt = 0
        while messages:
            attempt += 1
            try:
                connection = self._connection_of_thread()
                self._packet = connection.packet
                for rows in self.enqueue_parts(messages):
                    connection.fetch(self._text["enqueue"], rows)
                self._wake()
                return
            except MySQLdb.Error as exc:
                if not may_repeat(exc, attempt, True) or time.monotonic() >= give_up:
                    raise translated(exc, self.config) from exc
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


_connected: set[MySqlDriver] = set()


def _in_thread_of_its_own(work: Callable[[], T]) -> asyncio.Future[T]:
    """Do ``work`` that nothing can end early, such as the opening of a connection: nobody waits for this thread, at the
    end of the process least of all."""
    future: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        future.set_running_or_notify_cancel()
        try:
            future.set_result(work())
        except BaseException as exc:  # noqa: BLE001 - whoever awaits it gets it
            future.set_exception(exc)

    threading.Thread(target=run, name="asynctasq-mysql-connect", daemon=True).start()
    return asyncio.wrap_future(future)


async def _end(call: asyncio.Task[Any], having: Sequence[Connection]) -> None:
    """Let a call come to its end, which is but a moment away unless the server is silent; then its connection is
    ended. One that is only being opened is left behind: it ends by its own time-out."""
    await asyncio.wait([call], timeout=CANCEL_LIMIT)
    for connection in having:
        if not call.done():
            connection.hang_up()
    await asyncio.wait([call], timeout=CANCEL_LIMIT)


def _in_parts(items: Sequence[T], sizes: Sequence[int], packet: int) -> list[list[T]]:
    """``items`` in their order, in parts that are no larger than a statement may be unless one alone is."""
    parts: list[list[T]] = []
    room = 0
    for item, size in zip(items, sizes, strict=True):
        if size > room:
            parts.append([])
            room = packet - OVERHEAD
        parts[-1].append(item)
        room -= size
    return parts


def _size(values: Iterable[object]) -> int:
    """Bytes that texts take in a statement at the most: a character four, or two where it is escaped."""
    return OVERHEAD + sum(4 * len(value) for value in values if isinstance(value, str))
