"""``settings.ASYNCTASQ`` as a configuration of the core."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from django.conf import settings
from django.db import connections
from django.utils.connection import ConnectionDoesNotExist
from django.utils.module_loading import import_string

from asynctasq.config import Config, did_you_mean, options
from asynctasq.core.events import EventEmitter
from asynctasq.drivers.sql import Tables
from asynctasq.errors import ConfigurationError, UnknownOption

DRIVERS = {"postgresql": "postgres", "mysql": "mysql", "sqlite": "sqlite"}
"""Which driver keeps its tables in a database of this vendor."""
PLACES = {"postgres": "postgres_dsn", "mysql": "mysql_dsn", "sqlite": "sqlite_path"}
"""The option that says where a SQL driver's database is; when it is not given, a Django alias is used."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What the project asks for: keys of the core, and four of our own."""

    core: Mapping[str, Any]
    database: str | None = None
    """The alias of DATABASES that a SQL driver uses, and whose transactions a dispatch waits for."""
    enqueue_on_commit: bool = True
    """Inside a transaction, hand tasks to a broker that is not its database when it commits."""
    outbox: bool = False
    """Write what waits for a commit into a table of the same transaction too, so that it cannot be lost after it."""
    event_emitters: tuple[str, ...] = ()
    """Dotted paths of EventEmitter classes, made without arguments."""

    def emitters(self) -> list[EventEmitter]:
        """Made from their paths. Raises ConfigurationError naming the path."""
        made = []
        for path in self.event_emitters:
            try:
                emitter = import_string(path)()
            except Exception as exc:  # its module and its constructor are the project's
                raise ConfigurationError(f"event_emitters: {path!r} cannot be made: {exc}") from exc
            if not isinstance(emitter, EventEmitter):
                raise ConfigurationError(f"event_emitters: {path!r} is no EventEmitter")
            made.append(emitter)
        return made


def read() -> Settings:
    """``settings.ASYNCTASQ``. No I/O. Raises ConfigurationError naming the key."""
    raw = getattr(settings, "ASYNCTASQ", None)
    if raw is None:
        raw = {}
    if not isinstance(raw, Mapping):
        raise ConfigurationError(f"ASYNCTASQ must be a dictionary, not {type(raw).__name__}")
    given: dict[str, Any] = {}
    for key, value in raw.items():
        name = str(key).lower()
        if name in given:
            raise ConfigurationError(f"ASYNCTASQ has {name!r} twice, in upper and in lower case")
        given[name] = value
    own = {name: given.pop(name) for name in list(given) if name in _OWN}
    for name in given:
        if name not in options():
            raise UnknownOption(f"unknown option {name!r}{did_you_mean(name, [*options(), *_OWN])}")
    for name, value in own.items():
        own[name] = _OWN[name](name, value)
    made = Settings(core=given, **own)
    vendor = connections[made.database or "default"].vendor
    driver = given.get("driver") or os.environ.get("ASYNCTASQ_DRIVER")
    if driver is None and vendor in DRIVERS and (not raw or made.database is not None):
        return dataclasses.replace(made, core={**given, "driver": DRIVERS[vendor]})
    if made.database is not None:
        _check_vendor(made, vendor, driver)
    return made


def _check_vendor(made: Settings, vendor: str, driver: Any) -> None:
    """An alias is either where the queue is or, beside an address of its own, whose transactions count."""
    if driver is None:
        raise ConfigurationError(f"database: no driver keeps a queue in {vendor}; name another alias, or a driver")
    place = PLACES.get(driver) if isinstance(driver, str) else None
    elsewhere = place is None or place in made.core or f"ASYNCTASQ_{place.upper()}" in os.environ
    if not elsewhere and DRIVERS.get(vendor) != driver:
        raise ConfigurationError(
            f"database {made.database!r} is {vendor} and driver is {driver!r}: name another alias or driver, or {place}"
        )


def _alias(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or value not in settings.DATABASES:
        raise ConfigurationError(f"{name} must be an alias of DATABASES{did_you_mean(str(value), settings.DATABASES)}")
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} must be bool, not {type(value).__name__}")
    return value


def _paths(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(path, str) for path in value):
        raise ConfigurationError(f"{name} must be a list of dotted paths")
    return tuple(value)


_OWN = {"database": _alias, "enqueue_on_commit": _flag, "outbox": _flag, "event_emitters": _paths}

current = Settings(core={})
"""What ``AppConfig.ready()`` read."""
problem: ConfigurationError | None = None
"""Why that failed, if it did: reported by the checks, and by whatever needs the configuration."""
_located: dict[tuple[str, str], Config] = {}
"""What was filled in, by driver and place: as long as nothing moves it is the same object."""


def use_flags(given: Mapping[str, Any]) -> None:
    """Let options of a command line count as settings."""
    global current
    current = dataclasses.replace(current, core={**current.core, **given})


def alias_of(driver: str, config: Config) -> str | None:
    """The alias of DATABASES whose database this driver's tables are in; None when they are elsewhere."""
    place = PLACES.get(driver)
    if place is None or place in current.core:
        return None
    # Settings that name the alias go before an address in the environment, as all settings do.
    if current.database is None and place in config.given:
        return None
    alias = current.database or "default"
    try:
        vendor = connections[alias].vendor
    except ConnectionDoesNotExist:
        return None
    return alias if DRIVERS.get(vendor) == driver else None


def table_names() -> Tables:
    """The names of the queue tables in the alias in use, for its vendor."""
    try:
        # Not Config.get(): the models ask before the app is ready.
        wanted = read()
        config = Config.make(wanted.core)
    except ConfigurationError:
        wanted, config = Settings(core={}), Config()
    driver = DRIVERS.get(connections[wanted.database or "default"].vendor, "sqlite")
    return Tables(getattr(config, f"{driver}_queue_table"), getattr(config, f"{driver}_dead_letter_table"))


_NOT_THE_CLIENTS = {"pool", "isolation_level", "assume_role"}
"""Entries of OPTIONS that Django keeps for itself."""


_OF_MYSQL = ("ssl_", "unix_socket", "read_default_")
"""What the names of those entries begin with that say how MySQL is reached; the driver sets the session itself."""


def located(driver: str, config: Config) -> Config:
    """``config`` with the place of the alias filled in, as its connection has it now: a test runner swaps it."""
    alias = alias_of(driver, config)
    if alias is None:
        return config
    database = connections[alias].settings_dict
    place = str(database["NAME"]) if driver == "sqlite" else dsn(driver, database)
    known = _located.get((driver, place))
    if known is None or known.given is not config.given:
        values: dict[str, Any] = {PLACES[driver]: place}
        known = _located[driver, place] = dataclasses.replace(config, **values)
    return known


def dsn(driver: str, database: Mapping[str, Any]) -> str:
    """The DSN of an entry of DATABASES. What its client takes as options of the connection goes into the query."""

    def part(name: str) -> str:
        return quote(str(database.get(name) or ""), safe="")

    options = dict(database.get("OPTIONS") or {})
    if driver == "mysql":
        options |= {f"ssl_{name}": value for name, value in dict(options.get("ssl") or {}).items()}
        options = {name: value for name, value in options.items() if name.startswith(_OF_MYSQL)}
    query = {}
    for name, value in options.items():
        if isinstance(value, str | int) and not isinstance(value, bool) and name not in _NOT_THE_CLIENTS:
            query[name] = str(value)
    host = str(database.get("HOST") or "")
    if host.startswith("/"):
        # A socket, or its folder, cannot stand where a host does.
        query["unix_socket" if driver == "mysql" else "host"], host = host, ""
    if driver == "mysql" and host == "localhost":
        # For Django's client this is the default socket.
        host = ""
    scheme = {"postgres": "postgresql", "mysql": "mysql"}[driver]
    user = part("USER") + (f":{part('PASSWORD')}" if database.get("PASSWORD") else "")
    port = f":{database['PORT']}" if database.get("PORT") else ""
    at = "@" if user else ""
    host = f"[{host}]" if ":" in host else host
    return f"{scheme}://{user}{at}{host}{port}/{part('NAME')}{'?' + urlencode(query, quote_via=quote) if query else ''}"
