"""The process pool that process tasks share."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from typing import ClassVar

from asynctasq.config import Config
from asynctasq.errors import ConfigurationError
from asynctasq.tasks.process import ProcessPool


class ProcessPoolManager:
    """Owns the pool of child processes of this process.

    ``initialize`` starts it with an event loop kept warm in every child. Without it the pool is made with the first
    process task, and each async one makes a loop of its own, which a warning says.
    """

    _default: ClassVar[ProcessPoolManager | None] = None

    def __init__(self) -> None:
        self._pool: ProcessPool | None = None
        self._parents: ProcessPool | None = None
        self._lock = threading.Lock()

    @classmethod
    def get_default_manager(cls) -> ProcessPoolManager:
        """The one that workers of this process use."""
        if cls._default is None:
            cls._default = cls()
            atexit.register(cls._default.close)
        return cls._default

    async def initialize(self, pool_size: int | None = None, max_tasks_per_child: int | None = None) -> None:
        """Start the children with warm event loops; from then on, whichever loop runs, they are used.

        None takes ``process_pool_size`` (itself None: the number of CPUs) and ``process_pool_max_tasks_per_child``
        of the configuration. An earlier pool is replaced.
        """
        pool = self._make(pool_size, max_tasks_per_child, warm=True)
        await asyncio.to_thread(pool.start)
        with self._lock:
            replaced, self._pool = self._pool, pool
        if replaced is not None:
            await asyncio.to_thread(replaced.close)

    def pool(self, pool_size: int | None = None, max_tasks_per_child: int | None = None) -> ProcessPool:
        """The pool, made with these sizes if there is none yet."""
        with self._lock:
            if self._pool is None:
                self._pool = self._make(pool_size, max_tasks_per_child, warm=False)
            return self._pool

    def close(self) -> None:
        """End all children; the next process task starts new ones."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def forget(self) -> None:
        """In the child of a fork: the pool's children are the parent's."""
        self._lock = threading.Lock()
        self._parents, self._pool = self._pool, None
        if self._parents is not None:
            self._parents.hang_up()

    @staticmethod
    def _make(pool_size: int | None, max_tasks_per_child: int | None, *, warm: bool) -> ProcessPool:
        config = Config.get()
        size = pool_size if pool_size is not None else config.process_pool_size
        limit = max_tasks_per_child if max_tasks_per_child is not None else config.process_pool_max_tasks_per_child
        sizes: dict[str, object] = {"pool_size": size, "max_tasks_per_child": limit}
        for name, value in sizes.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigurationError(f"{name} must be positive, got {value!r}")
        return ProcessPool(size or os.cpu_count() or 1, limit, warm=warm)


def _after_fork() -> None:
    if ProcessPoolManager._default is not None:
        ProcessPoolManager._default.forget()


os.register_at_fork(after_in_child=_after_fork)
