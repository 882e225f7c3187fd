"""A worker is killed at every kind of step it takes: before and after each command or statement."""

from __future__ import annotations

from tests.faults.world import World, sweep


async def test_killed_at_any_step_a_worker_loses_nothing_and_no_attempt_is_run_twice(world: World) -> None:
    last = {"sqlite": 45, "postgres": 45, "redis": 45}[world.place.name]
    points = sorted(world.chance.sample(range(1, last), 10))
    verdict = await sweep(world, points)
    print(verdict.line(world.place.name, f"crash points {points}", world.seed))
    assert verdict.clean, verdict
