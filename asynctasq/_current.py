"""What ``init()`` built, as seen from below: tasks hand themselves over through here without importing it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from asynctasq.errors import NotInitialized

if TYPE_CHECKING:
    from asynctasq.tasks.base import BaseTask


class Dispatching(Protocol):
    """What a task needs of the runtime."""

    async def dispatch(self, tasks: Sequence[BaseTask[Any]]) -> list[str]: ...

    def dispatch_sync(self, tasks: Sequence[BaseTask[Any]]) -> list[str]: ...


_runtime: Dispatching | None = None


def get() -> Dispatching:
    """The runtime in force. Raises NotInitialized before ``asynctasq.init()``."""
    if _runtime is None:
        raise NotInitialized("call asynctasq.init({...}) before dispatching tasks")
    return _runtime


def set_runtime(runtime: Dispatching | None) -> None:
    """Called by ``init()`` and ``shutdown()`` alone."""
    global _runtime
    _runtime = runtime
