"""From a task to its message, and into the broker."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from asynctasq import _sync
from asynctasq.config import Config
from asynctasq.core import codec, context
from asynctasq.core.events import EventBus, EventType, TaskEvent
from asynctasq.core.message import MAX_MESSAGE_BYTES, Message, encode, new_id, utcnow
from asynctasq.errors import BrokerUnavailable, EncodeError, NotSupported, PayloadTooLarge
from asynctasq.tasks.options import from_configuration

if TYPE_CHECKING:
    from asynctasq.drivers.base import Driver
    from asynctasq.tasks.base import BaseTask

PRODUCER_DEADLINE = 3.0
"""Seconds a producer waits for the broker, for each started thousand of messages."""
BATCH = 1_000
MAX_HEADERS = 1_000_000
"""Bytes of a message beside its body, at the most."""


class Drivers(Protocol):
    """Where the dispatcher gets its drivers."""

    def home(self) -> asyncio.AbstractEventLoop | None:
        """The running loop, if drivers may live on it; else they live on the background loop."""

    async def connected(self, name: str) -> Driver:
        """The driver of that name on the running loop."""

    def unconnected(self, name: str) -> Driver:
        """The driver of that name, for its ``enqueue_sync``."""


class Dispatcher:
    """Builds messages and hands them to the driver. What is async goes out in batches: while one is under way,
    whatever else is dispatched waits for the next."""

    def __init__(self, config: Config, drivers: Drivers, events: EventBus) -> None:
        self.config = config
        self.drivers = drivers
        self.events = events
        self._batches: dict[tuple[str, asyncio.AbstractEventLoop], _Batch] = {}
        self._defaults: dict[str, dict[str, Any]] = {}

    async def dispatch(self, tasks: Sequence[BaseTask[Any]]) -> list[str]:
        """Enqueue all; durable on return. Raises before anything is sent when one of them cannot be."""
        messages = [self.build(task) for task in tasks]
        for driver, group in _by_driver(messages):
            await self.send(driver, group)
        return [message.id for _, message in messages]

    def dispatch_sync(self, tasks: Sequence[BaseTask[Any]]) -> list[str]:
        """The same for callers without a loop, or under one."""
        messages = [self.build(task) for task in tasks]
        for driver, group in _by_driver(messages):
            self.send_sync(driver, group)
        return [message.id for _, message in messages]

    def build(self, task: BaseTask[Any]) -> tuple[str | Driver, Message]:
        """The message of ``task`` and the driver it goes to. Chaining wins over the task's own options, those over
        the configuration. Raises TypeError for arguments the task does not take, EncodeError for what cannot travel.
        """
        task.check_arguments()
        options = {**task.config, **task._options}
        driver: str | Driver = options.get("driver") or self.config.driver
        name = driver if isinstance(driver, str) else driver.name
        if name not in self._defaults:
            self._defaults[name] = from_configuration(self.config, name)
        options = {**self._defaults[name], **options}
        args, kwargs = task._arguments
        parent = context.running.get()
        inherited = self.config.correlation_id if parent is None else parent.correlation_id
        message = Message(
            id=new_id(),
            queue=options["queue"],
            task=task.task_name,
            body=codec.encode_arguments(args, kwargs),
            created_at=utcnow(),
            priority=options["priority"],
            max_attempts=options["max_attempts"],
            retry_strategy=options["retry_strategy"],
            retry_delay=options["retry_delay"],
            timeout=options["timeout"],
            visibility_timeout=options["visibility_timeout"],
            delay=task._delay,
            available_at=task._available_at,
            correlation_id=options.get("correlation_id") or inherited,
        )
        if len(message.body) > MAX_MESSAGE_BYTES - MAX_HEADERS:
            encode(message)  # Raises PayloadTooLarge now, before any message of the call is sent.
        return driver, message

    async def send(self, driver: str | Driver, messages: Sequence[Message]) -> None:
        """Put messages into the broker. Frameworks override this and ``send_sync`` to add their transactions."""
        if not isinstance(driver, str):
            await driver.enqueue(messages)
        elif self.drivers.home() is None:
            await _sync.wrap(self._send_here(driver, messages))
        else:
            await self._send_here(driver, messages)
        self.announce(messages)

    def send_sync(self, driver: str | Driver, messages: Sequence[Message]) -> None:
        try:
            (self.drivers.unconnected(driver) if isinstance(driver, str) else driver).enqueue_sync(messages)
        except NotSupported:
            if not isinstance(driver, str):
                raise
            _sync.run(self._send_here(driver, messages))
        self.announce(messages)

    def announce(self, messages: Sequence[Message]) -> None:
        """Emit ``task_enqueued`` for messages that were sent."""
        if self.events.active:
            for message in messages:
                self.events.emit(
                    TaskEvent(
                        type=EventType.TASK_ENQUEUED,
                        task_id=message.id,
                        task_name=message.task,
                        queue=message.queue,
                        time=message.created_at,
                        correlation_id=message.correlation_id,
                    )
                )

    async def _send_here(self, name: str, messages: Sequence[Message]) -> None:
        key = (name, asyncio.get_running_loop())
        batch = self._batches.get(key)
        if batch is None:
            batch = self._batches[key] = _Batch(lambda: self.drivers.connected(name))
        deadline = PRODUCER_DEADLINE * (1 + len(messages) // BATCH)
        try:
            async with asyncio.timeout(deadline):
                await batch.send(messages)
        except TimeoutError as exc:
            raise BrokerUnavailable(
                f"{name}: no answer within {deadline:g} s; the task may or may not have been enqueued"
            ) from exc

    def forget_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Drop what belongs to a loop that is about to end."""
        self._batches = {key: batch for key, batch in self._batches.items() if key[1] is not loop}


class _Batch:
    """Natural batching: each enqueue takes all that was dispatched during the one before."""

    def __init__(self, driver: Callable[[], Awaitable[Driver]]) -> None:
        self._driver = driver
        self._waiting: list[tuple[Sequence[Message], asyncio.Future[None]]] = []
        self._sender: asyncio.Task[None] | None = None

    async def send(self, messages: Sequence[Message]) -> None:
        sent = asyncio.get_running_loop().create_future()
        self._waiting.append((messages, sent))
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_all())
        await sent

    async def _send_all(self) -> None:
        try:
            while self._waiting:
                group: list[tuple[Sequence[Message], asyncio.Future[None]]] = []
                size = 0
                while self._waiting and (not group or size + len(self._waiting[0][0]) <= BATCH):
                    group.append(self._waiting.pop(0))
                    size += len(group[-1][0])
                await self._send_group(group)
        finally:
            self._sender = None

    async def _send_group(self, group: list[tuple[Sequence[Message], asyncio.Future[None]]]) -> None:
        try:
            driver = await self._driver()
            everything = [message for messages, _ in group for message in messages]
            for start in range(0, len(everything), BATCH):
                await driver.enqueue(everything[start : start + BATCH])
        except (PayloadTooLarge, EncodeError) as exc:
            if len(group) > 1:
                # One caller's message cannot be stored: that is not the others' affair.
                for one in group:
                    await self._send_group([one])
                return
            _finish(group, exc)
        except Exception as exc:  # noqa: BLE001 - handed to whoever dispatched
            _finish(group, exc)
        else:
            _finish(group, None)


def _finish(group: list[tuple[Sequence[Message], asyncio.Future[None]]], error: Exception | None) -> None:
    for _, sent in group:
        if sent.done():
            continue
        if error is None:
            sent.set_result(None)
        else:
            sent.set_exception(error)


def _by_driver(messages: Sequence[tuple[str | Driver, Message]]) -> list[tuple[str | Driver, list[Message]]]:
    groups: dict[str | Driver, list[Message]] = {}
    for driver, message in messages:
        groups.setdefault(driver, []).append(message)
    return list(groups.items())
