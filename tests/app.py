"""An application as the tests see it: its workers, in this process or in others, and the ledger its tasks write."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import asynctasq
from asynctasq.core import codec
from asynctasq.core.context import current_task
from asynctasq.core.events import Event, EventEmitter, TaskEvent
from asynctasq.core.message import STATUSES
from asynctasq.drivers.base import TaskInfo
from tests.drivers.places import Place

ROOT = Path(__file__).resolve().parent.parent
QUICK = {"default_retry_strategy": "fixed", "default_retry_delay": 0.02}
"""What tests configure unless they say otherwise: retries that do not make them wait."""


class Record(NamedTuple):
    """One line of the ledger."""

    what: str
    label: str
    attempt: int
    pid: int
    at: float


class Ledger:
    """A file to which tasks of all processes append what they do; a line is one write."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.path.touch()

    def __str__(self) -> str:
        return str(self.path)

    def write(self, what: str, label: str) -> None:
        task = current_task()
        line = json.dumps([what, label, task.attempt if task else 0, os.getpid(), time.time()])
        with self.path.open("ab", buffering=0) as file:
            file.write(line.encode() + b"\n")

    @contextlib.contextmanager
    def run(self, label: str) -> Iterator[None]:
        """Write that a run started, and that it ended if it did."""
        self.write("start", label)
        yield
        self.write("end", label)

    def records(self, what: str | None = None, label: str | None = None) -> list[Record]:
        found = [Record(*json.loads(line)) for line in self.path.read_text().splitlines()]
        return [one for one in found if what in (None, one.what) and label in (None, one.label)]

    def starts(self, label: str | None = None) -> list[Record]:
        return self.records("start", label)

    def ends(self, label: str | None = None) -> list[Record]:
        return self.records("end", label)

    def counts(self, what: str) -> Counter[str]:
        """How often each label has it."""
        return Counter(one.label for one in self.records(what))


class Remembering(EventEmitter):
    """An emitter that keeps what it receives."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    async def emit(self, event: Event) -> None:
        self.events.append(event)

    def of(self, id: str) -> list[TaskEvent]:
        """The events of one task."""
        return [event for event in self.events if isinstance(event, TaskEvent) and event.task_id == id]

    def types(self, id: str | None = None) -> list[str]:
        return [event.type.value for event in (self.events if id is None else self.of(id))]


class WorkerProcess:
    """A worker in a process of its own."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as file:
            self._process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, cwd=ROOT)
        self.pid = self._process.pid

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def code(self) -> int | None:
        return self._process.poll()

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def ended(self, within: float = 15.0) -> int:
        """Its exit code once it has ended."""
        await until(lambda: self.code is not None, within, self)
        return self._process.returncode

    async def ready(self) -> None:
        await until(lambda: "concurrency" in self.output, 20, self)

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()


class App:
    """An application on one place."""

    def __init__(self, place: Place, folder: Path) -> None:
        self.place = place
        self._folder = folder
        self._spawned: list[WorkerProcess] = []
        self.options: dict[str, Any] = {}
        self.configure()

    def configure(self, emitters: Sequence[EventEmitter] = (), **options: Any) -> None:
        """``init()`` for this place, with these options besides."""
        self.options = {"driver": self.place.name, **self.place.options, **QUICK, **options}
        asynctasq.init(self.options, emitters)

    async def work(self, attempts: int | None = None, within: float = 30.0, **options: Any) -> asynctasq.Worker:
        """Run a worker here for that many attempts, or until nothing is left to do."""
        how: dict[str, Any] = {"drain": True} if attempts is None else {"max_tasks": attempts}
        worker = asynctasq.Worker(**how, **options)
        async with asyncio.timeout(within):
            await worker.start()
        return worker

    @contextlib.asynccontextmanager
    async def working(self, **options: Any) -> AsyncIterator[asynctasq.Worker]:
        """A worker that runs here during this block."""
        worker = asynctasq.Worker(**options)
        running = asyncio.create_task(worker.start())
        try:
            yield worker
        finally:
            worker.stop()
            async with asyncio.timeout(40):
                await running

    def environment(self, **options: Any) -> dict[str, str]:
        """The environment of a process that is to be configured as this one is, with these options besides."""
        clean = {name: text for name, text in os.environ.items() if not name.startswith("ASYNCTASQ_")}
        given = {f"ASYNCTASQ_{name.upper()}": str(value) for name, value in {**self.options, **options}.items()}
        return {**clean, "PYTHONPATH": str(ROOT), **given}

    def spawn(self, *flags: str, **options: Any) -> WorkerProcess:
        """A worker in a process of its own, from the command line."""
        command = [sys.executable, "-m", "asynctasq", "worker", "--app", "tests.jobs", *flags]
        worker = WorkerProcess(command, self.environment(**options), self._folder / f"worker-{len(self._spawned)}.log")
        self._spawned.append(worker)
        return worker

    def end(self) -> None:
        for worker in self._spawned:
            worker.end()

    async def info(self, id: str) -> TaskInfo:
        """What the repository knows of a task."""
        found = await asynctasq.repository().get([id])
        assert found, f"task {id} is not there"
        return found[0]

    async def result(self, id: str) -> Any:
        """What a kept task returned."""
        info = await self.info(id)
        assert info.status == "completed", info
        assert info.result is not None
        return codec.decode_value(info.result)

    async def counts(self, queue: str = "default") -> dict[str, int]:
        """How many tasks of a queue are in each state; states without any are left out."""
        for numbers in await asynctasq.repository().stats([queue]):
            return {status: count for status in STATUSES if (count := getattr(numbers, status))}
        return {}


async def until(true: Callable[[], object], within: float = 10.0, of: WorkerProcess | None = None) -> None:
    """Wait until ``true()``; ``of`` is whose output to show if it does not become so."""
    deadline = time.monotonic() + within
    while not true():
        said = f"; the worker said:\n{of.output}" if of else ""
        assert time.monotonic() < deadline, f"not within {within:g} s{said}"
        await asyncio.sleep(0.01)


async def until_equal(probe: Callable[[], Awaitable[Any]], expected: Any, within: float = 10.0) -> None:
    """Wait until ``probe()`` returns what is expected."""
    deadline = time.monotonic() + within
    while (found := await probe()) != expected:
        assert time.monotonic() < deadline, f"not within {within:g} s: {found!r} is not {expected!r}"
        await asyncio.sleep(0.02)
