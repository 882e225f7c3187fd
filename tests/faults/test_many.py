"""Many at one moment, and from both sides of a fork."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import asynctasq
from tests.faults import tasks
from tests.faults.process import ROOT
from tests.faults.world import World, crowd

FORK = """
import os, sys
import asynctasq
from tests.faults import tasks

asynctasq.init()
asynctasq.dispatch_many_sync([tasks.nap("before", 0.0)])
child = os.fork()
who = "parent" if child else "child"
for number in range(0, 1000, 10):
    asynctasq.dispatch_many_sync([tasks.nap(f"{who}{n}", 0.0) for n in range(number, number + 10)])
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


async def test_after_a_fork_parent_and_child_both_enqueue_a_thousand_and_two_thousand_arrive(world: World) -> None:
    script = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK]
    await asyncio.to_thread(
        subprocess.run, script, env=world.environment(), cwd=ROOT, check=True, timeout=60, stdin=subprocess.DEVNULL
    )
    await world.working(1)
    assert await world.drained() == 0
    expected = ["before", *(f"{who}{number}" for who in ("parent", "child") for number in range(1000))]
    assert sorted(line.label for line in world.ran.lines("end")) == sorted(expected)


async def test_ten_thousand_due_in_one_second_start_once_each_and_within_ten_seconds(world: World) -> None:
    count = 2_000 if world.place.name == "sqlite" else 10_000
    world.configure(default_visibility_timeout=20)
    workers = await world.working(4, "--concurrency", "20")
    due = datetime.now(UTC) + timedelta(seconds=3)
    for start in range(0, count, 1000):
        calls = [tasks.nap(f"t{number}", 0.0).at(due) for number in range(start, min(start + 1000, count))]
        await asynctasq.dispatch_many(calls)
    assert not world.ran.lines("start")
    assert await world.drained(within=30) == 0
    lines = world.ran.lines("start")
    assert sorted(line.label for line in lines) == sorted(f"t{number}" for number in range(count))
    first, last = min(line.at for line in lines), max(line.at for line in lines)
    print(f"{world.place.name} due-at-once {count} started within {last - first:.2f} s by {len(workers)} workers")
    assert last - first <= 10


async def test_eight_workers_at_one_queue_run_each_task_once_and_get_in_nobody_s_way(world: World) -> None:
    """``campaign --faults crowd`` is the same with more of them."""
    verdict = await crowd(world, 8, 2_000 if world.place.name == "sqlite" else 10_000)
    print(verdict.line(world.place.name, "crowd", world.seed))
    assert verdict.clean, verdict
    assert verdict.duplicates == 0
