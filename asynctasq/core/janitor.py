"""Promotes what is due and recovers what expired. Any worker may, none must lead."""

from __future__ import annotations

import asyncio
import logging
import random
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

    async def run(self) -> None:
        """For ever; ends by cancellation."""
        while True:
            pause = INTERVAL * random.uniform(0.8, 1.2)
            try:
                done = await self.step()
            except BrokerError as exc:
                logger.debug("maintenance waits for the broker: %s", exc)
            else:
                if done.next_due is not None:
                    pause = min(pause, done.next_due + 0.001)
            await asyncio.sleep(pause)

    async def step(self) -> Maintenance:
        """One look."""
        done = await self._driver.maintain(self._queues, BATCH)
        if done.recovered or done.buried:
            logger.warning(
                "recovered %d tasks of lost workers; %d more had no attempt left", done.recovered, done.buried
            )
        return done
