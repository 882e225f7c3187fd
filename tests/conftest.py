"""What all tests share: a place on each broker, and the core by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

import asynctasq
from asynctasq import _current, _runtime, drivers
from asynctasq.config import Config
from asynctasq.core import context, registry
from asynctasq.core.dispatcher import Dispatcher
from asynctasq.tasks import process
from asynctasq.tasks.infrastructure import ProcessPoolManager
from tests.app import App, Ledger
from tests.drivers.places import PLACES, Place


@pytest.fixture(scope="session")
def places() -> Iterator[Callable[[str], Place]]:
    """The place of each driver, made when it is first asked for. A service that is missing is a failure."""
    made: dict[str, Place] = {}

    def place(name: str) -> Place:
        if name not in made:
            made[name] = PLACES[name]()
        return made[name]

    yield place
    for one in made.values():
        one.close()


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, places: Callable[[str], Place]) -> Place:
    """An empty place on each driver's service in turn."""
    one = places(request.param)
    one.reset()
    return one


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The core by itself: what a framework has hooked into it is set aside, and nothing is configured."""
    if _runtime._runtime is not None:
        _runtime._runtime.close()
    monkeypatch.setattr(_runtime, "_runtime", None)
    monkeypatch.setattr(_runtime, "_dispatcher_class", Dispatcher)
    monkeypatch.setattr(_current, "_runtime", None)
    monkeypatch.setattr(drivers, "locate", drivers._as_configured)
    monkeypatch.setattr(Config, "_current", None)
    monkeypatch.setattr(context, "surroundings", [])
    monkeypatch.setattr(context, "async_surroundings", [])
    monkeypatch.setattr(process, "initializers", [])
    monkeypatch.setattr(registry, "_tasks", registry._tasks.copy())
    yield
    ProcessPoolManager.get_default_manager().close()
    asynctasq.shutdown()


@pytest.fixture
async def app(alone: None, place: Place, tmp_path: Path) -> AsyncIterator[App]:
    """An application on each driver's service in turn."""
    await place.prepare()
    one = App(place, tmp_path)
    yield one
    one.end()


@pytest.fixture
def app_without_loop(alone: None, place: Place, tmp_path: Path) -> App:
    """The same for tests that run loops of their own, or none."""
    asyncio.run(place.prepare())
    return App(place, tmp_path)


@pytest.fixture
async def embedded(alone: None, places: Callable[[str], Place], tmp_path: Path) -> AsyncIterator[App]:
    """An application on the embedded driver, for what has nothing to do with the broker."""
    place = places("sqlite")
    place.reset()
    await place.prepare()
    one = App(place, tmp_path)
    yield one
    one.end()


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Where tasks of any process write down that they ran."""
    return Ledger(tmp_path / "ledger")
