"""Servers of our own, which may be killed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.drivers.places import PLACES, Place
from tests.faults.process import ROOT

PATIENCE = 10.0
"""Seconds after a broker is back by which it is used again."""


DRIVERS = {"mariadb": "mysql"}
"""Of servers that are not named as their driver is."""


def services() -> Any:
    """The module that starts servers; a script, and in no package."""
    if "services" not in sys.modules:
        spec = importlib.util.spec_from_file_location("services", ROOT / "scripts" / "services.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules["services"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["services"]


def create(driver: str, directory: Path) -> Any:
    """A server for that driver, not yet started."""
    module = services()
    if driver == "postgres":
        return module.Postgres(directory)
    if driver == "mysql":
        return module.MariaDB(directory)

    class Redis(module.Redis):  # type: ignore[misc, name-defined]
        def command(self) -> list[str | Path]:
            # What is acknowledged must be on the disk: by default Redis writes and syncs it up to two seconds later.
            return [*super().command(), "--appendfsync", "always"]

    return Redis(directory)


@contextmanager
def place_on(server: Any) -> Iterator[Place]:
    """A place on that server, which runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(server.variable, server.url)
        place = PLACES[DRIVERS.get(server.name, server.name)]()
    try:
        yield place
    finally:
        # It may have been killed meanwhile, and what is on it goes with it anyway.
        with suppress(Exception):
            place.close()
