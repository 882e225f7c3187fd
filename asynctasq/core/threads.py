"""The threads that sync tasks run in."""

from __future__ import annotations

import asyncio
import collections
import ctypes
import queue
import threading
from collections.abc import Callable
from typing import Any


class Interrupt(BaseException):
    """Raised inside a thread's task from outside; no ``except Exception`` of a task stops it."""


class ThreadRun:
    """One call on its way through a thread."""

    def __init__(self, call: Callable[[], Any], future: asyncio.Future[tuple[Any, BaseException | None]]) -> None:
        self.call = call
        self.future = future
        """Set to (result, None) or (None, error)."""
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._finished = False
        self._interrupted = False

    def interrupt(self) -> None:
        """Raise Interrupt in the call at its next step of Python code. A call that waits in C ends its wait first."""
        with self._lock:
            self._interrupted = True
            if self._thread is not None and not self._finished:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), ctypes.py_object(Interrupt))

    def run(self) -> tuple[Any, BaseException | None]:
        try:
            with self._lock:
                if self._interrupted:
                    return None, Interrupt()
                self._thread = threading.get_ident()
            try:
                return self.call(), None
            finally:
                # An interrupt holds this lock: once past it, none can arrive any more.
                with self._lock:
                    self._finished = True
        except BaseException as exc:  # noqa: BLE001 - handed to whoever waits for it
            return None, exc


class Threads:
    """Up to ``size`` threads, made when needed. They are daemons: a call that never ends does not hold the exit.

    Results go back to the loop with one wake-up for all that ended meanwhile.
    """

    def __init__(self, size: int, loop: asyncio.AbstractEventLoop) -> None:
        self._size = size
        self._loop = loop
        self._waiting: queue.SimpleQueue[ThreadRun | None] = queue.SimpleQueue()
        self._ended: collections.deque[tuple[ThreadRun, Any, BaseException | None]] = collections.deque()
        self._ending = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._busy = 0

    def submit(self, call: Callable[[], Any]) -> ThreadRun:
        """Run ``call`` in a thread; its outcome appears in the returned run's future."""
        run = ThreadRun(call, self._loop.create_future())
        self._busy += 1
        if self._busy > len(self._threads) < self._size:
            thread = threading.Thread(target=self._work, name=f"asynctasq-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._waiting.put(run)
        return run

    def stop(self) -> None:
        """Let idle threads end."""
        for _ in self._threads:
            self._waiting.put(None)

    def _work(self) -> None:
        while (run := self._waiting.get()) is not None:
            result, error = run.run()
            # In one step: of two that end at once, each would else see the other's and neither wake the loop.
            with self._ending:
                self._ended.append((run, result, error))
                first = len(self._ended) == 1
            del run, result, error
            if first:
                try:
                    self._loop.call_soon_threadsafe(self._deliver)
                except RuntimeError:
                    # The loop has ended: nobody waits for this any more.
                    return

    def _deliver(self) -> None:
        while self._ended:
            # Looked at first and taken off last: a thread that ends meanwhile sees whether a wake-up is on its way.
            run, result, error = self._ended[0]
            self._busy -= 1
            if not run.future.done():
                # As a pair: a future refuses StopIteration, and the loop would not survive a SystemExit.
                run.future.set_result((result, error))
            self._ended.popleft()
