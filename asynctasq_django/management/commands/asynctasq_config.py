"""``manage.py asynctasq_config``."""

from __future__ import annotations

from asynctasq import cli
from asynctasq_django.management.base import CoreCommand


class Command(CoreCommand):
    help = "Show the configuration in force, secrets masked."
    run = staticmethod(cli.run_config)
