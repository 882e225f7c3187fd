"""Routers of the tests."""

from __future__ import annotations

from typing import Any


class Nowhere:
    """Keeps the queue tables off every database."""

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        return False if app_label == "asynctasq_django" else None
