"""``manage.py asynctasq_worker``."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Callable

from django.conf import settings
from django.utils import autoreload

from asynctasq import Worker, _runtime, cli
from asynctasq.core import supervisor
from asynctasq.errors import AsyncTasQError
from asynctasq_django import conf, outbox
from asynctasq_django.dispatch import DjangoDispatcher
from asynctasq_django.management.base import CoreCommand, exit_code

STOP_LIMIT = 5.0
"""Seconds for what runs to be given back when code has changed."""


class Command(CoreCommand):
    help = "Run tasks, until stopped by SIGTERM or Ctrl-C."
    add_core_arguments = staticmethod(cli.add_worker_arguments)

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--reload",
            action=BooleanOptionalAction,
            help="start again when code changes (with DEBUG; never with --drain, --max-tasks or several --processes)",
        )

    def execute_core(self, namespace: Namespace) -> int:
        self.check(display_num_errors=True)
        if namespace.processes > 1:
            # The copies are single workers, and each would start again by itself.
            return supervisor.run(namespace.processes, [*sys.orig_argv, "--processes", "1", "--no-reload"])
        ends = namespace.drain or namespace.max_tasks is not None
        wanted = settings.DEBUG if namespace.reload is None else namespace.reload
        return self._run_reloading(namespace) if wanted and not ends else self._run(namespace)

    def _run(self, namespace: Namespace, starting: Callable[[Worker], object] | None = None) -> int:
        """A worker, and what goes on beside it."""
        dispatcher = _runtime.runtime().dispatcher
        if not conf.current.outbox or not isinstance(dispatcher, DjangoDispatcher):
            return cli.run_worker(namespace, starting)
        with outbox.sweeping(dispatcher.send_now):
            return cli.run_worker(namespace, starting)

    def _run_reloading(self, namespace: Namespace) -> int:
        """As runserver: the worker in a thread, in a process that another replaces when code changes."""
        stops: list[Callable[[], object]] = []
        ended = threading.Event()

        def starting(worker: Worker) -> None:
            loop = asyncio.get_running_loop()
            stops.append(lambda: loop.call_soon_threadsafe(worker.stop))

        def work() -> None:
            try:
                self._run(namespace, starting)
            except AsyncTasQError as exc:
                self.stderr.write(f"CommandError: {exc}")
                # From a thread there is no other way out; runserver takes it too.
                os._exit(exit_code(exc))
            finally:
                ended.set()

        try:
            autoreload.run_with_reloader(work)
        finally:
            # The process is about to end. What runs would otherwise stay leased for as long as its lease lasts.
            if stops and not ended.is_set():
                for stop in stops * 2:  # the second time means at once
                    stop()
                ended.wait(STOP_LIMIT)
        return cli.OK
