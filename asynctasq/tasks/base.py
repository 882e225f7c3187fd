"""Tasks as classes, and what all tasks share: options, chaining, dispatch."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Awaitable
from datetime import datetime
from typing import Any, ClassVar, Generic, Self, TypeVar

from asynctasq import _current
from asynctasq.core import registry
from asynctasq.core.registry import Kind
from asynctasq.errors import ConfigurationError
from asynctasq.tasks.options import CHECKS, TaskConfig, check_delay, check_option, check_options

R_co = TypeVar("R_co", covariant=True)

_MISSING: Any = object()


class BaseTask(Generic[R_co]):
    """One call of a task, ready to be dispatched. Chained setters change this call alone."""

    task_name: ClassVar[str]
    kind: ClassVar[Kind]
    source: ClassVar[str]
    module: ClassVar[str]
    config: TaskConfig = TaskConfig()
    """Options. Of the class, but not a ClassVar: ``config: TaskConfig = {...}`` is to pass a type checker."""

    _arguments: tuple[tuple[Any, ...], dict[str, Any]]
    _options: dict[str, Any]
    _delay: float
    _available_at: datetime | None

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        # What the constructor is given is what travels, whatever an own __init__ makes of it.
        self._arguments = (args, kwargs)
        self._options = {}
        self._delay = 0.0
        self._available_at = None
        return self

    async def dispatch(self) -> str:
        """Hand the task over; durable in the broker on return. Returns its id."""
        return (await _current.get().dispatch([self]))[0]

    def dispatch_sync(self) -> str:
        """The same from code that is not async: from any thread, and under a running loop too."""
        return _current.get().dispatch_sync([self])[0]

    def _set(self, name: str, value: Any) -> Self:
        self._options[name] = check_option(name, value)
        return self

    def on_queue(self, name: str) -> Self:
        """Use this queue."""
        return self._set("queue", name)

    def delay(self, seconds: float) -> Self:
        """Start no earlier than this many seconds after the broker took it."""
        problem = check_delay(seconds)
        if problem:
            raise ConfigurationError(f"delay {problem}, got {repr(seconds)[:60]}")
        self._delay, self._available_at = float(seconds), None
        return self

    def at(self, instant: datetime) -> Self:
        """Start no earlier than this aware instant."""
        given: object = instant
        if not isinstance(given, datetime) or given.tzinfo is None:
            raise ConfigurationError(f"at() needs an aware datetime, got {repr(given)[:60]}")
        self._delay, self._available_at = 0.0, instant
        return self

    def retry_after(self, seconds: float) -> Self:
        """Base delay between attempts, in seconds."""
        return self._set("retry_delay", seconds)

    def max_attempts(self, count: int) -> Self:
        """Runs in all, the first included."""
        return self._set("max_attempts", count)

    def timeout(self, seconds: float | None) -> Self:
        """Limit of one attempt in seconds; None for none."""
        return self._set("timeout", seconds)

    def visibility_timeout(self, seconds: float) -> Self:
        """Seconds after which another worker takes over from one that died."""
        return self._set("visibility_timeout", seconds)

    def priority(self, value: int) -> Self:
        """-100 to 100; larger is sooner."""
        return self._set("priority", value)

    def correlation_id(self, text: str | None) -> Self:
        """Travels with the task, to its child tasks and log records."""
        return self._set("correlation_id", text)

    def check_arguments(self) -> None:
        """Raise TypeError when the task cannot be called with these arguments. A class did so when it was made."""
        if not hasattr(self, "task_name"):
            raise TypeError(f"{type(self).__qualname__} has no execute() to run")

    def run(self) -> Any:
        """Call the user's code: a coroutine for async kinds, else the result."""
        raise NotImplementedError

    def should_retry(self, exception: BaseException) -> bool:
        """Asked after each failed attempt that is not the last; False ends the task at once. Yours to override."""
        return True

    def failed(self, exception: BaseException) -> Awaitable[None] | None:
        """Called once, when the task has failed for good. Yours to override, async or not."""
        return None


# A field of this name would hide a method or an attribute of ours.
_RESERVED = frozenset(name for name in dir(BaseTask) if not name.startswith("__")) | {"execute", "current_attempt"}


def _check_field_name(name: str, owner: str) -> None:
    if name.startswith("_") or name in _RESERVED:
        reason = "begins with an underscore" if name.startswith("_") else "is reserved"
        raise ValueError(f"{owner}: the argument name {name!r} {reason}; choose another")


def _fields_of(cls: type[Any], options: set[str]) -> dict[str, Any]:
    """The annotated fields of one class with their defaults."""
    fields = {}
    for name, annotation in inspect.get_annotations(cls).items():
        if "ClassVar" in str(annotation) or name in options or name == "config":
            continue
        _check_field_name(name, cls.__qualname__)
        fields[name] = cls.__dict__.get(name, _MISSING)
        if isinstance(fields[name], dataclasses.Field):
            delattr(cls, name)
    return fields


def _bind_fields(cls: type[ClassTask[Any]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    fields = cls._fields
    if len(args) > len(fields):
        raise TypeError(f"{cls.__qualname__} takes {len(fields)} arguments, {len(args)} were given")
    values = dict(zip(fields, args, strict=False))
    for name, value in kwargs.items():
        if name not in fields:
            raise TypeError(f"{cls.__qualname__} has no field {name!r}")
        if name in values:
            raise TypeError(f"{cls.__qualname__} got two values for {name!r}")
        values[name] = value
    for name in fields.keys() - values.keys():
        values[name] = _default(fields[name], cls, name)
    return values


def _default(default: Any, cls: type[Any], name: str) -> Any:
    if isinstance(default, dataclasses.Field):
        if default.default_factory is not dataclasses.MISSING:
            return default.default_factory()
        default = _MISSING if default.default is dataclasses.MISSING else default.default
    if default is _MISSING:
        raise TypeError(f"{cls.__qualname__} misses a value for its field {name!r}")
    # A list as default is each call's own.
    return copy.deepcopy(default) if isinstance(default, list | dict | set) else default


def _check_execute(cls: type[Any]) -> None:
    """Raise TypeError for an ``execute`` whose result would not be the work: found here, not by its silence."""
    execute = inspect.unwrap(cls.execute)
    if inspect.isgeneratorfunction(execute) or inspect.isasyncgenfunction(execute):
        raise TypeError(f"{cls.__qualname__}.execute yields; a task returns its result")
    is_async = inspect.iscoroutinefunction(execute)
    if is_async != cls.kind.startswith("async"):
        write = "async def" if not is_async else "def"
        other = "a Sync class" if not is_async else "an Async class"
        raise TypeError(f"{cls.__qualname__}: write '{write} execute' here, or make it {other}")


class ClassTask(BaseTask[R_co]):
    """A task written as a class: subclass one of the four kinds and write ``execute``.

    Annotated fields become constructor arguments, as in a dataclass; without any, every keyword argument becomes an
    attribute. An ``__init__`` of your own works too.
    """

    current_attempt: int = 0
    """In a running task: which run this is, from 1."""

    _fields: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls, *, name: str | None = None, aliases: tuple[str, ...] = (), **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        options = {n: cls.__dict__[n] for n in CHECKS if n in cls.__dict__ and not callable(cls.__dict__[n])}
        for option in options:
            # So that the chaining method of the same name is there again.
            delattr(cls, option)
        own = cls.__dict__.get("config", {})
        inherited = next((base.config for base in cls.__mro__[1:] if issubclass(base, BaseTask)), TaskConfig())
        cls.config = TaskConfig(
            **{**inherited, **check_options(own, cls.__qualname__), **check_options(options, cls.__qualname__)}  # type: ignore[typeddict-item]
        )
        cls._fields = {**cls._fields, **_fields_of(cls, set(options))}
        if getattr(cls, "execute", None) is None:
            return
        _check_execute(cls)
        cls.task_name = name or registry.stable_name(cls)
        cls.source = registry.source_of(cls)
        cls.module = registry.importable_module(cls)
        registry.register(cls, aliases=aliases)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for name in kwargs:
            _check_field_name(name, type(self).__qualname__)
        if self._fields:
            values = _bind_fields(type(self), args, kwargs)
        elif args:
            raise TypeError(f"{type(self).__qualname__} has no annotated fields and takes keyword arguments only")
        else:
            values = kwargs
        for name, value in values.items():
            setattr(self, name, value)

    @classmethod
    def build(cls, args: list[Any], kwargs: dict[str, Any], attempt: int) -> ClassTask[Any]:
        """The call a message stands for."""
        self = cls(*args, **kwargs)
        self.current_attempt = attempt
        return self

    def run(self) -> Any:
        return self.execute()  # type: ignore[attr-defined]


class AsyncTask(ClassTask[R_co]):
    """Runs on the worker's event loop: ``async def execute(self)``."""

    kind: ClassVar[Kind] = "async"


class SyncTask(ClassTask[R_co]):
    """Runs in a thread of the worker: ``def execute(self)``."""

    kind: ClassVar[Kind] = "sync"


class AsyncProcessTask(ClassTask[R_co]):
    """Runs on an event loop in a child process: ``async def execute(self)``."""

    kind: ClassVar[Kind] = "async_process"


class SyncProcessTask(ClassTask[R_co]):
    """Runs in a child process, for work that keeps a CPU busy: ``def execute(self)``."""

    kind: ClassVar[Kind] = "sync_process"
