"""Tasks as functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, overload

from asynctasq.core import registry
from asynctasq.core.message import RetryStrategy
from asynctasq.core.registry import Kind
from asynctasq.tasks.base import BaseTask
from asynctasq.tasks.options import TaskConfig, check_options

if TYPE_CHECKING:
    from asynctasq.drivers.base import Driver

P = ParamSpec("P")
R = TypeVar("R")


class TaskFunction(Generic[P, R]):
    """What ``@task`` makes of a function. Calling it builds a task; ``.func`` is the function itself."""

    def __init__(self, func: Callable[P, Any], config: TaskConfig, process: bool, name: str | None) -> None:
        self.func = func
        self.config = config
        is_async = inspect.iscoroutinefunction(func)
        self.kind: Kind = (
            ("async_process" if is_async else "sync_process") if process else "async" if is_async else "sync"
        )
        self.task_name = name or registry.stable_name(func)
        self.source = registry.source_of(func)
        self.module = registry.importable_module(func)
        self.signature = inspect.signature(func)
        self.__wrapped__ = func
        self.__name__ = func.__name__
        self.__qualname__ = func.__qualname__
        self.__module__ = func.__module__
        self.__doc__ = func.__doc__

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> FunctionTask[R]:
        return FunctionTask(self, args, kwargs)

    def build(self, args: list[Any], kwargs: dict[str, Any], attempt: int) -> FunctionTask[R]:
        """The call a message stands for."""
        return FunctionTask(self, tuple(args), kwargs)

    def __repr__(self) -> str:
        return f"<task {self.task_name}>"


class FunctionTask(BaseTask[R]):
    """One call of a task function."""

    def __new__(cls, *args: Any, **kwargs: Any) -> FunctionTask[R]:
        return super().__new__(cls)

    def __init__(self, function: TaskFunction[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.function = function
        self._arguments = (args, kwargs)
        # Per call, what a class has per class.
        self.task_name = function.task_name  # type: ignore[misc]
        self.kind = function.kind  # type: ignore[misc]
        self.config = function.config

    def check_arguments(self) -> None:
        args, kwargs = self._arguments
        try:
            self.function.signature.bind(*args, **kwargs)
        except TypeError as exc:
            raise TypeError(f"{self.function.task_name}: {exc}") from None

    def run(self) -> Any:
        args, kwargs = self._arguments
        return self.function.func(*args, **kwargs)


class TaskDecorator(Protocol):
    """What ``@task(...)`` returns."""

    @overload
    def __call__(self, func: Callable[P, Coroutine[Any, Any, R]], /) -> TaskFunction[P, R]: ...

    @overload
    def __call__(self, func: Callable[P, R], /) -> TaskFunction[P, R]: ...


@overload
def task(func: Callable[P, Coroutine[Any, Any, R]], /) -> TaskFunction[P, R]: ...


@overload
def task(func: Callable[P, R], /) -> TaskFunction[P, R]: ...


@overload
def task(
    *,
    queue: str = ...,
    max_attempts: int = ...,
    retry_delay: float = ...,
    retry_strategy: RetryStrategy = ...,
    timeout: float | None = ...,
    visibility_timeout: float = ...,
    driver: str | Driver | None = ...,
    process: bool = ...,
    correlation_id: str | None = ...,
    priority: int = ...,
    name: str | None = ...,
    aliases: tuple[str, ...] = ...,
) -> TaskDecorator: ...


def task(
    func: Callable[..., Any] | None = None,
    /,
    *,
    process: bool = False,
    name: str | None = None,
    aliases: tuple[str, ...] = (),
    **options: Any,
) -> Any:
    """Make a task of a function, sync or async.

    Options not given come from the configuration at dispatch. ``process`` runs it in a child process; ``name`` is
    what travels in messages (``module.qualname`` by default) and ``aliases`` are names it had before.
    """

    def decorate(func: Callable[..., Any]) -> TaskFunction[..., Any]:
        if not inspect.isroutine(func):
            raise TypeError(f"@task decorates functions, not {type(func).__name__}")
        if inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
            raise TypeError(f"{func.__qualname__} yields; a task returns its result")
        config = TaskConfig(**check_options(options, func.__qualname__))  # type: ignore[typeddict-item]
        made = TaskFunction[Any, Any](func, config, process, name)
        registry.register(made, aliases=aliases)
        return made

    return decorate if func is None else decorate(func)
