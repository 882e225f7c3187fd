"""The child processes of process tasks."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import asynctasq
from asynctasq.errors import ConfigurationError
from asynctasq.tasks.infrastructure import ProcessPoolManager
from scripts.services import birth
from tests.app import App, Ledger, until
from tests.jobs import Doubling, Hooked, LoopOfChild, crunch, die, leave, pid_of_child, unpackable

WARNING = "falling back to on-demand event loop"


def manager() -> ProcessPoolManager:
    return ProcessPoolManager.get_default_manager()


def children() -> set[int]:
    """The processes that this one has started and that live."""
    return {int(pid) for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()}


@pytest.fixture
def app(embedded: App) -> App:
    """Processes have nothing to do with the broker."""
    embedded.configure(keep_completed_tasks=True, process_pool_size=1)
    return embedded


# ---- event loops


@pytest.mark.behaviour(28)
async def test_the_manager_is_one_and_both_arguments_are_optional(app: App) -> None:
    assert ProcessPoolManager.get_default_manager() is manager()
    await manager().initialize()
    assert len(manager().pool().pids()) == 1  # process_pool_size
    await manager().initialize(pool_size=2, max_tasks_per_child=100)
    pool = manager().pool()
    assert len(pool.pids()) == 2
    assert (pool.size, pool.max_tasks_per_child) == (2, 100)
    await until(lambda: children() == pool.pids())  # The first pool is gone.


@pytest.mark.behaviour(28)
async def test_after_initialize_every_child_keeps_a_warm_loop_and_nothing_is_warned(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    await manager().initialize(pool_size=2, max_tasks_per_child=100)
    pids = manager().pool().pids()
    ids = await asynctasq.dispatch_many([LoopOfChild() for _ in range(12)])
    await app.work(12, concurrency=4)
    loops = {await app.result(id) for id in ids}
    assert {pid for pid, _ in loops} <= pids
    assert len(loops) == len({pid for pid, _ in loops})  # One loop in each.
    assert WARNING not in caplog.text


@pytest.mark.behaviour(28)
async def test_without_initialize_it_works_and_warns_once(app: App, caplog: pytest.LogCaptureFixture) -> None:
    ids = await asynctasq.dispatch_many([LoopOfChild() for _ in range(3)])
    await app.work(3)
    assert len({(await app.result(id))[0] for id in ids}) == 1
    assert caplog.text.count(WARNING) == 1


@pytest.mark.behaviour(28)
async def test_sync_process_tasks_warn_of_nothing(app: App, caplog: pytest.LogCaptureFixture) -> None:
    await pid_of_child().dispatch()
    await app.work(1)
    assert WARNING not in caplog.text


@pytest.mark.behaviour(28)
@pytest.mark.parametrize("wrong", [{"pool_size": 0}, {"pool_size": "4"}, {"max_tasks_per_child": -1}])
async def test_wrong_sizes_are_named(app: App, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"{next(iter(wrong))} must be positive"):
        await manager().initialize(**wrong)


# ---- sizes


@pytest.mark.behaviour(29)
@pytest.mark.parametrize("given", ["configuration", "worker"])
async def test_no_more_processes_than_the_pool_s_size(app: App, ledger: Ledger, given: str) -> None:
    app.configure(keep_completed_tasks=True, process_pool_size=2 if given == "configuration" else 5)
    ids = await asynctasq.dispatch_many([crunch(str(ledger), str(n), 0.05) for n in range(8)])
    more = {} if given == "configuration" else {"process_pool_size": 2}
    await app.work(8, concurrency=8, **more)
    assert len({await app.result(id) for id in ids}) == 2
    running = most = 0
    for record in sorted(ledger.records(), key=lambda one: one.at):
        running += 1 if record.what == "start" else -1
        most = max(most, running)
    assert most == 2


@pytest.mark.behaviour(5)
@pytest.mark.behaviour(29)
async def test_without_a_size_there_are_as_many_as_cpus(app: App) -> None:
    app.configure()
    assert manager().pool().size == os.cpu_count()
    assert manager().pool().max_tasks_per_child is None


@pytest.mark.behaviour(5)
@pytest.mark.behaviour(29)
@pytest.mark.parametrize(("limit", "processes"), [(1, 4), (2, 2), (None, 1)])
async def test_a_child_is_replaced_after_so_many_tasks(app: App, limit: int | None, processes: int) -> None:
    app.configure(keep_completed_tasks=True, process_pool_size=1, process_pool_max_tasks_per_child=limit)
    ids = await asynctasq.dispatch_many([pid_of_child() for _ in range(4)])
    await app.work(4)
    pids = [await app.result(id) for id in ids]
    assert len(set(pids)) == processes
    assert len(set(pids) & children()) == (0 if limit == 1 or limit == 2 else 1)


# ---- deaths


@pytest.mark.behaviour(29)
@pytest.mark.parametrize(
    ("how", "reason"),
    [("exit", "exited with code 3"), ("killed", "was ended by SIGKILL"), ("segfault", "was ended by SIGSEGV")],
)
async def test_a_child_that_dies_is_its_own_task_s_failure_and_nobody_else_s(
    app: App, ledger: Ledger, how: str, reason: str
) -> None:
    app.configure(keep_completed_tasks=True, process_pool_size=2)
    others = await asynctasq.dispatch_many([crunch(str(ledger), f"other {n}", 0.05) for n in range(3)])
    dying = await die(str(ledger), "dying", how).max_attempts(2).dispatch()
    others += await asynctasq.dispatch_many([crunch(str(ledger), f"other {n}", 0.05) for n in range(3, 6)])
    await app.work(8, concurrency=4)
    info = await app.info(dying)
    assert info.error is not None
    assert (info.status, info.attempt, info.error.type) == ("dead", 2, "asynctasq.errors.ProcessDied")
    assert reason in info.error.message
    assert [(await app.info(id)).attempt for id in others] == [1] * 6
    assert ledger.counts("end") == {f"other {n}": 1 for n in range(6)}


@pytest.mark.behaviour(29)
async def test_a_child_that_died_while_it_was_idle_is_nobody_s_failure(app: App) -> None:
    await manager().initialize()
    [pid] = manager().pool().pids()
    os.kill(pid, signal.SIGKILL)
    await asyncio.sleep(0.1)
    id = await pid_of_child().dispatch()
    await app.work(1)
    assert await app.result(id) != pid


@pytest.mark.behaviour(29)
async def test_a_process_that_is_called_off_while_it_waits_for_a_child_is_not_started(app: App, ledger: Ledger) -> None:
    names = [f"task {n}" for n in range(3)]
    await asynctasq.dispatch_many([crunch(str(ledger), name, 30) for name in names])
    async with app.working(concurrency=3, shutdown_timeout=0):
        await until(ledger.starts, 20)
    await asyncio.sleep(0.3)
    assert len(ledger.starts()) == 1
    assert await app.counts() == {"pending": 3}


@pytest.mark.behaviour(29)
async def test_a_fork_does_not_touch_its_parent_s_children(app: App, ledger: Ledger) -> None:
    await manager().initialize()
    [pid] = manager().pool().pids()
    child = os.fork()
    if child == 0:
        manager().close()
        os._exit(0)
    await asyncio.to_thread(os.waitpid, child, 0)
    id = await pid_of_child().dispatch()
    await app.work(1)
    assert await app.result(id) == pid


@pytest.mark.behaviour(29)
async def test_sys_exit_in_a_process_task_is_an_ordinary_failure(app: App) -> None:
    id = await leave(3).max_attempts(1).dispatch()
    await pid_of_child().dispatch()
    worker = await app.work(2)
    info = await app.info(id)
    assert info.error is not None
    assert (info.status, info.error.type, info.error.message) == ("dead", "builtins.SystemExit", "3")
    assert worker.completed == 1


@pytest.mark.behaviour(29)
async def test_idle_children_end_with_a_worker_that_was_killed(app: App, ledger: Ledger) -> None:
    await crunch(str(ledger), "one").dispatch()
    worker = app.spawn()
    await until(lambda: ledger.ends("one"), 20, worker)
    child = ledger.starts()[0].pid
    assert birth(child)
    worker.end()
    await until(lambda: not birth(child))


@pytest.mark.behaviour(10)
async def test_hooks_of_a_process_task_are_asked_in_its_process(app: App, ledger: Ledger) -> None:
    id = await Hooked(str(ledger)).max_attempts(2).dispatch()
    await Hooked(str(ledger), retry=False).max_attempts(5).dispatch()
    await app.work(3, concurrency=1)
    asked = [(one.what, one.label) for one in ledger.records()]
    assert sorted(asked) == [("failed", "LookupError")] * 2 + [("should_retry", "LookupError")] * 2
    assert os.getpid() not in {one.pid for one in ledger.records()}
    info = await app.info(id)
    assert info.error is not None
    assert "in execute" in info.error.traceback


@pytest.mark.behaviour(12)
async def test_a_process_task_s_result_that_cannot_travel_is_not_kept_and_not_run_again(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    id = await unpackable().dispatch()
    worker = await app.work(1)
    assert worker.completed == 1
    info = await app.info(id)
    assert (info.status, info.result) == ("completed", None)
    assert "its result is not kept: result is a builtins.object" in caplog.text


@pytest.mark.behaviour(13)
async def test_current_attempt_counts_in_processes_too(app: App) -> None:
    id = await Doubling(1).dispatch()
    await app.work(1)
    assert (await app.result(id))["attempt"] == 1
