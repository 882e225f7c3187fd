"""kill -9 of workers in mid-task."""

from __future__ import annotations

import pytest

from tests.faults.world import LEASE, RECOVERY, World, kills


async def test_twenty_kills_in_2000_tasks_lose_nothing_and_repeat_only_what_was_in_flight(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.configure(default_max_attempts=20)
    verdict = await kills(world, 20, 2000)
    with capsys.disabled():
        print(f"\n{verdict.line(world.place.name, 'kill-9', world.seed)}")
    assert verdict.kills == 20
    assert verdict.clean, verdict
    assert verdict.max_recovery <= LEASE + RECOVERY
