"""Child processes for process tasks: one task at a time each, requests and replies as bytes of our own format.

A child is a fresh interpreter with a socket to its parent. It imports the module that the parent's registry names for
a task, never one that a message names. When the parent is gone the socket ends, and so does the child.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from asynctasq.core.outcome import ErrorInfo
from asynctasq.errors import ProcessDied, TaskTimeout

_LENGTH = struct.Struct("!I")
_START_LIMIT = 60.0
"""Seconds for a child to import what it needs."""


class Setup(msgspec.Struct, frozen=True):
    """What a child is told first."""

    path: list[str]
    main: str | None
    """File that runs as ``__main__`` here; the child loads it under its importable name."""
    main_name: str | None
    initializers: list[str]
    """``module:function`` to call before anything else."""
    warm: bool
    """Keep one event loop for all async tasks."""


class Request(msgspec.Struct, frozen=True):
    """One attempt."""

    module: str
    task: str
    body: bytes
    attempt: int
    max_attempts: int
    id: str
    queue: str
    correlation_id: str | None
    keep: bool


class Reply(msgspec.Struct, frozen=True):
    """What it came to."""

    result: bytes | None = None
    result_size: int | None = None
    error: ErrorInfo | None = None
    retryable: bool = True
    on_demand_loop: bool = False
    """The task had to make an event loop of its own."""
    problem: str | None = None
    """Something to warn about that did not change the outcome."""


initializers: list[str] = []
"""``module:function`` names that every child calls first: how a framework is set up in it."""


class Child:
    """One child process, used by one thread at a time."""

    def __init__(self, setup: Setup) -> None:
        mine, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "asynctasq.tasks.child", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(p or str(Path.cwd()) for p in setup.path)},
            )
        except BaseException:
            mine.close()
            raise
        finally:
            theirs.close()
        self._socket = mine
        self.pid = self._process.pid
        self.tasks = 0
        try:
            send(mine, msgspec.msgpack.encode(setup))
            mine.settimeout(_START_LIMIT)
            receive(mine)
        except (OSError, EOFError) as exc:
            self.kill()
            raise ProcessDied(f"a task process did not start (exit code {self._process.returncode})") from exc

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def run(self, request: Request, timeout: float | None) -> Reply:
        """Run one attempt. Raises TaskTimeout, after which the child is gone, or ProcessDied."""
        self.tasks += 1
        try:
            self._socket.settimeout(timeout)
            send(self._socket, msgspec.msgpack.encode(request))
            return msgspec.msgpack.decode(receive(self._socket, timeout), type=Reply)
        except TimeoutError:
            self.kill()
            raise TaskTimeout(f"no end within {timeout:g} s") from None
        except (OSError, EOFError):
            self.kill()
            code = self._process.returncode
            reason = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
            raise ProcessDied(f"the task's process {reason} during the task") from None

    def kill(self) -> None:
        """End it at once; again is fine."""
        self._process.kill()
        self._process.wait()
        self._socket.close()

    def hang_up(self) -> None:
        """Close this process's copy of the socket."""
        self._socket.close()

    def interrupt(self) -> None:
        """End it from another thread than the one that waits for it; that one finds out by itself."""
        self._process.kill()

    def stop(self) -> None:
        """End it when it is idle."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
            return
        self._process.kill()
        self._process.wait()


class ProcessPool:
    """Up to ``size`` children. Its calls block: they are made from the worker's threads."""

    def __init__(self, size: int, max_tasks_per_child: int | None, *, warm: bool) -> None:
        self.size = size
        self.max_tasks_per_child = max_tasks_per_child
        self.warm = warm
        self._idle: list[Child] = []
        self._running: set[Child] = set()
        self._free = threading.BoundedSemaphore(size)
        self._lock = threading.Lock()
        self._closed = False

    def start(self) -> None:
        """Start all children now instead of with the first tasks."""
        children = [Child(self._setup()) for _ in range(self.size)]
        with self._lock:
            self._idle += children

    def run(self, request: Request, timeout: float | None, attach: Callable[[Callable[[], None]], None]) -> Reply:
        """Run one attempt in a child, waiting for a free one. ``attach`` is given a call that kills it."""
        with self._free:
            child = self._idle_child() or Child(self._setup())
            under_way = True

            def kill() -> None:
                # Not when it is late: the child may be running another's attempt by then.
                with self._lock:
                    if under_way:
                        child.interrupt()

            with self._lock:
                self._running.add(child)
            try:
                attach(kill)
                reply = child.run(request, timeout)
            except BaseException:
                child.kill()
                raise
            finally:
                with self._lock:
                    under_way = False
                    self._running.discard(child)
            if self._closed or (self.max_tasks_per_child is not None and child.tasks >= self.max_tasks_per_child):
                child.stop()
            else:
                with self._lock:
                    self._idle.append(child)
            return reply

    def _idle_child(self) -> Child | None:
        """One that still lives: those that ended since their last task are nobody's failure."""
        while True:
            with self._lock:
                child = self._idle.pop() if self._idle else None
            if child is None or child.alive:
                return child
            child.kill()

    def pids(self) -> set[int]:
        """Of the children alive."""
        with self._lock:
            return {child.pid for child in (*self._idle, *self._running)}

    def close(self) -> None:
        """Kill what runs, end the rest."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            running = list(self._running)
        for child in running:
            child.interrupt()
        for child in idle:
            child.stop()

    def hang_up(self) -> None:
        """In the child of a fork: close the sockets without a word, lest they outlive the parent's."""
        for child in (*self._idle, *self._running):
            child.hang_up()

    def _setup(self) -> Setup:
        main = sys.modules.get("__main__")
        file = getattr(main, "__file__", None)
        spec = getattr(main, "__spec__", None)
        scripted = file is not None and spec is None
        return Setup(
            path=sys.path,
            main=str(Path(file).resolve()) if scripted and file else None,
            main_name=Path(file).stem if scripted and file else None,
            initializers=initializers,
            warm=self.warm,
        )


def send(sock: socket.socket, data: bytes) -> None:
    """Write one frame: four bytes of length, then the data."""
    sock.sendall(_LENGTH.pack(len(data)) + data)


def receive(sock: socket.socket, timeout: float | None = None) -> bytes:
    """Read one frame, within ``timeout`` seconds for all of it. Raises EOFError when the other side is gone."""
    end = None if timeout is None else time.monotonic() + timeout
    return _exactly(sock, _LENGTH.unpack(_exactly(sock, _LENGTH.size, end))[0], end)


def _exactly(sock: socket.socket, size: int, end: float | None) -> bytes:
    parts: list[bytes] = []
    while size:
        if end is not None:
            sock.settimeout(max(end - time.monotonic(), 0.001))
        part = sock.recv(min(size, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
