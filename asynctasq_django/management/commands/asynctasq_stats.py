"""``manage.py asynctasq_stats``."""

from __future__ import annotations

from asynctasq import cli
from asynctasq_django.management.base import CoreCommand


class Command(CoreCommand):
    help = "Show numbers per queue."
    add_core_arguments = staticmethod(cli.add_stats_arguments)
    run = staticmethod(cli.run_stats)
