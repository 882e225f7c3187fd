"""Dispatching in Django: in the caller's transaction where the queue is in its database, else when it commits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

from django.db import connections, transaction

from asynctasq.core.dispatcher import Dispatcher
from asynctasq.core.message import Message
from asynctasq.drivers.sql import SqlDriver
from asynctasq.errors import ConfigurationError
from asynctasq_django import conf, db, outbox

if TYPE_CHECKING:
    from asynctasq.drivers.base import Driver


class DjangoDispatcher(Dispatcher):
    """``dispatch_sync`` minds transactions. ``dispatch`` hands over at once: Django has no transactions that span an
    ``await``, and none is open in the thread of an event loop."""

    def send_sync(self, driver: str | Driver, messages: Sequence[Message]) -> None:
        if not isinstance(driver, str) or _loop_is_running():
            super().send_sync(driver, messages)
            return
        alias = conf.alias_of(driver, self.config)
        if alias is not None:
            self._insert(alias, cast(SqlDriver, self.drivers.unconnected(driver)), messages)
            transaction.on_commit(partial(self.announce, messages), using=alias)
            return
        alias = _open_transaction() if conf.current.enqueue_on_commit else None
        if alias is None:
            self.send_now(driver, messages)
        elif conf.current.outbox:
            entry = outbox.put(alias, driver, messages)
            transaction.on_commit(partial(outbox.send, alias, entry, messages, self.send_now), using=alias)
        else:
            transaction.on_commit(partial(self.send_now, driver, messages), using=alias)

    def send_now(self, driver: str, messages: Sequence[Message]) -> None:
        """Into the broker, whatever transactions are open."""
        super().send_sync(driver, messages)

    @staticmethod
    def _insert(alias: str, driver: SqlDriver, messages: Sequence[Message]) -> None:
        """On Django's own connection: it commits or rolls back with whatever else is in there."""
        table = driver.tables.queue.rpartition(".")[2]
        with connections[alias].cursor() as cursor, db.needs_table(table, alias, "the queue tables are"):
            for rows in driver.enqueue_parts(messages):
                cursor.execute(driver.sql["enqueue"], rows)


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _open_transaction() -> str | None:
    """The alias whose commit a dispatch is to wait for; None outside transactions."""
    around = {c.alias: c.atomic_blocks for c in connections.all(initialized_only=True) if c.in_atomic_block}
    # A TestCase opens one on each of its databases: they only count where the code under test has opened none.
    inside = [
        alias
        for alias, blocks in around.items()
        if not all(getattr(block, "_from_testcase", False) for block in blocks)
    ]
    if not inside and around:
        return conf.current.database if conf.current.database in around else next(iter(around))
    if len(inside) <= 1:
        return inside[0] if inside else None
    if conf.current.database in inside:
        return conf.current.database
    raise ConfigurationError(
        f"transactions are open on {', '.join(sorted(inside))}: name the one that a dispatch waits for in "
        "ASYNCTASQ['database'], or set ASYNCTASQ['enqueue_on_commit'] to False"
    )
