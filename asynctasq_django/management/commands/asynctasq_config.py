"""``manage.py asynctasq_config``."""

from __future__ import annotations

import dataclasses
from argparse import Namespace

from asynctasq import Config, cli, drivers
from asynctasq_django import conf
from asynctasq_django.management.base import CoreCommand


def show(namespace: Namespace) -> int:
    """What the core shows, with what Django adds: our own settings, and the place of the alias that holds the queue."""
    config = Config.get()
    plain, effective = config.masked(), drivers.locate(config.driver, config).masked()
    rows = [
        [field.name, repr(getattr(conf.current, field.name)), ""]
        for field in dataclasses.fields(conf.current)
        if field.name != "core"
    ]
    for name, value in effective.items():
        default = "" if name in config.given else "default"
        origin = default if value == plain[name] else f"from DATABASES[{conf.alias_of(config.driver, config)!r}]"
        rows.append([name, repr(value), origin])
    cli.print_table(("option", "value", ""), rows)
    return cli.OK


class Command(CoreCommand):
    help = "Show the configuration in force, secrets masked."
    run = staticmethod(show)
