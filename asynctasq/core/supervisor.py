"""Several worker processes under one: what dies is started again, signals are passed on."""

from __future__ import annotations

import contextlib
import logging
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

logger = logging.getLogger("asynctasq.worker")

STOPPING = (signal.SIGTERM, signal.SIGINT)
SETTLED = 10.0
"""Seconds after which a process counts as having started well: until then each restart waits longer."""
BACKOFF_LAST = 30.0
USAGE = 2


def run(processes: int, command: Sequence[str] | None = None) -> int:
    """Keep that many copies of this command running as single workers until a signal stops them, or until all
    have ended by themselves. 0, or 1 if one failed and could not be followed, or 2 if the command itself is wrong."""
    return Supervisor(processes, command or [*sys.orig_argv, "--processes", "1"]).run()


class Supervisor:
    """One slot for each process."""

    def __init__(self, processes: int, command: Sequence[str]) -> None:
        self._slots = [_Slot(command) for _ in range(processes)]
        self._stopping = 0
        """How often it was told to stop."""
        self._passed_on = 0
        # Not an Event: its lock may be held by what a signal interrupts, and set() would wait for it for ever.
        self._woken: queue.SimpleQueue[None] = queue.SimpleQueue()

    def run(self) -> int:
        previous = {number: signal.signal(number, self._on_signal) for number in (*STOPPING, signal.SIGCHLD)}
        try:
            while self._step():
                with contextlib.suppress(queue.Empty):
                    self._woken.get(timeout=self._next_start())
        finally:
            for slot in self._slots:
                slot.send(signal.SIGTERM)
            for number, handler in previous.items():
                signal.signal(number, handler)
        return max(slot.code for slot in self._slots)

    def _step(self) -> bool:
        """Start what is to be started and pass signals on; whether anything runs or is to run again."""
        now = time.monotonic()
        for slot in self._slots:
            slot.look(now)
            if slot.code == USAGE and not self._stopping:
                # Restarting does not mend a wrong setting; nor are the others better off.
                self._stopping += 1
            if not self._stopping and slot.starts_at is not None and now >= slot.starts_at:
                slot.start(now)
        # Only here, so that a process which was just being started is told too. A second signal means at once.
        while self._passed_on < self._stopping:
            self._passed_on += 1
            for slot in self._slots:
                slot.send(signal.SIGTERM)
        return any(
            slot.process is not None or (slot.starts_at is not None and not self._stopping) for slot in self._slots
        )

    def _next_start(self) -> float | None:
        starts = [slot.starts_at for slot in self._slots if slot.starts_at is not None and not self._stopping]
        return max(min(starts) - time.monotonic(), 0.0) if starts else None

    def _on_signal(self, number: int, frame: object) -> None:
        if number in STOPPING:
            self._stopping += 1
        self._woken.put(None)


class _Slot:
    """One of the processes."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self.process: subprocess.Popen[bytes] | None = None
        self.starts_at: float | None = 0.0
        """When to start it, on the monotonic clock; None: not again."""
        self.code = 0
        self._started = 0.0
        self._pause = 0.5

    def start(self, now: float) -> None:
        self.starts_at = None
        self._started = now
        # A session of its own: Ctrl-C reaches the supervisor alone, which passes it on once.
        self.process = subprocess.Popen(self._command, start_new_session=True)

    def look(self, now: float) -> None:
        """See whether it has ended, and whether it is to run again."""
        if self.process is None or self.process.poll() is None:
            return
        code, self.process = self.process.returncode, None
        self.code = code if code >= 0 else 1
        if code in (0, USAGE):
            return
        self._pause = 0.5 if now - self._started > SETTLED else min(self._pause * 2, BACKOFF_LAST)
        self.starts_at = now + self._pause
        logger.warning("a worker process ended with code %d; another starts in %.1f s", code, self._pause)

    def send(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(number)
