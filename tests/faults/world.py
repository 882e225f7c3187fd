"""A broker, workers on it that may be killed, a producer that keeps a journal, and the verdict at the end."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import asynctasq
from asynctasq.core import codec, message
from asynctasq.drivers.base import TaskInfo, TaskQuery
from asynctasq.errors import BrokerError
from asynctasq.tasks.base import BaseTask
from tests.drivers.places import Place
from tests.faults import tasks
from tests.faults.ledger import Journal, Line, Verdict, digest_of, judge, runs_of
from tests.faults.process import ROOT, Process, until

LEASE = 1.0
"""Seconds of a visibility timeout, unless the test says otherwise."""
RECOVERY = 5.0
"""Seconds beyond the visibility timeout after which what a killed worker held must run again."""
BATCH = 50


class World:
    """One application under a fault."""

    def __init__(self, place: Place, folder: Path, seed: int = 0, **options: Any) -> None:
        self.place = place
        self.folder = folder
        self.seed = seed
        self.chance = random.Random(seed)
        self.produced = Journal(folder / "produced")
        self.ran = Journal(folder / "ran")
        self.workers: list[Process] = []
        self.options: dict[str, Any] = {
            "driver": place.name,
            **place.options,
            **({f"{place.name}_max_pool_size": 5} if place.name in ("postgres", "mysql") else {}),
            "default_visibility_timeout": LEASE,
            "default_retry_strategy": "fixed",
            "default_retry_delay": 0.05,
            "default_max_attempts": 3,
            **options,
        }
        self.configure()

    def configure(self, **options: Any) -> None:
        """``init()`` here, and the same for workers to come, with these options besides."""
        self.options |= options
        asynctasq.init(self.options)

    async def __aenter__(self) -> Self:
        await self.place.prepare()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers:
            worker.end()

    def report(self) -> None:
        """Print what helps to understand a failure."""
        print(f"seed {self.seed}, journals in {self.folder}")
        for worker in self.workers:
            print(f"--- worker {worker.pid}, exit code {worker.code}\n{worker.output[-3000:]}")

    # ---- workers

    def spawn(self, *flags: str, environment: dict[str, str] | None = None, **options: Any) -> Process:
        """A worker from the command line, with these options besides; not waited for."""
        worker = Process(
            [sys.executable, "-m", "asynctasq", "worker", "--app", "tests.faults.tasks", *flags],
            self.environment(**options) | (environment or {}),
            self.folder / f"worker-{len(self.workers)}.log",
        )
        self.workers.append(worker)
        return worker

    def environment(self, **options: Any) -> dict[str, str]:
        """Of a process that is to be configured as this one is, with these options besides."""
        clean = {name: text for name, text in os.environ.items() if not name.startswith("ASYNCTASQ_")}
        given = {f"ASYNCTASQ_{name.upper()}": str(value) for name, value in {**self.options, **options}.items()}
        return clean | given | {"PYTHONPATH": str(ROOT), "FAULTS_JOURNAL": str(self.ran.path)}

    async def working(self, count: int, *flags: str, **options: Any) -> list[Process]:
        """Workers that are ready."""
        started = [self.spawn(*flags, **options) for _ in range(count)]
        for worker in started:
            await worker.ready()
        return started

    def kill(self, worker: Process) -> None:
        """kill -9, written down at a moment when the worker can start nothing any more."""
        worker.send(signal.SIGSTOP)
        self.ran.write("kill", "worker", pid=worker.pid)
        worker.end()

    def held(self, worker: Process) -> set[str]:
        """What the worker has started and not ended."""
        runs = runs_of([line for line in self.ran.lines() if line.pid == worker.pid])
        return {label for label, some in runs.items() if some[-1].end is None}

    async def busy(self, workers: Sequence[Process], within: float = 30.0) -> Process:
        """Wait until one of them is in mid-task; which."""
        await until(lambda: any(map(self.held, workers)), within, "a worker in mid-task")
        return self.chance.choice([worker for worker in workers if self.held(worker)] or list(workers))

    # ---- producing

    async def dispatch(self, calls: Sequence[BaseTask[Any]]) -> None:
        """Hand over, with the journal kept around it. A call's first argument is its label, its third its data."""
        for start in range(0, len(calls), BATCH):
            some = calls[start : start + BATCH]
            labels = [str(call._arguments[0][0]) for call in some]
            for call, label in zip(some, labels, strict=True):
                self.produced.write("try", label, digest=digest_of(label, call._arguments[1].get("data", b"")))
            self.produced.sync()
            await asynctasq.dispatch_many(some)
            self.produced.write("ok", *labels)
            self.produced.sync()

    def mixed(self, count: int, prefix: str = "t", longest: float = 0.05) -> list[BaseTask[Any]]:
        """Async and sync tasks of up to ``longest`` seconds, with data of their own."""
        return [
            self.chance.choice((tasks.nap, tasks.rest))(
                f"{prefix}{number}",
                self.chance.uniform(0, longest),
                data=self.chance.randbytes(self.chance.randint(0, 200)),
            )
            for number in range(count)
        ]

    # ---- looking

    def starts(self, label: str) -> list[Line]:
        return [line for line in self.ran.lines("start") if line.label == label]

    def ends(self, label: str) -> list[Line]:
        return [line for line in self.ran.lines("end") if line.label == label]

    async def started(self, label: str, times: int = 1, within: float = 10.0) -> Line:
        await until(lambda: len(self.starts(label)) >= times, within, f"start {times} of {label}")
        return self.starts(label)[times - 1]

    async def left(self) -> int | None:
        """How many tasks are not final; None when the broker does not say."""
        try:
            stats = await asynctasq.repository().stats()
        except BrokerError:
            return None
        return sum(one.pending + one.scheduled + one.processing for one in stats)

    async def drained(self, within: float = 30.0) -> int:
        """Wait until everything is final; how many tasks are not after that time."""
        deadline = time.monotonic() + within
        while (left := await self.left()) != 0:
            if time.monotonic() > deadline:
                return -1 if left is None else left
            await asyncio.sleep(0.05)
        return 0

    async def dead(self) -> list[TaskInfo]:
        page = await asynctasq.repository().find(TaskQuery(statuses=frozenset({"dead"}), limit=500))
        return page.items

    async def verdict(self, stuck: int = 0, **how: Any) -> Verdict:
        labels = []
        for info in await self.dead():
            args, _ = codec.decode_arguments(message.decode(info.payload).body)
            labels.append(str(args[0]))
        limit = self.options["default_max_attempts"]
        return judge(self.produced, self.ran, dead=labels, stuck=stuck, **{"max_attempts": limit, **how})


async def kills(world: World, count: int, total: int) -> Verdict:
    """Kill a worker of two in mid-task, ``count`` times, while ``total`` tasks are handed over and run. What a worker
    held is run one at a time, so a kill waits until the worker before has been replaced."""
    workers = await world.working(2, "--concurrency", "4")
    calls = world.mixed(total)
    share = -(-total // count)
    for number in range(count):
        handing_over = asyncio.create_task(world.dispatch(calls[number * share : (number + 1) * share]))
        victim = await world.busy(workers)
        await asyncio.sleep(world.chance.uniform(0, 0.05))
        world.kill(victim)
        await handing_over
        [workers[workers.index(victim)]] = await world.working(1, "--concurrency", "4")
        await asyncio.sleep(world.chance.uniform(0.3, 0.7))
    stuck = await world.drained(within=2 * world.options["default_visibility_timeout"] + 10 + total * 0.02)
    verdict = await world.verdict(stuck)
    for worker in workers:
        worker.send(signal.SIGTERM)
    for worker in workers:
        assert await worker.ended() == 0
    return verdict


async def crowd(world: World, count: int, total: int) -> Verdict:
    """``count`` workers at one queue while ``total`` tasks are handed over and run, with no fault at all."""
    world.configure(default_visibility_timeout=30)
    workers = await world.working(count, "--concurrency", "10")
    calls = [tasks.nap(f"t{number}", 0.0) for number in range(total)]
    await asyncio.gather(*(world.dispatch(calls[part::4]) for part in range(4)))
    verdict = await world.verdict(await world.drained(within=10 + total * 0.02))
    for worker in workers:
        worker.send(signal.SIGTERM)
    for worker in workers:
        assert await worker.ended() == 0
        # No conflict of locks has come to anyone's notice.
        assert "waiting for the broker" not in worker.output, worker.output[-2000:]
    return verdict


async def sweep(world: World, points: Sequence[int]) -> Verdict:
    """For each point a queue with one task that succeeds and one that fails, and a worker that is killed there."""
    world.configure(default_visibility_timeout=0.3, default_retry_delay=0.0, default_max_attempts=3)
    for point in points:
        calls = [tasks.nap(f"good{point}", 0.0), tasks.fail(f"bad{point}")]
        await world.dispatch([call.on_queue(f"q{point}") for call in calls])
    for some in (points[start : start + 2] for start in range(0, len(points), 2)):
        crashing = [
            world.spawn("--drain", "--queues", f"q{point}", environment={"FAULTS_CRASH_AT": str(point)})
            for point in some
        ]
        for worker in crashing:
            assert await worker.ended() in (0, -signal.SIGKILL)
    last = world.spawn("--drain", "--queues", ",".join(f"q{point}" for point in points))
    assert await last.ended(within=30) == 0
    verdict = await world.verdict(await world.drained(within=1))
    dead = {(info.queue, info.attempt) for info in await world.dead()}
    # Attempts are used up by a kill, never more of them than there are.
    assert dead == {(f"q{point}", 3) for point in points}
    return verdict
