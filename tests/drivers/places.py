"""Where the drivers live during the tests: real services, and in each a place that one test has to itself.

A new driver is one class here and one line in ``PLACES``.
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import socket
import sqlite3
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, ClassVar, Self, cast
from urllib.parse import urlsplit, urlunsplit

from asynctasq import drivers
from asynctasq.config import Config
from asynctasq.core.message import Message
from asynctasq.drivers.base import Driver


class Place(ABC):
    """One broker, as the tests reach it around the driver."""

    name: ClassVar[str]
    options: dict[str, Any]
    """What the configuration needs to get here."""
    hasty: dict[str, Any] = {}
    """Options for tests of many short steps: commits need not survive a power cut."""
    _prepared = False

    async def prepare(self) -> None:
        """Make the tables, where there are any and they do not exist yet."""
        if not self._prepared:
            await self.create().migrate()
            self._prepared = True

    def create(self, **options: Any) -> Driver:
        """A driver to this place, not yet connected."""
        return drivers.create(self.name, Config.make({"driver": self.name, **self.options, **options}))

    @abstractmethod
    def reset(self) -> None:
        """Make it empty."""

    @abstractmethod
    def put(self, message: Message, payload: bytes) -> None:
        """Write ``payload`` straight into the broker, where ``message`` would lie pending."""

    @abstractmethod
    def traces(self) -> int:
        """How many records the broker holds that belong to single tasks."""

    def close(self) -> None:
        """Leave nothing of ours on the service."""


class Server(Place):
    """A place on a server with an address."""

    host: str
    port: int

    @abstractmethod
    def at(self, host: str, port: int) -> dict[str, Any]:
        """The options that lead to the same place by another address."""


class SqlitePlace(Place):
    name = "sqlite"
    hasty = {"sqlite_synchronous": "normal"}

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="asynctasq-tests-")
        self._numbers = itertools.count()
        self.reset()

    def reset(self) -> None:
        self._prepared = False
        self.path = Path(self._folder.name, f"{next(self._numbers)}.sqlite3")
        self.options = {"sqlite_path": str(self.path)}

    def put(self, message: Message, payload: bytes) -> None:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute(
                "INSERT INTO task_queue (id, queue_name, task, payload, priority, status, max_attempts,"
                " visibility_timeout, created_at, available_at) VALUES (?, ?, ?, ?, ?, 'pending', ?, ?, ?, ?)",
                (
                    message.id,
                    message.queue,
                    message.task,
                    payload,
                    message.priority,
                    message.max_attempts,
                    message.visibility_timeout,
                    message.created_at.timestamp(),
                    time.time(),
                ),
            )

    def traces(self) -> int:
        with closing(sqlite3.connect(self.path)) as connection:
            return int(
                connection.execute(
                    "SELECT (SELECT count(*) FROM task_queue) + (SELECT count(*) FROM dead_letter_queue)"
                ).fetchone()[0]
            )

    def close(self) -> None:
        self._folder.cleanup()


class PostgresPlace(Server):
    name = "postgres"

    def __init__(self) -> None:
        import psycopg

        stem = f"contract_{uuid.uuid4().hex[:12]}"
        self.queue, self.dead = f"{stem}_queue", f"{stem}_dead"
        self._dsn = Config.make({}).postgres_dsn
        parts = urlsplit(self._dsn)
        self.host, self.port = parts.hostname or "localhost", parts.port or 5432
        self.options = {
            "postgres_dsn": self._dsn,
            "postgres_queue_table": self.queue,
            "postgres_dead_letter_table": self.dead,
            "postgres_min_pool_size": 1,
            "postgres_max_pool_size": 2,
        }
        query = f"{parts.query}&" if parts.query else ""
        hasty = parts._replace(query=f"{query}options=-csynchronous_commit%3Doff")
        self.hasty = {"postgres_dsn": urlunsplit(hasty)}
        self._connection = psycopg.connect(self._dsn, autocommit=True, connect_timeout=5)

    def at(self, host: str, port: int) -> dict[str, Any]:
        parts = urlsplit(self._dsn)
        user = parts.netloc.rpartition("@")[0]
        dsn = urlunsplit(parts._replace(netloc=f"{user}@{host}:{port}" if user else f"{host}:{port}"))
        return {**self.options, "postgres_dsn": dsn}

    def _tables(self) -> list[str]:
        rows = self._connection.execute(
            "SELECT tablename FROM pg_tables WHERE tablename IN (%s, %s)", (self.queue, self.dead)
        )
        return [name for (name,) in rows]

    def reset(self) -> None:
        for table in self._tables():
            self._connection.execute(f"DELETE FROM {table}")

    def put(self, message: Message, payload: bytes) -> None:
        self._connection.execute(
            f"INSERT INTO {self.queue} (id, queue_name, task, payload, priority, status, max_attempts,"
            " visibility_timeout, created_at, available_at) VALUES (%s, %s, %s, %s, %s, 'pending', %s, %s, %s, now())",
            (
                message.id,
                message.queue,
                message.task,
                payload,
                message.priority,
                message.max_attempts,
                message.visibility_timeout,
                message.created_at,
            ),
        )

    def traces(self) -> int:
        row = self._connection.execute(
            f"SELECT (SELECT count(*) FROM {self.queue}) + (SELECT count(*) FROM {self.dead})"
        ).fetchone()
        assert row is not None
        return int(row[0])

    def close(self) -> None:
        for table in self._tables():
            self._connection.execute(f"DROP TABLE {table}")
        self._connection.close()


class MySqlPlace(Server):
    name = "mysql"

    def __init__(self) -> None:
        import MySQLdb

        from asynctasq.drivers.mysql.connection import options

        stem = f"contract_{uuid.uuid4().hex[:12]}"
        self.queue, self.dead = f"{stem}_queue", f"{stem}_dead"
        config = Config.make({})
        self._dsn = config.mysql_dsn
        parts = urlsplit(self._dsn)
        self.host, self.port = parts.hostname or "localhost", parts.port or 3306
        self.options = {
            "mysql_dsn": self._dsn,
            "mysql_queue_table": self.queue,
            "mysql_dead_letter_table": self.dead,
            "mysql_min_pool_size": 1,
            "mysql_max_pool_size": 2,
        }
        self._connection = MySQLdb.connect(**options(config), charset="utf8mb4", autocommit=True, connect_timeout=5)

    def at(self, host: str, port: int) -> dict[str, Any]:
        parts = urlsplit(self._dsn)
        user = parts.netloc.rpartition("@")[0]
        dsn = urlunsplit(parts._replace(netloc=f"{user}@{host}:{port}" if user else f"{host}:{port}"))
        return {**self.options, "mysql_dsn": dsn}

    def ask(self, statement: str, *args: Any) -> list[Any]:
        """Rows, around the driver."""
        with self._connection.cursor() as cursor:
            cursor.execute(statement, args or None)
            return list(cursor.fetchall())

    def _tables(self) -> list[str]:
        rows = self.ask(
            "SELECT table_name FROM information_schema.tables"
            " WHERE table_schema = DATABASE() AND table_name IN (%s, %s)",
            self.queue,
            self.dead,
        )
        return [name for (name,) in rows]

    def reset(self) -> None:
        for table in self._tables():
            self.ask(f"DELETE FROM {table}")

    def put(self, message: Message, payload: bytes) -> None:
        self.ask(
            f"INSERT INTO {self.queue} (id, queue_name, task, payload, priority, status, max_attempts,"
            " visibility_timeout, created_at, available_at)"
            " VALUES (%s, %s, %s, _binary %s, %s, 'pending', %s, %s, %s, UTC_TIMESTAMP(6))",
            message.id,
            message.queue,
            message.task,
            payload,
            message.priority,
            message.max_attempts,
            message.visibility_timeout,
            message.created_at.replace(tzinfo=None),
        )

    def traces(self) -> int:
        [(count,)] = self.ask(f"SELECT (SELECT count(*) FROM {self.queue}) + (SELECT count(*) FROM {self.dead})")
        return int(count)

    def close(self) -> None:
        for table in self._tables():
            self.ask(f"DROP TABLE {table}")
        self._connection.close()


class RedisPlace(Server):
    name = "redis"
    databases = (13, 14, 15)

    def __init__(self) -> None:
        import redis

        self._url = Config.make({}).redis_location()
        parts = urlsplit(self._url)
        self.host, self.port = parts.hostname or "localhost", parts.port or 6379
        self.database, self._lock = self._take_database()
        self.options = {"redis_url": self._at_database(parts.netloc)}
        self._client = redis.Redis.from_url(self.options["redis_url"])
        foreign = [key for key in self._client.scan_iter() if not key.startswith(b"asynctasq:")]
        if foreign:
            raise AssertionError(f"Redis database {self.database} holds something that is not ours: {foreign[:3]}")

    def _take_database(self) -> tuple[int, IO[str]]:
        """A database that no other run of these tests on this machine is using."""
        for number in itertools.cycle(self.databases):
            lock = open(f"{tempfile.gettempdir()}/asynctasq-tests-{self.port}-{number}.lock", "w")  # noqa: PTH123, SIM115
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return number, lock
            lock.close()
            time.sleep(0.05)
        raise AssertionError("unreachable")

    def _at_database(self, netloc: str) -> str:
        return urlunsplit(urlsplit(self._url)._replace(netloc=netloc, path=f"/{self.database}"))

    def at(self, host: str, port: int) -> dict[str, Any]:
        user = urlsplit(self._url).netloc.rpartition("@")[0]
        return {**self.options, "redis_url": self._at_database(f"{user}@{host}:{port}" if user else f"{host}:{port}")}

    def reset(self) -> None:
        self._client.flushdb()

    def put(self, message: Message, payload: bytes) -> None:
        base = f"asynctasq:{{{message.queue}}}"
        self._client.sadd("asynctasq:queues", message.queue)
        self._client.zadd(f"{base}:priorities", {str(message.priority): message.priority})
        lease = int(message.visibility_timeout * 1000)
        fields = {"id": message.id, "payload": payload, "attempt": 1, "lease": lease}
        self._client.xadd(f"{base}:stream:{message.priority}", cast(Any, fields))

    def traces(self) -> int:
        """Ids that occur in any key; an entry that is leased but gone counts as one too."""
        client: Any = self._client
        found: set[bytes] = set()
        for key in client.scan_iter():
            if b":task:" in key:
                found.add(key.rpartition(b":task:")[2])
            elif b":stream:" in key:
                entries = dict(client.xrange(key))
                grouped = client.xinfo_groups(key)
                held = client.xpending_range(key, "workers", "-", "+", 10_000) if grouped else ()
                found |= {fields[b"id"] for fields in entries.values()}
                found |= {one["message_id"] for one in held} - entries.keys()
            elif key.endswith(b":index"):
                found |= set(client.hkeys(key))
            elif b":ids:" in key or key.endswith(b":scheduled"):
                found |= set(client.zrange(key, 0, -1))
        return len(found)

    def close(self) -> None:
        self._client.flushdb()
        self._client.close()
        self._lock.close()


PLACES: dict[str, type[Place]] = {
    "sqlite": SqlitePlace,
    "postgres": PostgresPlace,
    "mysql": MySqlPlace,
    "redis": RedisPlace,
}


class Proxy:
    """A server between driver and broker that passes bytes on until it is told to do worse.

    ``requests`` and ``replies`` are the two directions: cleared, bytes are held up while the
    connections stay open, as when a cable is pulled.
    """

    def __init__(self, server: Server) -> None:
        self._target = server.host, server.port
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.requests, self.replies = asyncio.Event(), asyncio.Event()
        self.heal()

    def heal(self) -> None:
        self.requests.set()
        self.replies.set()

    def swallow(self) -> None:
        """Be a black hole."""
        self.requests.clear()
        self.replies.clear()

    def cut(self) -> None:
        """Reset every connection."""
        for writer in self._writers:
            writer.transport.abort()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.host, self.port = self._server.sockets[0].getsockname()[:2]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*self._target)
        self._writers |= {writer, back}
        for pump in (self._pump(reader, back, self.requests), self._pump(there, writer, self.replies)):
            task = asyncio.create_task(pump)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                await gate.wait()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


def closed_port() -> int:
    """A port on the loopback where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
