"""``manage.py asynctasq_dead``."""

from __future__ import annotations

from asynctasq import cli
from asynctasq_django.management.base import CoreCommand


class Command(CoreCommand):
    help = "List, show, requeue or delete dead letters."
    add_core_arguments = staticmethod(cli.add_dead_arguments)
    run = staticmethod(cli.run_dead)
