"""What is peculiar to Redis. That it keeps the contract is in test_contract.py."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from asynctasq.config import Config
from asynctasq.core.message import Lease, Message
from asynctasq.core.outcome import Dead, Done, Retry
from asynctasq.core.worker import CLAIM_WAIT
from asynctasq.drivers.base import Inspector, TaskQuery
from asynctasq.drivers.redis import RedisDriver, entries, link
from asynctasq.drivers.redis import driver as driver_module
from asynctasq.errors import BrokerFull, BrokerUnavailable, ConfigurationError
from scripts import services
from tests.drivers.conftest import (
    ERROR,
    HOUR,
    SHORT,
    claim,
    claim_all,
    claim_one,
    counts,
    ids,
    look,
    lose,
    message,
    messages,
    settled_maintenance,
)
from tests.drivers.places import Place, closed_port

STREAM = "asynctasq:{work}:stream:0"

Connect = Callable[..., Awaitable[RedisDriver]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Makes drivers, closed when the test is over."""
    made: list[RedisDriver] = []

    async def connect(url: str, **options: Any) -> RedisDriver:
        driver = RedisDriver(Config.make({"redis_url": url, **options}))
        made.append(driver)
        await driver.connect()
        return driver

    yield connect
    for driver in made:
        await driver.close()
        driver.close_sync()


@pytest.fixture
def url(places: Callable[[str], Place]) -> str:
    """An empty database of the server that all tests share."""
    place = places("redis")
    place.reset()
    return str(place.options["redis_url"])


@pytest.fixture
async def driver(url: str, connect: Connect) -> RedisDriver:
    return await connect(url)


@pytest.fixture
def raw(url: str) -> Iterator[Any]:
    """The shared server around the driver."""
    with redis.Redis.from_url(url) as client:
        yield client


@pytest.fixture
def own(tmp_path: Path) -> Iterator[services.Redis]:
    """A server of the test's own."""
    server = services.Redis(tmp_path / "redis")
    server.start()
    yield server
    server.remove()


@pytest.fixture
def admin(own: services.Redis) -> Iterator[Any]:
    with redis.Redis.from_url(own.url) as client:
        yield client


async def commands(admin: Any, work: Callable[[], Awaitable[Any]]) -> dict[str, int]:
    """What the server ran meanwhile, commands inside scripts included."""
    admin.config_resetstat()
    await work()
    stats = admin.info("commandstats")
    return {
        name.removeprefix("cmdstat_"): entry["calls"]
        for name, entry in stats.items()
        if not name.startswith(("cmdstat_config", "cmdstat_info"))
    }


# ---- what it costs


async def test_while_there_is_work_a_claim_is_one_command_and_a_settle_four(
    own: services.Redis, admin: Any, connect: Connect
) -> None:
    driver = await connect(own.url)
    await driver.enqueue(messages(30))
    await driver.claim(["work"], 10, 5.0)
    leases: list[Lease] = []

    async def busy() -> None:
        leases.extend(await driver.claim(["work"], 10, 5.0))

    assert await commands(admin, busy) == {"xreadgroup": 1}
    assert len(leases) == 10
    settle = await commands(admin, lambda: driver.ack([Done(lease=lease) for lease in leases]))
    assert settle == {"evalsha": 1, "xack": 1, "xdel": 1, "hdel": 1, "zrem": 1}


async def test_an_idle_worker_sends_less_than_two_commands_a_second(
    own: services.Redis, admin: Any, connect: Connect
) -> None:
    driver = await connect(own.url)
    await driver.claim(["work"], 10, 0.1)
    await driver.maintain(["work"], 100)

    async def idle() -> None:
        async def janitor() -> None:
            for _ in range(10):
                await asyncio.sleep(1.0)
                await driver.maintain(["work"], 100)

        claims = asyncio.create_task(janitor())
        while not claims.done():
            assert await driver.claim(["work"], 10, CLAIM_WAIT) == []

    started = time.monotonic()
    sent = sum((await commands(admin, idle)).values())
    assert sent / (time.monotonic() - started) < 2.0


async def test_a_message_that_wakes_an_idle_worker_costs_one_command(
    own: services.Redis, admin: Any, connect: Connect
) -> None:
    driver, producer = await connect(own.url), await connect(own.url)
    await producer.enqueue([message()])
    await driver.ack([Done(lease=await claim_one(driver))])
    assert await driver.claim(["work"], 10, 0.1) == []
    waiting = asyncio.create_task(driver.claim(["work"], 10, 5.0))
    await asyncio.sleep(0.1)
    admin.config_resetstat()
    await producer.enqueue([message()])
    assert len(await waiting) == 1
    assert "cmdstat_xreadgroup" not in admin.info("commandstats")


async def test_a_thousand_go_in_one_round_trip_in_scripts_of_200(
    own: services.Redis, admin: Any, connect: Connect
) -> None:
    driver = await connect(own.url)
    await driver.enqueue([message()])
    sent = await commands(admin, lambda: driver.enqueue(messages(1000)))
    assert (sent["evalsha"], sent["xadd"]) == (5, 1000)


# ---- claiming from several streams


async def test_more_than_asked_never_comes_however_many_streams_have_something(driver: RedisDriver) -> None:
    """A claim that goes straight to waiting may be handed one entry of each stream."""
    for queue in ("a", "b", "c"):
        await driver.enqueue([message(queue), message(queue, priority=4)])
    assert await driver.claim(["z"], 1, 0.05) == []
    taken: list[Lease] = []
    while len(taken) < 6:
        driver._idle = True
        some = await driver.claim(["a", "b", "c"], 2, 5.0)
        assert 1 <= len(some) <= 2
        taken += some
    assert {lease.attempt for lease in taken} == {1}
    assert len(set(ids(taken))) == 6
    assert await driver.ack([Done(lease=lease) for lease in taken]) == []


async def test_more_suspects_than_asked_never_come_to_a_waiting_claim(driver: RedisDriver) -> None:
    for queue in ("a", "b"):
        await lose(driver, *messages(2, queue, visibility_timeout=SHORT, max_attempts=2))
    taken: list[Lease] = []
    while len(taken) < 4:
        driver._idle = True
        some = await driver.claim(["a", "b"], 5, 5.0, 1)
        assert len(some) == 1
        taken += some
    driver._idle = True
    assert await driver.claim(["a", "b"], 5, 0.1, 0) == []


async def test_the_first_message_of_a_priority_wakes_every_waiting_claim(
    driver: RedisDriver, connect: Connect, url: str
) -> None:
    await driver.enqueue([message()])
    workers = [await connect(url) for _ in range(3)]
    await claim_one(driver)
    waiting = [asyncio.create_task(worker.claim(["work"], 1, 9.0)) for worker in workers]
    await asyncio.sleep(0.2)
    started = time.monotonic()
    await driver.enqueue(messages(3, priority=42))
    leases = [lease for some in await asyncio.wait_for(asyncio.gather(*waiting), 4.0) for lease in some]
    assert time.monotonic() - started < 1.0
    assert len(set(ids(leases))) == 3


async def test_a_suspect_wakes_a_waiting_claim(driver: RedisDriver, connect: Connect, url: str) -> None:
    worker = await connect(url)
    await driver.enqueue([message(visibility_timeout=SHORT, max_attempts=2)])
    await claim_one(driver)
    waiting = asyncio.create_task(worker.claim(["work"], 5, 9.0))
    await settled_maintenance(driver, until=1)
    (lease,) = await asyncio.wait_for(waiting, 2.0)
    assert lease.suspect


async def test_a_lease_handed_out_after_a_long_wait_is_dated_from_then(
    driver: RedisDriver, connect: Connect, url: str
) -> None:
    producer = await connect(url)
    await driver.claim(["work"], 1, 0.05)
    waiting = asyncio.create_task(driver.claim(["work"], 1, 5.0))
    await asyncio.sleep(0.5)
    sent = message(visibility_timeout=1.0)
    await producer.enqueue([sent])
    (lease,) = await waiting
    assert time.monotonic() - lease.claimed_at < 0.3
    ends = (await look(driver, sent.id)).locked_until
    assert ends is not None
    assert ends.timestamp() - time.time() + 0.01 >= lease.claimed_at + 1.0 - time.monotonic()


# ---- what somebody else wrote into a stream


ALIEN: dict[str, dict[Any, Any]] = {
    "foreign fields": {"hello": "world", b"\xff\x00": b"\xfe"},
    "no payload": {"id": "x", "attempt": 1, "lease": 1000},
    "no id": {"payload": b"\x01", "attempt": 1, "lease": 1000},
    "id of a megabyte": {"id": "x" * 2**20, "payload": b"", "attempt": 1, "lease": 1000},
    "id that is no text": {"id": b"\xff\xfe", "payload": b"", "attempt": 1, "lease": 1000},
    "attempt that is no number": {"id": "x", "payload": b"", "attempt": "many", "lease": 1000},
    "attempt of zero": {"id": "x", "payload": b"", "attempt": 0, "lease": 1000},
    "attempt of 5,000 digits": {"id": "x", "payload": b"", "attempt": "9" * 5000, "lease": 1000},
    "lease that is no number": {"id": "x", "payload": b"", "attempt": 1, "lease": "nan"},
    "lease of zero": {"id": "x", "payload": b"", "attempt": 1, "lease": 0},
    "endless lease": {"id": "x", "payload": b"", "attempt": 1, "lease": "1e999"},
    "fields of a record": {
        "id": "x",
        "payload": b"",
        "attempt": 1,
        "lease": 9,
        "suspect": 1,
        "priority": "../x",
        "error": b"\xc1",
    },
}


@pytest.mark.parametrize("kind", ALIEN)
async def test_an_alien_entry_is_claimed_with_a_fault_and_buried_beside_its_neighbours(
    driver: RedisDriver, raw: Any, kind: str
) -> None:
    sent = messages(2)
    await driver.enqueue(sent[:1])
    raw.xadd(STREAM, ALIEN[kind])
    await driver.enqueue(sent[1:])
    leases = await claim(driver)
    alien = leases.pop(1)
    assert (ids(leases), alien.message, alien.attempt) == (ids(sent), None, 1)
    assert alien.fault
    assert len(alien.id) <= 64
    assert alien.id.isascii()
    assert len(alien.payload) <= 65536
    assert await driver.extend([alien]) == []
    assert await driver.release([alien]) == []
    (again,) = await claim(driver)
    assert (again.id, again.payload, again.attempt) == (alien.id, alien.payload, 1)
    assert await driver.retry([Retry(lease=again, delay=0.0, error=ERROR)]) == []
    (alien,) = await claim(driver)
    assert (alien.id, alien.payload, alien.attempt) == (again.id, again.payload, 2)
    assert await driver.dead_letter([Dead(lease=alien, error=ERROR)]) == []
    info = await look(driver, alien.id)
    assert (info.status, info.task, info.payload, info.error) == ("dead", "", alien.payload, ERROR)
    assert await driver.dead_letter([Dead(lease=alien, error=ERROR)]) == [alien]
    assert await driver.delete([alien.id]) == 1


async def test_an_alien_entry_that_kills_its_workers_is_buried_after_three(driver: RedisDriver, raw: Any) -> None:
    await driver.enqueue([message(delay=HOUR)])
    raw.xadd(STREAM, {"id": "alien", "payload": b"\xc1", "attempt": 1, "lease": 100})
    raw.xadd(STREAM, {"payload": b"\xc1"})
    for attempt in (1, 2, 3):
        leases = await claim_all(driver)
        assert [(lease.attempt, lease.message) for lease in leases] == [(attempt, None)] * 2
        for lease in leases:
            stream, entry = lease.receipt
            raw.xclaim(f"asynctasq:{{work}}:stream:{stream}", "workers", "gone", 0, [entry], idle=400_000, justid=True)
        driver._expired_at = 0.0
        done = await driver.maintain(["work"], 100)
        assert (done.recovered, done.buried) == ((2, 0) if attempt < 3 else (0, 2))
    page = await driver.find(TaskQuery(statuses=frozenset({"dead"})))
    assert [info.payload for info in page.items] == [b"\xc1"] * 2
    assert {info.error and info.error.type for info in page.items} == {"asynctasq.errors.WorkerLost"}


async def test_a_key_that_holds_something_else_is_a_configuration_error(driver: RedisDriver, raw: Any) -> None:
    raw.set("asynctasq:{work}:index", "mine")
    with pytest.raises(ConfigurationError, match="WRONGTYPE"):
        await driver.enqueue([message()])


# ---- leases


async def test_an_extended_task_still_shows_when_and_where_it_began(
    driver: RedisDriver, connect: Connect, url: str
) -> None:
    keeper = await connect(url)
    sent = message()
    await driver.enqueue([sent])
    lease = await claim_one(driver)
    first = await look(driver, sent.id)
    await asyncio.sleep(0.05)
    for holder in (driver, keeper):
        assert await holder.extend([lease]) == []
    later = await look(driver, sent.id)
    assert first.locked_until is not None
    assert later.locked_until is not None
    assert later.locked_until > first.locked_until
    assert (later.started_at, later.worker) == (first.started_at, driver.worker_id)


async def test_a_look_for_expired_leases_goes_on_where_the_last_one_ended(
    driver: RedisDriver, connect: Connect, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "SCAN", 4)
    monkeypatch.setattr(driver_module, "CHUNK", 2)
    janitor = await connect(url)
    await driver.enqueue(messages(30))
    assert len(await claim(driver)) == 30
    await driver.enqueue(messages(3, visibility_timeout=0.05))
    assert len(await claim(driver)) == 3
    await asyncio.sleep(0.1)
    recovered = []
    for _ in range(12):
        janitor._expired_at = 0.0
        recovered.append((await janitor.maintain(["work"], 100)).recovered)
    assert recovered[:7] == [0] * 7
    assert sum(recovered) == 3


async def test_a_lease_renewed_between_the_look_and_the_step_is_left_alone(driver: RedisDriver) -> None:
    await driver.enqueue([message(visibility_timeout=SHORT)])
    lease = await claim_one(driver)
    await asyncio.sleep(SHORT + 0.05)
    moves, _ = await driver._expired(STREAM, "work", "0", 10)
    assert await driver.extend([lease]) == []
    assert len(moves) == 1
    assert await driver._settle(entries.moving(moves)) == [moves[0].lease]
    assert await driver.ack([Done(lease=lease)]) == []


async def test_consumers_that_hold_nothing_are_forgotten_and_those_that_hold_something_are_not(
    driver: RedisDriver, connect: Connect, url: str, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, holder = await connect(url), await connect(url)
    await driver.enqueue([message()])
    await claim_one(holder)
    assert await claim(gone) == []
    await asyncio.sleep(0.05)
    monkeypatch.setattr(driver_module, "FORGET_AFTER", 20)
    driver._consumers_at = 0.0
    await driver.maintain(["work"], 10)
    assert [consumer["name"].decode() for consumer in raw.xinfo_consumers(STREAM, "workers")] == [holder.worker_id]


async def test_what_is_done_leaves_only_what_belongs_to_the_queue(driver: RedisDriver, raw: Any) -> None:
    sent = [message(), message(priority=3), message(delay=0.01)]
    await driver.enqueue(sent)
    await asyncio.sleep(0.05)
    await driver.maintain(["work"], 10)
    leases = await claim_all(driver)
    await driver.retry([Retry(lease=lease, delay=0.0, error=ERROR) for lease in leases])
    await driver.dead_letter([Dead(lease=lease, error=ERROR) for lease in await claim_all(driver)])
    assert await driver.requeue(ids(sent)) == 3
    assert await driver.ack([Done(lease=lease) for lease in await claim_all(driver)]) == []
    base = "asynctasq:{work}:"
    kept = {key.decode().removeprefix(base) for key in raw.scan_iter()}
    assert kept == {"asynctasq:queues", "priorities", "bell:2", "stream:0", "stream:3", "stream:suspects"}
    assert [raw.xlen(f"{base}stream:{name}") for name in ("0", "3", "suspects")] == [0, 0, 0]


# ---- the server loses something


async def test_after_flushall_waiting_claims_and_known_queues_go_on(
    own: services.Redis, admin: Any, connect: Connect
) -> None:
    worker, producer = await connect(own.url), await connect(own.url)
    await producer.enqueue([message()])
    producer.enqueue_sync([message(delay=HOUR)])
    (old,) = await claim(worker)
    await worker.claim(["work"], 5, 0.05)
    waiting = asyncio.create_task(worker.claim(["work"], 5, 9.0))
    await asyncio.sleep(0.1)
    admin.flushall()
    await asyncio.sleep(0.1)
    sent = message()
    await producer.enqueue([sent])
    (lease,) = await asyncio.wait_for(waiting, 3.0)
    assert lease.id == sent.id
    assert [numbers.queue for numbers in await worker.stats()] == ["work"]
    assert await worker.extend([old]) == [old]
    assert await worker.ack([Done(lease=old)]) == [old]
    assert await worker.dead_letter([Dead(lease=old, error=ERROR)]) == [old]
    assert await worker.ack([Done(lease=lease)]) == []
    admin.flushall()
    producer.enqueue_sync([message(priority=7)])
    assert len(await claim(worker)) == 1
    admin.flushall()
    worker._expired_at = 0.0
    assert (await worker.maintain(["work"], 10)).recovered == 0
    assert await worker.purge("work") == 0


async def test_scripts_that_the_server_forgot_are_loaded_again(
    own: services.Redis, admin: Any, connect: Connect
) -> None:
    driver = await connect(own.url)

    async def forgetting(call: Awaitable[Any]) -> Any:
        admin.script_flush()
        return await call

    sent = messages(5) + messages(5, "other")
    await forgetting(driver.enqueue(sent))
    admin.script_flush()
    driver.enqueue_sync([message("third", delay=0.01)])
    leases = await forgetting(driver.claim(["work", "other"], 10, 0.0))
    assert len(leases) == 10
    assert await forgetting(driver.extend(leases)) == []
    done = [Done(lease=lease, keep=n % 2 == 0) for n, lease in enumerate(leases)]
    assert await forgetting(driver.ack(done)) == []
    assert len(await forgetting(driver.stats())) == 3
    await asyncio.sleep(0.05)
    assert (await forgetting(driver.maintain(["third"], 10))).promoted == 1
    assert len((await forgetting(driver.find(TaskQuery()))).items) == 6
    assert await forgetting(driver.cancel(ids(sent))) == 0
    assert await forgetting(driver.purge("third")) == 1


async def test_a_server_killed_and_started_again_has_lost_nothing(own: services.Redis, connect: Connect) -> None:
    driver = await connect(own.url)
    admin = redis.Redis.from_url(own.url)
    admin.config_set("appendfsync", "always")
    admin.close()
    sent = messages(50)
    await driver.enqueue(sent)
    held = await driver.claim(["work"], 10, 0.0)
    waiting = asyncio.create_task(driver.claim(["nothing"], 1, 9.0))
    await asyncio.sleep(0.1)
    await asyncio.to_thread(own.kill)
    with pytest.raises(BrokerUnavailable):
        await waiting
    with pytest.raises(BrokerUnavailable):
        await driver.enqueue(messages(1))
    with pytest.raises(BrokerUnavailable):
        driver.enqueue_sync(messages(1))
    await asyncio.to_thread(own.start)
    driver.enqueue_sync(sent[:3])
    assert await driver.ack([Done(lease=lease) for lease in held]) == []
    rest = await claim_all(driver)
    assert sorted(ids(rest)) == ids(sent[10:])


async def test_a_full_server_refuses_producers_and_lets_workers_finish(
    own: services.Redis, admin: Any, connect: Connect
) -> None:
    driver = await connect(own.url)
    await driver.enqueue(messages(8) + messages(2, delay=0.01))
    running = await driver.claim(["work"], 4, 0.0)
    await asyncio.sleep(0.05)
    admin.config_set("maxmemory", 1)
    with pytest.raises(BrokerFull):
        await driver.enqueue(messages(3))
    with pytest.raises(BrokerFull):
        driver.enqueue_sync(messages(3))
    first, second, third, fourth = running
    assert (await driver.maintain(["work"], 10)).promoted == 2
    assert await driver.extend([first]) == []
    assert await driver.ack([Done(lease=first, keep=True, result=b"r")]) == []
    assert await driver.retry([Retry(lease=second, delay=0.0, error=ERROR)]) == []
    assert await driver.dead_letter([Dead(lease=third, error=ERROR)]) == []
    assert await driver.release([fourth]) == []
    assert await driver.requeue([third.id]) == 1
    assert len(await driver.claim(["work"], 20, 0.5)) == 9
    admin.config_set("maxmemory", 0)
    await driver.enqueue(messages(1))
    assert await counts(driver) == {"pending": 1, "processing": 9, "completed": 1}


async def test_a_server_that_became_a_replica_is_left_for_the_one_at_its_address(
    own: services.Redis, admin: Any, connect: Connect
) -> None:
    driver = await connect(own.url)
    await driver.enqueue([message()])
    driver.enqueue_sync([message()])
    before = {client["id"] for client in admin.client_list()}
    admin.replicaof("127.0.0.1", closed_port())
    for _ in range(2):
        with pytest.raises(BrokerUnavailable):
            await driver.enqueue([message()])
        with pytest.raises(BrokerUnavailable):
            driver.enqueue_sync([message()])
    admin.replicaof("NO", "ONE")
    await driver.enqueue([message()])
    driver.enqueue_sync([message()])
    after = {client["id"] for client in admin.client_list()}
    assert len(before & after) == 1


# ---- connections


async def test_a_connection_on_which_a_call_was_cancelled_is_not_used_again(driver: RedisDriver) -> None:
    await driver.enqueue([message()])
    (lease,) = await claim(driver)
    for moment in range(60):
        claims = asyncio.create_task(driver.claim(["work"], 1, 5.0))
        reads = asyncio.create_task(driver.stats(["work", "other"]))
        for _ in range(moment % 30):
            await asyncio.sleep(0.0001 if moment % 2 else 0)
        claims.cancel()
        reads.cancel()
        await asyncio.gather(claims, reads, return_exceptions=True)
        assert await driver.extend([lease]) == []
        assert [numbers.queue for numbers in await driver.stats(["x"])] == ["x"]


async def test_one_connection_is_enough_and_never_exceeded(own: services.Redis, admin: Any, connect: Connect) -> None:
    driver = await connect(own.url, redis_max_connections=1)
    await driver.enqueue(messages(4))
    leases = await driver.claim(["work"], 4, 0.0)
    waiting = asyncio.create_task(driver.claim(["work"], 4, 0.3))
    await asyncio.gather(*(driver.ack([Done(lease=lease)]) for lease in leases))
    assert await waiting == []
    threads = [threading.Thread(target=driver.enqueue_sync, args=(messages(1),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert await counts(driver) == {"pending": 8}
    ours = [client for client in admin.client_list() if client["id"] != str(admin.client_id())]
    assert len(ours) == 2


async def test_a_producer_thread_waits_no_more_than_three_seconds_for_silence(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        producer = RedisDriver(Config.make({"redis_url": f"redis://127.0.0.1:{silent.getsockname()[1]}"}))
        started = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            await asyncio.to_thread(producer.enqueue_sync, messages(1))
        assert time.monotonic() - started < 3.5
        producer.close_sync()


async def test_parent_and_child_both_enqueue_after_a_fork(driver: RedisDriver, url: str) -> None:
    program = """
import os, sys
from asynctasq.config import Config
from asynctasq.drivers.redis import RedisDriver
from tests.drivers.conftest import message
driver = RedisDriver(Config.make({"redis_url": sys.argv[1]}))
driver.enqueue_sync([message(id="before")])
child = os.fork()
for number in range(100):
    driver.enqueue_sync([message(id=f"{'parent' if child else 'child'}-{number}")])
driver.close_sync()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    ran = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", program, url],
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        timeout=60,
    )
    assert ran.returncode == 0
    assert await counts(driver) == {"pending": 201}


@pytest.mark.parametrize(
    "query", ["decode_responses=true", "protocol=3", "socket_timeout=0.1", "retry_on_timeout=true"]
)
async def test_what_the_url_asks_of_the_client_does_not_break_the_driver(
    url: str, connect: Connect, query: str
) -> None:
    driver = await connect(f"{url}?{query}")
    driver.enqueue_sync([message()])
    assert len(await claim(driver)) == 1
    assert await driver.claim(["work"], 1, 0.3) == []


# ---- what the server or the settings refuse


PASSWORD = "correct-horse-battery"


async def test_refused_logins_are_configuration_errors_that_do_not_tell_the_password(
    own: services.Redis, admin: Any, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    admin.acl_setuser("default", enabled=True, passwords=[f"+{PASSWORD}"], reset_passwords=True)
    caplog.set_level(logging.DEBUG)
    host = own.url.removeprefix("redis://")
    texts = []
    for login in ("", f":wrong-{PASSWORD}@", f"nobody:{PASSWORD}@"):
        with pytest.raises(ConfigurationError) as caught:
            await connect(f"redis://{login}{host}")
        producer = RedisDriver(Config.make({"redis_url": f"redis://{login}{host}"}))
        with pytest.raises(ConfigurationError) as caught_too:
            producer.enqueue_sync(messages(1))
        producer.close_sync()
        texts += [f"{one.value!r} {one.value} {one.value.__cause__!r}" for one in (caught, caught_too)]
    driver = await connect(f"redis://:{PASSWORD}@{host}")
    await driver.enqueue([message()])
    await asyncio.to_thread(own.kill)
    with pytest.raises(BrokerUnavailable) as gone:
        await driver.enqueue([message()])
    assert PASSWORD not in " ".join([*texts, str(gone.value), repr(gone.value), caplog.text])


async def test_a_user_who_may_not_ask_for_the_configuration_can_work(
    own: services.Redis, admin: Any, connect: Connect
) -> None:
    admin.acl_setuser(
        "app", enabled=True, nopass=True, keys=["asynctasq:*"], commands=["+@all", "-@admin", "-info", "-config"]
    )
    driver = await connect(own.url.replace("redis://", "redis://app:x@"))
    await driver.enqueue([message()])
    assert len(await claim(driver)) == 1
    admin.acl_setuser("app", commands=["-evalsha"])
    with pytest.raises(ConfigurationError):
        await driver.enqueue([message()])


async def test_a_database_that_does_not_exist_is_a_configuration_error(own: services.Redis, connect: Connect) -> None:
    with pytest.raises(ConfigurationError):
        await connect(f"{own.url}/9999")


async def test_a_server_whose_settings_lose_tasks_is_mentioned_once(
    own: services.Redis, admin: Any, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    admin.config_set("maxmemory-policy", "allkeys-lru")
    admin.config_set("appendonly", "no")
    for _ in range(2):
        await connect(own.url)
    told = [record.getMessage() for record in caplog.records if record.name == link.__name__]
    assert len(told) == 2
    assert "noeviction" in told[0]
    assert "appendonly" in told[1]


def test_a_server_that_is_too_old_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"6\.2"):
        link.check_server("redis://h", [b"redis_version:6.0.16\r\n", ResponseError("no"), ResponseError("no")])
    link.check_server("redis://h", [b"redis_version:6.2.0\r\n", ResponseError("no"), ResponseError("no")])


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (AuthenticationError("Authentication required."), ConfigurationError),
        (NoPermissionError("this user has no permissions"), ConfigurationError),
        (ResponseError("-NOPERM this user has no permissions script: 1, on @user_script:1."), ConfigurationError),
        (ResponseError("unknown command 'EVALSHA'"), ConfigurationError),
        (OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), BrokerFull),
        (ResponseError("Error running script: @user_script: 3: -OOM command not allowed"), BrokerFull),
        (ResponseError("MISCONF Redis is configured to save RDB snapshots"), BrokerFull),
        (BusyLoadingError("Redis is loading the dataset in memory"), BrokerUnavailable),
        (ResponseError("BUSY Redis is busy running a script."), BrokerUnavailable),
        (TryAgainError("x"), BrokerUnavailable),
        (ClusterDownError("x"), BrokerUnavailable),
        (MasterDownError("x"), BrokerUnavailable),
        (ReadOnlyError("You can't write against a read only replica."), BrokerUnavailable),
        (redis.exceptions.ConnectionError("Error 111 connecting"), BrokerUnavailable),
        (redis.exceptions.TimeoutError("Timeout reading"), BrokerUnavailable),
        (TimeoutError(), BrokerUnavailable),
        (OSError("broken"), BrokerUnavailable),
    ],
    ids=repr,
)
def test_errors_of_the_client_become_ours(error: Exception, kind: type[Exception]) -> None:
    assert type(link.failure(error, f"redis://:{PASSWORD}@h")) is kind
    assert PASSWORD not in str(link.failure(error, f"redis://:{PASSWORD}@h"))


# ---- pages


async def test_an_id_in_two_queues_is_on_the_pages_twice(driver: RedisDriver) -> None:
    assert isinstance(driver, Inspector)
    for number in range(5):
        await driver.enqueue([message("a", id=f"same-{number}"), message("b", id=f"same-{number}")])
    for limit in (1, 2, 3):
        seen: list[tuple[str, str]] = []
        cursor = None
        while True:
            page = await driver.find(TaskQuery(limit=limit, cursor=cursor))
            seen += [(info.id, info.queue) for info in page.items]
            cursor = page.next
            if cursor is None:
                break
        assert seen == [(f"same-{number}", queue) for number in range(4, -1, -1) for queue in ("a", "b")]
    assert await driver.cancel(["same-0"]) == 2


async def test_what_runs_is_found_below_many_that_wait(url: str, connect: Connect) -> None:
    driver = await connect(url, task_scan_limit=20)
    running = messages(3)
    await driver.enqueue(running)
    assert len(await claim(driver)) == 3
    await driver.enqueue(messages(200))
    page = await driver.find(TaskQuery(statuses=frozenset({"processing"}), limit=2))
    rest = await driver.find(TaskQuery(statuses=frozenset({"processing"}), limit=2, cursor=page.next))
    assert ids(page.items + rest.items) == ids(running)[::-1]
    assert rest.next is None


async def test_a_message_seen_in_the_index_is_the_message_in_the_stream(driver: RedisDriver, raw: Any) -> None:
    sent: list[Message] = messages(3)
    await driver.enqueue(sent)
    for one in sent:
        stream, _, entry = raw.hget("asynctasq:{work}:index", one.id).decode().partition(" ")
        [(_, fields)] = raw.xrange(f"asynctasq:{{work}}:stream:{stream}", entry, entry)
        assert msgspec.msgpack.decode(fields[b"payload"])["id"] == one.id
