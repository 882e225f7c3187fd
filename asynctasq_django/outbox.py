"""Messages for a broker that is not the database, first written in the transaction that they belong to.

On commit an entry is taken out, sent, and only then is its removal committed. Whoever dies in between leaves the entry
where it was; a worker's sweeper sends it. The lock on the row keeps the two apart, so a message goes out twice only
where a process dies after the broker took it and before the database heard of that.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta

import msgspec
from django.conf import settings
from django.db import DatabaseError, connections, models, router, transaction
from django.db.models.functions import Now

from asynctasq.core.message import Message
from asynctasq.errors import AsyncTasQError, BrokerError
from asynctasq_django import db
from asynctasq_django.models import OutboxEntry

logger = logging.getLogger("asynctasq.outbox")

Send = Callable[[str, Sequence[Message]], None]
"""Hands messages to the driver of that name, at once."""

GRACE = timedelta(seconds=5)
"""Age from which an entry is swept: a younger one is most likely being sent by the process that wrote it."""
INTERVAL = 5.0
"""Seconds between two sweeps, with jitter."""
STOP_LIMIT = 1.0
"""Seconds that a stop waits for the sweep under way; a transaction that is cut off leaves its entries."""
BATCH = 100
"""Dispatches sent in one transaction of a sweep; each may be of many tasks."""


def put(alias: str, driver: str, messages: Sequence[Message]) -> OutboxEntry:
    """Write messages in the transaction of ``alias``. One query. Raises ConfigurationError without the table."""
    entry = OutboxEntry(id=messages[0].id, driver=driver, messages=msgspec.msgpack.encode(messages))
    with db.needs_table(OutboxEntry._meta.db_table, alias, "the table of the outbox is"):
        entry.save(using=alias, force_insert=True)
    return entry


def send(alias: str, entry: OutboxEntry, messages: Sequence[Message], by: Send) -> None:
    """Send what was committed, unless a sweeper has. What cannot be sent now stays for one, and that is logged."""
    try:
        with transaction.atomic(using=alias):
            removed, _ = OutboxEntry.objects.using(alias).filter(pk=entry.pk).delete()
            if removed:
                by(entry.driver, messages)
    except (AsyncTasQError, DatabaseError) as exc:
        logger.warning("outbox: %d tasks wait for a worker to send them: %s", len(messages), exc)


@contextlib.contextmanager
def sweeping(by: Send) -> Iterator[None]:
    """Send what was left behind, for as long as a worker runs inside. Several may, side by side."""
    sweeper = Sweeper(by)
    sweeper.start()
    try:
        yield
    finally:
        sweeper.stop(STOP_LIMIT)


class Sweeper(threading.Thread):
    """Sweeps all databases again and again."""

    def __init__(self, by: Send) -> None:
        super().__init__(name="asynctasq-outbox", daemon=True)
        self._send = by
        self._stopping = threading.Event()
        self._unusable: set[str] = set()

    def run(self) -> None:
        try:
            while not self._stopping.wait(INTERVAL * random.uniform(0.5, 1.5)):
                for alias in aliases():
                    self._sweep(alias)
        finally:
            connections.close_all()

    def stop(self, limit: float) -> None:
        """End within ``limit`` seconds, or be left to the end of the process."""
        self._stopping.set()
        self.join(limit)

    def _sweep(self, alias: str) -> None:
        try:
            if sent := sweep(alias, self._send):
                logger.warning("outbox: sent %d tasks that had been left in the database %r", sent, alias)
        except BrokerError as exc:
            logger.warning("outbox: waits for the broker: %s", exc)
        except DatabaseError as exc:
            if alias not in self._unusable:
                logger.warning("outbox: the database %r cannot be swept: %s", alias, exc)
            self._unusable.add(alias)
        except Exception:  # the next sweep is another try, and the worker must not end for this one
            logger.exception("outbox: the sweep of the database %r failed", alias)
        else:
            self._unusable.discard(alias)
        finally:
            db.close_unusable()


def sweep(alias: str, by: Send, older: timedelta = GRACE) -> int:
    """Send all entries older than that, the oldest first; returns how many tasks they were.

    What can never be sent is logged and left. Raises BrokerError when a broker is away, which holds up no other's.
    """
    total = 0
    away: BrokerError | None = None
    for driver in _waiting(alias, older).order_by().values_list("driver", flat=True).distinct():
        try:
            total += _sweep_driver(alias, driver, by, older)
        except BrokerError as exc:
            away = exc
    if away is not None:
        raise away
    return total


def _sweep_driver(alias: str, driver: str, by: Send, older: timedelta) -> int:
    waiting = _waiting(alias, older).filter(driver=driver).values_list("pk", flat=True)
    total = 0
    after = ""
    # Ids are times: in their order, and each once in a sweep.
    while ids := list(waiting.filter(pk__gt=after)[:BATCH]):
        try:
            total += _send_entries(alias, driver, ids, by)
        except BrokerError:
            raise
        except AsyncTasQError:
            # One of them cannot be sent: each for itself, then.
            total += sum(_send_alone(alias, driver, id, by) for id in ids)
        after = ids[-1]
    return total


def _send_alone(alias: str, driver: str, id: str, by: Send) -> int:
    try:
        return _send_entries(alias, driver, [id], by)
    except BrokerError:
        raise
    except AsyncTasQError as exc:
        logger.error("outbox: entry %s cannot be sent and stays: %s", id, exc)
        return 0


def _send_entries(alias: str, driver: str, ids: Sequence[str], by: Send) -> int:
    """Take these out and send them, as far as nobody else is about it; how many tasks they were.

    All for one broker: what it took must not come back because another did not.
    """
    skip = connections[alias].features.has_select_for_update_skip_locked
    with transaction.atomic(using=alias):
        chosen = OutboxEntry.objects.using(alias).filter(pk__in=ids).order_by("pk")
        entries = list(chosen.select_for_update(skip_locked=True) if skip else chosen)
        messages = [message for entry in entries for message in entry.read()]
        removed, _ = OutboxEntry.objects.using(alias).filter(pk__in=[entry.pk for entry in entries]).delete()
        if removed != len(entries):
            # Without locks on rows: another took some of them meanwhile.
            transaction.set_rollback(True, using=alias)
            return 0
        if messages:
            by(driver, messages)
    return len(messages)


def _waiting(alias: str, older: timedelta) -> models.QuerySet[OutboxEntry]:
    return OutboxEntry.objects.using(alias).filter(created_at__lte=Now() - older).order_by("pk")


def aliases() -> list[str]:
    """The databases that may hold entries, as the routers have it."""
    return [alias for alias in settings.DATABASES if router.allow_migrate_model(alias, OutboxEntry)]
