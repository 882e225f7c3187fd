"""Writes outcomes into the broker, in batches: each takes all that ended while the one before was under way."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from asynctasq.core.message import Lease
from asynctasq.core.outcome import Dead, Done, Outcome, Release, Retry
from asynctasq.drivers.base import Driver
from asynctasq.errors import BrokerError

logger = logging.getLogger("asynctasq.worker")

MAX_BATCH = 1_000
MAX_BATCH_BYTES = 16 * 1024 * 1024
BACKOFF_FIRST, BACKOFF_LAST = 0.1, 5.0
"""Seconds between tries while the broker is away. Each is safe to repeat: it is fenced by its receipt."""


class Settler:
    """Takes outcomes; calls ``settled`` for each, with whether its lease turned out lost."""

    def __init__(self, driver: Driver, settled: Callable[[Outcome, bool], None]) -> None:
        self._driver = driver
        self._settled = settled
        self._waiting: list[Outcome] = []
        self._flushing: asyncio.Task[None] | None = None

    def put(self, outcome: Outcome) -> None:
        """Have it written soon."""
        self._waiting.append(outcome)
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush(), name="asynctasq-settle")

    async def written(self, timeout: float) -> bool:
        """Wait until all is written, for up to ``timeout`` seconds; whether it is."""
        if self._flushing is not None:
            await asyncio.wait([self._flushing], timeout=timeout)
        return self._flushing is None

    def give_up(self) -> None:
        """Write no more: what is not written by now never will be."""
        if self._flushing is not None:
            self._flushing.cancel()

    async def _flush(self) -> None:
        try:
            while self._waiting:
                count = self._batch_size()
                batch, self._waiting = self._waiting[:count], self._waiting[count:]
                for write, outcomes in self._by_kind(batch):
                    await self._write(write, outcomes)
        finally:
            self._flushing = None

    def _batch_size(self) -> int:
        """How many of those that wait go into one batch: by number and by the bytes of their results."""
        count = size = 0
        for outcome in self._waiting[:MAX_BATCH]:
            size += len(outcome.result or b"") if isinstance(outcome, Done) else 0
            if count and size > MAX_BATCH_BYTES:
                break
            count += 1
        return count

    def _by_kind(self, batch: Sequence[Outcome]) -> list[tuple[Callable[[Any], Awaitable[list[Lease]]], list[Any]]]:
        groups: dict[type[Outcome], list[Any]] = {}
        for outcome in batch:
            groups.setdefault(type(outcome), []).append(outcome)
        verbs: dict[type[Outcome], Callable[[Any], Awaitable[list[Lease]]]] = {
            Release: lambda releases: self._driver.release([r.lease for r in releases]),
            Done: self._driver.ack,
            Retry: self._driver.retry,
            Dead: self._driver.dead_letter,
        }
        return [(verbs[kind], groups[kind]) for kind in verbs if kind in groups]

    async def _write(self, write: Callable[[Any], Awaitable[list[Lease]]], outcomes: list[Any]) -> None:
        """Write outcomes of one kind, for as long as it takes the broker to be there."""
        pause = BACKOFF_FIRST
        while True:
            try:
                lost = {id(lease) for lease in await write(outcomes)}
            except BrokerError as exc:
                logger.warning("%d outcomes wait for the broker: %s", len(outcomes), exc)
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(pause * 2, BACKOFF_LAST)
                continue
            except Exception as exc:  # noqa: BLE001 - whatever it is, it is not to end the writing of all others
                await self._write_singly(write, outcomes, exc)
                return
            break
        for outcome in outcomes:
            self._settled(outcome, id(outcome.lease) in lost)

    async def _write_singly(
        self, write: Callable[[Any], Awaitable[list[Lease]]], outcomes: list[Any], error: Exception
    ) -> None:
        """One of them is refused: the others must not suffer for it. Its lease runs out, and it is recovered."""
        if len(outcomes) == 1:
            logger.error("the outcome of task %s cannot be written: %s", outcomes[0].lease.id, error)
            self._settled(outcomes[0], True)
            return
        for outcome in outcomes:
            await self._write(write, [outcome])
