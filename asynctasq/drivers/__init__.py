"""Drivers by name. A concrete driver is imported when it is first asked for, from this table alone."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from asynctasq.config import did_you_mean
from asynctasq.errors import ConfigurationError

if TYPE_CHECKING:
    from asynctasq.config import Config
    from asynctasq.drivers.base import Driver

PATHS = {
    "sqlite": "asynctasq.drivers.sqlite:SqliteDriver",
    "postgres": "asynctasq.drivers.postgres:PostgresDriver",
    "mysql": "asynctasq.drivers.mysql:MySqlDriver",
    "redis": "asynctasq.drivers.redis:RedisDriver",
}
_EXTRA_MODULES = {"redis", "hiredis", "psycopg", "psycopg_pool", "MySQLdb"}


def _as_configured(name: str, config: Config) -> Config:
    return config


locate: Callable[[str, Config], Config] = _as_configured
"""Fills in where the driver's broker is, when a framework knows that better than the configuration."""


def create(name: str, config: Config) -> Driver:
    """A driver of that name, not yet connected.

    Raises ConfigurationError when there is none of that name, or when its client is not installed.
    """
    if name not in PATHS:
        raise ConfigurationError(
            f"driver {name!r} is not available; there are {', '.join(PATHS)}{did_you_mean(name, PATHS)}"
        )
    module, _, attribute = PATHS[name].partition(":")
    try:
        driver: type[Driver] = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] not in _EXTRA_MODULES:
            raise
        raise ConfigurationError(
            f"driver {name!r} needs the package {exc.name!r}: pip install 'asynctasq-django[{name}]'"
        ) from exc
    return driver(locate(name, config))
