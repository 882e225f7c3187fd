"""A world on each broker in turn, and the seed that replays a run."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.drivers.places import Place
from tests.faults.world import World


@pytest.fixture
def seed() -> int:
    """``FAULTS_SEED`` repeats a run."""
    return int(os.environ.get("FAULTS_SEED") or random.randrange(1_000_000))


@pytest.fixture
async def world(alone: None, place: Place, tmp_path: Path, seed: int) -> AsyncIterator[World]:
    async with World(place, tmp_path, seed) as one:
        yield one
        one.report()
