"""The connections: one deadline for each call, errors of ours alone."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import hiredis
import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.retry import Retry as SyncRetry

from asynctasq.config import mask_url
from asynctasq.drivers.base import (
    CALL_DEADLINE,
)
from asynctasq.drivers.redis.commands import LOAD, Command
from asynctasq.errors import (
    BrokerFull,
    BrokerUnavailable,
    ConfigurationError,
    DriverClosed,
)

if TYPE_CHECKING:
    from asynctasq.config import Config


logger = logging.getLogger(__name__)

PRODUCER_DEADLINE = 3.0
"""Seconds after which an enqueue is given up: somebody's web request is waiting for it."""
INTERRUPT_DEADLINE = 0.5
"""Seconds for the server to end the waits of a worker that stops."""
WHO: Command = ("CLIENT", "ID")
"""Before a command that waits."""


class NoGroup(BrokerUnavailable):
    """A stream or its group is not there."""


_MISCONFIGURED = re.compile(
    r"\b(NOAUTH|NOPERM|WRONGPASS|WRONGTYPE|unknown command|DB index is out of range|Invalid Database"
    r"|user executing the script can't)\b",
    re.IGNORECASE,
)


def failure(exc: Exception, url: str) -> Exception:
    """An error of the client as one of ours. Of an error inside a script the word stands somewhere in the text."""
    text = f"Redis at {mask_url(url)}: {str(exc)[:300] or 'no answer in time'}"
    if isinstance(exc, AuthenticationError | NoPermissionError) or _MISCONFIGURED.search(text):
        return ConfigurationError(text)
    if isinstance(exc, OutOfMemoryError) or re.search(r"\b(OOM|MISCONF)\b", text):
        return BrokerFull(text)
    if isinstance(exc, ResponseError) and re.search(r"\b(NOGROUP|UNBLOCKED)\b", text):
        return NoGroup(text)
    # LOADING, BUSY, TRYAGAIN, READONLY, CLUSTERDOWN, MASTERDOWN, no connection, no answer: later it may go well.
    return BrokerUnavailable(text)


def _is_readonly(error: Exception) -> bool:
    """The server is a replica by now, and all connections lead to the wrong place."""
    return isinstance(error, ReadOnlyError) or "READONLY" in str(error)


def _pool(kind: Any, config: Config, timeout: float | None, **options: Any) -> Any:
    """A pool of connections of either client.

    RESP2, since every server speaks it and its replies are the plain lists that are read here.
    """
    url = config.redis_location()
    try:
        pool = kind.from_url(url, max_connections=config.redis_max_connections)
    except (ValueError, TypeError) as exc:
        # The cause's text may quote the password.
        raise ConfigurationError(f"redis_url {mask_url(url)} cannot be used: {type(exc).__name__}") from None
    # Set afterwards, for what the URL says of these would win over arguments.
    pool.connection_kwargs |= {"protocol": 2, "decode_responses": False, "socket_keepalive": True, **options}
    pool.timeout = timeout
    return pool


def packed(commands: Iterable[Command]) -> list[bytes]:
    # By hiredis, as the asyncio client's own packing is Python: with it 1,000 messages took half as long again.
    return [hiredis.pack_command(command) for command in commands]


class Link:
    """The connections of one event loop. Each call has one to itself, so that a waiting claim holds nobody up.

    A connection on which a call did not end, because of its deadline or a cancellation, is not used again. The
    client's own retries are off: with a lost reply they would claim twice, and with a dead server take a minute.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._url = config.redis_location()
        self._pool: Any = None
        self._waiting: set[int] = set()
        """Numbers by which the server knows the connections that wait in it."""

    async def open(self) -> None:
        # No time-outs on sockets: each call has its own deadline, and a claim may wait for longer than others.
        options = {"socket_timeout": None, "socket_connect_timeout": None, "retry": AsyncRetry(NoBackoff(), 0)}
        self._pool = _pool(redis.asyncio.BlockingConnectionPool, self._config, timeout=None, **options)
        try:
            await self.run(("PING",), *LOAD)
            check_server(self._url, await self._send(_ASK, None))
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.disconnect()

    async def run(self, *commands: Command, deadline: float | None = None) -> list[Any]:
        """The replies to ``commands``, sent together. Raises errors of ours alone."""
        replies = await self._send(commands, deadline)
        if any(isinstance(reply, RedisError) for reply in replies):
            await self._mend(commands, replies, deadline)
        return replies

    async def _mend(self, commands: Sequence[Command], replies: list[Any], deadline: float | None) -> None:
        """Repeat the scripts that the server, restarted, no longer knew; raise what else went wrong."""
        unknown = [n for n, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            await self._send(LOAD, deadline)
            for n, reply in zip(unknown, await self._send([commands[n] for n in unknown], deadline), strict=True):
                replies[n] = reply
        for reply in replies:
            if isinstance(reply, RedisError):
                if _is_readonly(reply) and self._pool is not None:
                    await self._pool.disconnect(inuse_connections=False)
                raise failure(reply, self._url) from reply

    async def unblock(self) -> None:
        """End the waits in the server, as if their time were over. Where that is not allowed they go on."""
        await self._send([("CLIENT", "UNBLOCK", number) for number in self._waiting], INTERRUPT_DEADLINE)

    async def _send(self, commands: Sequence[Command], deadline: float | None) -> list[Any]:
        """The replies, errors of the server among them."""
        pool = self._pool
        if pool is None:
            raise DriverClosed("the redis driver is not connected")
        if not commands:
            return []
        try:
            async with asyncio.timeout(CALL_DEADLINE if deadline is None else deadline):
                connection = await pool.get_connection()
                try:
                    await connection.send_packed_command(packed(commands))
                    return await self._receive(connection, commands)
                except BaseException:
                    await connection.disconnect(nowait=True)
                    raise
                finally:
                    await pool.release(connection)
        except (RedisError, OSError, TimeoutError) as exc:
            raise failure(exc, self._url) from exc

    async def _receive(self, connection: Any, commands: Sequence[Command]) -> list[Any]:
        first = await _reply(connection)
        waits = commands[0] is WHO and isinstance(first, int)
        if waits:
            self._waiting.add(first)
        try:
            return [first, *[await _reply(connection) for _ in commands[1:]]]
        finally:
            if waits:
                self._waiting.discard(first)


async def _reply(connection: Any) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as exc:
        return exc


class SyncLink:
    """The same for threads without a loop, made at the first call and again after a fork."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._url = config.redis_location()
        self._lock = threading.Lock()
        self._pool: Any = None
        self._pid = 0

    def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None and self._pid == os.getpid():
            pool.disconnect()

    def _opened(self) -> Any:
        if self._pool is not None and self._pid == os.getpid():
            return self._pool
        with self._lock:
            if self._pool is None or self._pid != os.getpid():
                # Not beyond PRODUCER_DEADLINE in all, unless a name has several addresses and they are silent.
                connect, reply = PRODUCER_DEADLINE / 3, PRODUCER_DEADLINE * 2 / 3
                options = {
                    "socket_connect_timeout": connect,
                    "socket_timeout": reply,
                    "retry": SyncRetry(NoBackoff(), 0),
                }
                self._pool = _pool(redis.BlockingConnectionPool, self._config, timeout=PRODUCER_DEADLINE, **options)
                self._pid = os.getpid()
            return self._pool

    def run(self, *commands: Command) -> list[Any]:
        """The replies to ``commands``, sent together; harmless when sent twice. Raises errors of ours alone."""
        replies = self._send(commands)
        if any(isinstance(reply, NoScriptError) for reply in replies):
            self._send(LOAD)
            replies = self._send(commands)
        for reply in replies:
            if isinstance(reply, RedisError):
                if _is_readonly(reply):
                    self.close()
                raise failure(reply, self._url) from reply
        return replies

    def _send(self, commands: Sequence[Command]) -> list[Any]:
        if not commands:
            return []
        pool = self._opened()
        try:
            connection = pool.get_connection()
            try:
                connection.send_packed_command(packed(commands))
                return [_sync_reply(connection) for _ in commands]
            except BaseException:
                connection.disconnect()
                raise
            finally:
                pool.release(connection)
        except (RedisError, OSError) as exc:
            raise failure(exc, self._url) from exc


def _sync_reply(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as exc:
        return exc


_ASK: list[Command] = [("INFO", "server"), ("CONFIG", "GET", "maxmemory-policy"), ("CONFIG", "GET", "appendonly")]


_advised: set[str] = set()


def check_server(url: str, replies: list[Any]) -> None:
    """Refuse a server that is too old; advise, once in a process, against settings that lose tasks.

    A server that does not tell, as managed ones may, is taken as it is.
    """
    info, policy, append = replies
    version = re.search(rb"redis_version:(\d+)\.(\d+)", info) if isinstance(info, bytes) else None
    if version and (int(version[1]), int(version[2])) < (6, 2):
        raise ConfigurationError(f"Redis at {mask_url(url)} is older than 6.2")
    if url in _advised:
        return
    _advised.add(url)
    if isinstance(policy, list) and policy[1:] not in ([], [b"noeviction"]):
        logger.warning(
            "Redis at %s may evict tasks when memory is short: set maxmemory-policy noeviction", mask_url(url)
        )
    if isinstance(append, list) and append[1:] == [b"no"]:
        logger.warning("Redis at %s loses the last tasks when it ends abruptly: set appendonly yes", mask_url(url))
