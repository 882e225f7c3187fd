"""The migration operation that creates the queue tables from the drivers' own SQL."""

from __future__ import annotations

from typing import Any

from django.db import router
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.operations.base import Operation

from asynctasq.drivers.sql import schema
from asynctasq_django import conf


class CreateQueueTables(Operation):
    """Runs the statements of ``asynctasq migrate``; on databases that no driver uses it does nothing."""

    reversible = True
    reduces_to_sql = True

    def state_forwards(self, app_label: str, state: Any) -> None:
        pass

    def database_forwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: Any, to_state: Any
    ) -> None:
        driver = self._driver(app_label, schema_editor)
        if driver is not None:
            for statement in schema(driver, conf.table_names()):
                schema_editor.execute(statement, None)

    def database_backwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: Any, to_state: Any
    ) -> None:
        if self._driver(app_label, schema_editor) is not None:
            for name in conf.table_names():
                quoted = ".".join(schema_editor.quote_name(part) for part in name.split("."))
                schema_editor.execute(f"DROP TABLE IF EXISTS {quoted}", None)

    def _driver(self, app_label: str, schema_editor: BaseDatabaseSchemaEditor) -> str | None:
        connection = schema_editor.connection
        if not router.allow_migrate(connection.alias, app_label, model_name="task"):
            return None
        return conf.DRIVERS.get(connection.vendor)

    def describe(self) -> str:
        return "Create the queue and dead letter tables"
