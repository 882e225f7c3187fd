"""A worker is killed at every kind of step it takes: before and after each command or statement."""

from __future__ import annotations

from tests.faults.world import World, sweep

LAST = 45
"""A step near the end of what a worker does here, on the driver where that takes fewest."""


async def test_killed_at_any_step_a_worker_loses_nothing_and_no_attempt_is_run_twice(world: World) -> None:
    points = sorted(world.chance.sample(range(1, LAST), 6))
    verdict = await sweep(world, points)
    print(verdict.line(world.place.name, f"crash points {points}", world.seed))
    assert verdict.clean, verdict
