"""What our commands share: the flags and functions of the core's command line, errors as Django shows them."""

from __future__ import annotations

import contextlib
import logging
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import Any, cast

from django.core.management.base import BaseCommand, CommandError

from asynctasq import cli
from asynctasq.errors import AsyncTasQError, ConfigurationError
from asynctasq_django import conf


class CoreCommand(BaseCommand):
    """A command of the core: its flags, its function."""

    # What is wrong with ours is said in one line below; the worker alone runs the project's checks.
    requires_system_checks = []
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
            namespace = Namespace(**options)
            given = cli.given_options(namespace)
            cli.reconfigure(given)
            conf.use_flags(given)
            code = self.execute_core(namespace)
        except AsyncTasQError as exc:
            raise CommandError(str(exc), returncode=exit_code(exc)) from exc
        if code:
            sys.exit(code)

    def execute_core(self, namespace: Namespace) -> int:
        """Run the core's function. It prints, and whoever called the command may have asked for that elsewhere."""
        out, err = cast(Any, self.stdout)._out, cast(Any, self.stderr)._out
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            return type(self).run(namespace)


def exit_code(error: AsyncTasQError) -> int:
    """As the core's command line has it: 2 for what is wrong with the settings."""
    return cli.USAGE if isinstance(error, ConfigurationError) else cli.FAILED


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
