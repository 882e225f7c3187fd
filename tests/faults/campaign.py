"""The same faults for longer than the tests take: kill -9 of workers, and a sweep over every step of a worker.

``python -m tests.faults.campaign --driver redis --kills 200 --tasks 100000 --seed 7`` prints one line for each fault;
0 if nothing was lost, repeated without a kill, or stuck. The seed repeats a run as far as the machine lets it.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from pathlib import Path

import asynctasq
from tests.drivers.places import PLACES, Place
from tests.faults.ledger import Verdict
from tests.faults.world import World, crowd, kills, sweep

STEPS = 60
"""More than a worker takes for the tasks of a sweep."""


async def campaign(place: Place, arguments: argparse.Namespace, folder: Path) -> bool:
    """Whether all went well."""
    clean = True
    for fault in arguments.faults:
        place.reset()
        journals = folder / fault
        journals.mkdir()
        async with World(place, journals, arguments.seed, default_max_attempts=20) as world:
            verdict = await FAULTS[fault](world, arguments)
            print(verdict.line(place.name, fault, arguments.seed), flush=True)
            if not verdict.clean:
                world.report()
                clean = False
    return clean


async def _kills(world: World, arguments: argparse.Namespace) -> Verdict:
    return await kills(world, arguments.kills, arguments.tasks)


async def _sweep(world: World, arguments: argparse.Namespace) -> Verdict:
    return await sweep(world, range(1, STEPS))


async def _crowd(world: World, arguments: argparse.Namespace) -> Verdict:
    return await crowd(world, 8, arguments.tasks)


FAULTS = {"kills": _kills, "sweep": _sweep, "crowd": _crowd}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.campaign", description=__doc__)
    parser.add_argument("--driver", choices=[*PLACES, "all"], default="all")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=[*FAULTS])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    arguments = parser.parse_args()
    clean = True
    for driver in PLACES if arguments.driver == "all" else [arguments.driver]:
        place = PLACES[driver]()
        with tempfile.TemporaryDirectory(prefix="asynctasq-faults-") as folder:
            try:
                clean &= asyncio.run(campaign(place, arguments, Path(folder)))
            finally:
                asynctasq.shutdown()
                place.close()
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
