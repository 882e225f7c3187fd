"""Each driver against a model of a few lines: whatever the order of calls, both hold the same tasks in the same states.

Time takes no part in it. A delay is either long, or so short that it is over when ``maintain`` is called; a lease is
either long, or so short that its worker counts as lost at the next ``maintain``.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from asynctasq.core.message import STATUSES, Lease, Message, Status, encode
from asynctasq.core.outcome import Dead, Done, Retry
from asynctasq.drivers.base import Driver, Inspector, TaskQuery, is_suspect
from tests.drivers.conftest import ERROR, HOUR, messages
from tests.drivers.places import Place

T = TypeVar("T")

QUEUES = ("a", "b")
INSTANT = 0.01
"""A delay or a lease that is over after ``PAST``."""
PAST = 0.02

PHASES = [phase for phase in Phase if phase not in (Phase.shrink, Phase.explain) or "SHRINK" in os.environ]
"""Against a service it takes minutes to find the shortest example of a failure: ``SHRINK=1`` asks for it."""


@dataclass
class Task:
    """What the model knows of one task."""

    message: Message
    status: Status
    attempt: int = 0
    suspect: bool = False
    soon: bool = False
    """Scheduled for a moment ago."""
    lease: Lease | None = None
    """The current one."""


class Tasks(RuleBasedStateMachine):
    """One worker and one operator on two queues."""

    place: ClassVar[Place]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.place.reset()
        self.tasks: dict[str, Task] = {}
        self.known: list[Message] = []
        self.leases: list[Lease] = []
        self.run(self.place.prepare())
        self.worker = self.connected()
        self.operator = self.connected(keep_completed_tasks=True)

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(call)

    def connected(self, **options: Any) -> Driver:
        driver = self.place.create(**self.place.hasty, **options)
        self.run(driver.connect())
        return driver

    def inspect(self) -> Inspector:
        assert isinstance(self.operator, Inspector)
        return self.operator

    def some(self, data: st.DataObject, of: Sequence[T]) -> list[T]:
        """A few of these, the latest more often than others."""
        near = st.sampled_from(of[-4:]) | st.sampled_from(of)
        return data.draw(st.lists(near, min_size=1, max_size=4, unique_by=id))

    def having(self, *statuses: Status, queue: str | None = None) -> list[Task]:
        return [
            task
            for task in self.tasks.values()
            if task.status in statuses and (queue is None or task.message.queue == queue)
        ]

    # ---- producers

    @rule(
        queue=st.sampled_from(QUEUES),
        count=st.integers(1, 3),
        priority=st.sampled_from([-3, 0, 7]),
        delay=st.sampled_from([0.0, 0.0, INSTANT, HOUR]),
        lease=st.sampled_from([INSTANT, HOUR]),
        max_attempts=st.integers(1, 2),
    )
    def enqueue(self, queue: str, count: int, priority: int, delay: float, lease: float, max_attempts: int) -> None:
        sent = messages(
            count, queue, priority=priority, delay=delay, visibility_timeout=lease, max_attempts=max_attempts
        )
        self.known += sent
        self.send(sent)

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def enqueue_again(self, data: st.DataObject) -> None:
        self.send(self.some(data, self.known))

    def send(self, sent: Sequence[Message]) -> None:
        self.run(self.worker.enqueue(sent))
        for one in sent:
            status: Status = "scheduled" if one.delay else "pending"
            self.tasks.setdefault(one.id, Task(one, status, soon=one.delay == INSTANT))

    # ---- workers

    @rule(queues=st.permutations(QUEUES), limit=st.integers(1, 6), suspects=st.sampled_from([0, 1, 6]))
    def claim(self, queues: Sequence[str], limit: int, suspects: int) -> None:
        before = self.having("pending")
        leases = self.run(self.worker.claim(queues, limit, 0.0, suspects))
        ordinary = [task for task in before if not task.suspect]
        assert min(limit, len(ordinary)) <= len(leases) <= min(limit, len(ordinary) + suspects)
        assert sum(lease.suspect for lease in leases) <= suspects
        for lease in leases:
            task = self.tasks[lease.id]
            assert task.status == "pending"
            assert task.suspect or not lease.suspect
            task.status, task.attempt, task.lease = "processing", task.attempt + 1, lease
            assert (lease.attempt, lease.payload, lease.queue) == (
                task.attempt,
                encode(task.message),
                task.message.queue,
            )
        self.leases += leases
        taken = [self.tasks[lease.id] for lease in leases if not self.tasks[lease.id].suspect]
        self.assert_first(queues, ordinary, taken)

    def assert_first(self, queues: Sequence[str], ordinary: list[Task], taken: list[Task]) -> None:
        """No ordinary message was passed over for one of a later queue or a lower priority."""

        def place(task: Task) -> tuple[int, int]:
            return queues.index(task.message.queue), -task.message.priority

        assert Counter(map(place, taken)) == Counter(sorted(map(place, ordinary))[: len(taken)])

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), keep=st.booleans())
    def ack(self, data: st.DataObject, keep: bool) -> None:
        leases = self.some(data, self.leases)
        held = self.settled(leases, self.run(self.worker.ack([Done(lease=one, keep=keep) for one in leases])))
        for task in held:
            if keep:
                task.status, task.suspect = "completed", False
            else:
                del self.tasks[task.message.id]

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), delay=st.sampled_from([0.0, 0.0, INSTANT, HOUR]))
    def retry(self, data: st.DataObject, delay: float) -> None:
        leases = self.some(data, self.leases)
        retries = [Retry(lease=one, delay=delay, error=ERROR) for one in leases]
        for task in self.settled(leases, self.run(self.worker.retry(retries))):
            task.status, task.soon = "scheduled" if delay else "pending", delay == INSTANT

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def dead_letter(self, data: st.DataObject) -> None:
        leases = self.some(data, self.leases)
        for task in self.settled(
            leases, self.run(self.worker.dead_letter([Dead(lease=one, error=ERROR) for one in leases]))
        ):
            task.status = "dead"

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        leases = self.some(data, self.leases)
        for task in self.settled(leases, self.run(self.worker.release(leases))):
            task.status, task.attempt = "pending", task.attempt - 1

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def extend(self, data: st.DataObject) -> None:
        leases = self.some(data, self.leases)
        self.held(leases, self.run(self.operator.extend(leases)))

    def settled(self, leases: Sequence[Lease], lost: Sequence[Lease]) -> list[Task]:
        """The tasks that these leases were the current ones of, and no longer are."""
        held = self.held(leases, lost)
        for task in held:
            task.lease = None
        return held

    def held(self, leases: Sequence[Lease], lost: Sequence[Lease]) -> list[Task]:
        """The tasks whose current leases are among these; the driver must have found all the others lost."""
        by_lease = {id(task.lease): task for task in self.having("processing")}
        assert {id(lease) for lease in lost} == {id(lease) for lease in leases} - by_lease.keys()
        return [by_lease[id(lease)] for lease in leases if id(lease) in by_lease]

    # ---- janitors and operators

    @rule()
    def maintain(self) -> None:
        """Everything short is over; workers that hold a short lease are lost."""
        time.sleep(PAST)
        promoted = recovered = buried = 0
        while True:
            done = self.run(self.worker.maintain(QUEUES, 100))
            if not (done.promoted or done.recovered or done.buried):
                break
            promoted, recovered, buried = promoted + done.promoted, recovered + done.recovered, buried + done.buried
        expected = Counter[str]()
        for task in self.having("scheduled", "processing"):
            if task.soon:
                task.status, task.soon = "pending", False
                expected["promoted"] += 1
            elif task.status == "processing" and task.message.visibility_timeout == INSTANT:
                last = task.attempt >= task.message.max_attempts
                task.status, task.lease = "dead" if last else "pending", None
                task.suspect = not last and is_suspect(task.attempt, task.message.max_attempts)
                expected["buried" if last else "recovered"] += 1
        assert Counter(promoted=promoted, recovered=recovered, buried=buried) == expected

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def requeue(self, data: st.DataObject) -> None:
        chosen = self.some(data, list(self.tasks.values()))
        dead = [task for task in chosen if task.status == "dead"]
        assert self.run(self.inspect().requeue([task.message.id for task in chosen])) == len(dead)
        for task in dead:
            task.status, task.attempt, task.suspect = "pending", 0, False

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        chosen = self.some(data, list(self.tasks.values()))
        waiting = [task for task in chosen if task.status in ("pending", "scheduled")]
        assert self.run(self.inspect().cancel([task.message.id for task in chosen])) == len(waiting)
        for task in waiting:
            task.status, task.soon = "cancelled", False

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        chosen = self.some(data, list(self.tasks.values()))
        gone = [task for task in chosen if task.status != "processing"]
        assert self.run(self.inspect().delete([task.message.id for task in chosen])) == len(gone)
        for task in gone:
            del self.tasks[task.message.id]

    @rule(queue=st.sampled_from(QUEUES))
    def purge(self, queue: str) -> None:
        waiting = self.having("pending", "scheduled", queue=queue)
        assert self.run(self.operator.purge(queue)) == len(waiting)
        for task in waiting:
            del self.tasks[task.message.id]

    # ---- what always holds

    @invariant()
    def stats_agree(self) -> None:
        numbers = {one.queue: one for one in self.run(self.operator.stats(QUEUES))}
        for queue in QUEUES:
            for status in STATUSES:
                found = getattr(numbers[queue], status) if queue in numbers else 0
                assert found == len(self.having(status, queue=queue)), (queue, status)

    @invariant()
    def every_task_is_found(self) -> None:
        ids = [message.id for message in self.known]
        infos = {info.id: info for info in self.run(self.inspect().get(ids))}
        assert {id: info.status for id, info in infos.items()} == {id: task.status for id, task in self.tasks.items()}
        for id, task in self.tasks.items():
            if task.status != "scheduled" or task.attempt:
                assert infos[id].attempt == task.attempt
            assert infos[id].payload == encode(task.message)

    def teardown(self) -> None:
        try:
            self.nothing_is_lost()
        finally:
            for driver in (self.worker, self.operator):
                self.run(driver.close())
            self.runner.close()

    def nothing_is_lost(self) -> None:
        """What is listed is what there is, and all of it can still be run or removed."""
        listed = self.run(self.inspect().find(TaskQuery(limit=1000))).items
        assert [info.id for info in listed] == sorted(self.tasks, reverse=True)
        running = [task.lease for task in self.having("processing") if task.lease is not None]
        assert self.run(self.worker.release(running)) == []
        pending = {task.message.id for task in self.having("pending", "processing")}
        drained: set[str] = set()
        while leases := self.run(self.worker.claim(QUEUES, 100, 0.0, 100)):
            drained |= {lease.id for lease in leases}
            assert self.run(self.worker.ack([Done(lease=lease) for lease in leases])) == []
        assert drained == pending
        rest = self.tasks.keys() - pending
        assert self.run(self.inspect().delete(sorted(rest))) == len(rest)
        assert self.place.traces() == 0


def test_the_driver_does_what_a_model_does(place: Place) -> None:
    machine = type("TasksOnPlace", (Tasks,), {"place": place})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=20,
            stateful_step_count=40,
            deadline=None,
            phases=PHASES,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
