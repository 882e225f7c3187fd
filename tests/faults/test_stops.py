"""SIGTERM: what runs may finish within its limit, what does not is given back, and no attempt is used up."""

from __future__ import annotations

import asyncio
import signal
import time

from tests.faults import tasks
from tests.faults.world import World


async def test_stopped_under_load_a_worker_finishes_what_runs_and_gives_back_the_rest(world: World) -> None:
    workers = await world.working(2)
    calls = world.mixed(450)
    for number in range(3):
        handing_over = asyncio.create_task(world.dispatch(calls[number * 150 : (number + 1) * 150]))
        victim = await world.busy(workers)
        await asyncio.sleep(world.chance.uniform(0, 0.05))
        victim.send(signal.SIGTERM)
        assert await victim.ended(within=5) == 0
        assert not world.held(victim)
        await handing_over
        workers[workers.index(victim)] = world.spawn()
    verdict = await world.verdict(await world.drained())
    print(verdict.line(world.place.name, "SIGTERM", world.seed))
    assert verdict.clean, verdict
    assert verdict.duplicates == 0
    assert {line.attempt for line in world.ran.lines("start")} == {1}


async def test_a_task_longer_than_the_limit_is_given_back_and_starts_elsewhere_with_its_attempt_unused(
    world: World,
) -> None:
    [first] = await world.working(1, "--shutdown-timeout", "0.5")
    await world.dispatch([tasks.nap_once("async", 30.0), tasks.rest_once("sync", 30.0)])
    for label in ("async", "sync"):
        await world.started(label)
    [second] = await world.working(1)
    first.send(signal.SIGTERM)
    limit = time.monotonic() + 0.5
    for label in ("async", "sync"):
        again = await world.started(label, 2, within=5)
        assert again.pid == second.pid
        assert again.at - limit < 2.0
        assert [line.attempt for line in world.starts(label)] == [1, 1]
    assert await first.ended(within=5) == 0
    assert await world.drained() == 0
    assert len(world.ends("async")) == len(world.ends("sync")) == 1


async def test_a_second_signal_ends_the_worker_at_once(world: World) -> None:
    [first] = await world.working(1, "--shutdown-timeout", "60")
    await world.dispatch([tasks.nap_once("long", 30.0)])
    await world.started("long")
    first.send(signal.SIGTERM)
    await asyncio.sleep(1.0)
    assert first.code is None
    first.send(signal.SIGTERM)
    assert await first.ended(within=1.5) == 0
    await world.working(1)
    again = await world.started("long", 2)
    assert again.attempt == 1
    assert await world.drained() == 0
