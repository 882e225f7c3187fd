"""The flow that all SQL drivers share. A dialect brings its connection and its file of named statements.

A call of one statement goes through ``_fetch``; a call of several is a generator of statements that the dialect runs
inside one transaction, and from the start again when the database says the transaction must be repeated. Bulk
arguments travel as one JSON array, so the text of every statement is constant.
"""

from __future__ import annotations

import base64
import random
import re
import time
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache, partial
from importlib import resources
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import msgspec

from asynctasq.core.message import MAX_MESSAGE_BYTES, STATUSES, Lease, Message, Status, decode, encode, open_lease
from asynctasq.core.outcome import Dead, Done, ErrorInfo, Retry
from asynctasq.core.retry import retry_delay
from asynctasq.drivers.base import (
    Capabilities,
    Driver,
    Inspector,
    Maintenance,
    Page,
    QueueStats,
    TaskInfo,
    TaskQuery,
    decode_cursor,
    encode_cursor,
    is_suspect,
    usable_ids,
)
from asynctasq.errors import BrokerError, DecodeError

if TYPE_CHECKING:
    from asynctasq.config import Config

T = TypeVar("T")
Row = tuple[Any, ...]
Args = dict[str, Any]
Steps = Generator[tuple[str, Args], list[Row], T]
"""A transaction: yields (statement name, arguments), is sent the rows, returns its result."""

SUSPECT_INTERVAL = 0.5
"""Seconds until the next look for suspects after one that found none, while ordinary messages flow: they are rare,
and each look is a round trip. But where there is one there are more: all that its worker held."""
PURGE_BATCH = 5_000
AFTER_EVERY_ID = "\x7f"
"""Sorts after every id: those are printable ASCII."""
_LIVE = frozenset(STATUSES) - {"dead"}


class Tables(NamedTuple):
    """The two tables of a queue database."""

    queue: str
    dead: str


@lru_cache(maxsize=32)
def statements(dialect: str, tables: Tables) -> Mapping[str, str]:
    """The named statements of ``sql/<dialect>.sql`` for these tables (validated by Config, quoted here)."""
    quote = "`" if dialect == "mysql" else '"'
    names = {
        "{queue}": ".".join(f"{quote}{part}{quote}" for part in tables.queue.split(".")),
        "{dead}": ".".join(f"{quote}{part}{quote}" for part in tables.dead.split(".")),
        "{index}": tables.queue.rpartition(".")[2],
    }
    path = resources.files("asynctasq.drivers").joinpath("sql").joinpath(f"{dialect}.sql")
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"^-- name: (\w+)\n(.*?)(?=^-- name: |\Z)", text, re.MULTILINE | re.DOTALL)
    return {
        name: re.sub(r"\{(queue|dead|index)\}", lambda m: names[m.group()], body.strip()).removesuffix(";")
        for name, body in found
    }


def schema(dialect: str, tables: Tables) -> list[str]:
    """The statements that create the tables and indexes, each harmless when they exist."""
    return statements(dialect, tables)["schema"].split(";\n")


def enqueue_rows(messages: Iterable[Message]) -> Args:
    """The arguments of the statement ``enqueue``. In the order of ids, so that two producers cannot deadlock."""
    rows = [
        {
            "id": m.id,
            "queue": m.queue,
            "task": m.task,
            "payload": base64.b64encode(encode(m)).decode("ascii"),
            "priority": m.priority,
            "max_attempts": m.max_attempts,
            "visibility_timeout": m.visibility_timeout,
            "created_at": m.created_at.timestamp(),
            "delay": m.delay,
            "available_at": None if m.available_at is None else m.available_at.timestamp(),
            "correlation_id": m.correlation_id,
        }
        for m in messages
    ]
    rows.sort(key=lambda row: str(row["id"]))
    return {"rows": to_json(rows)}


def single(statement: str, args: Args) -> Steps[list[Row]]:
    """A transaction of one statement."""
    return (yield statement, args)


def to_json(value: object) -> str:
    return msgspec.json.encode(value).decode("utf-8")


class SqlDriver(Driver, Inspector):
    """A driver whose broker is two tables."""

    dialect: str
    capabilities: ClassVar[Capabilities] = Capabilities(
        idempotent=True,
        ordered=True,
        timed_leases=True,
        priority=True,
        transactions=True,
        listing=True,
        results=True,
        exact_counts=True,
        max_payload=MAX_MESSAGE_BYTES,
    )

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.tables = Tables(
            getattr(config, f"{self.name}_queue_table"), getattr(config, f"{self.name}_dead_letter_table")
        )
        self.sql = statements(self.dialect, self.tables)
        self._next_suspect_look = 0.0
        self._interrupted = False

    @abstractmethod
    async def _fetch(self, statement: str, /, **args: Any) -> list[Row]:
        """Run one named statement in a transaction of its own; its rows, if it returns any."""

    @abstractmethod
    async def _transaction(self, steps: Callable[[], Steps[T]]) -> T:
        """Run several statements in one transaction."""

    @abstractmethod
    async def _wait(self, queues: Sequence[str], timeout: float) -> bool:
        """Whether something may have been enqueued within ``timeout`` seconds; returns as soon as it may."""

    def _wake(self) -> None:
        """Something of this process's own became pending: end its waits, where nothing else does."""

    async def enqueue(self, messages: Sequence[Message]) -> None:
        for rows in self.enqueue_parts(messages):
            await self._fetch("enqueue", **rows)
        if messages:
            self._wake()

    def enqueue_parts(self, messages: Sequence[Message]) -> list[Args]:
        """The arguments of the statement ``enqueue``, for each time that it must be run to store all."""
        return [enqueue_rows(messages)] if messages else []

    async def claim(self, queues: Sequence[str], limit: int, wait: float, suspects: int = 1) -> list[Lease]:
        give_up = time.monotonic() + wait
        while True:
            leases = await self._claim_now(queues, limit, suspects)
            left = give_up - time.monotonic()
            if leases or left <= 0 or limit <= 0 or self._interrupted:
                return leases
            if not await self._wait(queues, left):
                # Nothing is known to have come: the next claim looks, and an idle worker looks half as often.
                return []

    async def interrupt(self) -> None:
        self._interrupted = True
        self._wake()

    async def _claim_now(self, queues: Sequence[str], limit: int, suspects: int) -> list[Lease]:
        leases: list[Lease] = []
        looked = time.monotonic() >= self._next_suspect_look
        if looked:
            await self._claim_from(queues, min(suspects, limit), True, leases)
        await self._claim_from(queues, limit, False, leases)
        if not leases and not looked:
            await self._claim_from(queues, min(suspects, limit), True, leases)
        return leases

    async def _claim_from(self, queues: Sequence[str], limit: int, suspect: bool, leases: list[Lease]) -> None:
        """Add leases until there are ``limit``, one queue by equality at a time: that is what the index serves."""
        for queue in queues:
            if len(leases) >= limit:
                return
            claimed_at = time.monotonic()
            try:
                rows = await self._fetch(
                    "claim",
                    queue=queue,
                    suspect=suspect,
                    limit=limit - len(leases),
                    worker=self.worker_id,
                    # Not a count: a task may be removed and come again under its id, and old leases must stay dead.
                    receipt=random.getrandbits(62),
                )
            except BrokerError:
                if leases:
                    # What was claimed is leased: it is handed out, and the next claim meets the trouble.
                    return
                raise
            # RETURNING promises no order.
            rows.sort(key=lambda row: (-row[5], row[0]))
            leases += [
                open_lease(
                    id=row[0],
                    queue=queue,
                    payload=row[1],
                    attempt=row[2],
                    receipt=row[3],
                    visibility_timeout=row[4],
                    claimed_at=claimed_at,
                    suspect=suspect,
                )
                for row in rows
            ]
        if suspect and not leases:
            self._next_suspect_look = time.monotonic() + SUSPECT_INTERVAL

    async def ack(self, done: Sequence[Done]) -> list[Lease]:
        lost = await self._settle("ack", [(d.lease, {}) for d in done if not d.keep])
        kept = [
            (d.lease, {"result": None if d.result is None else base64.b64encode(d.result).decode("ascii")})
            for d in done
            if d.keep
        ]
        return lost + await self._settle("complete", kept)

    async def retry(self, retries: Sequence[Retry]) -> list[Lease]:
        lost = await self._settle("retry", [(r.lease, _retry_row(r.delay, False, r.error)) for r in retries])
        if any(r.delay <= 0 for r in retries):
            self._wake()
        return lost

    async def release(self, leases: Sequence[Lease]) -> list[Lease]:
        lost = await self._settle("release", [(lease, {}) for lease in leases])
        self._wake()
        return lost

    async def extend(self, leases: Sequence[Lease]) -> list[Lease]:
        return await self._settle("extend", [(lease, {}) for lease in leases])

    async def _settle(self, statement: str, leases: Sequence[tuple[Lease, Args]]) -> list[Lease]:
        """Run a fenced statement over leases, each with its own arguments; those it did not return are lost."""
        if not leases:
            return []
        # In the order of ids, for the rows are locked in it: a worker's ack and its keeper's extension cannot deadlock.
        rows = sorted(
            ({"id": lease.id, "receipt": lease.receipt, **args} for lease, args in leases),
            key=lambda row: str(row["id"]),
        )
        held = set(await self._fetch(statement, rows=to_json(rows)))
        return [lease for lease, _ in leases if (lease.id, lease.receipt) not in held]

    async def dead_letter(self, dead: Sequence[Dead]) -> list[Lease]:
        if not dead:
            return []
        held = await self._transaction(
            lambda: self._bury([({"id": d.lease.id, "receipt": d.lease.receipt}, d.error) for d in dead])
        )
        return [d.lease for d in dead if (d.lease.id, d.lease.receipt) not in held]

    def _bury(self, dead: Sequence[tuple[Args, ErrorInfo]]) -> Steps[set[Row]]:
        """Move what is still held to the dead letters; returns those ids with their receipts."""
        held = set((yield "hold", {"rows": to_json([lease for lease, _ in dead])}))
        rows = [lease | _error_row(error) for lease, error in dead if (lease["id"], lease["receipt"]) in held]
        if rows:
            yield "bury", {"rows": to_json(rows)}
            yield "remove", {"ids": to_json([row["id"] for row in rows])}
        return held

    async def maintain(self, queues: Sequence[str], limit: int) -> Maintenance:
        names = to_json(list(dict.fromkeys(queues)))
        promoted = recovered = buried = 0
        due = await self._fetch("due", queues=names) if queues else []
        for queue, scheduled, expiry in due:
            # One queue by equality at a time, as in claiming: what others have scheduled is not walked over.
            if scheduled is not None and scheduled <= 0 and promoted < limit:
                rows = await self._fetch("promote", queue=queue, limit=limit - promoted)
                promoted += sum(row[1] for row in rows)
            if expiry is not None and expiry < 0 and recovered + buried < limit:
                again, dead = await self._transaction(partial(self._recover, queue, limit - recovered - buried))
                recovered, buried = recovered + again, buried + dead
        if promoted:
            self._wake()
        if promoted or recovered:
            due = await self._fetch("due", queues=names)
        waits = [max(row[1], 0.0) for row in due if row[1] is not None]
        if recovered + buried >= limit:
            waits.append(0.0)
        return Maintenance(
            promoted=promoted, recovered=recovered, buried=buried, next_due=min(waits) if waits else None
        )

    def _recover(self, queue: str, limit: int) -> Steps[tuple[int, int]]:
        again: list[Args] = []
        dead: list[tuple[Args, ErrorInfo]] = []
        for id, _, payload, attempt, max_attempts, receipt, visibility, worker in (
            yield "expired", {"queue": queue, "limit": limit}
        ):
            row = {"id": id, "receipt": receipt}
            error = worker_lost(attempt, visibility, worker)
            if attempt < max_attempts:
                delay = recovery_delay(payload, attempt, self.config.max_retry_delay)
                again.append(row | _retry_row(delay, is_suspect(attempt, max_attempts), error))
            else:
                dead.append((row, error))
        if again:
            yield "retry", {"rows": to_json(again)}
        if dead:
            yield from self._bury(dead)
        return len(again), len(dead)

    async def stats(self, queues: Sequence[str] | None = None) -> list[QueueStats]:
        numbers: dict[str, dict[str, Any]] = {name: {} for name in queues or ()}
        for queue, status, count, age in await self._fetch("stats"):
            if queues is not None and queue not in numbers:
                continue
            of_queue = numbers.setdefault(queue, {})
            of_queue[status] = count
            if status == "pending":
                of_queue["oldest_pending"] = max(age, 0.0)
        return [QueueStats(queue=name, **numbers[name]) for name in sorted(numbers)]

    async def purge(self, queue: str) -> int:
        total = 0
        while True:
            gone = len(await self._fetch("purge", queue=queue, limit=PURGE_BATCH))
            total += gone
            if gone < PURGE_BATCH:
                return total

    async def find(self, query: TaskQuery) -> Page:
        before = AFTER_EVERY_ID if query.cursor is None else str(decode_cursor(query.cursor, tuple[str])[0])
        statuses = frozenset(STATUSES) if query.statuses is None else query.statuses
        live = statuses & _LIVE
        args: Args = {
            "before": before,
            "limit": query.limit + 1,
            "queue": query.queue,
            "task": query.task,
            "created_after": _seconds(query.created_after),
            "created_before": _seconds(query.created_before),
        }
        floor = ""
        rows: list[Row] = []
        if live == {"processing"}:
            # Few at any time, but old: looked for where they are and not from the newest task down.
            rows += await self._fetch("find_processing", **args, scan=self.config.task_scan_limit)
        elif live:
            found_floor = await self._fetch("floor", before=before, scan=self.config.task_scan_limit - 1)
            floor = found_floor[0][0] if found_floor else ""
            rows += await self._fetch("find", **args, floor=floor, statuses=to_json(sorted(live)))
        if "dead" in statuses:
            found_floor = await self._fetch("floor_dead", before=before, scan=self.config.task_scan_limit - 1)
            # Two tables, one walk down: it ends where the first of the two had to stop.
            floor = max(floor, found_floor[0][0] if found_floor else "")
            rows += await self._fetch("find_dead", **args, floor=floor)
        rows = sorted((row for row in rows if row[0] >= floor), key=lambda row: str(row[0]), reverse=True)
        items = [_task_info(row) for row in rows[: query.limit]]
        if len(rows) > query.limit:
            return Page(items=items, next=encode_cursor(items[-1].id))
        return Page(items=items, next=encode_cursor(floor) if floor else None, truncated=bool(floor))

    async def get(self, ids: Sequence[str]) -> list[TaskInfo]:
        ids = usable_ids(ids)
        if not ids:
            return []
        found = {row[0]: _task_info(row) for row in await self._fetch("get", ids=to_json(ids))}
        return [found[id] for id in ids if id in found]

    async def requeue(self, ids: Sequence[str]) -> int:
        ids = usable_ids(ids)
        if not ids:
            return 0
        count = await self._transaction(lambda: self._requeue(ids))
        self._wake()
        return count

    def _requeue(self, ids: Sequence[str]) -> Steps[int]:
        held = to_json([row[0] for row in (yield "hold_dead", {"ids": to_json(ids)})])
        yield "revive", {"ids": held}
        return len((yield "forget", {"ids": held}))

    async def cancel(self, ids: Sequence[str]) -> int:
        ids = usable_ids(ids)
        if not ids:
            return 0
        statement = "cancel_keep" if self.config.keep_completed_tasks else "cancel_remove"
        return len(await self._fetch(statement, ids=to_json(ids)))

    async def delete(self, ids: Sequence[str]) -> int:
        ids = usable_ids(ids)
        if not ids:
            return 0
        live = await self._fetch("delete", ids=to_json(ids))
        return len(live) + len(await self._fetch("forget", ids=to_json(ids)))


def worker_lost(attempt: int, visibility_timeout: float, worker: str | None) -> ErrorInfo:
    """The error of an attempt whose lease ran out."""
    return ErrorInfo(
        type="asynctasq.errors.WorkerLost",
        message=f"attempt {attempt}: worker {worker or 'unknown'} was lost; its {visibility_timeout:g} s lease ran out",
    )


def recovery_delay(payload: bytes, attempt: int, cap: float) -> float:
    """Seconds a recovered message waits: its own retry policy; none for what is no message."""
    try:
        message = decode(payload)
    except DecodeError:
        return 0.0
    return retry_delay(message.retry_strategy, message.retry_delay, attempt, cap=cap, random=random.random)


def _error_row(error: ErrorInfo) -> Args:
    return {"error_type": error.type, "error_message": error.message, "error_traceback": error.traceback}


def _retry_row(delay: float, suspect: bool, error: ErrorInfo) -> Args:
    return {"delay": delay, "suspect": suspect, **_error_row(error)}


def _seconds(instant: datetime | None) -> float | None:
    return None if instant is None else instant.timestamp()


def _instant(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _task_info(row: Row) -> TaskInfo:
    """A TaskInfo from the columns that the statements ``find``, ``find_dead`` and ``get`` select."""
    status: Status = row[3]
    return TaskInfo(
        id=row[0],
        queue=row[1],
        task=row[2],
        status=status,
        priority=row[4],
        attempt=row[5],
        max_attempts=row[6],
        payload=bytes(row[7]),
        created_at=_instant(row[8]),
        available_at=_instant(row[9]),
        locked_until=_instant(row[10]),
        started_at=_instant(row[11]),
        finished_at=_instant(row[12]),
        worker=row[13],
        correlation_id=row[14],
        result=None if row[15] is None else bytes(row[15]),
        error=None if row[16] is None else ErrorInfo(type=row[16], message=row[17] or "", traceback=row[18] or ""),
        first_failed_at=_instant(row[19]),
        last_failed_at=_instant(row[20]),
    )
