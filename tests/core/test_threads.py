"""The threads of a worker by themselves."""

from __future__ import annotations

import asyncio
import collections
import time
from typing import Any

from asynctasq.core.threads import Threads


class Interrupted(collections.deque[Any]):
    """Lets other threads go first after each append, as the interpreter may at any time."""

    def append(self, item: Any) -> None:
        super().append(item)
        time.sleep(0.005)


async def test_calls_that_end_at_the_same_moment_are_all_delivered() -> None:
    threads = Threads(8, asyncio.get_running_loop())
    threads._ended = Interrupted()
    try:
        for _ in range(5):
            runs = [threads.submit(lambda: 1) for _ in range(8)]
            async with asyncio.timeout(5):
                assert await asyncio.gather(*(run.future for run in runs)) == [(1, None)] * 8
    finally:
        threads.stop()
