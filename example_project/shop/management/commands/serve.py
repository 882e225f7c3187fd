"""Website, admin and worker together until Ctrl-C, on the loopback only."""

import contextlib
import secrets
import signal
import time
from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError, CommandParser

from example_project import running
from example_project.shop import catalogue
from example_project.shop.models import Photo


def make_admin() -> str:
    """An administrator with a new password, which is returned."""
    password = secrets.token_urlsafe(9)
    admin, _ = User.objects.get_or_create(username="admin", defaults={"is_staff": True, "is_superuser": True})
    admin.set_password(password)
    admin.save()
    return password


def serve(port: int) -> None:
    """Returns when the site or the worker ended, which they do not by themselves."""
    with running.site(port) as site, running.worker(port, "--no-reload") as worker:
        if not Photo.objects.exists():
            catalogue.load_photographs()
            catalogue.load_countries()
        address = f"http://{running.LOOPBACK}:{port}/"
        print(f"website  {address}\nadmin    {address}admin/  user: admin  password: {make_admin()}")
        print("worker   runs; Ctrl-C ends all three", flush=True)
        while site.poll() is None and worker.poll() is None:
            time.sleep(0.2)
        raise CommandError(f"the {'worker' if site.poll() is None else 'site'} ended by itself")


class Command(BaseCommand):
    help = "Run website, admin and worker until Ctrl-C."
    requires_system_checks = []  # there may be no database yet

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--port", type=int, default=8000, help="of the website (8000); 0 for any that is free")

    def handle(self, *args: Any, **options: Any) -> None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with running.alone(), contextlib.suppress(KeyboardInterrupt):
            running.make_database(fresh=False)
            serve(options["port"] or running.free_port())
        print("stopped")
