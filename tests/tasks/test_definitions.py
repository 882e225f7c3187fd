"""What cannot be a task is refused where it is written, not by its silence in a worker."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from asynctasq import AsyncTask, SyncProcessTask, SyncTask, task


def test_a_function_that_yields_is_no_task() -> None:
    def counts() -> Iterator[int]:
        yield 1

    async def streams() -> AsyncIterator[int]:
        yield 1

    for function in (counts, streams):
        with pytest.raises(TypeError, match="yields"):
            task(function)


def test_a_sync_class_with_an_async_execute_is_refused_and_the_other_way_round() -> None:
    for base in (SyncTask, SyncProcessTask):
        with pytest.raises(TypeError, match="write 'def execute'"):

            class Wrong(base):  # type: ignore[misc, valid-type]
                async def execute(self) -> None: ...

    with pytest.raises(TypeError, match="write 'async def execute'"):

        class AlsoWrong(AsyncTask[None]):
            def execute(self) -> None: ...


def test_a_decorated_async_execute_counts_as_async() -> None:
    def traced(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    class Fine(AsyncTask[int]):
        @traced
        async def execute(self) -> int:
            return 1

    assert Fine.kind == "async"


def test_a_class_without_execute_says_so_at_dispatch() -> None:
    class Unfinished(SyncTask[None]):
        x: int = 1

    with pytest.raises(TypeError, match=r"Unfinished has no execute\(\)"):
        Unfinished().check_arguments()
