"""``manage.py asynctasq_worker``."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, BooleanOptionalAction, Namespace

from django.conf import settings
from django.utils import autoreload

from asynctasq import cli
from asynctasq.core import supervisor
from asynctasq_django.management.base import CoreCommand


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
        if wanted and not ends:
            # In its own thread, as runserver's: a change or a signal ends it where it is, and leases bring it back.
            autoreload.run_with_reloader(cli.run_worker, namespace)
            return cli.OK
        return cli.run_worker(namespace)
