"""What ``init()`` builds: the configuration, the drivers, the dispatcher, the events; and how they end."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from asynctasq import _current, _sync, drivers
from asynctasq.config import Config, set_current
from asynctasq.core.dispatcher import Dispatcher
from asynctasq.core.events import EventBus, EventEmitter, RedisEventEmitter
from asynctasq.core.repository import Repository
from asynctasq.errors import ConfigurationError, NotInitialized

if TYPE_CHECKING:
    from asynctasq.drivers.base import Driver
    from asynctasq.tasks.base import BaseTask


class DriverHome:
    """The connected drivers of this process. They live on the background loop, so that callers' loops may come and
    go; a worker's loop is a home too while the worker runs, so that its tasks dispatch without a hop."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._homes: dict[asyncio.AbstractEventLoop, list[Driver]] = {}
        """Loops of workers, with the workers' own drivers."""
        self._lent: dict[Driver, tuple[str, asyncio.AbstractEventLoop]] = {}
        self._connected: dict[tuple[str, asyncio.AbstractEventLoop], asyncio.Future[Driver]] = {}
        self._unconnected: dict[str, Driver] = {}
        self._closing: asyncio.Task[None] | None = None
        """Kept while it runs, which the loop alone does not see to."""
        self._lock = threading.Lock()

    def home(self) -> asyncio.AbstractEventLoop | None:
        loop = asyncio.get_running_loop()
        return loop if loop in self._homes else None

    def move_in(self, driver: Driver) -> None:
        """Let drivers live on the running loop until ``move_out``, this connected one first."""
        loop = asyncio.get_running_loop()
        self._homes.setdefault(loop, []).append(driver)
        self._lend(driver, loop)

    def _lend(self, driver: Driver, loop: asyncio.AbstractEventLoop) -> None:
        # A driver that was handed over may lead elsewhere than to where tasks are dispatched.
        here = drivers.locate(driver.name, self.config)
        if driver.config == here and (driver.name, loop) not in self._connected:
            ready = loop.create_future()
            ready.set_result(driver)
            self._connected[driver.name, loop] = ready
            self._lent[driver] = driver.name, loop

    async def move_out(self, driver: Driver) -> bool:
        """The worker whose driver this is ends. False: the loop has others."""
        loop = asyncio.get_running_loop()
        lent = self._lent.pop(driver, None)
        if lent is not None:
            self._connected.pop(lent, None)
        tenants = self._homes[loop]
        tenants.remove(driver)
        for other in tenants:
            self._lend(other, loop)
        if not tenants:
            await self.close()
        return not tenants

    async def connected(self, name: str) -> Driver:
        key = (name, asyncio.get_running_loop())
        connecting = self._connected.get(key)
        if connecting is not None and connecting.done():
            if connecting.cancelled() or connecting.exception():
                connecting = None
            elif self._has_moved(old := connecting.result()):
                connecting = None
                if old not in self._lent:
                    self._closing = asyncio.create_task(old.close())
        if connecting is None:
            # One connects for all who ask meanwhile, and nobody's cancellation is the others'.
            connecting = self._connected[key] = asyncio.create_task(self._connect(name))
        return await asyncio.shield(connecting)

    async def _connect(self, name: str) -> Driver:
        driver = drivers.create(name, self.config)
        await driver.connect()
        return driver

    def unconnected(self, name: str) -> Driver:
        with self._lock:
            driver = self._unconnected.get(name)
            if driver is not None and self._has_moved(driver):
                driver.close_sync()
                driver = None
            if driver is None:
                driver = self._unconnected[name] = drivers.create(name, self.config)
            return driver

    def _has_moved(self, driver: Driver) -> bool:
        """Whether its broker is elsewhere by now: a framework's test runner swaps databases under us."""
        here = drivers.locate(driver.name, self.config)
        return driver.config is not here and driver.config != here

    async def close(self) -> None:
        """Close the drivers of the running loop."""
        loop = asyncio.get_running_loop()
        self._homes.pop(loop, None)
        mine = [key for key in self._connected if key[1] is loop]
        for connecting in [self._connected.pop(key) for key in mine]:
            with contextlib.suppress(Exception):
                await (await connecting).close()

    def close_sync(self) -> None:
        with self._lock:
            synchronous, self._unconnected = self._unconnected, {}
        for driver in synchronous.values():
            driver.close_sync()

    @property
    def in_use(self) -> bool:
        return bool(self._connected)


class Runtime:
    """Everything that one configuration needs in one process."""

    def __init__(
        self, config: Config, emitters: Sequence[EventEmitter] = (), dispatcher: type[Dispatcher] = Dispatcher
    ) -> None:
        self.config = config
        self.given_emitters = list(emitters)
        if config.enable_event_emitter_redis:
            emitters = [*emitters, RedisEventEmitter(config.redis_location(events=True), config.events_channel)]
        self.events = EventBus(emitters)
        self.drivers = DriverHome(config)
        self.dispatcher = dispatcher(config, self.drivers, self.events)
        self.repository = Repository(config, self.drivers, self.events)

    async def dispatch(self, tasks: Sequence[BaseTask[Any]]) -> list[str]:
        return await self.dispatcher.dispatch(tasks)

    def dispatch_sync(self, tasks: Sequence[BaseTask[Any]]) -> list[str]:
        return self.dispatcher.dispatch_sync(tasks)

    async def move_out(self, driver: Driver) -> None:
        """End what lives on the running loop, unless another worker does too."""
        if await self.drivers.move_out(driver):
            self.dispatcher.forget_loop(asyncio.get_running_loop())

    def close(self) -> None:
        """Close what was opened; drivers on other loops are their owners' to close."""
        self.drivers.close_sync()
        if self.drivers.in_use:
            with contextlib.suppress(Exception):
                _sync.run(asyncio.wait_for(self.drivers.close(), 5))
        self.events.close()


_runtime: Runtime | None = None
_dispatcher_class: type[Dispatcher] = Dispatcher


def init(
    config_overrides: Mapping[str, Any] | None = None,
    event_emitters: Iterable[EventEmitter] | None = None,
    **options: Any,
) -> None:
    """Configure AsyncTasQ for this process: no I/O, no loop needed.

    ``config_overrides`` holds options by name; they may also be given as keywords. What neither names comes from
    the environment (``ASYNCTASQ_<OPTION>``), then from the defaults. Another call replaces the whole configuration;
    one that is rejected leaves it in force. ``event_emitters`` receive the events of this process beside those
    that the configuration switches on.

    Raises TypeError for an option that does not exist and ValueError for a wrong value, each naming the option.
    """
    global _runtime
    if not isinstance(config_overrides, Mapping | None):
        raise ConfigurationError(
            f"config_overrides must be a dictionary of options, not {type(config_overrides).__name__}"
        )
    overrides = dict(config_overrides or {})
    for name in options:
        if name in overrides:
            raise ConfigurationError(f"{name} is given twice: in config_overrides and as a keyword")
    config = Config.make({**overrides, **options})
    emitters = list(event_emitters or ())
    for emitter in emitters:
        if not isinstance(emitter, EventEmitter):
            raise ConfigurationError(f"event_emitters must hold EventEmitter objects, not {type(emitter).__name__}")
    replaced = _runtime
    _runtime = Runtime(config, emitters, _dispatcher_class)
    set_current(config)
    _current.set_runtime(_runtime)
    if replaced is not None:
        replaced.close()


def runtime() -> Runtime:
    """What the last ``init()`` built. Raises NotInitialized."""
    if _runtime is None:
        raise NotInitialized("call asynctasq.init({...}) first")
    return _runtime


def use_dispatcher(dispatcher: type[Dispatcher]) -> None:
    """Build runtimes with this class from the next ``init()`` on: how a framework adds its transactions."""
    global _dispatcher_class
    _dispatcher_class = dispatcher


def shutdown() -> None:
    """Close every connection and thread that dispatching opened. ``init()`` may follow."""
    global _runtime
    closing, _runtime = _runtime, None
    _current.set_runtime(None)
    set_current(None)
    if closing is not None:
        closing.close()
    _sync.stop()


def _after_fork() -> None:
    """The child has none of the parent's threads and must not touch its connections: it starts afresh."""
    global _runtime
    _sync.forget()
    if _runtime is not None:
        parent = _runtime
        _sync._abandoned.append(parent)
        parent.events.forget()
        _runtime = Runtime(parent.config, parent.given_emitters, type(parent.dispatcher))
        _current.set_runtime(_runtime)


os.register_at_fork(after_in_child=_after_fork)
atexit.register(shutdown)
