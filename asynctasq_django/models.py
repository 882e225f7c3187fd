"""The queue's tables as models, and what the admin shows.

The tables are the drivers' own: their columns come from ``asynctasq/drivers/sql``. The models let Django flush them
between tests and list them in the admin; they are never queried, because the tasks may be in another broker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from django.db import models
from django.db.models.functions import Now

from asynctasq.core.message import Message
from asynctasq.errors import DecodeError
from asynctasq_django import conf

if TYPE_CHECKING:
    Manager = models.Manager[Any]
else:
    Manager = models.Manager  # not generic at run time


class NoRows(Manager):
    """Has nothing: ``dumpdata`` and its like pass over tasks, wherever they are."""

    use_in_migrations = False

    def get_queryset(self) -> models.QuerySet[Any]:
        return super().get_queryset().none()


class StoredTask(models.Model):
    """What the two tables have in common."""

    id = models.CharField(primary_key=True, max_length=64)
    queue_name = models.CharField("queue", max_length=128)
    task = models.CharField(max_length=255)
    payload = models.BinaryField()
    priority = models.SmallIntegerField()
    current_attempt = models.IntegerField("attempt", default=0)
    max_attempts = models.IntegerField()
    visibility_timeout = models.FloatField()
    created_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    worker = models.CharField(max_length=100, null=True)
    correlation_id = models.CharField(max_length=255, null=True)
    error_type = models.CharField("error", max_length=255, null=True)
    error_message = models.TextField(null=True)
    error_traceback = models.TextField("traceback", null=True)
    first_failed_at = models.DateTimeField(null=True)
    last_failed_at = models.DateTimeField(null=True)

    objects = NoRows()

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return f"{self.task} {self.id}"


class Task(StoredTask):
    """A task in the queue table, or one that the admin read from the broker."""

    status = models.CharField(max_length=10)
    suspect = models.BooleanField(default=False)
    receipt = models.BigIntegerField(null=True)
    available_at = models.DateTimeField()
    locked_until = models.DateTimeField(null=True)
    result = models.BinaryField(null=True)

    class Meta:
        db_table = conf.table_names().queue
        base_manager_name = "objects"
        default_permissions = ("view",)


class DeadLetter(StoredTask):
    """A task that failed for good."""

    class Meta:
        db_table = conf.table_names().dead
        base_manager_name = "objects"
        default_permissions = ("view",)


class OutboxEntry(models.Model):
    """The tasks of one dispatch, on their way to a broker that is not the database."""

    id = models.CharField(primary_key=True, max_length=64)
    """That of the first task."""
    driver = models.CharField(max_length=32)
    messages = models.BinaryField()
    created_at = models.DateTimeField(db_default=Now(), db_index=True)
    """By the clock of the database."""

    class Meta:
        db_table = "asynctasq_outbox"
        default_permissions = ()

    def __str__(self) -> str:
        return self.id

    def read(self) -> list[Message]:
        """The tasks as they were dispatched. Raises DecodeError for anything else."""
        try:
            return msgspec.msgpack.decode(self.messages, type=list[Message])
        except msgspec.DecodeError as exc:
            raise DecodeError(f"not a list of messages: {exc}") from exc
