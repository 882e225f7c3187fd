"""What every driver does. The tests in ``tests/drivers/test_contract.py`` are the contract itself;
this is its shape."""

from __future__ import annotations

import base64
import os
import socket
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, ClassVar

import msgspec

from asynctasq.core.message import Lease, Message, Status
from asynctasq.core.outcome import Dead, Done, ErrorInfo, Retry
from asynctasq.errors import ConfigurationError, NotSupported

if TYPE_CHECKING:
    from asynctasq.config import Config

CALL_DEADLINE = 10.0
"""Seconds that any one call to a broker may take before it is BrokerUnavailable."""


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a broker can do, as data. What it cannot raises NotSupported; nothing returns an empty list for it."""

    idempotent: bool = False
    """A message whose id is already there is left as it is; without this it is stored once more."""
    ordered: bool = False
    """Of one priority the oldest is claimed first."""
    priority: bool = False
    """Messages of higher priority are claimed first."""
    timed_leases: bool = False
    """A lease runs out after its message's ``visibility_timeout`` unless it is extended. Without this it is the
    connection's, and ends with it."""
    granularity: float = 0.0
    """Seconds: delays and leases are rounded up to a multiple of this; 0 where they are exact."""
    transactions: bool = False
    """A message can be written in the caller's own database transaction."""
    listing: bool = False
    """Tasks can be found, read, requeued, cancelled and deleted by id: the driver is an Inspector."""
    results: bool = False
    """Completed tasks and their results can be kept."""
    exact_counts: bool = False
    """``stats`` counts rather than estimates."""
    max_delay: float | None = None
    """Longest delay in seconds; None for no limit."""
    max_payload: int | None = None
    """Largest encoded message in bytes; None for no limit of its own."""


class Maintenance(msgspec.Struct, frozen=True, kw_only=True):
    """What one ``maintain`` did."""

    promoted: int = 0
    recovered: int = 0
    """Expired leases whose task will run again."""
    buried: int = 0
    """Expired leases whose task had no attempt left."""
    next_due: float | None = None
    """Seconds until the next scheduled message of these queues is due; 0 when there is more to do now; None when
    nothing is scheduled."""


class QueueStats(msgspec.Struct, frozen=True, kw_only=True):
    """One queue in numbers."""

    queue: str
    pending: int = 0
    scheduled: int = 0
    processing: int = 0
    completed: int = 0
    dead: int = 0
    cancelled: int = 0
    oldest_pending: float | None = None
    """Age in seconds of the oldest pending message; None when there is none or it is not known."""


class TaskInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One task as operators see it; the same words on every driver. Instants are aware UTC."""

    id: str
    queue: str
    task: str
    """Registered name; empty for a dead letter that was no message."""
    status: Status
    priority: int = 0
    attempt: int = 0
    """The current attempt when it is processing, else the last one."""
    max_attempts: int = 0
    payload: bytes = b""
    """The message as stored, which for a dead letter may be anything."""
    created_at: datetime | None = None
    available_at: datetime | None = None
    locked_until: datetime | None = None
    started_at: datetime | None = None
    """Start of the current or last attempt."""
    finished_at: datetime | None = None
    """When it became completed, dead or cancelled."""
    worker: str | None = None
    correlation_id: str | None = None
    result: bytes | None = None
    error: ErrorInfo | None = None
    """The last failure."""
    first_failed_at: datetime | None = None
    last_failed_at: datetime | None = None


class TaskQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What to find. All conditions hold together."""

    statuses: frozenset[Status] | None = None
    queue: str | None = None
    task: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    cursor: str | None = None
    """``Page.next`` of the page before; None for the first page."""
    limit: int = 50


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Tasks, newest first by id."""

    items: list[TaskInfo]
    next: str | None = None
    """Cursor of the next page; None when this is the last."""
    truncated: bool = False
    """The query gave up at ``task_scan_limit``: there may be more that match."""


class Driver(ABC):
    """A connection to one broker. It belongs to the event loop that connected it.

    ``connect`` is called once, by the owner; every other call needs it. A call ends within ``CALL_DEADLINE``
    seconds (claim: plus its ``wait``) with a result or with BrokerUnavailable, BrokerFull or ConfigurationError.

    Settling (ack, retry, dead_letter, release, extend) is fenced: only the current lease of a task can settle it.
    Each returns those leases that it found lost: expired and recovered, or settled before.
    """

    name: ClassVar[str]
    capabilities: ClassVar[Capabilities]

    def __init__(self, config: Config) -> None:
        self.config = config
        self.worker_id = worker_id()
        """Who claims; stored beside what it holds. Unique for each start of a worker."""

    async def migrate(self) -> bool:
        """Create or update the tables this broker needs, without ``connect``; again is fine. False: it needs none."""
        return False

    @abstractmethod
    async def connect(self) -> None:
        """Open the connection. Raises BrokerUnavailable, or ConfigurationError for what only a person can mend."""

    @abstractmethod
    async def close(self) -> None:
        """Close it; again is fine."""

    @abstractmethod
    async def enqueue(self, messages: Sequence[Message]) -> None:
        """Store all; durable on return. A message whose id is already there is left as it is.

        Due now becomes ``pending``, due later ``scheduled``. PayloadTooLarge, raised before anything is sent.
        """

    def enqueue_sync(self, messages: Sequence[Message]) -> None:
        """The same from a thread without a loop, on a native synchronous client, without ``connect``.

        Raises NotSupported where there is none; callers then use the background loop.
        """
        raise NotSupported(f"{self.name} has no synchronous client of its own")

    def close_sync(self) -> None:
        """Close what ``enqueue_sync`` opened; again is fine."""

    @abstractmethod
    async def claim(self, queues: Sequence[str], limit: int, wait: float, suspects: int = 1) -> list[Lease]:
        """Lease up to ``limit`` pending messages, the first queues first, in each by priority, then oldest first.

        Counts the attempt. Waits up to ``wait`` seconds for a first one, in the broker where that can. At most
        ``suspects`` of them are suspects (``is_suspect``). They never come before their time and never more than
        asked, so that one task that kills its worker does not take the others with it.
        """

    async def interrupt(self) -> None:
        """End the claims that wait, now and from now on: they return what they have. Before a worker stops."""

    @abstractmethod
    async def ack(self, done: Sequence[Done]) -> list[Lease]:
        """Remove these, or keep them as ``completed`` with their result; one step each."""

    @abstractmethod
    async def retry(self, retries: Sequence[Retry]) -> list[Lease]:
        """Make these ``pending`` again after their delay, with their error; one step each."""

    @abstractmethod
    async def dead_letter(self, dead: Sequence[Dead]) -> list[Lease]:
        """Move these to the dead letters with their error; one step each."""

    @abstractmethod
    async def release(self, leases: Sequence[Lease]) -> list[Lease]:
        """Give these back at once; the attempt does not count."""

    @abstractmethod
    async def extend(self, leases: Sequence[Lease]) -> list[Lease]:
        """Begin each lease's ``visibility_timeout`` anew."""

    @abstractmethod
    async def maintain(self, queues: Sequence[str], limit: int) -> Maintenance:
        """Promote up to ``limit`` messages that are due and recover up to ``limit`` expired leases.

        A recovered message waits its retry delay, perhaps as a suspect (``is_suspect``), or goes to the dead letters
        as ``WorkerLost`` when it has no attempt left.
        """

    @abstractmethod
    async def stats(self, queues: Sequence[str] | None = None) -> list[QueueStats]:
        """Numbers per queue, by name; None for all queues that hold or held something."""

    @abstractmethod
    async def purge(self, queue: str) -> int:
        """Delete what is pending or scheduled in a queue; what runs, the dead and the kept stay. Returns how many."""


class Inspector(ABC):
    """Finding and repairing single tasks; only where the broker can."""

    @abstractmethod
    async def find(self, query: TaskQuery) -> Page:
        """A page of tasks, newest first; looks at no more than ``task_scan_limit`` of them."""

    @abstractmethod
    async def get(self, ids: Sequence[str]) -> list[TaskInfo]:
        """These tasks, without a scan; unknown ids are left out."""

    @abstractmethod
    async def requeue(self, ids: Sequence[str]) -> int:
        """Dead letters back to ``pending``, attempts from zero; returns how many there were."""

    @abstractmethod
    async def cancel(self, ids: Sequence[str]) -> int:
        """Call off what is pending or scheduled; kept as ``cancelled`` under ``keep_completed_tasks``, else removed."""

    @abstractmethod
    async def delete(self, ids: Sequence[str]) -> int:
        """Remove for good; what is processing is left alone. Returns how many were removed."""


def is_suspect(attempt: int, max_attempts: int) -> bool:
    """Whether a message that lost its worker in this attempt may be the reason, and is to run alone among its like.

    Lost for the first time it is most likely a bystander, and what a dead worker held runs side by side again. Lost
    later, or with one attempt left, it must not take others with it, nor be taken.
    """
    return attempt > 1 or attempt + 1 >= max_attempts


def worker_id() -> str:
    """A new id for a worker: host, pid and four random bytes."""
    return f"{socket.gethostname()[:40]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def usable_ids(ids: Iterable[str]) -> list[str]:
    """Those that can be an id at all, each once: anything may come from a URL."""
    return [id for id in dict.fromkeys(ids) if id.isascii() and id.isprintable() and 0 < len(id) <= 64]


def encode_cursor(*parts: object) -> str:
    """A page's place as text for a query string."""
    return base64.urlsafe_b64encode(msgspec.json.encode(parts)).decode().rstrip("=")


def decode_cursor(cursor: str, kinds: type[tuple[object, ...]]) -> tuple[object, ...]:
    """What ``encode_cursor`` was given. Raises ConfigurationError for anything else."""
    try:
        raw = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
        return msgspec.json.decode(raw, type=kinds)
    except (ValueError, msgspec.DecodeError) as exc:
        raise ConfigurationError("cursor is not one that a page gave") from exc
