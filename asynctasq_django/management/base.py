"""What our commands share: the flags and functions of the core's command line, errors as Django shows them."""

from __future__ import annotations

import logging
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from asynctasq import cli
from asynctasq.errors import AsyncTasQError
from asynctasq_django import conf


class CoreCommand(BaseCommand):
    """A command of the core: its flags, its function."""

    add_core_arguments: Callable[[ArgumentParser], None] | None = None
    run: Callable[[Namespace], int]

    def add_arguments(self, parser: ArgumentParser) -> None:
        if self.add_core_arguments is not None:
            type(self).add_core_arguments(parser)  # type: ignore[misc]
        cli.add_config_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        log(options["verbosity"])
        try:
            if conf.problem is not None:
                raise conf.problem
            cli.reconfigure({name: value for name, value in options.items() if name in cli.options()})
            code = self.execute_core(Namespace(**options))
        except AsyncTasQError as exc:
            raise CommandError(str(exc)) from exc
        if code:
            sys.exit(code)

    def execute_core(self, namespace: Namespace) -> int:
        """Run the core's function."""
        return type(self).run(namespace)


def log(verbosity: int) -> None:
    """Log to stderr when the project's LOGGING says nothing of our logger; the root logger is left alone."""
    logger = logging.getLogger("asynctasq")
    if logger.handlers or logger.level:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel({0: logging.WARNING, 1: logging.INFO}.get(verbosity, logging.DEBUG))
    logger.propagate = False
