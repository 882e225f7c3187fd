"""What the tests of the Django app share: a broker behind a Django project, workers, and manage.py in a process."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from django.db import connections

import asynctasq
from asynctasq import _sync
from asynctasq.config import Config
from asynctasq.core.worker import Worker
from asynctasq.drivers.base import TaskInfo, TaskQuery
from asynctasq.testing import drain
from asynctasq_django import apps
from tests.django.app.models import Note

ROOT = Path(__file__).resolve().parent.parent.parent
REDIS_DATABASE = 5
QUICK = {"default_retry_strategy": "fixed", "default_retry_delay": 0}


@pytest.fixture(autouse=True)
def _as_the_settings_say() -> Iterator[None]:
    """Whatever other tests left behind."""
    apps.configure()
    yield
    asynctasq.shutdown()


class Broker:
    """Where a test's tasks go, and the alias whose transactions they mind."""

    def __init__(self, name: str, alias: str, settings: dict[str, Any]) -> None:
        self.name = name
        self.alias = alias
        self.settings = settings
        self.queue = settings["default_queue"]

    @property
    def transactional(self) -> bool:
        return self.name != "redis"

    def tasks(self) -> list[TaskInfo]:
        """What is in it, the oldest first."""
        found = _sync.run(asynctasq.repository().find(TaskQuery(queue=self.queue, limit=500))).items
        return found[::-1]

    def dead(self) -> list[TaskInfo]:
        return [info for info in self.tasks() if info.status == "dead"]

    def drain(self) -> Worker:
        """Run what is waiting, in this process."""
        return asyncio.run(drain([self.queue]))


def driver_of(alias: str) -> str:
    return {"sqlite": "sqlite", "postgresql": "postgres", "mysql": "mysql"}[connections[alias].vendor]


@pytest.fixture
def use(settings: Any) -> Iterator[Callable[..., Broker]]:
    """Sets ASYNCTASQ for a broker: ``use("sqlite")``, ``use("postgres", keep_completed_tasks=True)``."""
    redis_queues: list[str] = []

    def configure(name: str, **more: Any) -> Broker:
        given: dict[str, Any] = {"default_queue": f"django-{uuid.uuid4().hex[:12]}", **QUICK}
        alias = name if name in ("postgres", "mysql") else "default"
        if name == "redis":
            given |= {"driver": "redis", "redis_db": REDIS_DATABASE}
        else:
            given |= {"database": alias}
        settings.ASYNCTASQ = {**given, **more}
        broker = Broker(name, alias, settings.ASYNCTASQ)
        if name == "redis":
            redis_queues.append(broker.queue)
        return broker

    yield configure
    if redis_queues:
        with redis.Redis.from_url(Config.make({"redis_db": REDIS_DATABASE}).redis_location()) as client:
            for queue in redis_queues:
                client.delete(f"asynctasq:{queue}", *client.scan_iter(f"asynctasq:{{{queue}}}:*"))
                client.srem("asynctasq:queues", queue)


@pytest.fixture(params=["sqlite", "postgres", "mysql", "redis"])
def broker(request: pytest.FixtureRequest, transactional_db: None, use: Callable[..., Broker]) -> Broker:
    """An empty broker of each kind in turn."""
    if request.param in ("postgres", "mysql") and request.param not in _databases(request):
        pytest.fail("mark the test with django_db(transaction=True, databases='__all__')")
    return use(request.param)


def _databases(request: pytest.FixtureRequest) -> Any:
    marker = request.node.get_closest_marker("django_db")
    found = (marker.kwargs.get("databases") if marker else None) or ()
    return list(connections) if found == "__all__" else found


_SEVERAL = """
import io, json, sys, django
from django.core.management import call_command
from django.db import connection
django.setup()
for command in sys.argv[1:]:
    output = io.StringIO()
    call_command(*command.split(), stdout=output)
    print(json.dumps([output.getvalue(), connection.introspection.table_names()]))
"""


class Manage:
    """``manage.py`` in a process of its own."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    @classmethod
    def on(cls, alias: str, settings: dict[str, Any], **options: Any) -> Manage:
        """With this database of the tests as its ``default``, and these settings."""
        settings = {"database" if key == "database" else key: value for key, value in settings.items()}
        if settings.get("database"):
            settings["database"] = "default"
        return cls.at(driver_of(alias), str(connections[alias].settings_dict["NAME"]), settings, **options)

    @classmethod
    def at(cls, kind: str, name: str, settings: dict[str, Any], **options: Any) -> Manage:
        return cls(
            {
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "tests.django.settings",
                "ASYNCTASQ_TEST_DATABASE": kind,
                "ASYNCTASQ_TEST_NAME": name,
                "ASYNCTASQ_TEST_OPTIONS": json.dumps(options),
                "ASYNCTASQ_TEST_SETTINGS": json.dumps(settings),
                "PYTHONWARNINGS": "error",
            }
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "django", *arguments],
            env=self.environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def fails(self, *arguments: str) -> tuple[int, str]:
        """The exit code, which is not 0, and what it said of why."""
        process = self.start(*arguments)
        _, errors = process.communicate(timeout=60)
        assert process.returncode, errors
        return process.returncode, errors

    def all(self, *commands: str) -> list[tuple[str, set[str]]]:
        """Several commands in one process; of each what it printed, and the tables there were after it."""
        done = subprocess.run(
            [sys.executable, "-c", _SEVERAL, *commands],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return [(output, set(tables)) for output, tables in map(json.loads, done.stdout.splitlines())]

    def __call__(self, *arguments: str) -> str:
        process = self.start(*arguments)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        return output


def notes(alias: str = "default") -> list[str]:
    """What tasks wrote, in the order of writing."""
    return list(Note.objects.using(alias).order_by("pk").values_list("text", flat=True))
