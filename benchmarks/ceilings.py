"""What each client does with nothing around it, in batches: the ceiling that a driver is measured against.

``store`` writes ``count`` encoded messages, 1,000 at a time. ``drain`` takes them 100 at a time, decodes each, gives
each an asyncio task, and removes them: what any worker has to do, and no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from asynctasq.config import Config
from asynctasq.core.message import Message, decode, encode, new_id, utcnow

BULK, BATCH = 1_000, 100


def messages(count: int) -> list[tuple[str, bytes]]:
    """Ids and encoded messages of a no-op task."""
    made = [
        Message(id=new_id(), queue="bench", task="benchmarks.tasks.noop", body=b"\x92\x90\x80", created_at=utcnow())
        for _ in range(count)
    ]
    return [(message.id, encode(message)) for message in made]


def batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    """``items`` in lists of ``size``."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


async def noop() -> None:
    """The work of one message."""


async def run_each(payloads: list[bytes]) -> None:
    """Decode and run each in a task of its own."""
    loop = asyncio.get_running_loop()
    tasks = []
    for payload in payloads:
        decode(payload)
        tasks.append(loop.create_task(noop()))
    await asyncio.wait(tasks)


class Ceiling(ABC):
    """One client, bare."""

    @abstractmethod
    async def open(self) -> None:
        """Connect and make an empty place."""

    @abstractmethod
    async def store(self, rows: list[tuple[str, bytes]]) -> None:
        """Write all."""

    @abstractmethod
    async def store_one(self, row: tuple[str, bytes]) -> None:
        """Write one, durably."""

    @abstractmethod
    async def drain(self) -> int:
        """Take, run and remove all; how many there were."""

    @abstractmethod
    async def close(self) -> None:
        """Remove the place and disconnect."""


class RedisCeiling(Ceiling):
    """redis-py with hiredis: XADD pipelines; XREADGROUP, XACK, XDEL."""

    KEY, GROUP = "benchmark:stream", "g"

    def __init__(self, config: Config) -> None:
        self.url = config.redis_location()

    async def open(self) -> None:
        import redis.asyncio

        self.client = redis.asyncio.Redis.from_url(self.url)
        await self.client.delete(self.KEY)
        await self.client.xgroup_create(self.KEY, self.GROUP, id="0", mkstream=True)

    async def store(self, rows: list[tuple[str, bytes]]) -> None:
        for part in batches(rows, BULK):
            pipe = self.client.pipeline(transaction=False)
            for _, payload in part:
                pipe.xadd(self.KEY, {"p": payload})
            await pipe.execute()

    async def store_one(self, row: tuple[str, bytes]) -> None:
        await self.client.xadd(self.KEY, {"p": row[1]})

    async def drain(self) -> int:
        count = 0
        while found := await self.client.xreadgroup(self.GROUP, "c", {self.KEY: ">"}, count=BATCH):
            # A list of pairs under protocol 2, a mapping under 3.
            ((_, entries),) = found.items() if isinstance(found, dict) else found
            entries = entries[0] if entries and isinstance(entries[0], list) else entries
            await run_each([fields[b"p"] for _, fields in entries])
            ids = [entry for entry, _ in entries]
            pipe = self.client.pipeline(transaction=False)
            pipe.xack(self.KEY, self.GROUP, *ids)
            pipe.xdel(self.KEY, *ids)
            await pipe.execute()
            count += len(ids)
        return count

    async def close(self) -> None:
        await self.client.delete(self.KEY)
        await self.client.aclose()


class PostgresCeiling(Ceiling):
    """psycopg 3, async, prepared, autocommit: INSERT from arrays; UPDATE SKIP LOCKED RETURNING, DELETE."""

    TAKE = b"""
        WITH c AS MATERIALIZED (SELECT id FROM benchmark_queue WHERE status = 0 ORDER BY id LIMIT 100
                                FOR UPDATE SKIP LOCKED)
        UPDATE benchmark_queue q SET status = 1 FROM c WHERE q.id = c.id RETURNING q.id, q.payload"""

    def __init__(self, config: Config) -> None:
        self.dsn = config.postgres_dsn

    async def open(self) -> None:
        import psycopg

        self.connection = await psycopg.AsyncConnection.connect(self.dsn, autocommit=True, prepare_threshold=0)
        execute = self.connection.execute
        await execute("DROP TABLE IF EXISTS benchmark_queue")
        await execute("CREATE TABLE benchmark_queue (id uuid PRIMARY KEY, payload bytea, status smallint DEFAULT 0)")
        await execute("CREATE INDEX benchmark_queue_ready ON benchmark_queue (id) WHERE status = 0")
        for setting in ("enable_sort", "enable_bitmapscan", "enable_seqscan", "enable_hashjoin", "enable_mergejoin"):
            await execute(f"SET {setting} = off".encode())

    async def store(self, rows: list[tuple[str, bytes]]) -> None:
        for part in batches(rows, BULK):
            ids, payloads = zip(*part, strict=True)
            await self.connection.execute(
                b"INSERT INTO benchmark_queue (id, payload) SELECT * FROM unnest(%s::uuid[], %s::bytea[])",
                (list(ids), list(payloads)),
            )

    async def store_one(self, row: tuple[str, bytes]) -> None:
        await self.connection.execute(b"INSERT INTO benchmark_queue (id, payload) VALUES (%s, %s)", row)

    async def drain(self) -> int:
        count = 0
        while True:
            cursor = self.connection.cursor(binary=True)
            rows = await (await cursor.execute(self.TAKE)).fetchall()
            if not rows:
                return count
            await run_each([row[1] for row in rows])
            await self.connection.execute(
                b"DELETE FROM benchmark_queue WHERE id = ANY(%s)", ([row[0] for row in rows],), prepare=True
            )
            count += len(rows)

    async def close(self) -> None:
        await self.connection.execute("DROP TABLE benchmark_queue")
        await self.connection.close()


class MySqlCeiling(Ceiling):
    """mysqlclient in one thread, autocommit: INSERT of many rows; SELECT SKIP LOCKED, UPDATE, DELETE by key."""

    TAKE = "SELECT id, payload FROM benchmark_queue WHERE status = 0 ORDER BY id LIMIT 100 FOR UPDATE SKIP LOCKED"

    def __init__(self, config: Config) -> None:
        self.config = config

    async def open(self) -> None:
        import MySQLdb

        from asynctasq.drivers.mysql.connection import options

        self.thread = ThreadPoolExecutor(1)
        self.connection = MySQLdb.connect(
            **options(self.config), charset="utf8mb4", autocommit=True, binary_prefix=True
        )
        for statement in (
            "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
            "DROP TABLE IF EXISTS benchmark_queue",
            "CREATE TABLE benchmark_queue (id char(36) CHARACTER SET ascii PRIMARY KEY, payload longblob,"
            " status tinyint DEFAULT 0, KEY ready (status, id)) ENGINE = InnoDB",
        ):
            await self.do(self.connection.cursor().execute, statement)

    async def do(self, call: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.thread, call, *args)

    async def store(self, rows: list[tuple[str, bytes]]) -> None:
        for part in batches(rows, BULK):
            await self.do(self._insert, part)

    async def store_one(self, row: tuple[str, bytes]) -> None:
        await self.do(self._insert, [row])

    def _insert(self, rows: list[tuple[str, bytes]]) -> None:
        self.connection.cursor().executemany("INSERT INTO benchmark_queue (id, payload) VALUES (%s, %s)", rows)

    def _take(self) -> list[tuple[str, bytes]]:
        cursor = self.connection.cursor()
        cursor.execute("START TRANSACTION")
        cursor.execute(self.TAKE)
        rows = list(cursor.fetchall())
        if rows:
            cursor.execute("UPDATE benchmark_queue SET status = 1 WHERE id IN %s", ([row[0] for row in rows],))
        cursor.execute("COMMIT")
        return rows

    def _remove(self, ids: list[str]) -> None:
        self.connection.cursor().execute("DELETE FROM benchmark_queue WHERE id IN %s", (ids,))

    async def drain(self) -> int:
        count = 0
        while rows := await self.do(self._take):
            await run_each([row[1] for row in rows])
            await self.do(self._remove, [row[0] for row in rows])
            count += len(rows)
        return count

    async def close(self) -> None:
        await self.do(self.connection.cursor().execute, "DROP TABLE benchmark_queue")
        self.connection.close()
        self.thread.shutdown()


class SqliteCeiling(Ceiling):
    """sqlite3 in the loop's own thread, WAL, synchronous as the driver has it."""

    TAKE = """UPDATE q SET status = 1 WHERE id IN (SELECT id FROM q WHERE status = 0 ORDER BY id LIMIT 100)
              RETURNING id, payload"""

    def __init__(self, config: Config) -> None:
        self.synchronous = config.sqlite_synchronous

    async def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.connection = sqlite3.connect(Path(self.folder.name) / "ceiling.sqlite3", isolation_level=None)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute(f"PRAGMA synchronous = {self.synchronous}")
        self.connection.execute("CREATE TABLE q (id text PRIMARY KEY, payload blob, status integer DEFAULT 0)")
        self.connection.execute("CREATE INDEX q_ready ON q (id) WHERE status = 0")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        self.connection.execute("BEGIN IMMEDIATE")
        yield
        self.connection.execute("COMMIT")

    async def store(self, rows: list[tuple[str, bytes]]) -> None:
        for part in batches(rows, BULK):
            with self.transaction():
                self.connection.executemany("INSERT INTO q (id, payload) VALUES (?, ?)", part)

    async def store_one(self, row: tuple[str, bytes]) -> None:
        with self.transaction():
            self.connection.execute("INSERT INTO q (id, payload) VALUES (?, ?)", row)

    async def drain(self) -> int:
        count = 0
        while True:
            with self.transaction():
                rows = self.connection.execute(self.TAKE).fetchall()
            if not rows:
                return count
            await run_each([row[1] for row in rows])
            with self.transaction():
                self.connection.executemany("DELETE FROM q WHERE id = ?", [(row[0],) for row in rows])
            count += len(rows)

    async def close(self) -> None:
        self.connection.close()
        self.folder.cleanup()


CEILINGS: dict[str, type[Any]] = {
    "redis": RedisCeiling,
    "postgres": PostgresCeiling,
    "mysql": MySqlCeiling,
    "sqlite": SqliteCeiling,
}
