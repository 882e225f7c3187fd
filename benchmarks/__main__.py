"""Measure the drivers against their clients' ceilings, interleaved, and print medians and ratios.

Absolute figures are this machine's; the ratios of one run are what can be compared.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asynctasq
from asynctasq import _sync, drivers
from asynctasq.cli import run_async
from asynctasq.core.worker import Worker
from benchmarks import tasks
from benchmarks.ceilings import CEILINGS, Ceiling, messages

IDLE_SECONDS = 10.0
WARM_UP_SECONDS = 15.0
"""PostgreSQL's backends report what they did up to ten seconds later."""


def configure(driver: str, folder: str) -> None:
    """``init()`` for a place of the benchmark's own."""
    own = {f"{driver}_queue_table": "benchmark_task_queue", f"{driver}_dead_letter_table": "benchmark_dead_letters"}
    asynctasq.init(
        {
            "driver": driver,
            **({} if driver == "redis" else own),
            **({"redis_db": 15} if driver == "redis" else {}),
            **({"sqlite_path": str(Path(folder) / "bench.sqlite3")} if driver == "sqlite" else {}),
        }
    )
    config = asynctasq.Config.get()
    _sync.run(drivers.create(driver, config).migrate())
    _sync.run(asynctasq.repository().purge("bench"))


async def rate(count: int, work: Callable[[], Awaitable[Any]]) -> float:
    """Per second."""
    start = time.perf_counter()
    await work()
    return count / (time.perf_counter() - start)


async def ceiling_round(ceiling: Ceiling, count: int, singles: int) -> dict[str, float]:
    """One measurement of a bare client."""
    await ceiling.open()
    try:
        rows = messages(count)
        figures = {"enqueue, bulk": await rate(count, lambda: ceiling.store(rows))}
        figures["drain, async no-op"] = await rate(count, ceiling.drain)
        ones = messages(singles)

        async def each() -> None:
            for row in ones:
                await ceiling.store_one(row)

        figures["enqueue, one by one"] = await rate(singles, each)
    finally:
        await ceiling.close()
    return figures


async def drained(count: int, concurrency: int) -> float:
    """Tasks per second between the first and the last run of a worker that drains what is waiting."""
    tasks.runs.clear()
    await Worker(queues=["bench"], concurrency=concurrency, drain=True).start()
    if len(tasks.runs) != count:
        raise SystemExit(f"{len(tasks.runs)} tasks ran, not {count}")
    return count / (max(tasks.runs) - min(tasks.runs))


def our_round(count: int, singles: int, concurrency: int) -> dict[str, float]:
    """One measurement of the whole way: dispatch, and a worker in this process."""

    async def bulk() -> float:
        made = [tasks.noop() for _ in range(count)]
        return await rate(count, lambda: asynctasq.dispatch_many(made))

    figures = {"enqueue, bulk": run_async(bulk())}
    figures["drain, async no-op"] = run_async(drained(count, concurrency))
    start = time.perf_counter()
    for _ in range(singles):
        tasks.noop().dispatch_sync()
    figures["enqueue, one by one"] = singles / (time.perf_counter() - start)
    asynctasq.dispatch_many_sync([tasks.noop_sync() for _ in range(count // 4 - singles)])
    figures["drain, sync no-op"] = run_async(drained(count // 4, concurrency))
    return figures


async def latencies(count: int, per_second: float) -> list[float]:
    """Milliseconds from dispatch to start, at light load."""
    tasks.runs.clear()
    running = asyncio.create_task(Worker(queues=["bench"], max_tasks=count).start())
    for _ in range(count):
        await asyncio.sleep(1 / per_second)
        await tasks.late(time.time()).dispatch()
    await running
    return sorted(seconds * 1000 for seconds in tasks.runs)


def commands(driver: str) -> float:
    """How many commands the broker has had so far; for PostgreSQL, statements are taken to be transactions."""
    config = asynctasq.Config.get()
    if driver == "redis":
        import redis

        with contextlib.closing(redis.Redis.from_url(config.redis_location())) as client:
            stats = client.info("commandstats")
            # What scripts call inside counts too; our own login and question do not.
            ours = ("cmdstat_info", "cmdstat_client|setinfo", "cmdstat_hello", "cmdstat_select")
            return float(sum(entry["calls"] for name, entry in stats.items() if name not in ours))
    if driver == "postgres":
        import psycopg

        with psycopg.connect(config.postgres_dsn) as connection:
            row = connection.execute(
                "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
            ).fetchone()
            return float(row[0]) if row else 0.0
    if driver == "mysql":
        import MySQLdb

        from asynctasq.drivers.mysql.connection import options

        with contextlib.closing(MySQLdb.connect(**options(config))) as connection, connection.cursor() as cursor:
            cursor.execute("SHOW GLOBAL STATUS LIKE 'Questions'")
            return float(cursor.fetchone()[1])
    return float("nan")


def idle(driver: str) -> dict[str, float]:
    """An idle worker of its own process: memory, CPU, commands a second."""
    config = asynctasq.Config.get()
    environment = os.environ | {f"ASYNCTASQ_{name.upper()}": str(getattr(config, name)) for name in config.given}
    command = [sys.executable, "-m", "asynctasq", "worker", "--queues", "bench", "-q"]
    with subprocess.Popen(command, env=environment) as worker:
        try:
            time.sleep(WARM_UP_SECONDS)
            before, cpu = commands(driver), cpu_seconds(worker.pid)
            time.sleep(IDLE_SECONDS)
            status = Path(f"/proc/{worker.pid}/status").read_text()
            return {
                "RSS, MiB": int(status.split("VmRSS:")[1].split()[0]) / 1024,
                "CPU, %": 100 * (cpu_seconds(worker.pid) - cpu) / IDLE_SECONDS,
                "commands/s": (commands(driver) - before) / IDLE_SECONDS,
            }
        finally:
            worker.terminate()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def median(rounds: list[dict[str, float]], name: str) -> float:
    """Of one figure over the rounds that have it."""
    return statistics.median(figures[name] for figures in rounds)


def measure(driver: str, options: argparse.Namespace) -> None:
    """All figures of one driver."""
    ours: list[dict[str, float]] = []
    bare: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        configure(driver, folder)
        config = asynctasq.Config.get()
        for _ in range(options.rounds):
            bare.append(run_async(ceiling_round(CEILINGS[driver](config), options.tasks, options.singles)))
            ours.append(our_round(options.tasks, options.singles, options.concurrency))
        print(
            f"\n{driver}: {options.tasks} tasks, concurrency {options.concurrency}, median of {options.rounds} rounds"
        )
        print(f"{'':24}{'ours /s':>10}{'client /s':>12}{'ratio':>8}")
        for name in ours[0]:
            figure = median(ours, name)
            # A sync no-op is set against the same ceiling: its client's work is the same.
            limit = median(bare, name if name in bare[0] else "drain, async no-op")
            print(f"{name:24}{figure:>10,.0f}{limit:>12,.0f}{figure / limit:>8.2f}")
        if not options.quick:
            found = run_async(latencies(100, 20))
            print(f"latency at 20/s, ms: p50 {found[50]:.1f}, p99 {found[98]:.1f}")
            print("idle worker: " + ", ".join(f"{name} {value:.2f}" for name, value in idle(driver).items()))
        _sync.run(asynctasq.repository().purge("bench"))
        asynctasq.shutdown()


def main() -> None:
    """Parse the options and measure each driver asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("drivers", nargs="*", default=list(CEILINGS), help=f"of {', '.join(CEILINGS)} (all)")
    parser.add_argument("--tasks", type=int, default=20_000, help="tasks a round (20000)")
    parser.add_argument("--singles", type=int, default=500, help="tasks that are enqueued one by one (500)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (3)")
    parser.add_argument("--concurrency", type=int, default=100, help="attempts at once (100)")
    parser.add_argument("--quick", action="store_true", help="rates only")
    options = parser.parse_args()
    for driver in options.drivers:
        measure(driver, options)


if __name__ == "__main__":
    main()
