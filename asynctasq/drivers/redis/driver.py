"""The driver: enqueue, claim, settle, maintain."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from asynctasq.core.message import MAX_MESSAGE_BYTES, STATUSES, Lease, Message, encode
from asynctasq.core.outcome import Dead, Done, ErrorInfo, Retry, decide
from asynctasq.drivers.base import (
    CALL_DEADLINE,
    Capabilities,
    Driver,
    Maintenance,
    QueueStats,
    is_suspect,
)
from asynctasq.drivers.redis.commands import CHUNK, QUEUES, SHA, Command, base_key, chunks, evalsha, to_text
from asynctasq.drivers.redis.entries import Call, Move, View, buried, by_stream, lease_on, moving, retried
from asynctasq.drivers.redis.inspector import EPOCH, RedisInspector
from asynctasq.drivers.redis.link import PRODUCER_DEADLINE, WHO, Link, NoGroup, SyncLink
from asynctasq.errors import AsyncTasQError, BrokerError

if TYPE_CHECKING:
    from asynctasq.config import Config


SUSPECT_INTERVAL, EXPIRED_INTERVAL, DUE_INTERVAL, CONSUMER_INTERVAL = 0.5, 4.0, 10.0, 600.0
"""Least seconds between two looks for suspects, expired leases, the true time of what is scheduled, and consumers that
are to be forgotten."""
FORGET_AFTER = 3_600_000
"""Milliseconds after which a consumer that holds nothing is forgotten."""
SCAN = 1_000
"""Live leases of one stream that a look passes over; the next look goes on from there."""
UNREADABLE_ATTEMPTS = 3
"""Runs of what is no message, and so cannot say how many."""


class RedisDriver(RedisInspector, Driver):
    """Queues in one Redis. Not for Redis Cluster: a claim reads all its queues at once."""

    name: ClassVar[str] = "redis"
    capabilities: ClassVar[Capabilities] = Capabilities(
        idempotent=True,
        ordered=True,
        timed_leases=True,
        priority=True,
        listing=True,
        results=True,
        exact_counts=True,
        max_payload=MAX_MESSAGE_BYTES,
    )

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._link = Link(config)
        self._sync_link = SyncLink(config)
        self._named: set[str] = set()
        self._views: dict[tuple[str, ...], View] = {}
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

    def _storing(self, messages: Sequence[Message]) -> tuple[list[Command], list[str]]:
        """The commands that store ``messages``, and the queues that this process has not used before."""
        arguments: dict[str, list[Any]] = {}
        for message in messages:
            payload = encode(message)
            life = math.ceil(message.visibility_timeout * 1000)
            arguments.setdefault(message.queue, []).extend((message.id, payload, life, message.priority, _due(message)))
        new = [queue for queue in arguments if queue not in self._named]
        commands: list[Command] = [("SADD", QUEUES, *new)] if new else []
        for queue, values in arguments.items():
            commands += [evalsha("enqueue", queue, *part) for part in chunks(values, 5 * CHUNK)]
        return commands, new

    def _naming(self, messages: Sequence[Message], new: list[str], replies: Sequence[Any]) -> Command | None:
        """What names the queues again: that a priority is new in a known queue may mean that all was flushed."""
        if new:
            self._named.update(new)
        elif 1 in replies:
            return ("SADD", QUEUES, *{message.queue for message in messages})
        return None

    # ---- claiming

    async def claim(self, queues: Sequence[str], limit: int, wait: float, suspects: int = 1) -> list[Lease]:
        until = time.monotonic() + wait
        for turn in range(10):
            if not queues or limit <= 0:
                break
            try:
                return await self._claim(queues, limit, max(0.0, until - time.monotonic()), suspects)
            except NoGroup:
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
        with contextlib.suppress(AsyncTasQError):
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

    async def _take(self, view: View, limit: int, suspects: int) -> list[Lease]:
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
        [reply] = await self._link.run(("EVALSHA", SHA["claim"], len(keys), *keys, self.worker_id, *numbers))
        leases = view.leases(reply, before)
        if any(lease.suspect for lease in leases):
            # Where there is one there are more: all that its worker held.
            self._suspects_at = 0.0
        return leases

    async def _await(self, view: View, limit: int, wait: float, suspects: int) -> list[Lease]:
        """The first entry that comes. XREADGROUP counts for each stream, so a larger count could bring more than
        ``limit`` or ``suspects``; even so several may come at the very start, and what is over goes back.
        """
        keys = [*view.streams, *view.bells, *(view.suspects if suspects > 0 else ())]
        before = time.monotonic()
        reading = _reading(self.worker_id, 1, wait, keys)
        view.listening += 1
        try:
            [_, reply] = await self._link.run(WHO, reading, deadline=CALL_DEADLINE + wait)
        finally:
            view.listening -= 1
        kept: list[Lease] = []
        over: list[Lease] = []
        for lease in view.leases(reply, before):
            fits = len(kept) < limit and not (lease.suspect and sum(one.suspect for one in kept) >= suspects)
            (kept if fits else over).append(lease)
        # What was read is leased: where this fails it is handed out all the same, and what is over runs out.
        with contextlib.suppress(BrokerError):
            if over:
                await self.release(over)
            return await self._renewed(kept, before)
        return kept

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

    async def _view(self, queues: Sequence[str]) -> View:
        key = tuple(queues)
        if key not in self._views:
            names = list(dict.fromkeys(queues))
            found = await self._link.run(*[evalsha("open", name) for name in names])
            self._views[key] = View(dict(zip(names, found, strict=True)))
        return self._views[key]

    # ---- settling

    async def ack(self, done: Sequence[Done]) -> list[Lease]:
        kept = [
            Move(each.lease, "completed", {"worker": self.worker_id, "result": each.result}, duration=each.duration)
            for each in done
            if each.keep
        ]
        return await self._settle(by_stream("ack", [each.lease for each in done if not each.keep]) + moving(kept))

    async def retry(self, retries: Sequence[Retry]) -> list[Lease]:
        return await self._settle(moving([retried(each, suspect=0) for each in retries]))

    async def dead_letter(self, dead: Sequence[Dead]) -> list[Lease]:
        return await self._settle(moving([buried(each, self.worker_id) for each in dead]))

    async def release(self, leases: Sequence[Lease]) -> list[Lease]:
        return await self._settle(moving([Move(lease, "pending", {"attempt": lease.attempt}) for lease in leases]))

    async def extend(self, leases: Sequence[Lease]) -> list[Lease]:
        return await self._settle(by_stream("extend", leases))

    async def _settle(self, calls: Sequence[Call]) -> list[Lease]:
        replies = await self._link.run(*[command for command, _ in calls])
        return [leases[n - 1] for (_, leases), lost in zip(calls, replies, strict=True) for n in lost]

    # ---- maintaining

    async def maintain(self, queues: Sequence[str], limit: int) -> Maintenance:
        recovered = buried = 0
        if time.monotonic() >= self._expired_at and queues:
            try:
                recovered, buried = await self._recover(await self._view(queues), limit)
            except NoGroup:
                # There are streams that the view does not know: these are looked at too, and now.
                self._views.clear()
                with contextlib.suppress(NoGroup):
                    recovered, buried = await self._recover(await self._view(queues), limit)
        promoted, next_due = await self._promote(queues, limit)
        if recovered + buried >= limit:
            next_due = 0.0
        return Maintenance(promoted=promoted, recovered=recovered, buried=buried, next_due=next_due)

    async def _promote(self, queues: Sequence[str], limit: int) -> tuple[int, float | None]:
        """Only the script knows the time, but it is not asked each second about a head that it has answered for."""
        looks = [("ZRANGE", f"{base_key(queue)}:scheduled", 0, 0, "WITHSCORES") for queue in queues]
        promoted = 0
        waits: list[float] = []
        for queue, head in zip(queues, await self._link.run(*looks), strict=True):
            if not head:
                continue
            known, due, ask = self._heads.get(queue, (b"", 0.0, 0.0))
            left = max(0.0, due - time.monotonic()) if known == head[1] and time.monotonic() < ask else 0.0
            while left == 0 and promoted < limit:
                command = evalsha("promote", queue, min(CHUNK, limit - promoted))
                [(count, micros, known)] = await self._link.run(command)
                promoted, left, now = promoted + count, micros / 1e6, time.monotonic()
                self._heads[queue] = known, now + left, now + min(left, DUE_INTERVAL)
            if left >= 0:
                waits.append(left)
        return promoted, min(waits, default=None)

    async def _recover(self, view: View, limit: int) -> tuple[int, int]:
        # A bell that has lost its group tells of a priority that this view does not have. Waiting claims hear it too.
        keys = [*view.places, *(() if view.listening else view.bells)]
        held = await self._link.run(*[("XPENDING", key, "workers", "-", "+", 1) for key in keys])
        recovered = buried = 0
        soonest = EXPIRED_INTERVAL
        for (key, place), some in zip(view.places.items(), held[: len(view.places)], strict=True):
            if some and recovered + buried < limit:
                moves, expiry = await self._expired(key, *place, limit - recovered - buried)
                lost = await self._settle(moving(moves))
                dead = [move.place == "dead" for move in moves if move.lease not in lost]
                recovered, buried = recovered + dead.count(False), buried + dead.count(True)
                soonest = min(soonest, expiry)
        now = time.monotonic()
        self._expired_at = now + soonest
        if now >= self._consumers_at:
            self._consumers_at = now + CONSUMER_INTERVAL
            keys = [*view.places, *view.bells]
            await self._link.run(("EVALSHA", SHA["forget"], len(keys), *keys, FORGET_AFTER))
        return recovered, buried

    async def _expired(self, key: str, queue: str, stream: str, limit: int) -> tuple[list[Move], float]:
        """What is to become of expired leases, and seconds until it is time to look again.

        The place to begin moves on from look to look: many that live must not hide those that do not.
        """
        moves: list[Move] = []
        soonest, passed = EXPIRED_INTERVAL, 0
        while passed < SCAN:
            start = self._cursors.get(key, "-")
            [(last, expiry, *rows)] = await self._link.run(("EVALSHA", SHA["leases"], 1, key, start, CHUNK, "expired"))
            moves += [self._recovered(queue, stream, *row) for row in rows]
            if len(moves) >= limit:
                return moves[:limit], 0.0
            soonest = min(soonest, expiry / 1000) if expiry >= 0 else soonest
            passed += CHUNK - len(rows)
            self._cursors[key] = f"({last.decode()}" if last else "-"
            if not last:
                break
        return moves, soonest

    def _recovered(self, queue: str, stream: str, entry: bytes, consumer: bytes, flat: list[bytes]) -> Move:
        lease = lease_on(queue, stream, entry, flat, 0.0)
        worker = to_text(consumer)
        error = ErrorInfo(
            type="asynctasq.errors.WorkerLost",
            message=f"attempt {lease.attempt}: worker {worker} was lost; its lease of "
            f"{lease.visibility_timeout:g} s ran out",
        )
        outcome = decide(lease, error, cap=self.config.max_retry_delay)
        if lease.message is None and lease.attempt < UNREADABLE_ATTEMPTS:
            outcome = Retry(lease=lease, delay=0.0, error=error)
        most = UNREADABLE_ATTEMPTS if lease.message is None else lease.message.max_attempts
        suspect = int(is_suspect(lease.attempt, most))
        move = retried(outcome, suspect) if isinstance(outcome, Retry) else buried(outcome, worker)
        # A lease that was extended since it was found is left alone.
        return move._replace(idle=round(lease.visibility_timeout * 1000), duration=None)

    # ---- operating

    async def stats(self, queues: Sequence[str] | None = None) -> list[QueueStats]:
        names = await self.queue_names() if queues is None else sorted(set(queues))
        replies = await self._link.run(*[evalsha("stats", name) for name in names])
        found: list[QueueStats] = []
        for name, (*counts, age) in zip(names, replies, strict=True):
            numbers = dict(zip(STATUSES, counts, strict=True))
            found.append(QueueStats(queue=name, oldest_pending=age / 1000 if age >= 0 else None, **numbers))
        return found

    async def purge(self, queue: str) -> int:
        total = 0
        while True:
            [count] = await self._link.run(evalsha("purge", queue, CHUNK))
            total += int(count)
            if count < CHUNK:
                return total


def _due(message: Message) -> str:
    if message.available_at is not None:
        return str((message.available_at - EPOCH) // timedelta(microseconds=1))
    return f"+{math.ceil(message.delay * 1e6)}" if message.delay else "0"


def _reading(consumer: str, count: int, wait: float | None, keys: Sequence[str]) -> Command:
    # BLOCK 0 would be for ever.
    block = () if wait is None else ("BLOCK", max(1, math.ceil(wait * 1000)))
    return ("XREADGROUP", "GROUP", "workers", consumer, "COUNT", count, *block, "STREAMS", *keys, *[">"] * len(keys))
