"""Finding, reading and repairing tasks: what the admin, the commands and results are made of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from asynctasq import _sync
from asynctasq.config import Config
from asynctasq.core.dispatcher import Drivers
from asynctasq.core.events import EventBus, EventType, TaskEvent
from asynctasq.core.message import utcnow
from asynctasq.drivers.base import Driver, Inspector, Page, QueueStats, TaskInfo, TaskQuery
from asynctasq.errors import NotSupported

T = TypeVar("T")


class Repository:
    """Operators' view of one driver, by default the configured one. Callable from any loop."""

    def __init__(self, config: Config, drivers: Drivers, events: EventBus, driver: str | None = None) -> None:
        self.config = config
        self.driver = driver or config.driver
        self._drivers = drivers
        self._events = events

    def on(self, driver: str) -> Repository:
        """The same for another driver."""
        return Repository(self.config, self._drivers, self._events, driver)

    async def find(self, query: TaskQuery | None = None) -> Page:
        """A page of tasks, newest first. Raises NotSupported where the broker cannot list."""
        return await self._inspect(lambda i: i.find(query or TaskQuery()))

    async def get(self, ids: Sequence[str]) -> list[TaskInfo]:
        """These tasks; unknown ids are left out."""
        return await self._inspect(lambda i: i.get(ids))

    async def requeue(self, ids: Sequence[str]) -> int:
        """Dead letters back to ``pending``, attempts from zero; returns how many."""
        return await self._inspect(lambda i: i.requeue(ids))

    async def cancel(self, ids: Sequence[str]) -> int:
        """Call off what is pending or scheduled; returns how many."""
        if not self._events.active:
            return await self._inspect(lambda i: i.cancel(ids))
        waiting = [info for info in await self.get(ids) if info.status in ("pending", "scheduled")]
        count = await self._inspect(lambda i: i.cancel(ids))
        if count < len(waiting):
            # Some were claimed meanwhile.
            still = {info.id for info in await self.get([info.id for info in waiting]) if info.status != "cancelled"}
            waiting = [info for info in waiting if info.id not in still]
        for info in waiting:
            self._events.emit(
                TaskEvent(
                    type=EventType.TASK_CANCELLED,
                    task_id=info.id,
                    task_name=info.task,
                    queue=info.queue,
                    time=utcnow(),
                    correlation_id=info.correlation_id,
                )
            )
        return count

    async def delete(self, ids: Sequence[str]) -> int:
        """Remove for good what is not processing; returns how many."""
        return await self._inspect(lambda i: i.delete(ids))

    async def stats(self, queues: Sequence[str] | None = None) -> list[QueueStats]:
        """Numbers per queue."""
        return await self._run(lambda d: d.stats(queues))

    async def purge(self, queue: str) -> int:
        """Delete what is pending or scheduled in a queue; returns how many."""
        return await self._run(lambda d: d.purge(queue))

    async def _inspect(self, call: Callable[[Inspector], Awaitable[T]]) -> T:
        def checked(driver: Driver) -> Awaitable[T]:
            if not isinstance(driver, Inspector):
                raise NotSupported(f"{driver.name} cannot list or look up tasks")
            return call(driver)

        return await self._run(checked)

    async def _run(self, call: Callable[[Driver], Awaitable[T]]) -> T:
        async def here() -> T:
            return await call(await self._drivers.connected(self.driver))

        return await (_sync.wrap(here()) if self._drivers.home() is None else here())
