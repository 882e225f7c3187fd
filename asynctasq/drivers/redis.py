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
_LOAD: list[_Command] = [("SCRIPT LOAD", text) for text in _SCRIPTS.values()]
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
        """The command that names queues again: a priority that is new in a known queue may mean that all was flushed."""
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
        [reply] = await self._link.run([("XREADGROUP", "GROUP", "workers", self.worker_id, *block)], CALL_DEADLINE + wait)
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
        streams = view.of_suspects | view.places
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
            message=f"attempt {lease.attempt}: worker {worker} was lost; its lease of {lease.visibility_timeout:g} s ran out",
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
        for key, (queue, _) in (await self._view(queues)).all.items() if queues else ():
            cursor = "-"
            while cursor and len(found) < self.config.task_scan_limit:
                command = ("EVALSHA", _SHA["leases"], 1, key, cursor, CHUNK, "ids")
                [(last, _, *ids)] = await self._link.run([command])
                found |= {(id.decode("ascii", "replace"), queue) for id in ids}
                cursor = f"({last.decode()}" if last else ""
        return found
