"""Redis, 6.2 or newer: a stream and a consumer group for each queue and priority.

A stream's entry carries the number of the attempt it is for. Whatever takes a message further removes its entry and
writes a new one, in one script that begins with XACK. An entry is acknowledged once, so its id is the fence, and the
receipt of a lease is the stream's name and the entry's id. The scripts are in ``lua/``, keys and arguments at the top.

Keys, all beginning with ``asynctasq:{queue}:`` so that those of one queue share a slot:

======================  =======================================================================================
``stream:<priority>``   messages pending and processing, as entries
``stream:suspects``     the same for messages whose worker was lost
``priorities``          sorted set of the priorities in use
``index``               hash: id -> ``<stream> <entry>``, or a word: scheduled, dead, completed, cancelled
``ids:<word>``          sorted set of ids, all of score 0, for listing; ``ids:pending`` has the processing ones too
``scheduled``           sorted set of ids by due time in us since the epoch
``task:<id>``           hash: the message, and what became of it, while it lies in no stream
======================  =======================================================================================

and ``asynctasq:queues``, the set of the queues' names.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import os
import re
import threading
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar, cast

import msgspec
import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, NoScriptError, RedisError, ResponseError
from redis.retry import Retry as SyncRetry

from asynctasq.config import mask_url
from asynctasq.core.message import MAX_MESSAGE_BYTES, STATUSES, Lease, Message, Status, decode, encode, open_lease
from asynctasq.core.outcome import Dead, Done, ErrorInfo, Retry, decide
from asynctasq.drivers.base import (
    CALL_DEADLINE,
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
)
from asynctasq.errors import (
    BrokerFull,
    BrokerUnavailable,
    ConfigurationError,
    DecodeError,
    DriverClosed,
    PayloadTooLarge,
)

if TYPE_CHECKING:
    from asynctasq.config import Config

logger = logging.getLogger(__name__)

PRODUCER_DEADLINE = 3.0
"""Seconds after which an enqueue is given up: somebody's web request is waiting for it."""
CHUNK = 200
"""Most messages in one script, so that none holds the server up for more than a few milliseconds."""
LOOK_FOR_SUSPECTS = 0.5
LOOK_FOR_EXPIRED = 3.0
LOOK_FOR_PRIORITIES = 10.0
LOOK_FOR_CONSUMERS = 600.0
"""Least seconds between two looks."""
SCAN = 1_000
"""Leases looked at in one stream before the rest is left for the next look."""
FORGET = 3_600_000
"""Milliseconds after which a consumer that holds nothing is removed."""
UNREADABLE_ATTEMPTS = 3
"""Runs of what is no message and so names no number itself."""

T = TypeVar("T")
_Command = tuple[Any, ...]
_Call = tuple[_Command, Sequence[Lease]]
_SCRIPTS = {path.stem: path.read_text("utf-8") for path in Path(__file__).with_name("lua").glob("*.lua")}
_SHA = {name: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest() for name, text in _SCRIPTS.items()}
_LOAD: list[_Command] = [("SCRIPT", "LOAD", text) for text in _SCRIPTS.values()]
_QUEUES = "asynctasq:queues"
_SUSPECTS = "suspects"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class RedisDriver(Driver, Inspector):
    """Queues in one Redis. Not for Redis Cluster: a claim reads all its queues at once."""

    name: ClassVar[str] = "redis"
    capabilities: ClassVar[Capabilities] = Capabilities(
        priority=True, listing=True, results=True, exact_counts=True, max_payload=MAX_MESSAGE_BYTES
    )

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._link = _Link(config)
        self._sync_link = _SyncLink(config)
        self._named: set[str] = set()
        self._views: dict[tuple[str, ...], _View] = {}
        self._clock = 0.0
        """The server's time less ``time.monotonic()``. Only spares questions; the scripts decide by the true one."""
        self._idle = False
        self._suspects_at = self._expired_at = 0.0
        self._forget_at = time.monotonic() + LOOK_FOR_CONSUMERS
        self._cursors: dict[str, str] = {}

    async def connect(self) -> None:
        await self._link.open()

    async def close(self) -> None:
        await self._link.close()

    def close_sync(self) -> None:
        self._sync_link.close()

    # ---- producing

    async def enqueue(self, messages: Sequence[Message]) -> None:
        commands, queues = self._storing(messages)
        replies = await self._link.run(commands, PRODUCER_DEADLINE)
        await self._link.run(self._naming(queues, replies), PRODUCER_DEADLINE)

    def enqueue_sync(self, messages: Sequence[Message]) -> None:
        commands, queues = self._storing(messages)
        replies = self._sync_link.run(commands)
        self._sync_link.run(self._naming(queues, replies))

    def _storing(self, messages: Sequence[Message]) -> tuple[list[_Command], set[str]]:
        """The commands that store ``messages``, and their queues."""
        arguments: dict[str, list[Any]] = {}
        for message in messages:
            payload = encode(message)
            if len(payload) > MAX_MESSAGE_BYTES:
                raise PayloadTooLarge(
                    f"task {message.task}: a message of {len(payload)} bytes, at most {MAX_MESSAGE_BYTES} are taken"
                )
            life = max(1, math.ceil(message.visibility_timeout * 1000))
            arguments.setdefault(message.queue, []).extend((message.id, payload, life, message.priority, _due(message)))
        new = arguments.keys() - self._named
        commands: list[_Command] = [("SADD", _QUEUES, *new)] if new else []
        for queue, values in arguments.items():
            commands += [_script("enqueue", queue, *part) for part in _parts(values, 5 * CHUNK)]
        return commands, set(arguments)

    def _naming(self, queues: set[str], replies: Sequence[Any]) -> list[_Command]:
        """What names queues again: a priority that is new in a known queue may mean that all was flushed."""
        known = queues <= self._named
        self._named |= queues
        return [("SADD", _QUEUES, *queues)] if known and 1 in replies else []

    # ---- claiming

    async def claim(self, queues: Sequence[str], limit: int, wait: float, suspects: int = 1) -> list[Lease]:
        until = time.monotonic() + wait
        while queues and limit > 0:
            try:
                return await self._claim(queues, limit, max(0.0, until - time.monotonic()), suspects)
            except _NoGroupError:
                # A priority was used for the first time, or everything was flushed.
                self._views.clear()
                self._idle = False
                if time.monotonic() > until + CALL_DEADLINE:
                    raise
        return []

    async def _claim(self, queues: Sequence[str], limit: int, wait: float, suspects: int) -> list[Lease]:
        """One pass over the streams, then a wait on all of them; while idle, the wait alone: one command in all."""
        view = await self._view(queues)
        leases: list[Lease] = []
        if not (self._idle and wait):
            leases = await self._take(view, limit, suspects)
        if not leases and wait:
            began = time.monotonic()
            leases = await self._await(view, limit, wait, suspects)
            # What came at once had company: the next claim is to take all it may.
            self._idle = time.monotonic() - began > 0.002
        elif leases:
            self._idle = False
        shortest = min((lease.visibility_timeout for lease in leases), default=LOOK_FOR_EXPIRED)
        self._expired_at = min(self._expired_at, time.monotonic() + shortest)
        return leases

    async def _take(self, view: _View, limit: int, suspects: int) -> list[Lease]:
        """What is pending now. Suspects are looked for twice a second, and when there is nothing else."""
        now = time.monotonic()
        look = suspects > 0 and now >= self._suspects_at
        if len(view.streams) == 1 and not look:
            command = ("XREADGROUP", "GROUP", "workers", self.worker_id, "COUNT", limit, "STREAMS", *view.streams, ">")
            leases = view.leases((await self._link.run([command]))[0], now)
        else:
            leases = await self._take_in_order(view.suspects if look else [], view, limit, suspects)
        if not leases and suspects > 0 and not look:
            leases = await self._take_in_order(view.suspects, view, limit, suspects)
        return leases

    async def _take_in_order(self, first: list[str], view: _View, limit: int, suspects: int) -> list[Lease]:
        if first:
            self._suspects_at = time.monotonic() + LOOK_FOR_SUSPECTS
        now = time.monotonic()
        keys = [*first, *view.streams]
        command = ("EVALSHA", _SHA["claim"], len(keys), *keys, self.worker_id, limit, suspects, len(first))
        return view.leases((await self._link.run([command]))[0], now)

    async def _await(self, view: _View, limit: int, wait: float, suspects: int) -> list[Lease]:
        """The first entry to come to any stream. XREADGROUP counts for each stream, so a larger count could bring more
        than ``limit``, or than ``suspects``; even so several may come at the very start, and what is over goes back.
        """
        keys = [*view.streams, *(view.suspects if suspects > 0 else ())]
        block = ("COUNT", 1, "BLOCK", math.ceil(wait * 1000), "STREAMS", *keys, *[">"] * len(keys))
        before = time.monotonic()
        [reply] = await self._link.run(
            [("XREADGROUP", "GROUP", "workers", self.worker_id, *block)], CALL_DEADLINE + wait
        )
        kept: list[Lease] = []
        over: list[Lease] = []
        for lease in view.leases(reply, before):
            fits = len(kept) < limit and not (lease.suspect and sum(one.suspect for one in kept) >= suspects)
            (kept if fits else over).append(lease)
        await self.release(over)
        return await self._renewed(kept, before)

    async def _renewed(self, leases: list[Lease], before: float) -> list[Lease]:
        """A lease begins when the server hands it out. That may be long after the command was sent, and long before
        the reply was read if this loop was held up, so only the time of sending is safe. Where the wait since then is
        much beside the lease's life, the lease is begun anew, which dates it within one round trip.
        """
        old = [lease for lease in leases if time.monotonic() - before > lease.visibility_timeout / 10]
        now = time.monotonic()
        lost = await self.extend(old)
        renewed = [msgspec.structs.replace(lease, claimed_at=now) for lease in old if lease not in lost]
        return [lease for lease in leases if lease not in old] + renewed

    async def _view(self, queues: Sequence[str]) -> _View:
        """The streams of ``queues``, which are looked up now and then: another process may use a new priority."""
        view = self._views.get(tuple(queues))
        if view is None or time.monotonic() >= view.until:
            names = list(dict.fromkeys(queues))
            before = time.monotonic()
            look = [("ZREVRANGE", f"{_base(queue)}:priorities", 0, -1) for queue in names]
            (seconds, micros), *found = await self._link.run([("TIME",), *look])
            self._clock = int(seconds) + int(micros) / 1e6 - before
            if view is None or not all(found):
                found = await self._link.run([_script("open", queue) for queue in names])
            view = self._views[tuple(queues)] = _View(dict(zip(names, found, strict=True)))
        return view

    # ---- settling

    async def ack(self, done: Sequence[Done]) -> list[Lease]:
        gone = _by_stream(each.lease for each in done if not each.keep)
        calls: list[_Call] = [
            (_script("ack", queue, stream, *(lease.receipt[1] for lease in part), *(lease.id for lease in part)), part)
            for (queue, stream), leases in gone.items()
            for part in _parts(leases, CHUNK)
        ]
        kept = [
            _Move(each.lease, "completed", {"worker": self.worker_id, "result": each.result}, duration=each.duration)
            for each in done
            if each.keep
        ]
        return await self._settle(calls + _moving(kept))

    async def retry(self, retries: Sequence[Retry]) -> list[Lease]:
        return await self._settle(_moving([_retried(each, suspect=0) for each in retries]))

    async def dead_letter(self, dead: Sequence[Dead]) -> list[Lease]:
        return await self._settle(_moving([_buried(each, self.worker_id) for each in dead]))

    async def release(self, leases: Sequence[Lease]) -> list[Lease]:
        return await self._settle(_moving([_Move(lease, "pending", {}) for lease in leases]))

    async def extend(self, leases: Sequence[Lease]) -> list[Lease]:
        return await self._settle(
            [
                (_script("extend", queue, stream, *(lease.receipt[1] for lease in part)), part)
                for (queue, stream), held in _by_stream(leases).items()
                for part in _parts(held, CHUNK)
            ]
        )

    async def _settle(self, calls: Sequence[_Call]) -> list[Lease]:
        replies = await self._link.run([command for command, _ in calls])
        return [leases[n - 1] for (_, leases), lost in zip(calls, replies, strict=True) for n in lost]

    # ---- maintaining

    async def maintain(self, queues: Sequence[str], limit: int) -> Maintenance:
        if not queues:
            return Maintenance()
        view = await self._view(queues)
        recovered = buried = 0
        if time.monotonic() >= self._expired_at:
            try:
                recovered, buried = await self._recover(view, limit)
            except _NoGroupError:
                self._views.clear()
        promoted, next_due = await self._promote(queues, limit)
        if recovered + buried >= limit:
            next_due = 0.0
        return Maintenance(promoted=promoted, recovered=recovered, buried=buried, next_due=next_due)

    async def _promote(self, queues: Sequence[str], limit: int) -> tuple[int, float | None]:
        heads = await self._link.run([("ZRANGE", f"{_base(queue)}:scheduled", 0, 0, "WITHSCORES") for queue in queues])
        promoted = 0
        waits: list[float] = []
        for queue, head in zip(queues, heads, strict=True):
            wait = float(head[1]) / 1e6 - self._clock - time.monotonic() if head else None
            while wait is not None and wait <= 0 and promoted < limit:
                [(count, left)] = await self._link.run([_script("promote", queue, min(CHUNK, limit - promoted))])
                promoted += count
                wait = left / 1e6 if left >= 0 else None
            if wait is not None:
                waits.append(max(0.0, wait))
        return promoted, min(waits, default=None)

    async def _recover(self, view: _View, limit: int) -> tuple[int, int]:
        streams = view.places
        held = await self._link.run([("XPENDING", key, "workers", "-", "+", 1) for key in streams])
        recovered = buried = 0
        soonest = LOOK_FOR_EXPIRED
        for (key, (queue, stream)), some in zip(streams.items(), held, strict=True):
            left = limit - recovered - buried
            if some and left > 0:
                moves, expiry = await self._expired(key, queue, stream, left)
                lost = await self._settle(_moving(moves))
                fine = [move.place == "dead" for move in moves if move.lease not in lost]
                recovered, buried = recovered + fine.count(False), buried + fine.count(True)
                soonest = min(soonest, expiry)
        if time.monotonic() >= self._forget_at:
            self._forget_at = time.monotonic() + LOOK_FOR_CONSUMERS
            await self._link.run([("EVALSHA", _SHA["forget"], len(streams), *streams, FORGET)])
        self._expired_at = time.monotonic() + (0.0 if recovered + buried >= limit else soonest)
        return recovered, buried

    async def _expired(self, key: str, queue: str, stream: str, limit: int) -> tuple[list[_Move], float]:
        """What is to become of expired leases, and seconds until the next expires.

        The cursor moves on from look to look: from the start each time, many that live would hide those that do not.
        """
        moves: list[_Move] = []
        soonest = LOOK_FOR_EXPIRED
        cursor, looked = self._cursors.get(key, "-"), 0
        while looked < SCAN:
            command = ("EVALSHA", _SHA["leases"], 1, key, cursor, CHUNK, "expired")
            [(last, expiry, *rows)] = await self._link.run([command])
            moves += [self._recovered(queue, stream, *row) for row in rows]
            if expiry >= 0:
                soonest = min(soonest, expiry / 1000)
            if len(moves) >= limit:
                # Those beyond the limit are still to be found where this page began.
                return moves[:limit], 0.0
            cursor = f"({last.decode()}" if last else "-"
            looked = 0 if rows else looked + CHUNK
            if not last:
                break
        self._cursors[key] = cursor
        return moves, soonest

    def _recovered(self, queue: str, stream: str, entry: bytes, idle: int, consumer: bytes, flat: list[bytes]) -> _Move:
        lease = _lease(queue, stream, entry, flat, 0.0)
        worker = consumer.decode("utf-8", "replace")
        error = ErrorInfo(
            type="asynctasq.errors.WorkerLost",
            message=f"attempt {lease.attempt}: worker {worker} was lost, its lease of {lease.visibility_timeout:g} s over",
        )
        outcome: Retry | Dead
        if lease.message is None and lease.attempt < UNREADABLE_ATTEMPTS:
            outcome = Retry(lease=lease, delay=0.0, error=error)
        else:
            outcome = decide(lease, error, cap=self.config.max_retry_delay)
        move = _retried(outcome, suspect=1) if isinstance(outcome, Retry) else _buried(outcome, worker)
        # A lease renewed since it was found is left alone.
        return move._replace(idle=round(lease.visibility_timeout * 1000), duration=None)

    # ---- operating

    async def stats(self, queues: Sequence[str] | None = None) -> list[QueueStats]:
        names = await self._queues() if queues is None else sorted(set(queues))
        replies = await self._link.run([_script("stats", name) for name in names])
        return [
            QueueStats(
                queue=name,
                pending=pending,
                processing=processing,
                scheduled=scheduled,
                completed=completed,
                dead=dead,
                cancelled=cancelled,
                oldest_pending=age / 1000 if age >= 0 else None,
            )
            for name, (pending, processing, scheduled, completed, dead, cancelled, age) in zip(
                names, replies, strict=True
            )
        ]

    async def purge(self, queue: str) -> int:
        total = 0
        while True:
            [count] = await self._link.run([_script("purge", queue, CHUNK)])
            total += count
            if count < CHUNK:
                return total

    async def find(self, query: TaskQuery) -> Page:
        after: _Place | None = None
        if query.cursor is not None:
            after = cast(_Place, decode_cursor(query.cursor, tuple[str, str]))
        statuses = frozenset(STATUSES) if query.statuses is None else query.statuses
        queues = await self._queues()
        queues = [queue for queue in queues if query.queue in (None, queue)]
        # What is processing is looked for among the leases: there are few, and often they are the oldest of many.
        leased = await self._leased(queues) if statuses == {"processing"} else None
        items: list[TaskInfo] = []
        left, size, more = self.config.task_scan_limit, query.limit + 1, True
        while more and left > 0 and len(items) <= query.limit:
            size = min(size, CHUNK, left)
            places = await self._places(queues, statuses, after, size + 1) if leased is None else _below(leased, after)
            places, more = places[:size], len(places) > size
            items += [info for info in await self._read(places) if _matches(query, statuses, info)]
            left, size = left - len(places), 2 * size
            after = places[-1] if places else after
        if len(items) > query.limit:
            items = items[: query.limit]
            return Page(items=items, next=encode_cursor(items[-1].id, items[-1].queue))
        return Page(items=items, next=encode_cursor(*after) if more and after else None, truncated=more)

    async def _places(
        self, queues: Sequence[str], statuses: frozenset[Status], after: _Place | None, count: int
    ) -> list[_Place]:
        """The next tasks, newest first by id: those of every queue and place, merged."""
        words = sorted({"pending" if status == "processing" else status for status in statuses})
        sources = [(queue, word) for queue in queues for word in words]
        commands = [
            ("ZREVRANGEBYLEX", f"{_base(queue)}:ids:{word}", _start(after, queue), "-", "LIMIT", 0, count)
            for queue, word in sources
        ]
        replies = await self._link.run(commands)
        found = {(id.decode(), queue) for (queue, _), ids in zip(sources, replies, strict=True) for id in ids}
        return _below(found, None)[:count]

    async def _leased(self, queues: Sequence[str]) -> set[_Place]:
        found: set[_Place] = set()
        for key, (queue, _) in (await self._view(queues)).places.items() if queues else ():
            cursor = "-"
            while cursor and len(found) < self.config.task_scan_limit:
                command = ("EVALSHA", _SHA["leases"], 1, key, cursor, CHUNK, "ids")
                [(last, _, *ids)] = await self._link.run([command])
                found |= {(id.decode("ascii", "replace"), queue) for id in ids}
                cursor = f"({last.decode()}" if last else ""
        return found

    async def _read(self, places: Sequence[_Place]) -> list[TaskInfo]:
        """What is known of these tasks, in their order; those that are gone are left out."""
        by_queue: dict[str, list[str]] = {}
        for id, queue in places:
            by_queue.setdefault(queue, []).append(id)
        parts = [(queue, part) for queue, ids in by_queue.items() for part in _parts(ids, CHUNK)]
        replies = await self._link.run([_script("read", queue, *part) for queue, part in parts])
        found = {
            (id, queue): _info(id, queue, *row)
            for (queue, part), rows in zip(parts, replies, strict=True)
            for id, row in zip(part, rows, strict=True)
            if row
        }
        return [found[place] for place in places if place in found]

    async def get(self, ids: Sequence[str]) -> list[TaskInfo]:
        queues = await self._queues()
        return await self._read([(id, queue) for id in _usable(ids) for queue in queues])

    async def requeue(self, ids: Sequence[str]) -> int:
        return await self._everywhere("requeue", (), ids)

    async def cancel(self, ids: Sequence[str]) -> int:
        return await self._everywhere("remove", ("keep" if self.config.keep_completed_tasks else "cancel",), ids)

    async def delete(self, ids: Sequence[str]) -> int:
        return await self._everywhere("remove", ("delete",), ids)

    async def _everywhere(self, script: str, how: tuple[str, ...], ids: Sequence[str]) -> int:
        """Run a script that counts for these ids in every queue: an id does not say where it belongs."""
        queues = await self._queues()
        parts = _parts(_usable(ids), CHUNK)
        return sum(await self._link.run([_script(script, queue, *how, *part) for queue in queues for part in parts]))

    async def _queues(self) -> list[str]:
        [names] = await self._link.run([("SMEMBERS", _QUEUES)])
        return sorted(name.decode("utf-8", "replace") for name in names)


class _View:
    """The streams of some queues, in the order of claiming."""

    def __init__(self, priorities: dict[str, list[bytes]]) -> None:
        self.until = time.monotonic() + LOOK_FOR_PRIORITIES
        at = [(queue, priority.decode()) for queue, some in priorities.items() for priority in some]
        suspects = [(queue, _SUSPECTS) for queue in priorities]
        self.streams = [_stream(*place) for place in at]
        self.suspects = [_stream(*place) for place in suspects]
        self.places = {_stream(*place): place for place in suspects + at}
        self._by_key = {key.encode(): place for key, place in self.places.items()}

    def leases(self, reply: Any, claimed_at: float) -> list[Lease]:
        """The leases in a reply of XREADGROUP."""
        return [
            _lease(*self._by_key[key], entry, flat, claimed_at) for key, rows in reply or () for entry, flat in rows
        ]


class _Move(NamedTuple):
    """An entry's way to its next place: the arguments of ``move.lua``."""

    lease: Lease
    place: str
    fields: dict[str, Any]
    delay: float = 0.0
    idle: int = 0
    duration: float | None = None

    def arguments(self) -> list[Any]:
        stream, entry = self.lease.receipt
        fields = {name: value for name, value in self.fields.items() if value is not None}
        took = "" if self.duration is None else round(self.duration * 1e6)
        head = [stream, entry, self.lease.id, self.place, math.ceil(self.delay * 1e6), self.idle, took, len(fields)]
        return head + list(chain.from_iterable(fields.items()))


def _retried(retry: Retry, suspect: int) -> _Move:
    fields = {"attempt": retry.lease.attempt + 1, "error": msgspec.msgpack.encode(retry.error), "suspect": suspect}
    return _Move(retry.lease, "scheduled", fields, delay=retry.delay, duration=retry.duration)


def _buried(dead: Dead, worker: str) -> _Move:
    fields = {"attempt": dead.lease.attempt, "error": msgspec.msgpack.encode(dead.error), "worker": worker}
    return _Move(dead.lease, "dead", fields, duration=dead.duration)


def _moving(moves: Iterable[_Move]) -> list[_Call]:
    by_queue: dict[str, list[_Move]] = {}
    for move in moves:
        by_queue.setdefault(move.lease.queue, []).append(move)
    return [
        (_script("move", queue, *chain.from_iterable(move.arguments() for move in part)), [move.lease for move in part])
        for queue, some in by_queue.items()
        for part in _parts(some, CHUNK)
    ]


def _by_stream(leases: Iterable[Lease]) -> dict[tuple[str, str], list[Lease]]:
    found: dict[tuple[str, str], list[Lease]] = {}
    for lease in leases:
        found.setdefault((lease.queue, lease.receipt[0]), []).append(lease)
    return found


def _lease(queue: str, stream: str, entry: bytes, flat: Sequence[bytes], claimed_at: float) -> Lease:
    """The lease on an entry. One that is not as we write them is still a lease, under a name made up from its place."""
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    try:
        payload, id = fields[b"payload"], fields[b"id"].decode("ascii")
        attempt, life = int(fields[b"attempt"]), int(fields[b"lease"])
        if not (0 < len(id) <= 64 and 0 < attempt < 2**31 and 0 < life < 2**42):
            raise ValueError
    except (KeyError, ValueError):
        payload = fields.get(b"payload", b" ".join(flat)[:65536])
        id, attempt, life = f"{stream}-{entry.decode()}", 1, 300_000
    return open_lease(
        id=id,
        queue=queue,
        payload=payload,
        attempt=attempt,
        receipt=(stream, entry),
        visibility_timeout=life / 1000,
        claimed_at=claimed_at,
        suspect=stream == _SUSPECTS,
    )


def _info(
    id: str, queue: str, status: bytes, stream: bytes, flat: list[bytes], due: bytes, worker: bytes, *lease: bytes
) -> TaskInfo:
    """A task from what ``read.lua`` returns."""
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    payload = fields.get(b"payload", b"")
    try:
        message = decode(payload)
    except DecodeError:
        message = None
    began, renewed = (_number(value) for value in lease)
    life, attempt = _number(fields.get(b"lease")) or 0, _number(fields.get(b"attempt")) or 0
    state = cast(Status, status.decode())
    return TaskInfo(
        id=id,
        queue=queue,
        task=message.task if message else "",
        status=state,
        priority=_number(fields.get(b"priority", stream)) or 0,
        attempt=attempt - (state in ("pending", "scheduled", "cancelled")),
        max_attempts=message.max_attempts if message else 0,
        payload=payload,
        created_at=message.created_at if message else None,
        available_at=_instant(_number(due)) or (message.available_at if message else None),
        locked_until=_instant((renewed + life) * 1000) if renewed else None,
        started_at=_instant(began * 1000 if began else _number(fields.get(b"started"))),
        finished_at=_instant(_number(fields.get(b"finished"))),
        worker=(worker or fields.get(b"worker", b"")).decode("utf-8", "replace") or None,
        correlation_id=message.correlation_id if message else None,
        result=fields.get(b"result"),
        error=_error(fields.get(b"error")),
        first_failed_at=_instant(_number(fields.get(b"first_failed"))),
        last_failed_at=_instant(_number(fields.get(b"last_failed"))),
    )


def _number(value: bytes | None) -> int | None:
    try:
        return int(float(value)) if value else None
    except (ValueError, OverflowError):
        return None


def _instant(micros: int | None) -> datetime | None:
    try:
        return None if micros is None else _EPOCH + timedelta(microseconds=micros)
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
    if query.created_after is None and query.created_before is None:
        return True
    return info.created_at is not None and (
        (query.created_after is None or info.created_at >= query.created_after)
        and (query.created_before is None or info.created_at < query.created_before)
    )


_Place = tuple[str, str]
"""Id and queue. Sorted by id, newest first, then by queue: an id may be in several."""


def _below(places: Iterable[_Place], after: _Place | None) -> list[_Place]:
    ordered = sorted(sorted(places, key=lambda place: place[1]), key=lambda place: place[0], reverse=True)
    if after is None:
        return ordered
    return [(id, queue) for id, queue in ordered if id < after[0] or (id == after[0] and queue > after[1])]


def _start(after: _Place | None, queue: str) -> str:
    """Where ZREVRANGEBYLEX begins in one queue."""
    if after is None:
        return "+"
    return f"[{after[0]}" if queue > after[1] else f"({after[0]}"


def _usable(ids: Iterable[str]) -> list[str]:
    """Those that can be an id at all, each once."""
    return [id for id in dict.fromkeys(ids) if id.isascii() and 0 < len(id) <= 64]


def _due(message: Message) -> str:
    if message.available_at is not None:
        return str((message.available_at - _EPOCH) // timedelta(microseconds=1))
    return f"+{math.ceil(message.delay * 1e6)}" if message.delay else "0"


def _base(queue: str) -> str:
    return f"asynctasq:{{{queue}}}"


def _stream(queue: str, stream: str) -> str:
    return f"asynctasq:{{{queue}}}:stream:{stream}"


def _script(name: str, queue: str, *arguments: Any) -> _Command:
    return ("EVALSHA", _SHA[name], 1, _base(queue), *arguments)


def _parts(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


# ---- connections


class _NoGroupError(BrokerUnavailable):
    """A stream or its group is not there."""


_MISCONFIGURED = re.compile(
    r"\b(NOAUTH|NOPERM|WRONGPASS|WRONGTYPE|unknown command|DB index is out of range|Invalid Database)\b", re.I
)
_FULL = re.compile(r"\b(OOM|MISCONF)\b")


def _failure(exc: Exception, url: str) -> Exception:
    """An error of the client as one of ours. Inside a script the server's word stands somewhere in the text."""
    text = f"Redis at {mask_url(url)}: {str(exc)[:300] or 'no answer in time'}"
    if isinstance(exc, AuthenticationError | NoPermissionError) or _MISCONFIGURED.search(text):
        return ConfigurationError(text)
    if _FULL.search(text):
        return BrokerFull(text)
    if isinstance(exc, ResponseError) and ("NOGROUP" in text or "UNBLOCKED" in text):
        return _NoGroupError(text)
    # LOADING, BUSY, TRYAGAIN, READONLY, CLUSTERDOWN, MASTERDOWN, no connection: later it may go well.
    return BrokerUnavailable(text)


def _checked(replies: list[Any], url: str) -> list[Any]:
    """``replies``, unless one of them is an error."""
    for reply in replies:
        if isinstance(reply, RedisError):
            raise _failure(reply, url) from reply
    return replies


def _readonly(replies: list[Any]) -> bool:
    """The server is a replica by now: the connections lead to the wrong place."""
    return any(
        isinstance(reply, RedisError) and "READONLY" in f"{reply!s}{type(reply).__name__.upper()}" for reply in replies
    )


def _pool(kind: Any, retry: Any, config: Config, **options: Any) -> Any:
    """A pool of connections of either client.

    RESP2, since every server from 6.2 on speaks it and its replies are the plain lists that are read here. No retries
    by the client: with a lost reply they would claim twice, and with a dead server hold the caller for a minute.
    """
    url = config.redis_location()
    try:
        pool = kind.from_url(url, max_connections=config.redis_max_connections)
    except (ValueError, TypeError) as exc:
        # The cause's text may quote the URL's password.
        raise ConfigurationError(f"redis_url {mask_url(url)} cannot be used: {type(exc).__name__}") from None
    # Set afterwards: what the URL says of these would win over arguments.
    fixed = {"protocol": 2, "decode_responses": False, "socket_keepalive": True, "retry": retry(NoBackoff(), 0)}
    pool.connection_kwargs |= fixed | options
    return pool


class _Link:
    """The connections of one event loop. Each call has one to itself, so that a waiting claim holds up nobody."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._url = config.redis_location()
        self._client: redis.asyncio.Redis | None = None

    async def open(self) -> None:
        # No time-outs on sockets: each call has its own deadline, and a claim may wait for longer than others.
        options = {"socket_timeout": None, "socket_connect_timeout": None}
        pool = _pool(redis.asyncio.BlockingConnectionPool, AsyncRetry, self._config, **options)
        pool.timeout = None
        self._client = redis.asyncio.Redis.from_pool(pool)
        self._client.response_callbacks.clear()
        try:
            await self.run([("PING",), *_LOAD])
            _check_server(self._url, await self._send([("INFO", "server"), *_ASK], None))
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def run(self, commands: Sequence[_Command], deadline: float | None = None) -> list[Any]:
        """The replies to ``commands``, sent together. Raises errors of ours alone."""
        replies = await self._send(commands, deadline)
        missing = [n for n, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if missing:
            await self._send(_LOAD, deadline)
            for n, reply in zip(missing, await self._send([commands[n] for n in missing], deadline), strict=True):
                replies[n] = reply
        if _readonly(replies) and self._client is not None:
            await self._client.connection_pool.disconnect(inuse_connections=False)
        return _checked(replies, self._url)

    async def _send(self, commands: Sequence[_Command], deadline: float | None) -> list[Any]:
        """The replies, the server's errors among them."""
        client = self._client
        if client is None:
            raise DriverClosed("the redis driver is not connected")
        try:
            async with asyncio.timeout(CALL_DEADLINE if deadline is None else deadline):
                if len(commands) == 1:
                    return [await client.execute_command(*commands[0])]
                pipeline = client.pipeline(transaction=False)
                for command in commands:
                    pipeline.execute_command(*command)
                replies: list[Any] = await pipeline.execute(raise_on_error=False)
                return replies
        except ResponseError as exc:
            return [exc]
        except (RedisError, OSError, TimeoutError) as exc:
            raise _failure(exc, self._url) from exc


class _SyncLink:
    """The same for threads without a loop: made at the first call, and again after a fork."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._url = config.redis_location()
        self._lock = threading.Lock()
        self._client: redis.Redis | None = None
        self._pid = 0

    def _opened(self) -> redis.Redis:
        if self._client is not None and self._pid == os.getpid():
            return self._client
        with self._lock:
            if self._client is None or self._pid != os.getpid():
                # In all no more than PRODUCER_DEADLINE, unless a name has several addresses and each is silent.
                options = {"socket_connect_timeout": PRODUCER_DEADLINE / 3, "socket_timeout": PRODUCER_DEADLINE * 2 / 3}
                pool = _pool(redis.BlockingConnectionPool, SyncRetry, self._config, **options)
                pool.timeout = PRODUCER_DEADLINE
                client = redis.Redis.from_pool(pool)
                client.response_callbacks.clear()
                self._client, self._pid = client, os.getpid()
            return self._client

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None and self._pid == os.getpid():
            client.close()

    def run(self, commands: Sequence[_Command]) -> list[Any]:
        """The replies to ``commands``, sent together. Raises errors of ours alone."""
        replies = self._send(commands)
        missing = [n for n, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if missing:
            self._send(_LOAD)
            for n, reply in zip(missing, self._send([commands[n] for n in missing]), strict=True):
                replies[n] = reply
        if _readonly(replies):
            self.close()
        return _checked(replies, self._url)

    def _send(self, commands: Sequence[_Command]) -> list[Any]:
        if not commands:
            return []
        client = self._opened()
        try:
            if len(commands) == 1:
                return [client.execute_command(*commands[0])]
            pipeline = client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            return pipeline.execute(raise_on_error=False)
        except ResponseError as exc:
            return [exc]
        except (RedisError, OSError) as exc:
            raise _failure(exc, self._url) from exc


_ASK: list[_Command] = [("CONFIG", "GET", "maxmemory-policy"), ("CONFIG", "GET", "appendonly")]
_advised: set[str] = set()


def _check_server(url: str, replies: list[Any]) -> None:
    """Refuse a server that is too old; advise, once in a process, against settings that lose tasks.

    A server that does not tell, as managed ones may, is taken as it is.
    """
    info, policy, append = replies
    found = re.search(rb"redis_version:(\d+)\.(\d+)", info) if isinstance(info, bytes) else None
    if found and (int(found[1]), int(found[2])) < (6, 2):
        raise ConfigurationError(
            f"Redis at {mask_url(url)} is version {found[0].decode()[14:]}; 6.2 is the oldest that will do"
        )
    if url in _advised:
        return
    _advised.add(url)
    if isinstance(policy, list) and policy[1:] not in ([], [b"noeviction"]):
        logger.warning(
            "Redis at %s may evict tasks when its memory is full: set maxmemory-policy noeviction", mask_url(url)
        )
    if isinstance(append, list) and append[1:] == [b"no"]:
        logger.warning("Redis at %s loses its last tasks when it ends abruptly: set appendonly yes", mask_url(url))
