"""A lease lives as long as its worker does, however long the task; when it is over, its holder has no say."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

from tests.drivers.places import Place
from tests.faults import tasks
from tests.faults.process import until
from tests.faults.world import LEASE, RECOVERY, World


async def test_a_task_of_five_leases_runs_once_whether_it_sleeps_waits_in_a_thread_or_blocks_the_loop(
    world: World,
) -> None:
    lease = 0.6
    world.configure(default_visibility_timeout=lease)
    workers = await world.working(2)
    calls = [tasks.nap("async", 5 * lease), tasks.rest("sync", 5 * lease), tasks.block("blocking", 5 * lease)]
    await world.dispatch(calls)
    assert await world.drained() == 0
    assert (await world.verdict()).clean
    for label in ("async", "sync", "blocking"):
        [start], [end] = world.starts(label), world.ends(label)
        assert end.at - start.at >= 5 * lease
    [blocked] = [worker for worker in workers if "event loop has been blocked" in worker.output]
    assert "tests.faults.tasks.block" in blocked.output


async def test_an_idle_time_of_many_leases_is_not_taken_for_a_blocked_loop(
    alone: None, places: Callable[[str], Place], tmp_path: Path
) -> None:
    lease = 0.3
    place = places("sqlite")
    place.reset()
    async with World(place, tmp_path, default_visibility_timeout=lease) as world:
        [worker] = await world.working(1)
        for label in ("before", "after"):
            await world.dispatch([tasks.nap(label, 2 * lease)])
            assert await world.drained() == 0
            await asyncio.sleep(4 * lease)
        assert "event loop has been blocked" not in worker.output


async def test_a_frozen_worker_loses_its_task_to_another_and_its_say_with_it(world: World) -> None:
    [frozen] = await world.working(1)
    await world.dispatch([tasks.nap("slow", 1.0), tasks.rest("asleep", 1.0)])
    await world.started("slow")
    await world.started("asleep")
    frozen.send(signal.SIGSTOP)
    world.ran.write("freeze", "worker", pid=frozen.pid)
    stopped = world.ran.lines("freeze")[0].at
    [other] = await world.working(1)
    for label in ("slow", "asleep"):
        again = await world.started(label, 2, within=2 * LEASE + RECOVERY)
        assert again.pid == other.pid
        # A claim of the frozen worker that waits in the broker may take one message more.
        assert again.attempt == 2 or world.place.name == "redis"
        assert again.at - stopped < 2 * LEASE + RECOVERY
    assert await world.drained(within=3 * LEASE + 5) == 0
    frozen.send(signal.SIGCONT)
    await until(lambda: frozen.output.count("lease was lost") >= 2, 5, "refusal of what the frozen worker had")
    assert await world.left() == 0
    # More than one worker does before the other has looked: on MySQL an idle one looks every 1.7 s at the latest.
    await world.dispatch([tasks.nap(f"next{number}", 0.6) for number in range(40)])
    assert await world.drained() == 0
    assert {line.pid for line in world.ran.lines("start") if line.label.startswith("next")} == {frozen.pid, other.pid}
    verdict = await world.verdict(released=True)
    assert verdict.lost == verdict.overlap == 0


async def test_a_task_that_kills_its_worker_every_time_starts_max_attempts_times_and_takes_nobody_with_it(
    world: World,
) -> None:
    workers = await world.working(2, "--concurrency", "4")
    innocents = [tasks.nap(f"innocent{number}", 0.02) for number in range(100)]
    await world.dispatch([*innocents[:50], tasks.poison("poison", 0.01), *innocents[50:]])
    for _ in range(3):
        await until(lambda: any(worker.code is not None for worker in workers), 15, "the end of a worker")
        [gone] = [worker for worker in workers if worker.code is not None]
        assert gone.code == -signal.SIGKILL
        [workers[workers.index(gone)]] = await world.working(1, "--concurrency", "4")
    assert await world.drained() == 0
    assert [line.attempt for line in world.starts("poison")] == [1, 2, 3]
    [dead] = await world.dead()
    assert dead.error is not None
    assert (dead.attempt, dead.error.type) == (3, "asynctasq.errors.WorkerLost")
    assert {line.label for line in world.ran.lines("end")} == {f"innocent{number}" for number in range(100)}
    verdict = await world.verdict()
    assert verdict.clean, verdict
    assert all(worker.code is None for worker in workers)
