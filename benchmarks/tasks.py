"""The tasks that are measured. Each notes when it ran."""

from __future__ import annotations

import time

from asynctasq import task

runs: list[float] = []
"""``time.perf_counter()`` of each run."""


@task(queue="bench")
async def noop() -> None:
    """An async task that does nothing."""
    runs.append(time.perf_counter())


@task(queue="bench")
def noop_sync() -> None:
    """A sync task that does nothing."""
    runs.append(time.perf_counter())


@task(queue="bench")
async def late(sent: float) -> None:
    """Notes how long it was on its way."""
    runs.append(time.time() - sent)
