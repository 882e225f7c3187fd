"""What producers and tasks write down about themselves, and the verdict on it.

The producer's journal has ``try label`` before a task is handed over and ``ok label`` after it was accepted; the
tasks' journal has ``start``, then ``end`` or ``fail``, and the test's ``kill`` and ``freeze``. Each line is one write
to a file opened for appending, so it is whole or not there, whichever process is killed when. All times are the
machine's monotonic clock.
"""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

UNSETTLED = 0.3
"""Seconds for which a run that ended may still be unsettled: its worker writes outcomes in batches."""
DYING = 0.1
"""Seconds for which a process that writes that it kills itself may still run, in its other threads."""


class Line(NamedTuple):
    what: str
    label: str
    attempt: int
    pid: int
    at: float
    digest: int


class Journal:
    """A file to append lines to."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def write(self, what: str, *labels: str, attempt: int = 0, pid: int = 0, digest: int = 0) -> None:
        """One line for each label, in one write."""
        pid = pid or os.getpid()
        at = time.monotonic()
        text = "".join(f"{what} {label} {attempt} {pid} {at:.6f} {digest}\n" for label in labels)
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)

    def sync(self) -> None:
        """Have what was written survive this machine."""
        file = os.open(self.path, os.O_RDONLY | os.O_CREAT, 0o600)
        try:
            os.fsync(file)
        finally:
            os.close(file)

    @contextmanager
    def run(self, label: str, attempt: int, data: bytes = b"") -> Iterator[None]:
        """A run of a task; its end is written only if it got there."""
        digest = digest_of(label, data)
        self.write("start", label, attempt=attempt, digest=digest)
        try:
            yield
        except ValueError:
            self.write("fail", label, attempt=attempt, digest=digest)
            raise
        self.write("end", label, attempt=attempt, digest=digest)

    def lines(self, *what: str) -> list[Line]:
        if not self.path.exists():
            return []
        found = []
        for text in self.path.read_text().splitlines():
            kind, label, attempt, pid, at, digest = text.split(" ")
            if not what or kind in what:
                found.append(Line(kind, label, int(attempt), int(pid), float(at), int(digest)))
        return found


def digest_of(label: str, data: bytes) -> int:
    return crc32(label.encode() + b"\0" + data)


class Run(NamedTuple):
    """One start of a task with its end or failure, if it got there."""

    start: Line
    end: Line | None


class Verdict(NamedTuple):
    """What must be zero, then figures."""

    lost: int
    """Accepted, and neither ended nor in the dead letters."""
    phantom: int
    """Started, and never handed over."""
    unexplained: int
    """Started again although the run before was in no fault's way."""
    overlap: int
    """Started while the run before it was going on in a worker that was neither killed nor frozen."""
    stuck: int
    """Not final in time."""
    over_delivery: int
    """More starts than attempts allowed, or an attempt started twice without being given back."""
    wrong: int
    """Other arguments than those that were sent."""
    duplicates: int
    """Ends beyond the first."""
    in_flight: int
    """Held by workers when they were killed, and not known to be settled."""
    kills: int
    max_recovery: float
    """Seconds from a kill to the next start of what it interrupted, at most."""

    @property
    def clean(self) -> bool:
        return not any(self[:7]) and self.duplicates <= self.in_flight

    def line(self, driver: str, fault: str, seed: int) -> str:
        return (
            f"{driver} {fault} seed={seed} lost={self.lost} dup={self.duplicates} (in flight {self.in_flight}) "
            f"overlap={self.overlap} stuck={self.stuck} max_recovery_s={self.max_recovery:.2f} "
            f"phantom={self.phantom} unexplained={self.unexplained} over={self.over_delivery} wrong={self.wrong} "
            f"kills={self.kills}"
        )


def judge(
    produced: Journal,
    ran: Journal,
    *,
    dead: Collection[str] = (),
    stuck: int = 0,
    max_attempts: int = 3,
    released: bool = False,
) -> Verdict:
    """The verdict once the queue is empty. ``dead`` are the labels in the dead letters; ``released`` says that
    workers gave tasks back, which uses up no attempt."""
    tried = {line.label: line.digest for line in produced.lines("try")}
    accepted = {line.label for line in produced.lines("ok")}
    lines = ran.lines()
    runs = runs_of(lines)
    gone = {line.pid: line.at for line in lines if line.what == "kill"}
    frozen = {line.pid: line.at for line in lines if line.what == "freeze"}
    ended = {line.label for line in lines if line.what == "end"}
    unexplained = overlap = over = 0
    recoveries = [0.0]
    for some in runs.values():
        over += not released and (len(some) > max_attempts or _repeats_an_attempt(some))
        for run, again in pairwise(some):
            if run.end is not None and run.end.what == "fail" and run.end.at <= again.start.at:
                continue
            died = gone.get(run.start.pid) or frozen.get(run.start.pid)
            if died is None or died + DYING < run.start.at:
                overlap += run.end is None or run.end.at > again.start.at
                unexplained += not released
            elif again.start.at < died:
                overlap += 1
            elif run.end is None:
                recoveries.append(again.start.at - died)
            else:
                unexplained += died - run.end.at > UNSETTLED
    return Verdict(
        lost=len(accepted - ended - set(dead)),
        phantom=len(runs.keys() - tried.keys()),
        unexplained=unexplained,
        overlap=overlap,
        stuck=stuck,
        over_delivery=over,
        wrong=sum(tried.get(line.label, line.digest) != line.digest for line in lines if line.label in runs),
        duplicates=sum(line.what == "end" for line in lines) - len(ended),
        in_flight=sum(len(in_flight(runs, pid, at)) for pid, at in gone.items()),
        kills=len(gone),
        max_recovery=max(recoveries),
    )


def runs_of(lines: Collection[Line]) -> dict[str, list[Run]]:
    """The runs of each task, in the order of their starts."""
    ends = {(line.label, line.attempt, line.pid): line for line in lines if line.what in ("end", "fail")}
    runs: dict[str, list[Run]] = defaultdict(list)
    for line in sorted((line for line in lines if line.what == "start"), key=lambda line: line.at):
        runs[line.label].append(Run(line, ends.get((line.label, line.attempt, line.pid))))
    return dict(runs)


def in_flight(runs: dict[str, list[Run]], pid: int, at: float) -> set[str]:
    """What a process had started by then and not finished, or finished so shortly before that it may not be settled."""
    return {
        label
        for label, some in runs.items()
        for run in some
        if run.start.pid == pid and run.start.at <= at and (run.end is None or run.end.at > at - UNSETTLED)
    }


def _repeats_an_attempt(runs: Collection[Run]) -> bool:
    return max(Counter(run.start.attempt for run in runs).values()) > 1
