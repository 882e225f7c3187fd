from __future__ import annotations

from typing import Any

from django.db import migrations, models

from asynctasq_django import conf
from asynctasq_django.operations import CreateQueueTables


def columns(*more: tuple[str, models.Field[Any, Any]]) -> list[tuple[str, models.Field[Any, Any]]]:
    return [
        ("id", models.CharField(max_length=64, primary_key=True, serialize=False)),
        ("queue_name", models.CharField(max_length=128, verbose_name="queue")),
        ("task", models.CharField(max_length=255)),
        ("payload", models.BinaryField()),
        ("priority", models.SmallIntegerField()),
        ("current_attempt", models.IntegerField(default=0, verbose_name="attempt")),
        ("max_attempts", models.IntegerField()),
        ("visibility_timeout", models.FloatField()),
        ("created_at", models.DateTimeField()),
        ("started_at", models.DateTimeField(null=True)),
        ("finished_at", models.DateTimeField(null=True)),
        ("worker", models.CharField(max_length=100, null=True)),
        ("correlation_id", models.CharField(max_length=255, null=True)),
        ("error_type", models.CharField(max_length=255, null=True, verbose_name="error")),
        ("error_message", models.TextField(null=True)),
        ("error_traceback", models.TextField(null=True, verbose_name="traceback")),
        ("first_failed_at", models.DateTimeField(null=True)),
        ("last_failed_at", models.DateTimeField(null=True)),
        *more,
    ]


class Migration(migrations.Migration):
    initial = True

    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[CreateQueueTables()],
            state_operations=[
                migrations.CreateModel(
                    name="Task",
                    fields=columns(
                        ("status", models.CharField(max_length=10)),
                        ("suspect", models.BooleanField(default=False)),
                        ("receipt", models.BigIntegerField(null=True)),
                        ("available_at", models.DateTimeField()),
                        ("locked_until", models.DateTimeField(null=True)),
                        ("result", models.BinaryField(null=True)),
                    ),
                    options={
                        # The names that the settings give, as the models have them.
                        "db_table": conf.table_names().queue,
                        "base_manager_name": "objects",
                        "default_permissions": ("view",),
                    },
                ),
                migrations.CreateModel(
                    name="DeadLetter",
                    fields=columns(),
                    options={
                        "db_table": conf.table_names().dead,
                        "base_manager_name": "objects",
                        "default_permissions": ("view",),
                    },
                ),
            ],
        )
    ]
