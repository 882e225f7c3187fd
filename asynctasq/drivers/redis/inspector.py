"""Finding and repairing single tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import TYPE_CHECKING, cast

import msgspec

from asynctasq.core.message import STATUSES, Status, decode
from asynctasq.core.outcome import ErrorInfo
from asynctasq.drivers.base import (
    Inspector,
    Page,
    TaskInfo,
    TaskQuery,
    decode_cursor,
    encode_cursor,
    usable_ids,
)
from asynctasq.drivers.redis.commands import CHUNK, QUEUES, SHA, Place, base_key, chunks, evalsha, grouped, to_text
from asynctasq.drivers.redis.entries import View
from asynctasq.drivers.redis.link import Link
from asynctasq.errors import (
    DecodeError,
)

if TYPE_CHECKING:
    from asynctasq.config import Config


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class RedisInspector(Inspector):
    """The part of the driver that looks tasks up."""

    config: Config
    _link: Link

    async def _view(self, queues: Sequence[str]) -> View:
        raise NotImplementedError

    async def find(self, query: TaskQuery) -> Page:
        after: Place | None = None
        if query.cursor is not None:
            after = cast(Place, decode_cursor(query.cursor, tuple[str, str]))
        statuses = frozenset(STATUSES) if query.statuses is None else query.statuses
        queues = [queue for queue in await self.queue_names() if query.queue in (None, queue)]
        # What is processing is looked for among the leases: they are few, and often the oldest of many.
        leased = await self._leased(queues) if statuses == {"processing"} else None
        items: list[TaskInfo] = []
        left, size, more = self.config.task_scan_limit, query.limit + 1, True
        while more and left > 0 and len(items) <= query.limit:
            size = min(size, CHUNK, left)
            sources = [leased] if leased is not None else await self._listed(queues, statuses, after, size + 1)
            places = _below(chain.from_iterable(sources), after)
            more, places = len(places) > size, places[:size]
            items += [info for info in await self._read(places) if _matches(query, statuses, info)]
            left, size, after = left - len(places), 2 * size, places[-1] if places else after
        if len(items) > query.limit:
            items = items[: query.limit]
            return Page(items=items, next=encode_cursor(items[-1].id, items[-1].queue))
        return Page(items=items, next=encode_cursor(*after) if more and after else None, truncated=more)

    async def _listed(
        self, queues: Sequence[str], statuses: frozenset[Status], after: Place | None, count: int
    ) -> list[list[Place]]:
        """The next tasks of every queue and list."""
        words = sorted({"pending" if status == "processing" else status for status in statuses})
        lists = [(queue, word) for queue in queues for word in words]
        start = f"[{after[0]}" if after else "+"
        looks = [
            ("ZREVRANGEBYLEX", f"{base_key(queue)}:ids:{word}", start, "-", "LIMIT", 0, count + 1)
            for queue, word in lists
        ]
        replies = await self._link.run(*looks)
        return [[(to_text(id), queue) for id in ids] for (queue, _), ids in zip(lists, replies, strict=True)]

    async def _leased(self, queues: Sequence[str]) -> list[Place]:
        found: list[Place] = []
        for key, (queue, _) in (await self._view(queues)).places.items():
            start = "-"
            while start and len(found) < self.config.task_scan_limit:
                [(last, _, *ids)] = await self._link.run(("EVALSHA", SHA["leases"], 1, key, start, CHUNK, "ids"))
                found += [(to_text(id), queue) for id in ids]
                start = f"({last.decode()}" if last else ""
        return found

    async def _read(self, places: Iterable[Place]) -> list[TaskInfo]:
        """What is known of these tasks, in their order; those that are gone are left out."""
        places = list(places)
        calls = [
            (queue, part)
            for queue, some in grouped(places, lambda place: place[1]).items()
            for part in chunks([id for id, _ in some], CHUNK)
        ]
        replies = await self._link.run(*[evalsha("read", queue, *part) for queue, part in calls])
        found = {
            (id, queue): _info(id, queue, *row)
            for (queue, part), rows in zip(calls, replies, strict=True)
            for id, row in zip(part, rows, strict=True)
            if row
        }
        return [found[place] for place in places if place in found]

    async def get(self, ids: Sequence[str]) -> list[TaskInfo]:
        queues = await self.queue_names()
        return await self._read((id, queue) for id in usable_ids(ids) for queue in queues)

    async def requeue(self, ids: Sequence[str]) -> int:
        return await self._everywhere("requeue", ids)

    async def cancel(self, ids: Sequence[str]) -> int:
        return await self._everywhere("remove", ids, "keep" if self.config.keep_completed_tasks else "cancel")

    async def delete(self, ids: Sequence[str]) -> int:
        return await self._everywhere("remove", ids, "delete")

    async def _everywhere(self, script: str, ids: Sequence[str], *how: str) -> int:
        """Run a counting script for these ids in every queue: an id does not say where it belongs."""
        parts = chunks(usable_ids(ids), CHUNK)
        queues = await self.queue_names()
        return sum(await self._link.run(*[evalsha(script, queue, *how, *part) for queue in queues for part in parts]))

    async def queue_names(self) -> list[str]:
        [names] = await self._link.run(("SMEMBERS", QUEUES))
        return sorted(map(to_text, names))


def _info(
    id: str, queue: str, status: bytes, stream: bytes, flat: list[bytes], due: bytes, consumer: bytes, *times: bytes
) -> TaskInfo:
    """A task from what ``read.lua`` returns."""
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    payload = fields.get(b"payload", b"")
    try:
        message = decode(payload)
    except DecodeError:
        message = None
    began, ends = map(_instant, times)
    state = cast(Status, status.decode())
    return TaskInfo(
        id=id,
        queue=queue,
        task=message.task if message else "",
        status=state,
        priority=_number(fields.get(b"priority", stream)) or 0,
        attempt=(_number(fields.get(b"attempt")) or 1) - (state in ("pending", "scheduled", "cancelled")),
        max_attempts=message.max_attempts if message else 0,
        payload=payload,
        created_at=message.created_at if message else None,
        available_at=_instant(due) or (message.available_at if message else None),
        locked_until=ends,
        started_at=began or _instant(fields.get(b"started")),
        finished_at=_instant(fields.get(b"finished")),
        worker=to_text(consumer or fields.get(b"worker", b"")) or None,
        correlation_id=message.correlation_id if message else None,
        result=fields.get(b"result"),
        error=_error(fields.get(b"error")),
        first_failed_at=_instant(fields.get(b"first_failed")),
        last_failed_at=_instant(fields.get(b"last_failed")),
    )


def _number(raw: bytes | None) -> int | None:
    try:
        return int(float(raw)) if raw else None
    except (ValueError, OverflowError):
        return None


def _instant(raw: bytes | None) -> datetime | None:
    micros = _number(raw)
    try:
        return None if micros is None else EPOCH + timedelta(microseconds=micros)
    except OverflowError:
        return None


def _error(packed: bytes | None) -> ErrorInfo | None:
    try:
        return msgspec.msgpack.decode(packed, type=ErrorInfo) if packed else None
    except msgspec.DecodeError:
        return None


def _matches(query: TaskQuery, statuses: frozenset[Status], info: TaskInfo) -> bool:
    if info.status not in statuses or query.task not in (None, info.task):
        return False
    created = info.created_at or EPOCH
    after, before = query.created_after or created, query.created_before
    return created >= after and (before is None or created < before)


def _below(places: Iterable[Place], after: Place | None) -> list[Place]:
    """The places after that one: by id, newest first, then by queue, for an id may be in several."""
    ordered = sorted(sorted(places, key=lambda place: place[1]), key=lambda place: place[0], reverse=True)
    return [(id, queue) for id, queue in ordered if not after or id < after[0] or (id == after[0] and queue > after[1])]
