"""Entries of streams: what a claim reads from them, and where settling moves them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import msgspec

from asynctasq.core.message import Lease, open_lease
from asynctasq.core.outcome import Dead, Retry
from asynctasq.drivers.redis.commands import CHUNK, SUSPECTS, Command, base_key, chunks, evalsha, grouped, stream_key

Call = tuple[Command, Sequence[Lease]]
"""A script that returns the positions of those leases that are lost."""


class View:
    """The streams of some queues as ``open.lua`` found them, in the order of claiming."""

    def __init__(self, opened: dict[str, list[bytes]]) -> None:
        at = [(queue, priority.decode()) for queue, (_, *priorities) in opened.items() for priority in priorities]
        suspects = [(queue, SUSPECTS) for queue in opened]
        self.bells = [f"{base_key(queue)}:bell:{count.decode()}" for queue, (count, *_) in opened.items()]
        self.streams = [stream_key(*place) for place in at]
        self.suspects = [stream_key(*place) for place in suspects]
        self.places = {stream_key(*place): place for place in suspects + at}
        self.listening = 0
        """How many claims wait on these streams and bells just now."""
        self._by_key = {key.encode(): place for key, place in self.places.items()}

    def leases(self, reply: Any, claimed_at: float) -> list[Lease]:
        """The leases in a reply of XREADGROUP."""
        return [
            lease_on(*self._by_key[key], entry, flat, claimed_at)
            for key, rows in reply or ()
            if key in self._by_key
            for entry, flat in rows
        ]


class Move(NamedTuple):
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


def retried(retry: Retry, suspect: int) -> Move:
    fields = {"attempt": retry.lease.attempt + 1, "error": msgspec.msgpack.encode(retry.error), "suspect": suspect}
    return Move(retry.lease, "scheduled", fields, delay=retry.delay, duration=retry.duration)


def buried(dead: Dead, worker: str) -> Move:
    fields = {"attempt": dead.lease.attempt, "error": msgspec.msgpack.encode(dead.error), "worker": worker}
    return Move(dead.lease, "dead", fields, duration=dead.duration)


def moving(moves: Iterable[Move]) -> list[Call]:
    return [
        (evalsha("move", queue, *chain.from_iterable(move.arguments() for move in part)), [move.lease for move in part])
        for queue, some in grouped(moves, lambda move: move.lease.queue).items()
        for part in chunks(some, CHUNK)
    ]


def by_stream(script: str, leases: Iterable[Lease]) -> list[Call]:
    """Calls of a script for entries of one stream, and their ids."""
    return [
        (evalsha(script, queue, stream, *[one.receipt[1] for one in part], *[one.id for one in part]), part)
        for (queue, stream), some in grouped(leases, lambda lease: (lease.queue, lease.receipt[0])).items()
        for part in chunks(some, CHUNK)
    ]


def lease_on(queue: str, stream: str, entry: bytes, flat: Sequence[bytes], claimed_at: float) -> Lease:
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
        suspect=stream == SUSPECTS,
    )
