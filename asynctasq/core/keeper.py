"""Extends the leases of what a worker holds, from a thread and a connection of its own: a task that blocks the
worker's loop does not lose its lease, nor anyone else's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable

from asynctasq.core.message import Lease
from asynctasq.drivers.base import Driver

logger = logging.getLogger("asynctasq.worker")

LONGEST_TICK = 1.0
"""Seconds between looks at the leases; shorter where one of them is shorter than six times this."""


class Keeper:
    """Watches leases between claim and settlement.

    ``connect`` makes its driver, when the first lease has run for a third of its life and not before.
    ``lost`` is called on the worker's loop for each lease that turned out lost, ``blocked`` from the keeper's thread,
    with the seconds, when the worker's loop gave no sign of life between two extensions.
    """

    def __init__(
        self,
        make_driver: Callable[[], Driver],
        loop: asyncio.AbstractEventLoop,
        lost: Callable[[Lease], None],
        blocked: Callable[[float], None],
    ) -> None:
        self._make_driver = make_driver
        self._worker_loop = loop
        self._lost = lost
        self._blocked = blocked
        self._due: dict[Lease, float] = {}
        """When each is to be extended, on the monotonic clock."""
        self._tick = LONGEST_TICK
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._driver: Driver | None = None
        self._stopped = False
        self._seen = time.monotonic()

    def watch(self, leases: Iterable[Lease]) -> None:
        """Keep these alive until they are let go. On the worker's loop."""
        # It runs: what follows a long idle time is not to be taken for a loop that was blocked so long.
        self._seen = time.monotonic()
        shortest = LONGEST_TICK * 6
        for lease in leases:
            self._due[lease] = lease.claimed_at + lease.visibility_timeout / 3
            shortest = min(shortest, lease.visibility_timeout)
        if self._thread is None:
            self._start()
        if shortest < self._tick * 6 and self._loop is not None and self._wake is not None:
            self._tick = shortest / 6
            self._loop.call_soon_threadsafe(self._wake.set)

    def let_go(self, lease: Lease) -> None:
        """It is settled, or about to be given up."""
        self._due.pop(lease, None)

    def _start(self) -> None:
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._main(ready)), name="asynctasq-keeper", daemon=True
        )
        self._thread.start()
        ready.wait()

    def stop(self, timeout: float) -> None:
        """End the thread and its connection. Blocks until they have, for up to ``timeout`` seconds."""
        self._stopped = True
        if self._thread is not None and self._loop is not None and self._wake is not None:
            self._loop.call_soon_threadsafe(self._wake.set)
            self._thread.join(timeout)

    async def _main(self, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        ready.set()
        while not self._stopped:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._tick):
                    await self._wake.wait()
            self._wake.clear()
            await self.step()
        await self._disconnect()

    async def step(self) -> None:
        """Extend what has run for a third of its life."""
        now = time.monotonic()
        # A copy made in one step of C: the worker's thread adds and removes meanwhile.
        due = [lease for lease, at in list(self._due.items()) if at <= now]
        if not due:
            return
        self._look_at_worker(now, due)
        try:
            if self._driver is None:
                driver = self._make_driver()
                await driver.connect()
                self._driver = driver
            lost = await self._driver.extend(due)
        except Exception as exc:  # noqa: BLE001 - whatever it is, the leases are not to run out for it unsaid
            logger.warning(
                "%d leases could not be extended, trying again: %s", len(due), str(exc) or type(exc).__name__
            )
            await self._disconnect()
            return
        for lease in due:
            if lease in self._due:
                self._due[lease] = now + lease.visibility_timeout / 3
        for lease in lost:
            # Settled while the extension was on its way, most likely; else another has it.
            if self._due.pop(lease, None) is not None:
                with contextlib.suppress(RuntimeError):
                    self._worker_loop.call_soon_threadsafe(self._lost, lease)

    def _look_at_worker(self, now: float, due: list[Lease]) -> None:
        silent = now - self._seen
        if silent > min(lease.visibility_timeout for lease in due):
            self._blocked(silent)
        with contextlib.suppress(RuntimeError):
            self._worker_loop.call_soon_threadsafe(self._see)

    def _see(self) -> None:
        self._seen = time.monotonic()

    async def _disconnect(self) -> None:
        driver, self._driver = self._driver, None
        if driver is not None:
            with contextlib.suppress(Exception):
                await driver.close()
