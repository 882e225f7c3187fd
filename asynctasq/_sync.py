"""The background loop of a process: for callers that have none, and for drivers that must outlive a caller's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None


def loop() -> asyncio.AbstractEventLoop:
    """The background loop, started if it is not running."""
    global _loop, _thread
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            _thread = threading.Thread(target=_loop.run_forever, name="asynctasq-background", daemon=True)
            _thread.start()
        return _loop


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, run on the background loop; the calling thread waits. A running loop may be under it."""
    if threading.current_thread() is _thread:
        work.close()
        raise RuntimeError("the background loop cannot wait for itself: await the async call instead")
    return asyncio.run_coroutine_threadsafe(work, loop()).result()


async def wrap(work: Coroutine[Any, Any, T]) -> T:
    """The same from a coroutine on any loop."""
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop()))


def stop() -> None:
    """End the loop and its thread; the next call starts another."""
    global _loop, _thread
    with _lock:
        ended, thread = _loop, _thread
        _loop = _thread = None
    if ended is not None and thread is not None:
        ended.call_soon_threadsafe(ended.stop)
        thread.join(5)
        if not thread.is_alive():
            ended.close()


def forget() -> None:
    """In the child of a fork, where the thread does not exist though the loop says it runs."""
    global _loop, _thread, _lock
    _lock = threading.Lock()
    _abandoned.append(_loop)
    _loop = _thread = None


_abandoned: list[Any] = []
"""Kept from being collected: to close a loop or a connection inherited from the parent would disturb the parent."""
