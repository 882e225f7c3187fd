"""A worker in a process of its own, which may be killed, frozen and asked for its last words."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


async def until(true: Callable[[], object], within: float, what: str) -> None:
    """Wait until ``true()``."""
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline, f"not within {within:g} s: {what}"
        await asyncio.sleep(0.01)


class Process:
    """One that is always waited for."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
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

    async def says(self, words: str, within: float = 20.0) -> None:
        await until(lambda: words in self.output, within, f"{words!r} from a worker")

    async def ready(self) -> None:
        await self.says("concurrency")

    async def ended(self, within: float = 20.0) -> int:
        """Its exit code once it has ended."""
        await until(lambda: self.code is not None, within, "end of a worker")
        return self._process.returncode

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
