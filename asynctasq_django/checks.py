"""System checks. ``manage.py check`` runs all but W002 and W003, which ask the database (``--database``).

==================  ====================================================================
asynctasq.E001      a key of ASYNCTASQ that does not exist
asynctasq.E002      a wrong value in ASYNCTASQ
asynctasq.W001      a task may run longer than its visibility timeout
asynctasq.W002      the queue tables are missing in the database that the driver uses
asynctasq.W003      that database does not answer
asynctasq.W004      a driver that this version does not have
==================  ====================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.core import checks
from django.db import DatabaseError, OperationalError, connections, transaction

from asynctasq import Config
from asynctasq.core import registry
from asynctasq.drivers import PATHS
from asynctasq.errors import UnknownOption
from asynctasq_django import conf


def install() -> None:
    """Register them; again is fine."""
    checks.register(settings_are_right, "asynctasq")
    checks.register(timeouts_fit, "asynctasq")
    checks.register(tables_exist, checks.Tags.database)


def settings_are_right(**kwargs: Any) -> list[checks.CheckMessage]:
    """E001, E002 and W004."""
    if conf.problem is None:
        return _driver_exists()
    id = "asynctasq.E001" if isinstance(conf.problem, UnknownOption) else "asynctasq.E002"
    return [checks.Error(f"ASYNCTASQ: {conf.problem}", id=id)]


def _driver_exists() -> list[checks.CheckMessage]:
    """W004. A warning, for its tables can be migrated already."""
    driver = Config.get().driver
    if driver in PATHS:
        return []
    return [
        checks.Warning(
            f"ASYNCTASQ: driver {driver!r} is not available in this version",
            hint=f"Choose one of {', '.join(PATHS)}; nothing can be dispatched until then.",
            id="asynctasq.W004",
        )
    ]


def timeouts_fit(**kwargs: Any) -> list[checks.CheckMessage]:
    """W001, for the defaults and for each registered task."""
    if conf.problem is not None:
        return []
    config = Config.get()
    found: list[checks.CheckMessage] = []
    for name, options in [("the defaults", {}), *((f"task {n}", _options(n)) for n in registry.names())]:
        timeout = options.get("timeout", config.default_timeout)
        visibility = options.get("visibility_timeout", config.default_visibility_timeout)
        if timeout is not None and visibility <= timeout and (options or name == "the defaults"):
            found.append(
                checks.Warning(
                    f"{name}: visibility timeout {visibility:g} s is not longer than timeout {timeout:g} s",
                    hint="A worker extends its leases while a task runs, so the task is not run twice for this alone; "
                    "but a worker that freezes for that long loses it. Make the visibility timeout longer.",
                    id="asynctasq.W001",
                )
            )
    return found


def _options(name: str) -> dict[str, Any]:
    config = getattr(registry.get(name), "config", {})
    return {key: config[key] for key in ("timeout", "visibility_timeout") if key in config}


def tables_exist(databases: Sequence[str] | None = None, **kwargs: Any) -> list[checks.CheckMessage]:
    """W002, on the alias that the configured driver uses. A warning: an error would keep `migrate` from mending it."""
    if conf.problem is not None:
        return []
    config = Config.get()
    alias = conf.alias_of(config.driver, config)
    if alias is None or alias not in (databases or ()):
        return []
    try:
        missing = [name for name in conf.table_names() if not _exists(alias, name)]
    except OperationalError as exc:
        line = str(exc).strip().partition("\n")[0]
        return [
            checks.Warning(f"the database {alias!r} cannot be asked for the queue tables: {line}", id="asynctasq.W003")
        ]
    if not missing:
        return []
    option = "" if alias == "default" else f" --database {alias}"
    return [
        checks.Warning(
            f"the queue tables {' and '.join(missing)} are missing in the database {alias!r}",
            hint=f"Run 'manage.py migrate asynctasq_django{option}'. If it has run, and the names of the tables were "
            "changed since, migrate to zero under the old names first, or rename the tables.",
            id="asynctasq.W002",
        )
    ]


def _exists(alias: str, table: str) -> bool:
    """Asked of the table itself: Django's introspection knows those of the current schema alone."""
    connection = connections[alias]
    connection.ensure_connection()
    quoted = ".".join(connection.ops.quote_name(part) for part in table.split("."))
    try:
        with transaction.atomic(using=alias), connection.cursor() as cursor:
            cursor.execute(f"SELECT 1 FROM {quoted} WHERE 1 = 0")  # noqa: S608 - a name that Config has checked
    except DatabaseError:
        return False
    return True
