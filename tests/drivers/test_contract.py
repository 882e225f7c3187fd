"""The driver contract, in sentences. Every driver keeps every one of them on its real service.

A driver may be excused from a sentence only by a capability that it declares not to have.
"""

from __future__ import annotations

import asyncio
import pickle
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from asynctasq.core.message import MAX_MESSAGE_BYTES, Lease, Message, encode, new_id, utcnow
from asynctasq.core.outcome import MAX_ERROR_MESSAGE, MAX_TRACEBACK, Dead, Done, ErrorInfo, Retry
from asynctasq.core.retry import JITTER
from asynctasq.drivers import base
from asynctasq.drivers.base import Driver, Page, TaskInfo, TaskQuery
from asynctasq.errors import BrokerUnavailable, ConfigurationError, NotSupported, PayloadTooLarge
from tests.drivers.conftest import (
    ENDING,
    ERROR,
    HOUR,
    SETTLE,
    SHORT,
    Another,
    arrivals,
    claim,
    claim_all,
    claim_one,
    counts,
    eventually,
    ids,
    inspector,
    look,
    lose,
    message,
    messages,
    needs,
    settled_maintenance,
    statuses,
)
from tests.drivers.places import Place, Proxy, Server, closed_port

# ---- enqueue


async def test_an_enqueued_message_is_there_for_another_connection(driver: Driver, another: Another) -> None:
    sent = message()
    await driver.enqueue([sent])
    await driver.close()
    assert ids(await claim(await another())) == [sent.id]


async def test_a_message_travels_with_every_field_unchanged(driver: Driver) -> None:
    sent = message(
        task="магазин.tasks.чек",
        body=bytes(range(256)),
        created_at=datetime(2031, 5, 6, 7, 8, 9, 123456, tzinfo=UTC),
        priority=3,
        max_attempts=7,
        retry_strategy="fixed",
        retry_delay=0.25,
        timeout=12.5,
        visibility_timeout=33.25,
        correlation_id="заказ-№ 7 \U0001f4e6",
        headers={"traceparent": "00-ab-cd-01", "ключ": "значение", "": ""},
    )
    await driver.enqueue([sent])
    lease = await claim_one(driver)
    assert lease.message == sent
    assert lease.payload == encode(sent)
    assert (lease.id, lease.queue, lease.visibility_timeout) == (sent.id, "work", 33.25)
    assert (lease.fault, lease.suspect) == (None, False)


@pytest.mark.parametrize("body", [b"", b"\x00", b"\xff" * 1000, b"'; DROP TABLE task_queue; --\r\n%s"], ids=repr)
async def test_a_body_is_any_bytes(driver: Driver, body: bytes) -> None:
    sent = message(body=body)
    await driver.enqueue([sent])
    assert (await claim_one(driver)).payload == encode(sent)


async def test_a_body_of_a_megabyte_travels_or_as_much_as_the_broker_takes(driver: Driver) -> None:
    most = driver.capabilities.max_payload or MAX_MESSAGE_BYTES
    sent = message(body=bytes(range(256)) * min(4096, most // 256 - 8))
    await driver.enqueue([sent])
    assert (await claim_one(driver)).message == sent


async def test_a_message_that_no_reader_would_read_is_refused_with_all_its_batch(driver: Driver) -> None:
    limit = min(driver.capabilities.max_payload or MAX_MESSAGE_BYTES, MAX_MESSAGE_BYTES)
    with pytest.raises(PayloadTooLarge, match=str(limit)):
        await driver.enqueue([message(), message(body=bytes(limit))])
    assert await claim(driver) == []


async def test_enqueue_of_a_known_id_changes_nothing(driver: Driver) -> None:
    first = message(body=b"first")
    await driver.enqueue([first])
    await driver.enqueue([first, message(id=first.id, body=b"second", priority=9)])
    (lease,) = await claim(driver)
    assert lease.payload == encode(first)


async def test_enqueue_of_a_known_id_does_not_bring_a_scheduled_message_forward(driver: Driver) -> None:
    first = message(delay=HOUR)
    await driver.enqueue([first])
    await driver.enqueue([first, message(id=first.id)])
    await driver.maintain(["work"], 10)
    assert await claim(driver) == []
    assert await counts(driver) == {"scheduled": 1}


async def test_enqueue_of_what_is_running_does_not_start_it_again(driver: Driver) -> None:
    sent = message()
    await driver.enqueue([sent])
    lease = await claim_one(driver)
    await driver.enqueue([sent])
    assert await claim(driver) == []
    assert await driver.ack([Done(lease=lease)]) == []
    assert await claim(driver) == []


@pytest.mark.parametrize("ending", ["dead_letter", "ack keeping"])
async def test_enqueue_of_what_is_dead_or_kept_does_not_start_it_again(driver: Driver, ending: str) -> None:
    needs(driver, "listing" if ending == "dead_letter" else "results")
    sent = message()
    await driver.enqueue([sent])
    await SETTLE[ending](driver, await claim(driver))
    before = await statuses(driver, sent)
    await driver.enqueue([sent])
    assert await claim(driver) == []
    assert await statuses(driver, sent) == before


async def test_a_duplicate_within_one_call_is_stored_once_beside_the_others(driver: Driver) -> None:
    known, twin, single, later = message(), message(), message(), message(delay=HOUR)
    await driver.enqueue([known])
    await driver.enqueue([twin, known, single, later, twin, later])
    assert sorted(ids(await claim_all(driver))) == sorted(ids([known, twin, single]))
    assert await counts(driver) == {"processing": 3, "scheduled": 1}


@pytest.mark.parametrize("delay", [0.0, HOUR])
async def test_the_same_id_from_eight_producers_at_once_is_one_task(
    driver: Driver, another: Another, delay: float
) -> None:
    producers = [await another() for _ in range(8)]
    same, own = messages(20, delay=delay), [message(delay=delay) for _ in producers]
    await asyncio.gather(*(one.enqueue([*same[turn:], own[turn], *same[:turn]]) for turn, one in enumerate(producers)))
    assert await counts(driver) == {"scheduled" if delay else "pending": 28}


async def test_an_id_is_free_again_when_its_task_is_done(driver: Driver) -> None:
    sent = message()
    await driver.enqueue([sent])
    await driver.ack([Done(lease=await claim_one(driver))])
    await driver.enqueue([sent])
    again = await claim_one(driver)
    assert (again.id, again.attempt) == (sent.id, 1)


async def test_a_thread_without_a_loop_can_enqueue_where_the_driver_offers_it(place: Place, driver: Driver) -> None:
    producer, sent = place.create(), messages(40)
    if type(producer).enqueue_sync is Driver.enqueue_sync:
        with pytest.raises(NotSupported):
            producer.enqueue_sync(sent)
        return

    def produce(part: list[Message]) -> None:
        for one in part:
            producer.enqueue_sync([one, part[0]])

    await asyncio.gather(*(asyncio.to_thread(produce, sent[start : start + 5]) for start in range(0, 40, 5)))
    await asyncio.to_thread(producer.close_sync)
    await asyncio.to_thread(producer.close_sync)
    assert sorted(ids(await claim_all(driver))) == sorted(ids(sent))


# ---- claim


async def test_the_first_claim_is_attempt_one_and_dates_from_before_it_was_sent(driver: Driver) -> None:
    await driver.enqueue([message()])
    before = time.monotonic()
    lease = await claim_one(driver)
    assert lease.attempt == 1
    assert before <= lease.claimed_at <= time.monotonic()


async def test_a_claimed_message_is_hidden_from_everyone(driver: Driver, another: Another) -> None:
    await driver.enqueue(messages(3))
    assert len(await claim(driver)) == 3
    assert await claim(driver) == []
    assert await claim(await another()) == []
    await driver.maintain(["work"], 100)
    assert await claim(await another()) == []


async def test_a_claim_takes_no_more_than_its_limit(driver: Driver) -> None:
    await driver.enqueue(messages(7))
    assert [len(await claim(driver, limit=3)) for _ in range(4)] == [3, 3, 1, 0]


async def test_the_oldest_comes_first(driver: Driver) -> None:
    sent = messages(50)
    await driver.enqueue(sent[:20])
    await driver.enqueue(sent[20:])
    assert ids(await claim_all(driver, limit=7)) == ids(sent)


async def test_higher_priorities_come_first_and_the_oldest_within_each(driver: Driver) -> None:
    needs(driver, "priority")
    sent = [message(priority=priority) for priority in (0, -100, 5, 100, 0, -1, 5, 1)]
    await driver.enqueue(sent)
    expected = sorted(sent, key=lambda one: (-one.priority, one.id))
    assert ids(await claim_all(driver, limit=3)) == ids(expected)


async def test_a_higher_priority_overtakes_what_was_already_waiting(driver: Driver) -> None:
    needs(driver, "priority")
    low, high = messages(3, priority=-5), messages(2, priority=7)
    await driver.enqueue(low)
    assert ids(await claim(driver, limit=1)) == ids(low[:1])
    await driver.enqueue(high)
    assert ids(await claim(driver)) == ids(high + low[1:])


async def test_earlier_queues_come_first_whatever_the_priorities_and_the_limit_holds_over_all(driver: Driver) -> None:
    sent = {queue: messages(5, queue, priority=priority) for queue, priority in (("a", 0), ("b", 9), ("c", 50))}
    for some in sent.values():
        await driver.enqueue(some)
    first = await claim(driver, "c", "a", "b", limit=7)
    assert ids(first) == ids(sent["c"] + sent["a"][:2])
    assert [lease.queue for lease in first] == ["c"] * 5 + ["a"] * 2
    assert len(await claim(driver, "c", "a", "b", limit=4)) == 4
    assert len(await claim(driver, "c", "a", "b", limit=100)) == 4


async def test_only_the_queues_asked_for_are_claimed(driver: Driver) -> None:
    await driver.enqueue([*messages(2, "mine"), *messages(2, "theirs")])
    assert {lease.queue for lease in await claim_all(driver, "mine", "never-seen")} == {"mine"}


@pytest.mark.parametrize(
    "name", ["a:b", "a'b\"c", "%s", "\\", "$1;--", "очередь", "\U0001f4e6", "*", "[a-z]?", "q" * 128]
)
async def test_a_queue_has_any_printable_name(driver: Driver, name: str) -> None:
    await driver.enqueue([message(name), message(name, delay=HOUR)])
    (lease,) = await claim(driver, name)
    assert lease.queue == name
    assert lease.message is not None
    assert await counts(driver, name) == {"processing": 1, "scheduled": 1}
    assert await driver.ack([Done(lease=lease)]) == []
    assert await driver.purge(name) == 1


async def test_names_that_differ_in_case_are_two_queues(driver: Driver) -> None:
    await driver.enqueue([*messages(2, "emails"), *messages(3, "Emails")])
    assert [len(await claim_all(driver, name)) for name in ("EMAILS", "Emails", "emails")] == [0, 3, 2]


async def test_ids_that_differ_in_case_are_two_tasks(driver: Driver) -> None:
    await driver.enqueue([message(id="order-a"), message(id="ORDER-A")])
    assert sorted(ids(await claim_all(driver))) == ["ORDER-A", "order-a"]


async def test_a_waiting_claim_returns_as_soon_as_a_message_arrives(driver: Driver, another: Another) -> None:
    producer, sent = await another(), message("b")
    waiting = asyncio.create_task(driver.claim(["a", "b"], 10, 9.0))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    await producer.enqueue([sent])
    assert ids(await asyncio.wait_for(waiting, 4.0)) == [sent.id]


async def test_a_waiting_claim_finds_a_first_message_of_every_kind(driver: Driver, another: Another) -> None:
    helper = await another()
    await driver.enqueue([message(priority=-7)])
    lease = await claim_one(driver)
    for settle in ("release", "retry"):
        waiting = asyncio.create_task(driver.claim(["work"], 10, 9.0))
        await asyncio.sleep(0.1)
        assert await SETTLE[settle](helper, [lease]) == []
        (lease,) = await asyncio.wait_for(waiting, 4.0)
    await driver.ack([Done(lease=lease)])
    await driver.enqueue([message(delay=0.2)])
    waiting = asyncio.create_task(driver.claim(["work"], 10, 9.0))
    await settled_maintenance(helper, until=1)
    assert len(await asyncio.wait_for(waiting, 4.0)) == 1


async def test_a_waiting_claim_gives_up_after_its_wait(driver: Driver) -> None:
    started = time.monotonic()
    assert await driver.claim(["work"], 10, 0.5) == []
    assert 0.4 <= time.monotonic() - started < 3.0


async def test_a_claim_that_is_cancelled_takes_nothing_with_it(driver: Driver, another: Another) -> None:
    waiting = asyncio.create_task(driver.claim(["work"], 10, 9.0))
    await asyncio.sleep(0.2)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    sent = messages(3)
    await (await another()).enqueue(sent)
    assert sorted(ids(await claim_all(driver))) == sorted(ids(sent))


async def test_no_message_is_shared_by_eight_consumers(driver: Driver, another: Another) -> None:
    sent = messages(400)
    for start in range(0, 400, 100):
        await driver.enqueue(sent[start : start + 100])
    taken: list[str] = []

    async def consume(consumer: Driver) -> None:
        while leases := await consumer.claim(["work"], 7, 0.3):
            taken.extend(ids(leases))
            assert await consumer.ack([Done(lease=lease) for lease in leases]) == []

    await asyncio.gather(*[consume(await another()) for _ in range(8)])
    assert sorted(taken) == sorted(ids(sent))


# ---- settling


async def test_an_acked_task_leaves_nothing_behind(place: Place, driver: Driver) -> None:
    plain, later = message(), message(delay=0.1, priority=4)
    await driver.enqueue([plain, later])
    assert await driver.ack([Done(lease=lease) for lease in await arrivals(driver, count=2)]) == []
    assert await claim(driver) == []
    assert await counts(driver) == {}
    assert place.traces() == 0


async def test_a_lease_is_extended_and_settled_through_any_connection(driver: Driver, another: Another) -> None:
    other = await another()
    await driver.enqueue(messages(len(SETTLE)))
    for lease, settle in zip(await claim(driver), SETTLE.values(), strict=True):
        assert await other.extend([lease]) == []
        assert await driver.extend([lease]) == []
        assert await settle(other, [lease]) == []


async def test_a_kept_task_has_its_result_its_worker_and_its_times(driver: Driver) -> None:
    needs(driver, "results")
    packed, empty = message(), message()
    before = utcnow() - timedelta(seconds=1)
    await driver.enqueue([packed, empty])
    results = {packed.id: b"\x00\xff result", empty.id: None}
    leases = await claim(driver)
    assert await driver.ack([Done(lease=one, result=results[one.id], keep=True) for one in leases]) == []
    for sent in (packed, empty):
        info = await look(driver, sent.id)
        assert (info.status, info.result, info.attempt) == ("completed", results[sent.id], 1)
        assert (info.worker, info.task, info.payload) == (driver.worker_id, sent.task, encode(sent))
        assert info.started_at is not None
        assert info.finished_at is not None
        assert before <= info.started_at <= info.finished_at <= utcnow() + timedelta(seconds=1)
        assert (info.locked_until, info.error) == (None, None)
    assert await claim(driver) == []
    assert await counts(driver) == {"completed": 2}


async def test_a_kept_task_is_not_recovered(driver: Driver) -> None:
    needs(driver, "results")
    await driver.enqueue([message(visibility_timeout=SHORT)])
    await driver.ack([Done(lease=await claim_one(driver), keep=True)])
    await lose(driver, message(visibility_timeout=SHORT))
    assert await counts(driver) == {"completed": 1, "pending": 1}


@pytest.mark.parametrize("first", ENDING)
async def test_what_was_settled_is_lost_to_whoever_settles_it_again(driver: Driver, first: str) -> None:
    await driver.enqueue(messages(len(SETTLE)))
    leases = await claim(driver)
    assert await SETTLE[first](driver, leases) == []
    before = await counts(driver)
    for lease, second in zip(leases, SETTLE.values(), strict=True):
        assert await second(driver, [lease]) == [lease]
    assert await counts(driver) == before


@pytest.mark.parametrize("late", SETTLE)
async def test_a_lease_that_was_recovered_is_lost_and_cannot_touch_the_next_claim(
    driver: Driver, another: Another, late: str
) -> None:
    other = await another()
    sent = message(visibility_timeout=SHORT, max_attempts=9)
    (old,) = await lose(driver, sent)
    assert await SETTLE[late](driver, [old]) == [old]
    new = await claim_one(other)
    assert (new.id, new.attempt) == (sent.id, 2)
    assert await SETTLE[late](driver, [old]) == [old]
    assert await claim(driver) == []
    assert await other.ack([Done(lease=new)]) == []
    assert await SETTLE[late](driver, [old]) == [old]


async def refused(driver: Driver, stale: list[Lease]) -> list[str]:
    """The ways of settling that find a lease lost, each tried on the next of ``stale``."""
    return [
        name
        for (name, settle), lease in zip(SETTLE.items(), stale, strict=True)
        if await settle(driver, [lease]) == [lease]
    ]


def attempts(leases: list[Lease]) -> dict[str, int]:
    return {lease.id: lease.attempt for lease in leases}


async def test_a_released_lease_is_lost_although_the_attempt_number_is_the_same_again(
    driver: Driver, another: Another
) -> None:
    other = await another()
    await driver.enqueue(messages(len(SETTLE)))
    old = await claim(driver)
    assert await driver.release(old) == []
    new = await claim(other)
    assert attempts(new) == attempts(old)
    assert await refused(driver, old) == list(SETTLE)
    assert await claim(driver) == []
    assert await other.ack([Done(lease=lease) for lease in new]) == []


async def test_a_lease_from_before_a_requeue_is_lost(driver: Driver, another: Another) -> None:
    other = await another()
    old = await lose(driver, *messages(len(SETTLE), visibility_timeout=SHORT, max_attempts=1))
    assert await inspector(driver).requeue(ids(old)) == len(old)
    new = await claim_all(other)
    assert attempts(new) == attempts(old)
    assert await refused(driver, old) == list(SETTLE)
    assert await other.ack([Done(lease=lease) for lease in new]) == []


async def test_a_lease_from_an_earlier_life_of_the_id_is_lost(driver: Driver, another: Another) -> None:
    other, sent = await another(), messages(len(SETTLE))
    await driver.enqueue(sent)
    old = await claim(driver)
    assert await driver.ack([Done(lease=lease) for lease in old]) == []
    await driver.enqueue(sent)
    new = await claim(other)
    assert attempts(new) == attempts(old)
    assert await refused(driver, old) == list(SETTLE)
    assert await other.ack([Done(lease=lease) for lease in new]) == []


@pytest.mark.parametrize("settle", SETTLE)
async def test_of_a_batch_exactly_the_lost_leases_come_back(driver: Driver, settle: str) -> None:
    await driver.enqueue(messages(5))
    leases = await claim(driver)
    lost = [leases[3], leases[1]]
    await driver.ack([Done(lease=lease) for lease in lost])
    assert sorted(ids(await SETTLE[settle](driver, leases))) == sorted(ids(lost))


async def test_a_stale_lease_beside_the_current_one_of_the_same_task_is_lost(driver: Driver) -> None:
    """A worker that froze may claim the task that it lost, and then end both runs at once."""
    await driver.enqueue(messages(2 * len(SETTLE)))
    old = await claim(driver)
    await driver.release(old)
    new = {lease.id: lease for lease in await claim(driver)}
    for settle, first, second in zip(SETTLE.values(), old[::2], old[1::2], strict=True):
        assert await settle(driver, [first, new[first.id]]) == [first]
        assert await settle(driver, [new[second.id], second]) == [second]


async def test_leases_of_several_queues_are_settled_in_one_call(driver: Driver) -> None:
    for name, settle in SETTLE.items():
        queues = [f"{name.replace(' ', '-')}-{number}" for number in range(3)]
        await driver.enqueue([message(queue) for queue in queues])
        leases = await claim(driver, *queues)
        assert len(leases) == 3
        assert await settle(driver, leases) == []
        numbers = [await counts(driver, queue) for queue in queues]
        assert numbers[0] == numbers[1] == numbers[2]


async def test_settling_one_state_once_is_what_stats_say(driver: Driver) -> None:
    await driver.enqueue(messages(6))
    leases = await claim(driver)
    for lease, settle in zip(leases, ("ack", "retry", "retry later", "dead_letter", "release", "extend"), strict=True):
        assert await SETTLE[settle](driver, [lease]) == []
    assert await counts(driver) == {"pending": 2, "scheduled": 1, "dead": 1, "processing": 1}


# ---- release


async def test_release_gives_the_attempt_back_at_once(driver: Driver) -> None:
    await driver.enqueue([message()])
    for attempt in (1, 1, 1):
        lease = await claim_one(driver)
        assert (lease.attempt, lease.suspect) == (attempt, False)
        assert await driver.release([lease]) == []
    await driver.retry([Retry(lease=await claim_one(driver), delay=0.0, error=ERROR)])
    second = await claim_one(driver)
    await driver.release([second])
    again = await claim_one(driver)
    assert (second.attempt, again.attempt, again.payload) == (2, 2, second.payload)


async def test_what_is_released_keeps_its_priority(driver: Driver) -> None:
    needs(driver, "priority")
    await driver.enqueue([message(priority=2), message(priority=1)])
    high = await claim_one(driver)
    await driver.release([high])
    assert [one.message and one.message.priority for one in await claim(driver)] == [2, 1]


# ---- retry


async def test_a_retry_without_delay_is_pending_at_once_as_the_next_attempt(driver: Driver) -> None:
    sent = message(priority=3, max_attempts=4)
    await driver.enqueue([sent])
    for attempt in (1, 2, 3):
        lease = await claim_one(driver)
        assert (lease.attempt, lease.payload, lease.suspect) == (attempt, encode(sent), False)
        assert await driver.retry([Retry(lease=lease, delay=0.0, error=ERROR)]) == []


async def test_a_retry_never_comes_before_its_delay(driver: Driver) -> None:
    await driver.enqueue(messages(2))
    soon, late = await claim(driver)
    started = time.monotonic()
    delays = {soon.id: 0.5, late.id: HOUR}
    assert await driver.retry([Retry(lease=one, delay=delays[one.id], error=ERROR) for one in (soon, late)]) == []
    (lease,) = await arrivals(driver)
    assert time.monotonic() - started >= 0.5
    assert (lease.id, lease.attempt) == (soon.id, 2)


async def test_what_is_retried_keeps_its_priority(driver: Driver) -> None:
    needs(driver, "priority")
    await driver.enqueue([message(priority=8), message(priority=7), message(priority=9)])
    first = await claim_one(driver)
    await driver.retry([Retry(lease=first, delay=0.1, error=ERROR)])
    await settled_maintenance(driver, until=1)
    assert [one.message and one.message.priority for one in await claim(driver)] == [9, 8, 7]


async def test_a_retried_task_shows_its_last_error(driver: Driver) -> None:
    inspector(driver)
    await driver.enqueue([message()])
    for text in ("first", "second"):
        error = ErrorInfo(type="shop.errors.Flaky", message=text, traceback=f"trace of {text}")
        await driver.retry([Retry(lease=await claim_one(driver), delay=0.0, error=error)])
    (lease,) = await claim(driver)
    await driver.retry([Retry(lease=lease, delay=HOUR, error=ERROR)])
    info = await look(driver, lease.id)
    assert (info.status, info.attempt, info.error) == ("scheduled", 3, ERROR)
    assert info.first_failed_at is not None
    assert info.last_failed_at is not None
    assert info.available_at is not None
    assert info.first_failed_at < info.last_failed_at < utcnow() + timedelta(seconds=5)
    assert timedelta(seconds=HOUR - 5) < info.available_at - utcnow() < timedelta(seconds=HOUR + 5)


# ---- dead letters


async def test_a_dead_letter_keeps_the_message_and_why_it_died(driver: Driver) -> None:
    inspector(driver)
    sent = message(correlation_id="order-7", priority=5)
    await driver.enqueue([sent])
    first = ErrorInfo(type="shop.errors.Flaky", message="first", traceback="")
    await driver.retry([Retry(lease=await claim_one(driver), delay=0.0, error=first)])
    assert await driver.dead_letter([Dead(lease=await claim_one(driver), error=ERROR)]) == []
    info = await look(driver, sent.id)
    assert (info.status, info.attempt, info.error) == ("dead", 2, ERROR)
    assert (info.queue, info.task, info.payload) == ("work", sent.task, encode(sent))
    assert (info.priority, info.max_attempts, info.correlation_id) == (5, 3, "order-7")
    assert info.first_failed_at is not None
    assert info.last_failed_at is not None
    assert info.first_failed_at < info.last_failed_at
    assert info.finished_at is not None
    assert abs(info.finished_at - utcnow()) < timedelta(seconds=10)
    assert await claim(driver) == []
    assert await counts(driver) == {"dead": 1}


async def test_an_error_of_the_largest_size_is_kept_whole(driver: Driver) -> None:
    inspector(driver)
    error = ErrorInfo(type="é" * 255, message="é" * MAX_ERROR_MESSAGE, traceback="\U0001f525" * MAX_TRACEBACK)
    await driver.enqueue(messages(2))
    dead, retried = await claim(driver)
    await driver.dead_letter([Dead(lease=dead, error=error)])
    await driver.retry([Retry(lease=retried, delay=HOUR, error=error)])
    for lease in (dead, retried):
        assert (await look(driver, lease.id)).error == error


# ---- extend and recovery


async def test_a_lease_extended_at_a_third_of_its_life_is_never_recovered(driver: Driver) -> None:
    await driver.enqueue([message(visibility_timeout=0.9), message(visibility_timeout=1.0, priority=1)])
    leases = await claim(driver)
    end = time.monotonic() + 2.0
    while time.monotonic() < end:
        assert await driver.extend(leases) == []
        for _ in range(3):
            done = await driver.maintain(["work"], 100)
            assert (done.recovered, done.buried) == (0, 0)
            await asyncio.sleep(0.1)
    assert await driver.ack([Done(lease=lease) for lease in leases]) == []


async def test_a_lease_lasts_as_long_as_its_message_says(driver: Driver) -> None:
    short, long = message(visibility_timeout=SHORT), message(visibility_timeout=HOUR)
    await driver.enqueue([long, short])
    started = time.monotonic()
    leases = {lease.id: lease for lease in await claim(driver)}
    done = await settled_maintenance(driver, until=1)
    assert time.monotonic() - started >= SHORT
    assert (done.recovered, done.buried) == (1, 0)
    assert await driver.ack([Done(lease=leases[long.id])]) == []


async def test_recovery_counts_the_attempt_and_a_message_that_lost_two_workers_is_a_suspect(driver: Driver) -> None:
    sent = message(visibility_timeout=SHORT, max_attempts=5)
    await lose(driver, sent)
    second = await claim_one(driver)
    assert (second.attempt, second.suspect, second.payload) == (2, False, encode(sent))
    await settled_maintenance(driver, until=1)
    third = await claim_one(driver)
    assert (third.attempt, third.suspect) == (3, True)
    assert await driver.ack([Done(lease=third)]) == []


async def test_a_message_whose_next_attempt_is_its_last_is_a_suspect_at_once(driver: Driver) -> None:
    await lose(driver, message(visibility_timeout=SHORT, max_attempts=2))
    lease = await claim_one(driver)
    assert (lease.attempt, lease.suspect) == (2, True)


async def test_what_a_lost_worker_held_comes_back_side_by_side(driver: Driver) -> None:
    lost = messages(6, visibility_timeout=SHORT, max_attempts=3)
    await lose(driver, *lost)
    leases = await claim_all(driver, suspects=0)
    assert sorted(ids(leases)) == sorted(ids(lost))
    assert {lease.attempt for lease in leases} == {2}


async def test_a_recovered_message_waits_its_retry_delay(driver: Driver) -> None:
    await lose(driver, message(visibility_timeout=SHORT, retry_delay=0.6, retry_strategy="fixed"))
    recovered = time.monotonic()
    assert await claim(driver) == []
    (lease,) = await arrivals(driver)
    assert time.monotonic() - recovered >= 0.5
    assert lease.attempt == 2


@pytest.mark.parametrize(
    ("strategy", "cap", "expected"), [("fixed", 3600, 100), ("exponential", 3600, 200), ("exponential", 150, 150)]
)
async def test_recovery_takes_the_delay_of_the_messages_own_policy(
    driver: Driver, another: Another, strategy: str, cap: float, expected: float
) -> None:
    worker = await another(max_retry_delay=cap)
    await worker.enqueue([message(visibility_timeout=SHORT, retry_delay=100.0, retry_strategy=strategy)])
    await worker.retry([Retry(lease=await claim_one(worker), delay=0.0, error=ERROR)])
    assert (await claim_one(worker)).attempt == 2
    await settled_maintenance(worker, until=1)
    due = (await worker.maintain(["work"], 10)).next_due
    assert due is not None
    assert expected - 5 < due <= expected * (1 + JITTER)


async def test_when_the_next_is_due_counts_what_was_recovered_just_now(driver: Driver) -> None:
    await driver.enqueue([message(visibility_timeout=SHORT, retry_delay=100.0)])
    await claim_one(driver)
    done = await settled_maintenance(driver, until=1)
    assert done.next_due is not None
    assert 95 < done.next_due <= 100 * (1 + JITTER)


async def test_the_last_attempts_expiry_buries_the_task_as_worker_lost(driver: Driver) -> None:
    inspector(driver)
    sent = message(visibility_timeout=SHORT, max_attempts=2)
    await lose(driver, sent)
    assert (await claim_one(driver)).attempt == 2
    done = await settled_maintenance(driver, until=1)
    assert (done.recovered, done.buried) == (0, 1)
    assert await claim(driver) == []
    info = await look(driver, sent.id)
    assert (info.status, info.attempt, info.payload) == ("dead", 2, encode(sent))
    assert info.error is not None
    assert info.error.type == "asynctasq.errors.WorkerLost"
    assert info.error.message


async def test_recovery_finds_the_expired_among_many_that_live(driver: Driver) -> None:
    live, expired = messages(150), messages(50, visibility_timeout=SHORT)
    await driver.enqueue(live)
    kept = await claim_all(driver)
    await driver.enqueue(expired)
    assert len(await claim_all(driver)) == 50
    done = await settled_maintenance(driver, until=50, limit=20)
    assert (done.recovered, done.buried) == (50, 0)
    assert sorted(ids(await claim_all(driver))) == sorted(ids(expired))
    assert await driver.ack([Done(lease=lease) for lease in kept]) == []


async def test_four_recoverers_at_once_recover_each_lease_once(driver: Driver, another: Another) -> None:
    sent = messages(60, visibility_timeout=SHORT) + messages(20, visibility_timeout=SHORT, max_attempts=1)
    await driver.enqueue(sent)
    assert len(await claim_all(driver)) == 80
    janitors = [await another() for _ in range(4)]
    done: Counter[str] = Counter()

    async def recovered() -> bool:
        for one in await asyncio.gather(*(janitor.maintain(["work"], 15) for janitor in janitors)):
            done.update(recovered=one.recovered, buried=one.buried)
        return done.total() >= 80

    await eventually(recovered)
    assert done == {"recovered": 60, "buried": 20}
    assert await counts(driver) == {"pending": 60, "dead": 20}


async def test_who_only_recovers_finds_the_leases_of_a_priority_that_came_later(
    driver: Driver, another: Another
) -> None:
    needs(driver, "priority")
    janitor = await another()
    await janitor.maintain(["work"], 10)
    await driver.enqueue([message(visibility_timeout=SHORT, priority=5)])
    assert len(await claim(driver)) == 1
    assert (await settled_maintenance(janitor, until=1)).recovered == 1


async def test_maintenance_leaves_other_queues_alone(driver: Driver) -> None:
    await driver.enqueue([message("a", visibility_timeout=SHORT), message("b", visibility_timeout=SHORT)])
    assert len(await claim(driver, "a", "b")) == 2
    await settled_maintenance(driver, "a", until=1)
    await asyncio.sleep(0.05)
    assert await counts(driver, "b") == {"processing": 1}


# ---- suspects


async def test_no_claim_takes_more_suspects_than_asked(driver: Driver) -> None:
    await lose(driver, *messages(6, visibility_timeout=SHORT, max_attempts=2))
    assert await driver.claim(["work"], 10, 0.0, 0) == []
    assert [len(await driver.claim(["work"], 10, 0.0)) for _ in range(2)] == [1, 1]
    assert len(await driver.claim(["work"], 10, 0.0, 3)) == 3
    assert len(await driver.claim(["work"], 10, 0.0, 3)) == 1


async def test_ordinary_messages_flow_past_suspects_that_nobody_asks_for(driver: Driver) -> None:
    await lose(driver, *messages(4, visibility_timeout=SHORT, max_attempts=2, priority=5))
    innocents = messages(30)
    await driver.enqueue(innocents)
    leases = await claim_all(driver, limit=7, suspects=0)
    assert sorted(ids(leases)) == sorted(ids(innocents))
    assert not any(lease.suspect for lease in leases)


async def test_suspects_of_several_queues_share_the_one_allowance(driver: Driver) -> None:
    suspects = [message(queue, visibility_timeout=SHORT, max_attempts=2) for queue in "abcabc"]
    await lose(driver, *suspects)
    await driver.enqueue([*messages(2, "a"), *messages(2, "c")])
    first = await claim(driver, "a", "b", "c", suspects=2)
    assert sum(not lease.suspect for lease in first) == 4
    assert sum(lease.suspect for lease in first) <= 2
    while some := await claim(driver, "a", "b", "c", suspects=2):
        assert len(some) <= 2
        first += some
    assert len(first) == 10


async def test_all_suspects_come_in_the_end_beside_ordinary_messages(driver: Driver) -> None:
    suspects = messages(3, visibility_timeout=SHORT, max_attempts=2)
    await lose(driver, *suspects)
    taken: set[str] = set()

    async def drained() -> bool:
        await driver.enqueue(messages(2))
        leases = await driver.claim(["work"], 3, 0.0, 1)
        assert sum(lease.suspect for lease in leases) <= 1
        await driver.ack([Done(lease=lease) for lease in leases])
        taken.update(lease.id for lease in leases if lease.suspect)
        return len(taken) == 3

    await eventually(drained)
    assert taken == set(ids(suspects))


async def test_a_message_that_never_lost_a_worker_is_no_suspect(driver: Driver) -> None:
    await driver.enqueue(messages(3))
    first, second, third = await claim(driver)
    await driver.release([first])
    await driver.retry([Retry(lease=second, delay=0.0, error=ERROR), Retry(lease=third, delay=0.1, error=ERROR)])
    assert not any(lease.suspect for lease in await arrivals(driver, count=3))


# ---- delay and promotion


async def test_a_delayed_message_never_comes_early_and_comes_with_maintenance(driver: Driver) -> None:
    started = time.monotonic()
    await driver.enqueue([message(delay=0.5)])
    await driver.maintain(["work"], 10)
    assert await claim(driver) == []
    (lease,) = await arrivals(driver)
    assert time.monotonic() - started >= 0.5
    assert lease.attempt == 1


async def test_a_message_for_an_instant_never_comes_before_it(driver: Driver) -> None:
    due = utcnow() + timedelta(seconds=0.6)
    await driver.enqueue([message(available_at=due)])
    assert await counts(driver) == {"scheduled": 1}
    await arrivals(driver)
    assert utcnow() >= due


async def test_an_instant_wins_over_a_delay_and_one_in_the_past_is_now(driver: Driver) -> None:
    past = [utcnow() - timedelta(days=400), utcnow() - timedelta(milliseconds=20), datetime(1970, 1, 1, tzinfo=UTC)]
    await driver.enqueue([message(available_at=instant, delay=HOUR) for instant in past])
    assert await counts(driver) == {"pending": 3}
    assert len(await claim(driver)) == 3


async def test_the_furthest_instants_and_delays_are_kept(driver: Driver) -> None:
    longest = driver.capabilities.max_delay or 3.2e9
    await driver.enqueue([message(delay=longest)])
    if driver.capabilities.max_delay is None:
        await driver.enqueue([message(available_at=datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))])
    await driver.maintain(["work"], 10)
    assert await claim(driver) == []


async def test_when_a_delay_is_over_is_for_the_brokers_clock_to_say(driver: Driver) -> None:
    slow, fast = (utcnow() + timedelta(days=days) for days in (-30, 30))
    due = [message(created_at=fast), message(created_at=slow)]
    waiting = [message(created_at=slow, delay=HOUR), message(created_at=fast, delay=HOUR)]
    await driver.enqueue(due + waiting)
    await driver.maintain(["work"], 10)
    assert sorted(ids(await claim_all(driver))) == sorted(ids(due))


async def test_four_promoters_at_once_move_each_message_once(driver: Driver, another: Another) -> None:
    sent = messages(200, delay=0.3)
    await driver.enqueue(sent)
    janitors = [await another() for _ in range(4)]
    promoted = 0

    async def all_promoted() -> bool:
        nonlocal promoted
        done = await asyncio.gather(*(janitor.maintain(["work"], 30) for janitor in janitors))
        promoted += sum(one.promoted for one in done)
        return promoted >= 200

    await eventually(all_promoted)
    assert promoted == 200
    assert sorted(ids(await claim_all(driver))) == sorted(ids(sent))


async def test_promoted_messages_keep_priority_and_come_oldest_first(driver: Driver) -> None:
    needs(driver, "priority")
    sent = [message(delay=delay, priority=priority) for delay, priority in ((0.1, 0), (0.2, 0), (0.3, 5), (0.1, 5))]
    await driver.enqueue(sent)
    await settled_maintenance(driver, until=4)
    leases = await claim(driver)
    assert [lease.message and lease.message.priority for lease in leases] == [5, 5, 0, 0]
    assert ids(leases[2:]) == ids(sent[:2])


async def test_maintenance_promotes_no_more_than_its_limit_and_says_that_there_is_more(driver: Driver) -> None:
    await driver.enqueue(messages(10, delay=0.1))
    await asyncio.sleep(0.2)
    done = await driver.maintain(["work"], 3)
    assert (done.promoted, done.next_due) == (3, 0)
    assert await counts(driver) == {"pending": 3, "scheduled": 7}
    assert (await driver.maintain(["work"], 7)).promoted == 7
    assert await driver.maintain(["work"], 7) == base.Maintenance()


async def test_maintenance_recovers_no_more_than_its_limit(driver: Driver) -> None:
    await driver.enqueue(messages(8, visibility_timeout=SHORT))
    assert len(await claim(driver)) == 8
    await asyncio.sleep(SHORT + 0.1)
    done = await driver.maintain(["work"], 3)
    assert 1 <= done.recovered <= 3
    assert done.next_due == 0
    assert (await settled_maintenance(driver, until=8 - done.recovered, limit=3)).recovered == 8 - done.recovered


async def test_maintenance_says_when_the_next_message_is_due(driver: Driver) -> None:
    assert (await driver.maintain(["a", "b"], 10)).next_due is None
    await driver.enqueue([message("a", delay=500.0), message("b", delay=90.0), message("c", delay=5.0), message("a")])
    for queues, expected in ((["a", "b"], 90.0), (["a"], 500.0), (["c", "b"], 5.0)):
        due = (await driver.maintain(queues, 10)).next_due
        assert due is not None
        assert expected - 5 < due <= expected
    assert (await driver.maintain(["none"], 10)).next_due is None


# ---- numbers and purge


async def test_stats_count_every_state_of_every_queue(driver: Driver) -> None:
    needs(driver, "exact_counts")
    await driver.enqueue([*messages(7, "b"), *messages(2, "b", delay=HOUR), *messages(3, "a"), message("B")])
    ack, keep, dead, retried, running = (await claim(driver, "b", limit=5))[:5]
    await driver.ack([Done(lease=ack), Done(lease=keep, keep=driver.capabilities.results)])
    await driver.dead_letter([Dead(lease=dead, error=ERROR)])
    await driver.retry([Retry(lease=retried, delay=HOUR, error=ERROR)])
    expected = {"pending": 2, "scheduled": 3, "processing": 1, "dead": 1}
    if driver.capabilities.results:
        expected["completed"] = 1
    assert await counts(driver, "b") == expected
    assert await counts(driver, "a") == {"pending": 3}
    assert [numbers.queue for numbers in await driver.stats()] == ["B", "a", "b"]
    assert [numbers.queue for numbers in await driver.stats(["b", "a"])] == ["a", "b"]
    assert await driver.extend([running]) == []


async def test_stats_of_a_queue_that_never_was_are_zeros(driver: Driver) -> None:
    await driver.enqueue([message()])
    assert await counts(driver, "never") == {}
    assert [numbers.queue for numbers in await driver.stats(["never", "work"])] == ["never", "work"]


async def test_stats_know_how_long_the_oldest_has_been_pending(driver: Driver) -> None:
    needs(driver, "exact_counts")
    await driver.enqueue([message("a"), message("b", delay=HOUR)])

    async def aged() -> bool:
        numbers = {one.queue: one for one in await driver.stats()}
        assert numbers["b"].oldest_pending is None
        age = numbers["a"].oldest_pending
        assert age is not None
        assert 0 <= age < 10
        return age > 0.2

    await eventually(aged)


async def test_purge_spares_what_runs_the_dead_the_kept_and_other_queues(driver: Driver) -> None:
    await driver.enqueue([*messages(3), *messages(2, "other")])
    running, dead, kept = await claim(driver)
    await driver.dead_letter([Dead(lease=dead, error=ERROR)])
    await driver.ack([Done(lease=kept, keep=driver.capabilities.results)])
    await driver.enqueue([*messages(4), *messages(3, delay=HOUR), *messages(2, priority=9)])
    assert await driver.purge("work") == 9
    assert await driver.purge("work") == 0
    expected = {"processing": 1, "dead": 1, **({"completed": 1} if driver.capabilities.results else {})}
    assert await counts(driver) == expected
    assert await counts(driver, "other") == {"pending": 2}
    assert await driver.ack([Done(lease=running)]) == []


async def test_purge_takes_retries_and_suspects_with_it_and_frees_the_ids(place: Place, driver: Driver) -> None:
    suspect, retried = message(visibility_timeout=SHORT, max_attempts=2), message()
    await lose(driver, suspect)
    await driver.enqueue([retried])
    await driver.retry([Retry(lease=(await claim(driver, suspects=0))[0], delay=HOUR, error=ERROR)])
    assert await driver.purge("work") == 2
    assert place.traces() == 0
    await driver.enqueue([suspect, retried])
    leases = await claim(driver, suspects=0)
    assert sorted(ids(leases)) == sorted(ids([suspect, retried]))
    assert [lease.attempt for lease in leases] == [1, 1]


async def test_purge_empties_a_large_queue_in_one_call(driver: Driver) -> None:
    for _ in range(3):
        await driver.enqueue(messages(1000))
    assert await driver.purge("work") == 3000
    assert await claim(driver) == []


# ---- many, none


async def test_a_thousand_in_one_call_of_each_kind(place: Place, driver: Driver) -> None:
    sent = messages(1000, priority=1)
    await driver.enqueue(sent)
    leases = await claim(driver)
    assert ids(leases) == ids(sent)
    assert await driver.extend(leases) == []
    assert await driver.release(leases) == []
    leases = await claim(driver)
    assert await driver.retry([Retry(lease=lease, delay=0.0, error=ERROR) for lease in leases]) == []
    leases = await claim(driver)
    assert {lease.attempt for lease in leases} == {2}
    assert await driver.dead_letter([Dead(lease=lease, error=ERROR) for lease in leases[:500]]) == []
    assert await driver.ack([Done(lease=lease) for lease in leases[500:]]) == []
    assert place.traces() == 500


async def test_a_thousand_ids_in_one_call_of_the_inspector(driver: Driver) -> None:
    tasks, sent = inspector(driver), messages(1000)
    await driver.enqueue(sent)
    assert len(await tasks.get(ids(sent))) == 1000
    assert await tasks.cancel(ids(sent[:300])) == 300
    await driver.dead_letter([Dead(lease=lease, error=ERROR) for lease in await claim(driver)])
    assert await tasks.requeue(ids(sent)) == 700
    assert await tasks.delete(ids(sent)) == 700


async def test_nothing_asked_is_nothing_done(driver: Driver) -> None:
    await driver.enqueue([message()])
    await driver.enqueue([])
    assert await driver.claim([], 10, 0.0) == []
    assert await driver.claim(["work"], 0, 0.0) == []
    for settle in SETTLE.values():
        assert await settle(driver, []) == []
    assert await driver.maintain([], 10) == base.Maintenance()
    assert await driver.stats([]) == []
    assert await counts(driver) == {"pending": 1}


async def test_no_ids_for_the_inspector_is_nothing_done(driver: Driver) -> None:
    tasks = inspector(driver)
    await driver.enqueue([message()])
    assert await tasks.get([]) == []
    assert [await call([]) for call in (tasks.requeue, tasks.cancel, tasks.delete)] == [0, 0, 0]
    assert await counts(driver) == {"pending": 1}


# ---- inspector


async def pages(driver: Driver, between: Callable[[], Awaitable[Any]] | None = None, **query: Any) -> list[Page]:
    """All pages of a query, calling ``between`` after each."""
    found = [await inspector(driver).find(TaskQuery(**query))]
    while (cursor := found[-1].next) is not None:
        assert len(found) < 100
        if between is not None:
            await between()
        found.append(await inspector(driver).find(TaskQuery(**query, cursor=cursor)))
    return found


async def found(driver: Driver, **query: Any) -> list[str]:
    """The ids that a query finds on all its pages, in order."""
    return [info.id for page in await pages(driver, **query) for info in page.items]


async def one_in_each_state(driver: Driver, queue: str = "work") -> dict[str, Message]:
    """A task in every state that the driver knows."""
    states = ["pending", "scheduled", "processing", "dead"] + ["completed"] * driver.capabilities.results
    tasks = {state: message(queue, delay=HOUR if state == "scheduled" else 0.0) for state in states}
    await driver.enqueue([task for state, task in tasks.items() if state != "pending"])
    leases = {lease.id: lease for lease in await claim(driver, queue)}
    await driver.dead_letter([Dead(lease=leases[tasks["dead"].id], error=ERROR)])
    if "completed" in tasks:
        await driver.ack([Done(lease=leases[tasks["completed"].id], keep=True, result=b"r")])
    await driver.enqueue([tasks["pending"]])
    return tasks


async def test_every_state_is_found_by_id_under_its_name(driver: Driver) -> None:
    tasks = inspector(driver)
    states = await one_in_each_state(driver)
    infos = {info.id: info for info in await tasks.get(ids(list(states.values())))}
    for state, sent in states.items():
        info = infos[sent.id]
        assert (info.status, info.queue, info.task, info.payload) == (state, "work", sent.task, encode(sent))
        assert info.created_at is not None
        assert abs(info.created_at - sent.created_at) < timedelta(milliseconds=1)
        assert (info.attempt, info.max_attempts) == (0 if state in ("pending", "scheduled") else 1, 3)
        assert (info.worker == driver.worker_id) == (state in ("processing", "completed", "dead"))
    running = infos[states["processing"].id]
    assert running.started_at is not None
    assert running.locked_until is not None
    assert abs(running.locked_until - running.started_at - timedelta(seconds=300)) < timedelta(seconds=5)


async def test_instants_are_aware_utc(driver: Driver) -> None:
    states = await one_in_each_state(driver)
    for info in await inspector(driver).get(ids(list(states.values()))):
        for instant in (info.created_at, info.available_at, info.locked_until, info.started_at, info.finished_at):
            assert instant is None or instant.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    "strange", ["01930000-0000-7000-8000-000000000000", "", "x" * 500, "'; --", "é", "\x00", "\ud800"], ids=ascii
)
async def test_unknown_ids_are_left_out_whatever_they_are(driver: Driver, strange: str) -> None:
    tasks, sent = inspector(driver), message()
    await driver.enqueue([sent])
    assert ids(await tasks.get([strange, sent.id])) == [sent.id]
    assert [await call([strange]) for call in (tasks.requeue, tasks.cancel, tasks.delete)] == [0, 0, 0]


async def test_an_id_asked_for_twice_is_one_task(driver: Driver) -> None:
    tasks, sent = inspector(driver), message()
    await driver.enqueue([sent])
    assert ids(await tasks.get([sent.id, sent.id])) == [sent.id]
    assert await tasks.cancel([sent.id, sent.id]) == 1


@pytest.mark.parametrize(("count", "sizes"), [(25, [10, 10, 5]), (20, [10, 10]), (10, [10]), (1, [1]), (0, [0])])
async def test_pages_are_newest_first_and_the_last_one_says_so(driver: Driver, count: int, sizes: list[int]) -> None:
    sent = messages(count)
    await driver.enqueue(sent)
    got = await pages(driver, limit=10)
    assert [len(page.items) for page in got] == sizes
    assert [info.id for page in got for info in page.items] == ids(sent)[::-1]
    assert not any(page.truncated for page in got)


async def test_pages_go_over_all_states_and_queues(driver: Driver) -> None:
    inspector(driver)
    tasks = [*(await one_in_each_state(driver, "a")).values(), *(await one_in_each_state(driver, "b")).values()]
    assert await found(driver, limit=3) == sorted(ids(tasks), reverse=True)


async def test_pages_stay_complete_and_without_duplicates_while_messages_come_and_go(driver: Driver) -> None:
    inspector(driver)
    sent = messages(30)
    await driver.enqueue(sent)

    async def busy() -> None:
        await driver.enqueue(messages(7))
        first, second = await claim(driver, limit=2)
        await driver.dead_letter([Dead(lease=first, error=ERROR)])
        await driver.release([second])

    got = [info.id for page in await pages(driver, busy, limit=4) for info in page.items]
    assert len(got) == len(set(got))
    assert set(ids(sent)) <= set(got)


async def test_tasks_are_found_by_status(driver: Driver) -> None:
    inspector(driver)
    tasks = await one_in_each_state(driver)
    for state, sent in tasks.items():
        assert await found(driver, statuses=frozenset({state})) == [sent.id]
    both = frozenset({"dead", "pending"})
    assert await found(driver, statuses=both, limit=1) == sorted((tasks["dead"].id, tasks["pending"].id), reverse=True)
    assert await found(driver, statuses=frozenset({"cancelled"})) == []


async def test_tasks_are_found_by_queue_and_by_name_together(driver: Driver) -> None:
    inspector(driver)
    names = ("shop.tasks.mail", "shop.tasks.Mail", "shop.tasks.mai_")
    sent = [message(queue, task=name) for queue in ("a", "b") for name in names]
    await driver.enqueue(sent)
    assert await found(driver, queue="a") == ids(sent[:3])[::-1]
    for index, name in enumerate(names):
        assert await found(driver, task=name) == [sent[3 + index].id, sent[index].id]
        assert await found(driver, queue="b", task=name) == [sent[3 + index].id]
    assert await found(driver, queue="A") == []
    assert await found(driver, task="shop.tasks.%") == []


async def test_tasks_are_found_by_when_they_were_dispatched(driver: Driver) -> None:
    inspector(driver)
    start = datetime(2030, 1, 1, tzinfo=UTC)
    sent = [message(created_at=start + timedelta(hours=hour)) for hour in range(6)]
    await driver.enqueue(sent)
    await driver.dead_letter([Dead(lease=await claim_one(driver), error=ERROR)])
    half = timedelta(minutes=30)
    assert await found(driver, created_after=start + 3 * half) == ids(sent[2:])[::-1]
    assert await found(driver, created_before=start + 3 * half) == ids(sent[:2])[::-1]
    assert await found(driver, created_after=start - half, created_before=start + half) == [sent[0].id]
    assert await found(driver, created_after=start + 20 * half) == []


@pytest.mark.parametrize(
    "cursor", ["garbage", "!", "W10", "bnVsbA", "WzEsMiwzLDQsNV0", "eyJhIjoxfQ", "ä", "\x00", "A" * 10_000]
)
async def test_a_cursor_that_no_page_gave_is_a_configuration_error(driver: Driver, cursor: str) -> None:
    with pytest.raises(ConfigurationError, match="cursor"):
        await inspector(driver).find(TaskQuery(cursor=cursor))


async def test_a_query_gives_up_at_the_scan_limit_and_says_so(driver: Driver, another: Another) -> None:
    inspector(driver)
    limited = inspector(await another(task_scan_limit=5))
    sent = messages(20)
    await driver.enqueue(sent)
    page = await limited.find(TaskQuery(task="never.dispatched"))
    assert (page.items, page.truncated) == ([], True)
    page = await limited.find(TaskQuery(limit=3))
    assert ([info.id for info in page.items], page.truncated) == (ids(sent)[:-4:-1], False)
    await driver.purge("work")
    await driver.enqueue(messages(4))
    page = await limited.find(TaskQuery(task="never.dispatched"))
    assert (page.items, page.truncated) == ([], False)


async def test_requeue_brings_a_dead_letter_back_with_its_attempts_from_zero(place: Place, driver: Driver) -> None:
    tasks, sent = inspector(driver), message(priority=2, max_attempts=4)
    await driver.enqueue([sent])
    await driver.retry([Retry(lease=await claim_one(driver), delay=0.0, error=ERROR)])
    await driver.dead_letter([Dead(lease=await claim_one(driver), error=ERROR)])
    assert await tasks.requeue([sent.id]) == 1
    assert await statuses(driver, sent) == ["pending"]
    assert await tasks.requeue([sent.id]) == 0
    lease = await claim_one(driver)
    assert (lease.id, lease.attempt, lease.payload) == (sent.id, 1, encode(sent))
    assert await driver.ack([Done(lease=lease)]) == []
    assert place.traces() == 0


async def test_requeue_of_what_is_not_dead_does_nothing(driver: Driver) -> None:
    tasks = inspector(driver)
    states = await one_in_each_state(driver)
    del states["dead"]
    assert await tasks.requeue(ids(list(states.values()))) == 0
    assert await statuses(driver, *states.values()) == list(states)


async def test_four_operators_requeue_a_dead_letter_once(driver: Driver, another: Another) -> None:
    inspector(driver)
    sent = messages(30)
    await driver.enqueue(sent)
    await driver.dead_letter([Dead(lease=lease, error=ERROR) for lease in await claim(driver)])
    operators = [inspector(await another()) for _ in range(4)]
    assert sum(await asyncio.gather(*(one.requeue(ids(sent)) for one in operators))) == 30
    assert await counts(driver) == {"pending": 30}


async def test_cancel_calls_off_what_waits_and_nothing_else(place: Place, driver: Driver) -> None:
    tasks = inspector(driver)
    states = await one_in_each_state(driver)
    assert await tasks.cancel(ids(list(states.values()))) == 2
    after = [None if state in ("pending", "scheduled") else state for state in states]
    assert await statuses(driver, *states.values()) == after
    assert place.traces() == len(states) - 2
    assert await claim(driver) == []


async def test_cancel_reaches_retries_and_suspects(driver: Driver) -> None:
    tasks = inspector(driver)
    suspect, retried = message(visibility_timeout=SHORT, max_attempts=2), message()
    await lose(driver, suspect)
    await driver.enqueue([retried])
    await driver.retry([Retry(lease=(await claim(driver, suspects=0))[0], delay=HOUR, error=ERROR)])
    assert await tasks.cancel([suspect.id, retried.id]) == 2
    assert await counts(driver) == {}
    assert await claim(driver) == []


async def test_cancel_keeps_the_task_as_cancelled_where_tasks_are_kept(driver: Driver, another: Another) -> None:
    needs(driver, "results")
    keeping = await another(keep_completed_tasks=True)
    pending, scheduled = message(), message(delay=HOUR)
    await driver.enqueue([pending, scheduled])
    assert await inspector(keeping).cancel([pending.id, scheduled.id]) == 2
    assert await inspector(keeping).cancel([pending.id, scheduled.id]) == 0
    assert await counts(driver) == {"cancelled": 2}
    info = await look(driver, pending.id)
    assert (info.status, info.payload) == ("cancelled", encode(pending))
    assert info.finished_at is not None
    await driver.maintain(["work"], 10)
    assert await claim(driver) == []
    assert sorted(await found(driver, statuses=frozenset({"cancelled"}))) == sorted([pending.id, scheduled.id])
    assert await inspector(driver).delete([pending.id]) == 1
    assert await counts(driver) == {"cancelled": 1}


async def test_delete_removes_for_good_but_not_what_is_running(place: Place, driver: Driver) -> None:
    tasks = inspector(driver)
    states = await one_in_each_state(driver)
    assert await tasks.delete(ids(list(states.values()))) == len(states) - 1
    assert await statuses(driver, *states.values()) == [
        "processing" if state == "processing" else None for state in states
    ]
    assert place.traces() == 1
    assert await counts(driver) == {"processing": 1}


async def test_operators_and_workers_never_both_have_a_message(driver: Driver, another: Another) -> None:
    inspector(driver)
    sent = messages(100)
    await driver.enqueue(sent)
    operators = [inspector(await another()) for _ in range(2)]
    workers = [await another() for _ in range(2)]

    async def work(worker: Driver) -> list[Lease]:
        return await claim_all(worker, limit=5)

    async def call_off(operator: base.Inspector) -> int:
        return sum([await operator.cancel(ids(sent[start : start + 10])) for start in range(90, -1, -10)])

    taken, called_off = await asyncio.gather(
        asyncio.gather(*map(work, workers)), asyncio.gather(*map(call_off, operators))
    )
    leases = [lease for some in taken for lease in some]
    assert len(leases) + sum(called_off) == 100
    assert await driver.ack([Done(lease=lease) for lease in leases]) == []


# ---- bad inputs: what lies in the broker may be anything


def _packed(sent: Message, **changes: Any) -> bytes:
    fields = {**msgspec.to_builtins(sent, builtin_types=(bytes, datetime)), "v": 1, **changes}
    return msgspec.msgpack.encode({name: value for name, value in fields.items() if value is not ...})


HOSTILE: dict[str, Callable[[Message], bytes]] = {
    "empty": lambda sent: b"",
    "one byte": lambda sent: b"\x00",
    "1 MiB of 0xff": lambda sent: b"\xff" * 2**20,
    "truncated": lambda sent: encode(sent)[:-3],
    "trailing bytes": lambda sent: encode(sent) + b"\x00",
    "100,000 nested arrays": lambda sent: b"\x91" * 100_000 + b"\xc0",
    "array header of 2^31": lambda sent: b"\xdd\x80\x00\x00\x00",
    "map header of 2^31": lambda sent: b"\xdf\x80\x00\x00\x00",
    "version 99": lambda sent: _packed(sent, v=99),
    "missing id": lambda sent: _packed(sent, id=...),
    "id of 10 MB": lambda sent: _packed(sent, id="x" * 10_000_000),
    "task name of type int": lambda sent: _packed(sent, task=7),
    "body of type str": lambda sent: _packed(sent, body="text"),
    "lone surrogate": lambda sent: _packed(sent, task="TASK").replace(b"\xa4TASK", b"\xa3\xed\xa0\x80"),
    "pickle": lambda sent: pickle.dumps(HOUR) + b"cos\nsystem\n(S'true'\ntR.",
    "id of another message": lambda sent: _packed(sent, id=new_id()),
    "queue of another message": lambda sent: _packed(sent, queue="elsewhere"),
    "priority beyond the range": lambda sent: _packed(sent, priority=10**6),
}


@pytest.mark.parametrize("kind", HOSTILE)
async def test_what_is_no_message_is_claimed_with_its_fault_and_buried_as_it_was(
    place: Place, driver: Driver, kind: str
) -> None:
    innocent, decoy = message(), message()
    await driver.enqueue([innocent])
    raw = HOSTILE[kind](decoy)
    place.put(decoy, raw)
    leases = {lease.id: lease for lease in await claim_all(driver)}
    hostile = leases.pop(decoy.id)
    assert hostile.message is None
    assert hostile.fault
    assert len(hostile.fault) < 500
    assert (hostile.payload, hostile.queue, hostile.attempt) == (raw, "work", 1)
    assert await driver.extend([hostile]) == []
    assert await driver.dead_letter([Dead(lease=hostile, error=ERROR)]) == []
    assert await driver.ack([Done(lease=leases[innocent.id])]) == []
    if driver.capabilities.listing:
        info = await look(driver, decoy.id)
        assert (info.status, info.payload, info.error) == ("dead", raw, ERROR)
        assert ids((await inspector(driver).find(TaskQuery())).items) == [decoy.id]


async def test_what_is_no_message_can_be_retried_released_and_deleted_like_any_other(
    place: Place, driver: Driver
) -> None:
    tasks, decoys = inspector(driver), messages(3)
    for decoy in decoys:
        place.put(decoy, b"\xc1")
    leases = {lease.id: lease for lease in await claim_all(driver)}
    retried, released, dead = (leases[decoy.id] for decoy in decoys)
    await driver.retry([Retry(lease=retried, delay=0.0, error=ERROR)])
    await driver.release([released])
    await driver.dead_letter([Dead(lease=dead, error=ERROR)])
    assert {lease.id: lease.attempt for lease in await claim_all(driver)} == {retried.id: 2, released.id: 1}
    assert await tasks.requeue([dead.id]) == 1
    assert (await claim_one(driver)).message is None
    assert await tasks.delete(ids(decoys)) == 0


async def test_what_is_no_message_is_not_stuck_when_its_worker_is_lost(place: Place, driver: Driver) -> None:
    decoy = message(visibility_timeout=SHORT)
    place.put(decoy, b"\xc1")
    (lease,) = await claim(driver)
    done = await settled_maintenance(driver, until=1)
    assert await driver.ack([Done(lease=lease)]) == [lease]
    if done.buried:
        assert (await look(driver, decoy.id)).payload == b"\xc1"
    else:
        (again,) = await arrivals(driver)
        assert (again.id, again.attempt, again.message) == (decoy.id, 2, None)


_watched: list[tuple[str, str]] | None = None
_FORBIDDEN = ("import", "exec", "compile", "open", "os.system", "subprocess", "pickle", "marshal", "ctypes", "code.")


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if _watched is not None and event.startswith(_FORBIDDEN):
        _watched.append((event, repr(args)[:200]))


async def test_claiming_hostile_messages_imports_executes_and_opens_nothing(place: Place, driver: Driver) -> None:
    names = ["os.system", "__import__", "antigravity.__init__.__class__", "this\n", "../../etc/passwd", "builtins.eval"]

    async def take(kinds: list[Callable[[Message], bytes]]) -> int:
        for kind in kinds:
            place.put(decoy := message(), kind(decoy))
        return len(await claim_all(driver))

    def named(name: str) -> Callable[[Message], bytes]:
        return lambda sent: _packed(sent, task=name)

    # What a client loads at its first call is not the messages' doing.
    await take([HOSTILE["one byte"], named("shop.tasks.nothing")])
    global _watched
    sys.addaudithook(_watch)
    seen: list[tuple[str, str]] = []
    _watched = seen
    try:
        taken = await take([*HOSTILE.values(), *map(named, names)])
    finally:
        _watched = None
    assert taken == len(HOSTILE) + len(names)
    assert seen == []


# ---- connections


CALLS: dict[str, Callable[[Driver], Awaitable[Any]]] = {
    "enqueue": lambda driver: driver.enqueue([message()]),
    "claim": lambda driver: driver.claim(["work"], 1, 0.0),
    "ack": lambda driver: driver.ack([Done(lease=_stale(driver))]),
    "retry": lambda driver: driver.retry([Retry(lease=_stale(driver), delay=0.0, error=ERROR)]),
    "dead_letter": lambda driver: driver.dead_letter([Dead(lease=_stale(driver), error=ERROR)]),
    "release": lambda driver: driver.release([_stale(driver)]),
    "extend": lambda driver: driver.extend([_stale(driver)]),
    "maintain": lambda driver: driver.maintain(["work"], 10),
    "stats": lambda driver: driver.stats(),
    "purge": lambda driver: driver.purge("work"),
}
INSPECTOR_CALLS: dict[str, Callable[[Driver], Awaitable[Any]]] = {
    "find": lambda driver: inspector(driver).find(TaskQuery()),
    "get": lambda driver: inspector(driver).get([new_id()]),
    "requeue": lambda driver: inspector(driver).requeue([new_id()]),
    "cancel": lambda driver: inspector(driver).cancel([new_id()]),
    "delete": lambda driver: inspector(driver).delete([new_id()]),
}
EXAMPLE: dict[str, Lease] = {}


def _stale(driver: Driver) -> Lease:
    """The lease that ``every_call`` claimed before."""
    return EXAMPLE[driver.name]


async def every_call(driver: Driver) -> dict[str, Callable[[Driver], Awaitable[Any]]]:
    """All calls that the driver has; those that settle have a lease to settle."""
    await driver.enqueue([message()])
    EXAMPLE[driver.name] = await claim_one(driver)
    return CALLS | (INSPECTOR_CALLS if driver.capabilities.listing else {})


async def outcome(call: Awaitable[Any]) -> str:
    """The name of the error that a call ends in."""
    try:
        await call
    except Exception as exc:  # noqa: BLE001 - whichever it is, its name is shown
        return type(exc).__name__
    return "none"


async def test_every_call_before_connect_or_after_close_says_that_the_driver_is_closed(
    place: Place, driver: Driver
) -> None:
    calls = await every_call(driver)
    new = place.create()
    assert {name: await outcome(call(new)) for name, call in calls.items()} == dict.fromkeys(calls, "DriverClosed")
    await driver.close()
    assert {name: await outcome(call(driver)) for name, call in calls.items()} == dict.fromkeys(calls, "DriverClosed")


async def test_closing_twice_or_without_connecting_is_fine(place: Place, driver: Driver) -> None:
    await driver.close()
    await driver.close()
    await place.create().close()


async def test_migrating_again_changes_nothing(place: Place, driver: Driver) -> None:
    await driver.enqueue([message()])
    migrated = [await place.create().migrate() for _ in range(2)]
    assert migrated[0] == migrated[1]
    assert len(await claim(driver)) == 1


async def test_every_driver_is_a_worker_of_its_own(place: Place) -> None:
    assert place.create().worker_id != place.create().worker_id


@pytest.mark.parametrize("call", ["enqueue", "retry", "dead_letter", "ack", "release"])
async def test_a_call_cancelled_at_any_moment_leaves_each_message_in_one_place(driver: Driver, call: str) -> None:
    """The client must not hand on a connection that still has the answer of a cancelled call in it."""
    for moment in (*range(12), 0.001, 0.002, 0.004, 0.008):
        queue = f"queue-{moment}"
        sent = messages(8, queue)
        await driver.enqueue(sent)
        work: Awaitable[Any]
        if call == "enqueue":
            work = driver.enqueue(sent + messages(8, queue))
        else:
            work = SETTLE[call](driver, await claim(driver, queue))
        task = asyncio.ensure_future(work)
        if isinstance(moment, int):
            for _ in range(moment):
                await asyncio.sleep(0)
        else:
            await asyncio.sleep(moment)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

        async def agreed(queue: str = queue) -> bool:
            numbers = sum((await counts(driver, queue)).values())
            return numbers in {"enqueue": (8, 16), "ack": (0, 8)}.get(call, (8,))

        await eventually(agreed, within=3.0)
        assert len({lease.id for lease in await claim_all(driver, queue)}) in (0, 8, 16)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> Callable[[Driver], Driver]:
    """Makes a driver's deadline short, so that the tests of it are."""

    def hurry(driver: Driver) -> Driver:
        for name, module in list(sys.modules.items()):
            if name.startswith("asynctasq.drivers"):
                monkeypatch.setattr(module, "CALL_DEADLINE", DEADLINE, raising=False)
        return driver

    return hurry


DEADLINE = 2.0
GRACE = 1.5
Hurry = Callable[[Driver], Driver]


async def test_a_server_that_does_not_answer_the_door_is_unavailable(server: Server, hurried: Hurry) -> None:
    driver = hurried(server.create(**server.at("127.0.0.1", closed_port())))
    started = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        await _connect_and_enqueue(driver)
    await driver.close()
    assert time.monotonic() - started < 2 * (DEADLINE + GRACE)


async def test_a_server_that_never_answers_is_unavailable_by_the_deadline(server: Server, hurried: Hurry) -> None:
    async with Proxy(server) as proxy:
        proxy.swallow()
        driver = hurried(server.create(**server.at(proxy.host, proxy.port)))
        started = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            await _connect_and_enqueue(driver)
        await driver.close()
        assert time.monotonic() - started < 2 * (DEADLINE + GRACE)


async def _connect_and_enqueue(driver: Driver) -> None:
    await driver.connect()
    await driver.enqueue([message()])


@pytest.fixture
async def proxied(server: Server, hurried: Hurry) -> Any:
    """A proxy, a driver through it, and one that goes straight to the server."""
    straight = server.create()
    await server.prepare()
    await straight.connect()
    async with Proxy(server) as proxy:
        driver = hurried(server.create(**server.at(proxy.host, proxy.port)))
        await driver.connect()
        yield proxy, driver, straight
        proxy.heal()
        await driver.close()
    await straight.close()


Proxied = tuple[Proxy, Driver, Driver]


async def test_no_call_outlasts_the_deadline_when_the_server_falls_silent(proxied: Proxied) -> None:
    proxy, driver, _ = proxied
    calls = await every_call(driver)
    proxy.swallow()

    async def attempt(name: str) -> tuple[str, str, bool]:
        started = time.monotonic()
        error = await outcome(calls[name](driver))
        return name, error, time.monotonic() - started < DEADLINE + GRACE

    assert await asyncio.gather(*map(attempt, calls)) == [(name, "BrokerUnavailable", True) for name in calls]
    started = time.monotonic()
    await driver.close()
    assert time.monotonic() - started < DEADLINE + GRACE


async def test_enqueue_repeated_after_its_answer_was_lost_is_one_task(proxied: Proxied) -> None:
    proxy, driver, straight = proxied
    sent = messages(3)
    for _ in range(5):
        # Each connection of a pool has answered once: a first call may need an answer before it sends the rest.
        await driver.enqueue(messages(1, "warm-up"))
    proxy.replies.clear()
    with pytest.raises(BrokerUnavailable):
        await driver.enqueue(sent)
    proxy.cut()
    proxy.heal()
    assert await counts(straight) == {"pending": 3}
    await eventually(lambda: _succeeds(driver.enqueue(sent)))
    assert sorted(ids(await claim_all(straight))) == sorted(ids(sent))


async def _succeeds(call: Awaitable[Any]) -> bool:
    try:
        await call
    except BrokerUnavailable:
        return False
    return True


async def test_a_driver_whose_connections_were_reset_goes_on_by_itself(proxied: Proxied) -> None:
    proxy, driver, straight = proxied
    sent = messages(20)
    for one in sent:
        while not await _succeeds(driver.enqueue([one])):
            pass
        proxy.cut()
    taken: list[str] = []

    async def drained() -> bool:
        try:
            leases = await driver.claim(["work"], 3, 0.1)
        except BrokerUnavailable:
            return False
        taken.extend(ids(leases))
        proxy.cut()
        return len(taken) == 20

    await eventually(drained)
    assert sorted(taken) == sorted(ids(sent))
    assert await counts(straight) == {"processing": 20}


async def test_a_waiting_claim_whose_connection_was_reset_ends_in_time(proxied: Proxied) -> None:
    proxy, driver, straight = proxied
    waiting = asyncio.create_task(driver.claim(["work"], 1, 2.0))
    await asyncio.sleep(0.2)
    proxy.cut()
    (outcome,) = await asyncio.wait_for(asyncio.gather(waiting, return_exceptions=True), 2.0 + DEADLINE + GRACE)
    assert outcome == [] or isinstance(outcome, BrokerUnavailable)
    await straight.enqueue([message()])
    (lease,) = await eventually(lambda: _claims(driver))
    assert lease.attempt == 1


async def _claims(driver: Driver) -> list[Lease]:
    try:
        return await driver.claim(["work"], 1, 0.1)
    except BrokerUnavailable:
        return []


# ---- what a driver says of itself


async def test_a_driver_that_cannot_list_says_so_and_one_that_can_is_an_inspector(driver: Driver) -> None:
    assert driver.capabilities.listing == isinstance(driver, base.Inspector)
    assert driver.name


async def test_one_task_as_operators_see_it_is_the_same_alone_and_on_a_page(driver: Driver) -> None:
    tasks = inspector(driver)
    await one_in_each_state(driver)
    page: list[TaskInfo] = (await tasks.find(TaskQuery())).items
    alone = {info.id: info for info in await tasks.get(ids(page))}
    assert page == [alone[info.id] for info in page]
