"""Tasks of every kind; found by autodiscovery, imported by nothing else."""

from __future__ import annotations

import os
import time
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connection
from django.utils import translation

from asynctasq import AsyncTask, current_task, task
from tests.django.app.models import Note, Tagged


@task
def write(text: str) -> int:
    return Note.objects.create(text=text).pk


@task
async def write_async(text: str) -> None:
    await Note.objects.acreate(text=text)


@task(process=True)
def write_in_process(text: str, parent: int) -> None:
    Note.objects.create(text=f"{text} {'elsewhere' if os.getpid() != parent else 'here'}")


@task
def relay(text: str) -> None:
    """Dispatches another."""
    write(text).dispatch_sync()


@task
async def relay_async(text: str) -> None:
    await write_async(text).dispatch()


@task
def rename(note: Note, text: str) -> None:
    note.text = text
    note.save()


@task
async def rename_async(note: Note, text: str) -> None:
    note.text = text
    await note.asave()


@task(process=True)
def rename_in_process(note: Note, text: str) -> None:
    note.text = text
    note.save()


@task
def retag(tagged: Tagged, tag: str) -> None:
    Tagged.objects.filter(pk=tagged.pk).update(tag=tag)


@task(max_attempts=1)
def fail(text: str) -> None:
    raise RuntimeError(text)


@task
def accept(*args: Any, **kwargs: Any) -> None:
    """Does nothing with anything."""


@task(driver="redis")
def accept_on_redis() -> None:
    """On its own broker."""


def _note_backend() -> None:
    """Which server process answers, and at which attempt."""
    running = current_task()
    assert running is not None
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        pid = cursor.fetchone()[0]
    Note.objects.create(text=f"{running.attempt} {pid}")


@task(max_attempts=3, retry_delay=0)
def note_backend() -> None:
    _note_backend()


@task(max_attempts=3, retry_delay=0)
async def note_backend_async() -> None:
    await sync_to_async(_note_backend)()


@task(process=True, max_attempts=3, retry_delay=0)
async def note_backend_in_process() -> None:
    await sync_to_async(_note_backend)()


@task
def linger(text: str) -> None:
    """Does not end by itself, unless it is run again."""
    if Note.objects.filter(text=text).exists():
        Note.objects.create(text=f"{text} again")
        return
    Note.objects.create(text=text)
    time.sleep(300)


@task
def speak(language: str | None) -> None:
    """Leaves its language behind."""
    Note.objects.create(text=translation.get_language() or "none")
    if language is not None:
        translation.activate(language)


class Shout(AsyncTask[None]):
    text: str

    async def execute(self) -> None:
        await Note.objects.acreate(text=self.text.upper())
