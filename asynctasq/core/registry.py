"""Tasks by name. A worker runs what is in here and nothing else: nothing is imported because a message says so."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any, Literal, Protocol

from asynctasq.errors import DuplicateTask, UnknownTask

Kind = Literal["async", "sync", "async_process", "sync_process"]


class Runnable(Protocol):
    """What the registry knows of a task class: enough to rebuild one from a message and run it."""

    task_name: str
    kind: Kind
    source: str
    """Where it is written, to tell a second task of the same name from the same one imported again."""
    module: str
    """The module a child process imports to have it too."""

    def build(self, args: list[Any], kwargs: dict[str, Any], attempt: int) -> Any:
        """The task that a message with these arguments stands for."""


_tasks: dict[str, Runnable] = {}


def register(task: Runnable, *, aliases: tuple[str, ...] = ()) -> None:
    """Make ``task`` known under its name and aliases.

    Raises DuplicateTask when another task has one of them. The same one again, from a reloaded module, replaces it.
    """
    for name in (task.task_name, *aliases):
        known = _tasks.get(name)
        if known is not None and known.source != task.source:
            raise DuplicateTask(
                f"two tasks are named {name!r}: {known.source} and {task.source}; give one of them another name="
            )
        _tasks[name] = task


def get(name: str) -> Runnable:
    """The task of that name. Raises UnknownTask."""
    try:
        return _tasks[name]
    except KeyError:
        raise UnknownTask(f"no task {name[:255]!r} is registered in this process") from None


def names() -> list[str]:
    """Every registered name, sorted."""
    return sorted(_tasks)


def stable_name(obj: object) -> str:
    """``module.qualname`` of a function or class. A script run as ``__main__`` counts under its module's name,
    so that what it dispatches is found by a worker that imports it."""
    return f"{importable_module(obj)}.{_qualname(obj)}"


def importable_module(obj: object) -> str:
    """The name under which another process imports the module of ``obj``."""
    name = str(getattr(obj, "__module__", None) or "__main__")
    if name != "__main__":
        return name
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name).removesuffix(".__main__")
    file = getattr(main, "__file__", None)
    return Path(file).stem if file else name


def source_of(obj: object) -> str:
    """Module, qualified name and, for a function, file and line: the same after a reload of an unchanged place."""
    code = getattr(inspect.unwrap(obj) if callable(obj) else obj, "__code__", None)
    place = f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""
    return f"{importable_module(obj)}.{_qualname(obj)}{place}"


def _qualname(obj: object) -> str:
    return str(getattr(obj, "__qualname__", None) or type(obj).__qualname__)
