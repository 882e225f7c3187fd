"""Promotes what is due and recovers what expired. Any worker may, none must lead."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Sequence

from asynctasq.drivers.base import Driver, Maintenance
from asynctasq.errors import BrokerError

logger = logging.getLogger("asynctasq.worker")

INTERVAL = 1.0
"""Seconds between looks, with jitter so that workers started together part company; sooner when something is due."""
BATCH = 1_000


class Janitor:
    """Looks after the queues of one worker."""

    def __init__(self, driver: Driver, queues: Sequence[str]) -> None:
        self._driver = driver
        self._queues = queues
        self._next = 0.0
        """When to look again, on the monotonic clock."""
        self._sooner = asyncio.Event()

    async def run(self) -> None:
        """For ever; ends by cancellation."""
        while True:
            self._next = time.monotonic() + INTERVAL * random.uniform(0.8, 1.2)
            try:
                done = await self.step()
            except BrokerError as exc:
                logger.debug("maintenance waits for the broker: %s", exc)
            else:
                if done.next_due is not None:
                    self.expect(done.next_due + 0.001)
            await self._pause()

    def expect(self, seconds: float) -> None:
        """Look again in this many seconds, if not sooner anyway: something becomes due then."""
        at = time.monotonic() + seconds
        if at < self._next:
            self._next = at
            self._sooner.set()

    async def _pause(self) -> None:
        while (left := self._next - time.monotonic()) > 0:
            self._sooner.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._sooner.wait()

    async def step(self) -> Maintenance:
        """One look."""
        done = await self._driver.maintain(self._queues, BATCH)
        if done.recovered or done.buried:
            logger.warning(
                "recovered %d tasks of lost workers; %d more had no attempt left", done.recovered, done.buried
            )
        return done
