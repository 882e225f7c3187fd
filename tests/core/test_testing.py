"""The helpers for tests of projects that dispatch tasks."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

import asynctasq
from asynctasq import testing
from asynctasq.core.outcome import Dead
from tests.app import App

pytestmark = pytest.mark.usefixtures("embedded")


@asynctasq.task
def where() -> tuple[int, bool]:
    """The thread it runs in, and whether an event loop runs there: Django refuses its ORM under one."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return threading.get_ident(), False
    return threading.get_ident(), True


@asynctasq.task
def parent() -> tuple[int, bool]:
    with testing.inline() as ran:
        result: tuple[int, bool] = ran.result(where().dispatch_sync())
    return result


@asynctasq.task(timeout=0.1, max_attempts=1)
def slow() -> None:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        time.sleep(0.01)


@pytest.mark.parametrize("task", [where, parent])
async def test_inline_from_sync_code_a_sync_task_runs_in_its_thread_and_under_no_loop(
    embedded: App, task: asynctasq.TaskFunction[[], tuple[int, bool]]
) -> None:
    def dispatch() -> tuple[int, bool]:
        with testing.inline() as ran:
            thread, loop = ran.result(task().dispatch_sync())
        return thread == threading.get_ident(), loop

    assert await asyncio.to_thread(dispatch) == (True, False)


@pytest.mark.parametrize("task", [where, parent])
async def test_inline_from_async_code_a_sync_task_runs_under_no_loop_either(
    embedded: App, task: asynctasq.TaskFunction[[], tuple[int, bool]]
) -> None:
    with testing.inline() as ran:
        awaited, called = await task().dispatch(), task().dispatch_sync()
    assert not ran.result(awaited)[1]
    assert not ran.result(called)[1]


async def test_inline_a_time_out_ends_a_sync_task(embedded: App) -> None:
    with testing.inline() as ran:
        id = await slow().dispatch()
    outcome = ran.outcomes[id]
    assert isinstance(outcome, Dead)
    assert outcome.error.type.endswith("TaskTimeout")
