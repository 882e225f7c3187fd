"""Options of the drivers that are here, seen in the broker itself."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

import asynctasq
from asynctasq import task
from asynctasq.drivers.base import Driver
from tests.app import App, until
from tests.drivers.places import MySqlPlace, Place, PostgresPlace, RedisPlace


@task
async def nothing() -> None: ...


@asynccontextmanager
async def connected(place: Place, **options: Any) -> AsyncIterator[Driver]:
    driver = place.create(**options)
    await driver.connect()
    try:
        yield driver
    finally:
        await driver.close()


# ---- SQLite


@pytest.mark.behaviour(5)
async def test_sqlite_path_and_its_table_names_are_where_tasks_lie(embedded: App, tmp_path: Path) -> None:
    path = tmp_path / "own name.db"
    embedded.configure(
        sqlite_path=str(path),
        sqlite_queue_table="own_queue",
        sqlite_dead_letter_table="own_dead",
        default_max_attempts=1,
    )

    @task
    async def fail() -> None:
        raise LookupError

    await asynctasq.dispatch_many([fail(), nothing().on_queue("later")])
    await embedded.work(1)
    with closing(sqlite3.connect(path)) as connection:
        rows = [connection.execute(f"SELECT queue_name FROM {name}").fetchall() for name in ("own_queue", "own_dead")]
        mode = connection.execute("PRAGMA journal_mode").fetchone()
    assert rows == [[("later",)], [("default",)]]
    assert mode == ("wal",)
    # What tasks are given is nobody else's to read.
    assert (await asyncio.to_thread(path.stat)).st_mode & 0o077 == 0


@pytest.mark.behaviour(5)
async def test_a_database_in_memory_lives_with_the_process(alone: None, tmp_path: Path) -> None:
    runs: list[int] = []

    @task
    async def note(number: int) -> None:
        runs.append(number)

    asynctasq.init({"driver": "sqlite", "sqlite_path": ":memory:"})
    await note(1).dispatch()
    await asyncio.to_thread(note(2).dispatch_sync)
    worker = asynctasq.Worker(max_tasks=2)
    await worker.start()
    assert sorted(runs) == [1, 2]


# ---- PostgreSQL


@pytest.fixture
async def postgres(places: Callable[[str], Place]) -> PostgresPlace:
    place = places("postgres")
    assert isinstance(place, PostgresPlace)
    place.reset()
    await place.prepare()
    return place


@pytest.mark.behaviour(5)
async def test_the_postgres_tables_are_those_named(postgres: PostgresPlace, tmp_path: Path) -> None:
    app = App(postgres, tmp_path)
    await nothing().dispatch()
    assert postgres.queue != "task_queue"
    assert postgres.traces() == 1
    assert await app.counts() == {"pending": 1}


@pytest.mark.behaviour(5)
async def test_pool_sizes_size_the_pool_of_a_worker_and_one_that_only_dispatches_opens_few(
    postgres: PostgresPlace,
) -> None:
    async with connected(postgres, postgres_min_pool_size=4, postgres_max_pool_size=5) as driver:
        pool: Any = vars(driver)["_pool"]
        await driver.enqueue([])
        await driver.stats(["default"])
        assert pool.get_stats()["pool_size"] <= 2
        await driver.claim(["default"], 1, 0)
        await until(lambda: pool.get_stats()["pool_size"] >= 4)
        await asyncio.gather(*(driver.stats(["default"]) for _ in range(40)))
        assert pool.get_stats()["pool_size"] <= 5


# ---- MySQL


@pytest.mark.behaviour(5)
async def test_pool_sizes_size_the_pool_on_mysql_too(places: Callable[[str], Place]) -> None:
    place = places("mysql")
    assert isinstance(place, MySqlPlace)
    place.reset()
    await place.prepare()

    def opened() -> int:
        return len(vars(driver)["_idle"]) + len(vars(driver)["_calls"])

    async with connected(place, mysql_min_pool_size=4, mysql_max_pool_size=5) as driver:
        await driver.stats(["default"])
        assert opened() == 1
        await driver.claim(["default"], 1, 0)
        await until(lambda: opened() == 4)
        await asyncio.gather(*(driver.stats(["default"]) for _ in range(40)))
        assert opened() == 4


# ---- Redis


@pytest.fixture
def redis(places: Callable[[str], Place]) -> RedisPlace:
    place = places("redis")
    assert isinstance(place, RedisPlace)
    place.reset()
    return place


def connections(place: RedisPlace) -> int:
    """To the database of the tests, but for the one that counts."""
    client: Any = place._client
    return sum(1 for one in client.client_list() if one["db"] == str(place.database)) - 1


@pytest.mark.behaviour(5)
async def test_redis_max_connections_caps_the_pool_and_calls_wait_for_their_turn(redis: RedisPlace) -> None:
    before = connections(redis)
    async with connected(redis, redis_max_connections=3) as driver:
        await asyncio.gather(*(driver.stats(["default"]) for _ in range(50)))
        assert connections(redis) - before <= 3
    async with connected(redis, redis_max_connections=30) as driver:
        await asyncio.gather(*(driver.stats(["default"]) for _ in range(50)))
        assert connections(redis) - before > 3


@pytest.mark.behaviour(5)
async def test_redis_db_is_the_database_unless_the_url_names_one(
    alone: None, redis: RedisPlace, tmp_path: Path
) -> None:
    app = App(redis, tmp_path)
    bare = redis.options["redis_url"].rpartition("/")[0]
    app.configure(redis_url=bare, redis_db=redis.database)
    await nothing().dispatch()
    assert redis.traces() == 1
    app.configure(redis_url=redis.options["redis_url"], redis_db=0)
    await nothing().dispatch()
    assert redis.traces() == 2
