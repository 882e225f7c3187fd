"""What the tests of drivers share: a place for each test, drivers to it, and a few words to speak with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import pytest

from asynctasq.core.message import STATUSES, Lease, Message, Status, new_id, utcnow
from asynctasq.core.outcome import Dead, Done, ErrorInfo, Retry
from asynctasq.drivers.base import Driver, Inspector, Maintenance, TaskInfo
from tests.drivers.places import PLACES, Place, Server

SHORT = 0.15
"""Seconds of a lease that is meant to run out."""
HOUR = 3600.0
ERROR = ErrorInfo(type="shop.errors.OutOfStock", message="no more éclairs", traceback="Traceback: …\n  line 1")

T = TypeVar("T")


class Another(Protocol):
    async def __call__(self, **options: Any) -> Driver: ...


# ---- fixtures


@pytest.fixture(params=[name for name, kind in PLACES.items() if issubclass(kind, Server)])
def server(request: pytest.FixtureRequest, places: Callable[[str], Place]) -> Server:
    """The same, for drivers that reach their broker over a network."""
    one = places(request.param)
    assert isinstance(one, Server)
    one.reset()
    return one


@pytest.fixture
async def another(place: Place) -> AsyncIterator[Another]:
    """Makes further drivers to the place of the test, as other processes would."""
    made: list[Driver] = []

    async def connect(**options: Any) -> Driver:
        driver = place.create(**options)
        made.append(driver)
        await driver.connect()
        return driver

    yield connect
    for driver in made:
        await driver.close()


@pytest.fixture
async def driver(place: Place, another: Another) -> Driver:
    await place.prepare()
    return await another()


# ---- words


def needs(driver: Driver, capability: str) -> None:
    """Skip the test where the driver declares that its broker cannot do this."""
    if not getattr(driver.capabilities, capability):
        pytest.skip(f"{driver.name} declares no {capability}")


def inspector(driver: Driver) -> Inspector:
    needs(driver, "listing")
    assert isinstance(driver, Inspector)
    return driver


def message(queue: str = "work", **fields: Any) -> Message:
    """A message with a long lease whose retries do not wait, unless ``fields`` say otherwise."""
    given = {
        "id": new_id(),
        "task": "shop.tasks.nothing",
        "body": b"\x92\x90\x80",
        "created_at": utcnow(),
        "retry_delay": 0.0,
    }
    return Message(queue=queue, **{**given, **fields})


def messages(count: int, queue: str = "work", **fields: Any) -> list[Message]:
    return [message(queue, **fields) for _ in range(count)]


def ids(of: Sequence[Message | Lease | TaskInfo]) -> list[str]:
    return [one.id for one in of]


async def claim(driver: Driver, *queues: str, limit: int = 1000, suspects: int = 1000) -> list[Lease]:
    """One claim that does not wait."""
    return await driver.claim(queues or ("work",), limit, 0.0, suspects)


async def claim_one(driver: Driver, queue: str = "work") -> Lease:
    (lease,) = await claim(driver, queue, limit=1)
    return lease


async def claim_all(driver: Driver, *queues: str, limit: int = 1000, suspects: int = 1000) -> list[Lease]:
    """Claims until nothing comes any more."""
    leases: list[Lease] = []
    while some := await claim(driver, *queues, limit=limit, suspects=suspects):
        leases += some
    return leases


async def eventually(probe: Callable[[], Awaitable[T]], within: float = 10.0) -> T:
    """What ``probe`` returns once that is true."""
    deadline = time.monotonic() + within
    while not (found := await probe()):
        assert time.monotonic() < deadline, f"not within {within} seconds"
        await asyncio.sleep(0.02)
    return found


async def arrivals(driver: Driver, *queues: str, count: int = 1, within: float = 10.0) -> list[Lease]:
    """``count`` leases, maintaining the queues until they have come."""
    leases: list[Lease] = []

    async def enough() -> bool:
        await driver.maintain(queues or ("work",), 1000)
        leases.extend(await claim_all(driver, *queues))
        return len(leases) >= count

    await eventually(enough, within)
    assert len(leases) == count
    return leases


async def settled_maintenance(driver: Driver, *queues: str, until: int, limit: int = 1000) -> Maintenance:
    """The sum of the maintenance that it takes to promote, recover or bury ``until`` messages."""
    promoted = recovered = buried = 0
    last = Maintenance()

    async def enough() -> bool:
        nonlocal promoted, recovered, buried, last
        last = await driver.maintain(queues or ("work",), limit)
        promoted, recovered, buried = promoted + last.promoted, recovered + last.recovered, buried + last.buried
        return promoted + recovered + buried >= until

    await eventually(enough)
    return Maintenance(promoted=promoted, recovered=recovered, buried=buried, next_due=last.next_due)


async def lose(driver: Driver, *lost: Message) -> list[Lease]:
    """Enqueue these, claim them and let every lease run out: each has been recovered, or is dead."""
    await driver.enqueue(lost)
    queues = sorted({one.queue for one in lost})
    leases = await claim_all(driver, *queues)
    assert len(leases) == len(lost)
    done = await settled_maintenance(driver, *queues, until=len(lost))
    assert done.recovered + done.buried == len(lost)
    return leases


async def counts(driver: Driver, queue: str = "work") -> dict[str, int]:
    """How many messages of a queue are in each state; states without any are left out."""
    needs(driver, "exact_counts")
    for numbers in await driver.stats([queue]):
        if numbers.queue == queue:
            return {status: count for status in STATUSES if (count := getattr(numbers, status))}
    return {}


async def look(driver: Driver, id: str) -> TaskInfo:
    """What the inspector knows of one task."""
    (info,) = await inspector(driver).get([id])
    return info


async def statuses(driver: Driver, *of: Message | Lease) -> list[Status | None]:
    found = {info.id: info.status for info in await inspector(driver).get(ids(of))}
    return [found.get(one.id) for one in of]


Settle = Callable[[Driver, Sequence[Lease]], Awaitable[list[Lease]]]

SETTLE: dict[str, Settle] = {
    "ack": lambda driver, leases: driver.ack([Done(lease=one) for one in leases]),
    "ack keeping": lambda driver, leases: driver.ack([Done(lease=one, keep=True, result=b"r") for one in leases]),
    "retry": lambda driver, leases: driver.retry([Retry(lease=one, delay=0.0, error=ERROR) for one in leases]),
    "retry later": lambda driver, leases: driver.retry([Retry(lease=one, delay=HOUR, error=ERROR) for one in leases]),
    "dead_letter": lambda driver, leases: driver.dead_letter([Dead(lease=one, error=ERROR) for one in leases]),
    "release": lambda driver, leases: driver.release(leases),
    "extend": lambda driver, leases: driver.extend(leases),
}
"""Every way to settle leases. On drivers that keep no results "ack keeping" is a plain ack."""
ENDING = [name for name in SETTLE if name != "extend"]
