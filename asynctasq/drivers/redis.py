"""Redis, 6.2 or newer: a stream and a consumer group for each queue and priority.

A stream's entry carries the number of the attempt it is for. Whatever takes a message further removes its entry and
writes a new one, in one script that begins with XACK. An entry is acknowledged once, so its id is the fence, and the
receipt of a lease is the stream's name and the entry's id. The scripts are in ``lua/``, keys and arguments at the top.

Keys, all beginning with ``asynctasq:{queue}:`` so that those of one queue share a slot:

======================  =======================================================================================
``stream:<priority>``   messages pending and processing, as entries
``stream:suspects``     the same for messages whose worker was lost
``priorities``          sorted set of the priorities in use
``bell:<number>``       empty stream; it loses its group, which wakes all who read it, when a priority is new
``index``               hash: id -> ``<stream> <entry>``, or a word: scheduled, dead, completed, cancelled
``ids:<word>``          sorted set of ids, all of score 0, for listing; ``ids:pending`` has the processing ones too
``scheduled``           sorted set of ids by due time in us since the epoch
``task:<id>``           hash: the message, and what became of it, while it lies in no stream
======================  =======================================================================================

and ``asynctasq:queues``, the set of the queues' names.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar, cast

import hiredis
import msgspec
import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
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
    usable_ids,
)
from asynctasq.errors import (
    BrokerFull,
    BrokerUnavailable,
    ConfigurationError,
    DecodeError,
    DriverClosed,
)

if TYPE_CHECKING:
    from asynctasq.config import Config

logger = logging.getLogger(__name__)

PRODUCER_DEADLINE = 3.0
"""Seconds after which an enqueue is given up: somebody's web request is waiting for it."""
INTERRUPT_DEADLINE = 0.5
"""Seconds for the server to end the waits of a worker that stops."""
CHUNK = 200
"""Most messages in one script, so that none holds the server up for more than a few milliseconds."""
SUSPECT_INTERVAL, EXPIRED_INTERVAL, DUE_INTERVAL, CONSUMER_INTERVAL = 0.5, 3.0, 10.0, 600.0
"""Least seconds between two looks for suspects, expired leases, the true time of what is scheduled, and consumers that
are to be forgotten."""
FORGET_AFTER = 3_600_000
"""Milliseconds after which a consumer that holds nothing is forgotten."""
SCAN = 1_000
"""Live leases of one stream that a look passes over; the next look goes on from there."""
UNREADABLE_ATTEMPTS = 3
"""Runs of what is no message, and so cannot say how many."""

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
_Command = tuple[Any, ...]
_Call = tuple[_Command, Sequence[Lease]]
"""A script that returns the positions of those leases that are lost."""
_Place = tuple[str, str]
"""An id and its queue."""

_SCRIPTS = {path.stem: path.read_text("utf-8") for path in Path(__file__).with_name("lua").glob("*.lua")}
_SHA = {name: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest() for name, text in _SCRIPTS.items()}
_LOAD: list[_Command] = [("SCRIPT", "LOAD", text) for text in _SCRIPTS.values()]
_WHO: _Command = ("CLIENT", "ID")
"""Before a command that waits."""
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
        self._idle = self._interrupted = False
        self._suspects_at = self._expired_at = 0.0
        self._consumers_at = time.monotonic() + CONSUMER_INTERVAL
        self._cursors: dict[str, str] = {}
        self._heads: dict[str, tuple[bytes, float, float]] = {}

    async def connect(self) -> None:
        await self._link.open()

    async def close(self) -> None:
        await self._link.close()

    def close_sync(self) -> None:
        self._sync_link.close()

    # ---- producing

    async def enqueue(self, messages: Sequence[Message]) -> None:
        commands, new = self._storing(messages)
        replies = await self._link.run(*commands, deadline=PRODUCER_DEADLINE)
        if again := self._naming(messages, new, replies):
            await self._link.run(again, deadline=PRODUCER_DEADLINE)

    def enqueue_sync(self, messages: Sequence[Message]) -> None:
        commands, new = self._storing(messages)
        replies = self._sync_link.run(*commands)
        if again := self._naming(messages, new, replies):
            self._sync_link.run(again)

    def _storing(self, messages: Sequence[Message]) -> tuple[list[_Command], list[str]]:
        """The commands that store ``messages``, and the queues that this process has not used before."""
        arguments: dict[str, list[Any]] = {}
        for message in messages:
            payload = encode(message)
            life = math.ceil(message.visibility_timeout * 1000)
            arguments.setdefault(message.queue, []).extend((message.id, payload, life, message.priority, _due(message)))
        new = [queue for queue in arguments if queue not in self._named]
        commands: list[_Command] = [("SADD", _QUEUES, *new)] if new else []
        for queue, values in arguments.items():
            commands += [_script("enqueue", queue, *part) for part in _parts(values, 5 * CHUNK)]
        return commands, new

    def _naming(self, messages: Sequence[Message], new: list[str], replies: Sequence[Any]) -> _Command | None:
        """What names the queues again: that a priority is new in a known queue may mean that all was flushed."""
        if new:
            self._named.update(new)
        elif 1 in replies:
            return ("SADD", _QUEUES, *{message.queue for message in messages})
        return None

    # ---- claiming

    async def claim(self, queues: Sequence[str], limit: int, wait: float, suspects: int = 1) -> list[Lease]:
        until = time.monotonic() + wait
        for turn in range(10):
            if not queues or limit <= 0:
                break
            try:
                return await self._claim(queues, limit, max(0.0, until - time.monotonic()), suspects)
            except _NoGroupError:
                # The first message of a priority came, or all was flushed.
                self._views.clear()
                self._idle = False
                if turn == 9:
                    raise
        return []

    async def interrupt(self) -> None:
        """By the server, which knows whether it has handed something out: a read that is merely given up could
        take what this worker releases after it."""
        self._interrupted = True
        with contextlib.suppress(BrokerUnavailable):
            await self._link.unblock()

    async def _claim(self, queues: Sequence[str], limit: int, wait: float, suspects: int) -> list[Lease]:
        """Take what is there, else wait for something; while nothing comes, the wait alone is one command in all."""
        view = await self._view(queues)
        leases: list[Lease] = []
        if not (self._idle and wait):
            leases = await self._take(view, limit, suspects)
            self._idle = False
        if not leases and wait and not self._interrupted:
            before = time.monotonic()
            leases = await self._await(view, limit, wait, suspects)
            # What comes at once has company, and the next claim is to take all it may.
            self._idle = time.monotonic() - before > 0.002
        if leases:
            shortest = min(lease.visibility_timeout for lease in leases)
            self._expired_at = min(self._expired_at, time.monotonic() + shortest)
        return leases

    async def _take(self, view: _View, limit: int, suspects: int) -> list[Lease]:
        """What is there. Suspects are looked for twice a second, and when there is nothing else."""
        before = time.monotonic()
        look = suspects > 0 and before >= self._suspects_at
        if len(view.streams) == 1 and not look:
            keys = [*view.streams, *view.bells]
            command = _reading(self.worker_id, limit, None, keys)
            leases = view.leases((await self._link.run(command))[0], before)
            if leases or suspects <= 0:
                return leases
        of_suspects = view.suspects if suspects > 0 else []
        if of_suspects:
            self._suspects_at = before + SUSPECT_INTERVAL
        keys = [*view.bells, *of_suspects, *view.streams]
        numbers = (limit, suspects, len(view.bells), len(of_suspects))
        [reply] = await self._link.run(("EVALSHA", _SHA["claim"], len(keys), *keys, self.worker_id, *numbers))
        leases = view.leases(reply, before)
        if any(lease.suspect for lease in leases):
            # Where there is one there are more: all that its worker held.
            self._suspects_at = 0.0
        return leases

    async def _await(self, view: _View, limit: int, wait: float, suspects: int) -> list[Lease]:
        """The first entry that comes. XREADGROUP counts for each stream, so a larger count could bring more than
        ``limit`` or ``suspects``; even so several may come at the very start, and what is over goes back.
        """
        keys = [*view.streams, *view.bells, *(view.suspects if suspects > 0 else ())]
        before = time.monotonic()
        reading = _reading(self.worker_id, 1, wait, keys)
        [_, reply] = await self._link.run(_WHO, reading, deadline=CALL_DEADLINE + wait)
        kept: list[Lease] = []
        over: list[Lease] = []
        for lease in view.leases(reply, before):
            fits = len(kept) < limit and not (lease.suspect and sum(one.suspect for one in kept) >= suspects)
            (kept if fits else over).append(lease)
        if over:
            await self.release(over)
        return await self._renewed(kept, before)

    async def _renewed(self, leases: list[Lease], before: float) -> list[Lease]:
        """A lease begins when the server hands it out. That may be long after the command was sent, and long before
        the reply is read if this loop was held up: only the time of sending is sure to be early enough. Where the wait
        is much beside the life of the lease, it is begun anew, which dates it within one round trip.
        """
        now = time.monotonic()
        old = [lease for lease in leases if now - before > lease.visibility_timeout / 10]
        if not old:
            return leases
        lost = await self.extend(old)
        begun = [msgspec.structs.replace(lease, claimed_at=now) for lease in old if lease not in lost]
        return [lease for lease in leases if lease not in old] + begun

    async def _view(self, queues: Sequence[str]) -> _View:
        key = tuple(queues)
        if key not in self._views:
            names = list(dict.fromkeys(queues))
            found = await self._link.run(*[_script("open", name) for name in names])
            self._views[key] = _View(dict(zip(names, found, strict=True)))
        return self._views[key]

    # ---- settling

    async def ack(self, done: Sequence[Done]) -> list[Lease]:
        kept = [
            _Move(each.lease, "completed", {"worker": self.worker_id, "result": each.result}, duration=each.duration)
            for each in done
            if each.keep
        ]
        return await self._settle(_by_stream("ack", [each.lease for each in done if not each.keep]) + _moving(kept))

    async def retry(self, retries: Sequence[Retry]) -> list[Lease]:
        return await self._settle(_moving([_retried(each, suspect=0) for each in retries]))

    async def dead_letter(self, dead: Sequence[Dead]) -> list[Lease]:
        return await self._settle(_moving([_buried(each, self.worker_id) for each in dead]))

    async def release(self, leases: Sequence[Lease]) -> list[Lease]:
        return await self._settle(_moving([_Move(lease, "pending", {"attempt": lease.attempt}) for lease in leases]))

    async def extend(self, leases: Sequence[Lease]) -> list[Lease]:
        return await self._settle(_by_stream("extend", leases))

    async def _settle(self, calls: Sequence[_Call]) -> list[Lease]:
        replies = await self._link.run(*[command for command, _ in calls])
        return [leases[n - 1] for (_, leases), lost in zip(calls, replies, strict=True) for n in lost]

    # ---- maintaining

    async def maintain(self, queues: Sequence[str], limit: int) -> Maintenance:
        recovered = buried = 0
        if time.monotonic() >= self._expired_at and queues:
            try:
                recovered, buried = await self._recover(await self._view(queues), limit)
            except _NoGroupError:
                self._views.clear()
        promoted, next_due = await self._promote(queues, limit)
        if recovered + buried >= limit:
            next_due = 0.0
        return Maintenance(promoted=promoted, recovered=recovered, buried=buried, next_due=next_due)

    async def _promote(self, queues: Sequence[str], limit: int) -> tuple[int, float | None]:
        """Only the script knows the time, but it is not asked each second about a head that it has answered for."""
        looks = [("ZRANGE", f"{_base(queue)}:scheduled", 0, 0, "WITHSCORES") for queue in queues]
        promoted = 0
        waits: list[float] = []
        for queue, head in zip(queues, await self._link.run(*looks), strict=True):
            if not head:
                continue
            known, due, ask = self._heads.get(queue, (b"", 0.0, 0.0))
            left = max(0.0, due - time.monotonic()) if known == head[1] and time.monotonic() < ask else 0.0
            while left == 0 and promoted < limit:
                command = _script("promote", queue, min(CHUNK, limit - promoted))
                [(count, micros, known)] = await self._link.run(command)
                promoted, left, now = promoted + count, micros / 1e6, time.monotonic()
                self._heads[queue] = known, now + left, now + min(left, DUE_INTERVAL)
            if left >= 0:
                waits.append(left)
        return promoted, min(waits, default=None)

    async def _recover(self, view: _View, limit: int) -> tuple[int, int]:
        held = await self._link.run(*[("XPENDING", key, "workers", "-", "+", 1) for key in view.places])
        recovered = buried = 0
        soonest = EXPIRED_INTERVAL
        for (key, place), some in zip(view.places.items(), held, strict=True):
            if some and recovered + buried < limit:
                moves, expiry = await self._expired(key, *place, limit - recovered - buried)
                lost = await self._settle(_moving(moves))
                dead = [move.place == "dead" for move in moves if move.lease not in lost]
                recovered, buried = recovered + dead.count(False), buried + dead.count(True)
                soonest = min(soonest, expiry)
        now = time.monotonic()
        self._expired_at = now + soonest
        if now >= self._consumers_at:
            self._consumers_at = now + CONSUMER_INTERVAL
            keys = [*view.places, *view.bells]
            await self._link.run(("EVALSHA", _SHA["forget"], len(keys), *keys, FORGET_AFTER))
        return recovered, buried

    async def _expired(self, key: str, queue: str, stream: str, limit: int) -> tuple[list[_Move], float]:
        """What is to become of expired leases, and seconds until it is time to look again.

        The place to begin moves on from look to look: many that live must not hide those that do not.
        """
        moves: list[_Move] = []
        soonest, passed = EXPIRED_INTERVAL, 0
        while passed < SCAN:
            start = self._cursors.get(key, "-")
            [(last, expiry, *rows)] = await self._link.run(("EVALSHA", _SHA["leases"], 1, key, start, CHUNK, "expired"))
            moves += [self._recovered(queue, stream, *row) for row in rows]
            if len(moves) >= limit:
                return moves[:limit], 0.0
            soonest = min(soonest, expiry / 1000) if expiry >= 0 else soonest
            passed += CHUNK - len(rows)
            self._cursors[key] = f"({last.decode()}" if last else "-"
            if not last:
                break
        return moves, soonest

    def _recovered(self, queue: str, stream: str, entry: bytes, consumer: bytes, flat: list[bytes]) -> _Move:
        lease = _lease(queue, stream, entry, flat, 0.0)
        worker = _text(consumer)
        error = ErrorInfo(
            type="asynctasq.errors.WorkerLost",
            message=f"attempt {lease.attempt}: worker {worker} was lost; its lease of "
            f"{lease.visibility_timeout:g} s ran out",
        )
        outcome = decide(lease, error, cap=self.config.max_retry_delay)
        if lease.message is None and lease.attempt < UNREADABLE_ATTEMPTS:
            outcome = Retry(lease=lease, delay=0.0, error=error)
        move = _retried(outcome, suspect=1) if isinstance(outcome, Retry) else _buried(outcome, worker)
        # A lease that was extended since it was found is left alone.
        return move._replace(idle=round(lease.visibility_timeout * 1000), duration=None)

    # ---- operating

    async def stats(self, queues: Sequence[str] | None = None) -> list[QueueStats]:
        names = await self._queues() if queues is None else sorted(set(queues))
        replies = await self._link.run(*[_script("stats", name) for name in names])
        found: list[QueueStats] = []
        for name, (*counts, age) in zip(names, replies, strict=True):
            numbers = dict(zip(STATUSES, counts, strict=True))
            found.append(QueueStats(queue=name, oldest_pending=age / 1000 if age >= 0 else None, **numbers))
        return found

    async def purge(self, queue: str) -> int:
        total = 0
        while True:
            [count] = await self._link.run(_script("purge", queue, CHUNK))
            total += int(count)
            if count < CHUNK:
                return total

    async def find(self, query: TaskQuery) -> Page:
        after: _Place | None = None
        if query.cursor is not None:
            after = cast(_Place, decode_cursor(query.cursor, tuple[str, str]))
        statuses = frozenset(STATUSES) if query.statuses is None else query.statuses
        queues = [queue for queue in await self._queues() if query.queue in (None, queue)]
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
        self, queues: Sequence[str], statuses: frozenset[Status], after: _Place | None, count: int
    ) -> list[list[_Place]]:
        """The next tasks of every queue and list."""
        words = sorted({"pending" if status == "processing" else status for status in statuses})
        lists = [(queue, word) for queue in queues for word in words]
        start = f"[{after[0]}" if after else "+"
        looks = [
            ("ZREVRANGEBYLEX", f"{_base(queue)}:ids:{word}", start, "-", "LIMIT", 0, count + 1) for queue, word in lists
        ]
        replies = await self._link.run(*looks)
        return [[(_text(id), queue) for id in ids] for (queue, _), ids in zip(lists, replies, strict=True)]

    async def _leased(self, queues: Sequence[str]) -> list[_Place]:
        found: list[_Place] = []
        for key, (queue, _) in (await self._view(queues)).places.items():
            start = "-"
            while start and len(found) < self.config.task_scan_limit:
                [(last, _, *ids)] = await self._link.run(("EVALSHA", _SHA["leases"], 1, key, start, CHUNK, "ids"))
                found += [(_text(id), queue) for id in ids]
                start = f"({last.decode()}" if last else ""
        return found

    async def _read(self, places: Iterable[_Place]) -> list[TaskInfo]:
        """What is known of these tasks, in their order; those that are gone are left out."""
        places = list(places)
        calls = [
            (queue, part)
            for queue, some in _grouped(places, lambda place: place[1]).items()
            for part in _parts([id for id, _ in some], CHUNK)
        ]
        replies = await self._link.run(*[_script("read", queue, *part) for queue, part in calls])
        found = {
            (id, queue): _info(id, queue, *row)
            for (queue, part), rows in zip(calls, replies, strict=True)
            for id, row in zip(part, rows, strict=True)
            if row
        }
        return [found[place] for place in places if place in found]

    async def get(self, ids: Sequence[str]) -> list[TaskInfo]:
        queues = await self._queues()
        return await self._read((id, queue) for id in usable_ids(ids) for queue in queues)

    async def requeue(self, ids: Sequence[str]) -> int:
        return await self._everywhere("requeue", ids)

    async def cancel(self, ids: Sequence[str]) -> int:
        return await self._everywhere("remove", ids, "keep" if self.config.keep_completed_tasks else "cancel")

    async def delete(self, ids: Sequence[str]) -> int:
        return await self._everywhere("remove", ids, "delete")

    async def _everywhere(self, script: str, ids: Sequence[str], *how: str) -> int:
        """Run a counting script for these ids in every queue: an id does not say where it belongs."""
        parts = _parts(usable_ids(ids), CHUNK)
        queues = await self._queues()
        return sum(await self._link.run(*[_script(script, queue, *how, *part) for queue in queues for part in parts]))

    async def _queues(self) -> list[str]:
        [names] = await self._link.run(("SMEMBERS", _QUEUES))
        return sorted(map(_text, names))


class _View:
    """The streams of some queues as ``open.lua`` found them, in the order of claiming."""

    def __init__(self, opened: dict[str, list[bytes]]) -> None:
        at = [(queue, priority.decode()) for queue, (_, *priorities) in opened.items() for priority in priorities]
        suspects = [(queue, _SUSPECTS) for queue in opened]
        self.bells = [f"{_base(queue)}:bell:{count.decode()}" for queue, (count, *_) in opened.items()]
        self.streams = [_stream(*place) for place in at]
        self.suspects = [_stream(*place) for place in suspects]
        self.places = {_stream(*place): place for place in suspects + at}
        self._by_key = {key.encode(): place for key, place in self.places.items()}

    def leases(self, reply: Any, claimed_at: float) -> list[Lease]:
        """The leases in a reply of XREADGROUP."""
        return [
            _lease(*self._by_key[key], entry, flat, claimed_at)
            for key, rows in reply or ()
            if key in self._by_key
            for entry, flat in rows
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
        fields = {name: value for name, value in self.fields.items() if value is not None}
        took = "" if self.duration is None else round(self.duration * 1e6)
        head = [*self.lease.receipt, self.lease.id, self.place, math.ceil(self.delay * 1e6), self.idle, took]
        return [*head, len(fields), *chain.from_iterable(fields.items())]


def _retried(retry: Retry, suspect: int) -> _Move:
    fields = {"attempt": retry.lease.attempt + 1, "error": msgspec.msgpack.encode(retry.error), "suspect": suspect}
    return _Move(retry.lease, "scheduled", fields, delay=retry.delay, duration=retry.duration)


def _buried(dead: Dead, worker: str) -> _Move:
    fields = {"attempt": dead.lease.attempt, "error": msgspec.msgpack.encode(dead.error), "worker": worker}
    return _Move(dead.lease, "dead", fields, duration=dead.duration)


def _moving(moves: Iterable[_Move]) -> list[_Call]:
    return [
        (_script("move", queue, *chain.from_iterable(move.arguments() for move in part)), [move.lease for move in part])
        for queue, some in _grouped(moves, lambda move: move.lease.queue).items()
        for part in _parts(some, CHUNK)
    ]


def _by_stream(script: str, leases: Iterable[Lease]) -> list[_Call]:
    """Calls of a script for entries of one stream, and their ids."""
    return [
        (_script(script, queue, stream, *[one.receipt[1] for one in part], *[one.id for one in part]), part)
        for (queue, stream), some in _grouped(leases, lambda lease: (lease.queue, lease.receipt[0])).items()
        for part in _parts(some, CHUNK)
    ]


def _lease(queue: str, stream: str, entry: bytes, flat: Sequence[bytes], claimed_at: float) -> Lease:
    """The lease on an entry. One that is not as we write them is still leased, under a name made up from its place."""
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    try:
        payload, id = fields[b"payload"], fields[b"id"].decode("ascii")
        attempt, life = int(fields[b"attempt"]), int(fields[b"lease"])
        if not (0 < len(id) <= 64 and 0 < attempt < 2**31 and 0 < life < 10**13):
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
        worker=_text(consumer or fields.get(b"worker", b"")) or None,
        correlation_id=message.correlation_id if message else None,
        result=fields.get(b"result"),
        error=_error(fields.get(b"error")),
        first_failed_at=_instant(fields.get(b"first_failed")),
        last_failed_at=_instant(fields.get(b"last_failed")),
    )


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _number(raw: bytes | None) -> int | None:
    try:
        return int(float(raw)) if raw else None
    except (ValueError, OverflowError):
        return None


def _instant(raw: bytes | None) -> datetime | None:
    micros = _number(raw)
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
    created = info.created_at or _EPOCH
    after, before = query.created_after or created, query.created_before
    return created >= after and (before is None or created < before)


def _below(places: Iterable[_Place], after: _Place | None) -> list[_Place]:
    """The places after that one: by id, newest first, then by queue, for an id may be in several."""
    ordered = sorted(sorted(places, key=lambda place: place[1]), key=lambda place: place[0], reverse=True)
    return [(id, queue) for id, queue in ordered if not after or id < after[0] or (id == after[0] and queue > after[1])]


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


def _reading(consumer: str, count: int, wait: float | None, keys: Sequence[str]) -> _Command:
    # BLOCK 0 would be for ever.
    block = () if wait is None else ("BLOCK", max(1, math.ceil(wait * 1000)))
    return ("XREADGROUP", "GROUP", "workers", consumer, "COUNT", count, *block, "STREAMS", *keys, *[">"] * len(keys))


def _parts(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    found: dict[K, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


# ---- connections


class _NoGroupError(BrokerUnavailable):
    """A stream or its group is not there."""


_MISCONFIGURED = re.compile(
    r"\b(NOAUTH|NOPERM|WRONGPASS|WRONGTYPE|unknown command|DB index is out of range|Invalid Database)\b", re.IGNORECASE
)


def _failure(exc: Exception, url: str) -> Exception:
    """An error of the client as one of ours. Of an error inside a script the word stands somewhere in the text."""
    text = f"Redis at {mask_url(url)}: {str(exc)[:300] or 'no answer in time'}"
    if isinstance(exc, AuthenticationError | NoPermissionError) or _MISCONFIGURED.search(text):
        return ConfigurationError(text)
    if isinstance(exc, OutOfMemoryError) or re.search(r"\b(OOM|MISCONF)\b", text):
        return BrokerFull(text)
    if isinstance(exc, ResponseError) and re.search(r"\b(NOGROUP|UNBLOCKED)\b", text):
        return _NoGroupError(text)
    # LOADING, BUSY, TRYAGAIN, READONLY, CLUSTERDOWN, MASTERDOWN, no connection, no answer: later it may go well.
    return BrokerUnavailable(text)


def _is_readonly(error: Exception) -> bool:
    """The server is a replica by now, and all connections lead to the wrong place."""
    return isinstance(error, ReadOnlyError) or "READONLY" in str(error)


def _pool(kind: Any, config: Config, timeout: float | None, **options: Any) -> Any:
    """A pool of connections of either client.

    RESP2, since every server speaks it and its replies are the plain lists that are read here.
    """
    url = config.redis_location()
    try:
        pool = kind.from_url(url, max_connections=config.redis_max_connections)
    except (ValueError, TypeError) as exc:
        # The cause's text may quote the password.
        raise ConfigurationError(f"redis_url {mask_url(url)} cannot be used: {type(exc).__name__}") from None
    # Set afterwards, for what the URL says of these would win over arguments.
    pool.connection_kwargs |= {"protocol": 2, "decode_responses": False, "socket_keepalive": True, **options}
    pool.timeout = timeout
    return pool


def _packed(commands: Iterable[_Command]) -> list[bytes]:
    # By hiredis, as the asyncio client's own packing is Python: with it 1,000 messages took half as long again.
    return [hiredis.pack_command(command) for command in commands]


class _Link:
    """The connections of one event loop. Each call has one to itself, so that a waiting claim holds nobody up.

    A connection on which a call did not end, because of its deadline or a cancellation, is not used again. The
    client's own retries are off: with a lost reply they would claim twice, and with a dead server take a minute.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._url = config.redis_location()
        self._pool: Any = None
        self._waiting: set[int] = set()
        """Numbers by which the server knows the connections that wait in it."""

    async def open(self) -> None:
        # No time-outs on sockets: each call has its own deadline, and a claim may wait for longer than others.
        options = {"socket_timeout": None, "socket_connect_timeout": None, "retry": AsyncRetry(NoBackoff(), 0)}
        self._pool = _pool(redis.asyncio.BlockingConnectionPool, self._config, timeout=None, **options)
        try:
            await self.run(("PING",), *_LOAD)
            _check_server(self._url, await self._send(_ASK, None))
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.disconnect()

    async def run(self, *commands: _Command, deadline: float | None = None) -> list[Any]:
        """The replies to ``commands``, sent together. Raises errors of ours alone."""
        replies = await self._send(commands, deadline)
        if any(isinstance(reply, RedisError) for reply in replies):
            await self._mend(commands, replies, deadline)
        return replies

    async def _mend(self, commands: Sequence[_Command], replies: list[Any], deadline: float | None) -> None:
        """Repeat the scripts that the server, restarted, no longer knew; raise what else went wrong."""
        unknown = [n for n, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            await self._send(_LOAD, deadline)
            for n, reply in zip(unknown, await self._send([commands[n] for n in unknown], deadline), strict=True):
                replies[n] = reply
        for reply in replies:
            if isinstance(reply, RedisError):
                if _is_readonly(reply) and self._pool is not None:
                    await self._pool.disconnect(inuse_connections=False)
                raise _failure(reply, self._url) from reply

    async def unblock(self) -> None:
        """End the waits in the server, as if their time were over. Where that is not allowed they go on."""
        await self._send([("CLIENT", "UNBLOCK", number) for number in self._waiting], INTERRUPT_DEADLINE)

    async def _send(self, commands: Sequence[_Command], deadline: float | None) -> list[Any]:
        """The replies, errors of the server among them."""
        pool = self._pool
        if pool is None:
            raise DriverClosed("the redis driver is not connected")
        if not commands:
            return []
        try:
            async with asyncio.timeout(CALL_DEADLINE if deadline is None else deadline):
                connection = await pool.get_connection()
                try:
                    await connection.send_packed_command(_packed(commands))
                    return await self._receive(connection, commands)
                except BaseException:
                    await connection.disconnect(nowait=True)
                    raise
                finally:
                    await pool.release(connection)
        except (RedisError, OSError, TimeoutError) as exc:
            raise _failure(exc, self._url) from exc


    async def _receive(self, connection: Any, commands: Sequence[_Command]) -> list[Any]:
        first = await _reply(connection)
        waits = commands[0] is _WHO and isinstance(first, int)
        if waits:
            self._waiting.add(first)
        try:
            return [first, *[await _reply(connection) for _ in commands[1:]]]
        finally:
            if waits:
                self._waiting.discard(first)


async def _reply(connection: Any) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as exc:
        return exc


class _SyncLink:
    """The same for threads without a loop, made at the first call and again after a fork."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._url = config.redis_location()
        self._lock = threading.Lock()
        self._pool: Any = None
        self._pid = 0

    def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None and self._pid == os.getpid():
            pool.disconnect()

    def _opened(self) -> Any:
        if self._pool is not None and self._pid == os.getpid():
            return self._pool
        with self._lock:
            if self._pool is None or self._pid != os.getpid():
                # Not beyond PRODUCER_DEADLINE in all, unless a name has several addresses and they are silent.
                connect, reply = PRODUCER_DEADLINE / 3, PRODUCER_DEADLINE * 2 / 3
                options = {
                    "socket_connect_timeout": connect,
                    "socket_timeout": reply,
                    "retry": SyncRetry(NoBackoff(), 0),
                }
                self._pool = _pool(redis.BlockingConnectionPool, self._config, timeout=PRODUCER_DEADLINE, **options)
                self._pid = os.getpid()
            return self._pool

    def run(self, *commands: _Command) -> list[Any]:
        """The replies to ``commands``, sent together; harmless when sent twice. Raises errors of ours alone."""
        replies = self._send(commands)
        if any(isinstance(reply, NoScriptError) for reply in replies):
            self._send(_LOAD)
            replies = self._send(commands)
        for reply in replies:
            if isinstance(reply, RedisError):
                if _is_readonly(reply):
                    self.close()
                raise _failure(reply, self._url) from reply
        return replies

    def _send(self, commands: Sequence[_Command]) -> list[Any]:
        if not commands:
            return []
        pool = self._opened()
        try:
            connection = pool.get_connection()
            try:
                connection.send_packed_command(_packed(commands))
                return [_sync_reply(connection) for _ in commands]
            except BaseException:
                connection.disconnect()
                raise
            finally:
                pool.release(connection)
        except (RedisError, OSError) as exc:
            raise _failure(exc, self._url) from exc


def _sync_reply(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as exc:
        return exc


_ASK: list[_Command] = [("INFO", "server"), ("CONFIG", "GET", "maxmemory-policy"), ("CONFIG", "GET", "appendonly")]
_advised: set[str] = set()


def _check_server(url: str, replies: list[Any]) -> None:
    """Refuse a server that is too old; advise, once in a process, against settings that lose tasks.

    A server that does not tell, as managed ones may, is taken as it is.
    """
    info, policy, append = replies
    version = re.search(rb"redis_version:(\d+)\.(\d+)", info) if isinstance(info, bytes) else None
    if version and (int(version[1]), int(version[2])) < (6, 2):
        raise ConfigurationError(f"Redis at {mask_url(url)} is older than 6.2")
    if url in _advised:
        return
    _advised.add(url)
    if isinstance(policy, list) and policy[1:] not in ([], [b"noeviction"]):
        logger.warning(
            "Redis at %s may evict tasks when memory is short: set maxmemory-policy noeviction", mask_url(url)
        )
    if isinstance(append, list) and append[1:] == [b"no"]:
        logger.warning("Redis at %s loses the last tasks when it ends abruptly: set appendonly yes", mask_url(url))
