"""What the demo and ``serve.py`` share: the database made, the site and the worker as processes."""

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import httpx
from django.conf import settings
from django.core.management import CommandError, call_command

HERE = Path(__file__).resolve().parent
LOOPBACK = "127.0.0.1"

Process = subprocess.Popen[str]


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Refuses to go on while another demo or site works in this folder."""
    with (HERE / "manage.py").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError("`make demo` or `make serve` runs here already; end it first") from None
        yield


def make_database(*, fresh: bool) -> None:
    """The example's own database with all tables; an empty one when ``fresh``, and no files either."""
    if fresh:
        shutil.rmtree(settings.VAR_DIR)
        settings.VAR_DIR.mkdir()
    if settings.DRIVER == "postgres":
        make_postgres_database(settings.DATABASES["default"], fresh=fresh)
    if settings.DRIVER == "mysql":
        make_mysql_database(settings.DATABASES["default"], fresh=fresh)
    call_command("migrate", interactive=False, verbosity=0)


def make_postgres_database(place: dict[str, Any], *, fresh: bool) -> None:
    import psycopg  # needed on this driver only
    from psycopg import sql

    name = sql.Identifier(place["NAME"])
    login = {"user": place["USER"], "password": place["PASSWORD"], "host": place["HOST"], "port": place["PORT"]}
    with psycopg.connect(dbname=settings.FIRST_DATABASE, autocommit=True, **login) as server:
        if fresh:
            server.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))
        known = server.execute("SELECT FROM pg_database WHERE datname = %s", [place["NAME"]])
        if not known.rowcount:
            server.execute(sql.SQL("CREATE DATABASE {}").format(name))


def make_mysql_database(place: dict[str, Any], *, fresh: bool) -> None:
    import MySQLdb  # needed on this driver only

    # "localhost" would be a socket, whatever the port.
    host = LOOPBACK if place["HOST"] == "localhost" else place["HOST"]
    login = {"user": place["USER"], "password": place["PASSWORD"], "host": host, "port": int(place["PORT"] or 3306)}
    with contextlib.closing(MySQLdb.connect(database=settings.FIRST_DATABASE, **login)) as server:
        cursor = server.cursor()
        if fresh:
            cursor.execute(f"DROP DATABASE IF EXISTS `{place['NAME']}`")
        cursor.execute(f"CREATE DATABASE IF NOT EXISTS `{place['NAME']}` CHARACTER SET utf8mb4")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def site(port: int, output: IO[str] | None = None) -> Iterator[Process]:
    """The website under uvicorn, from when it answers."""
    command = [sys.executable, "-m", "uvicorn", "example_project.asgi:application", "--host", LOOPBACK]
    with process([*command, "--port", str(port), "--log-level", "warning"], output) as server:
        deadline = time.monotonic() + 30
        while server.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"http://{LOOPBACK}:{port}/", trust_env=False).raise_for_status()
                break
            time.sleep(0.05)
        else:
            raise CommandError(f"the site does not answer at {LOOPBACK}:{port}")
        yield server


def worker(port: int, *options: str, output: IO[str] | None = None) -> AbstractContextManager[Process]:
    """``manage.py asynctasq_worker``, whose tasks ask the site at ``port``."""
    command = [sys.executable, str(HERE / "manage.py"), "asynctasq_worker", *options]
    return process(command, output, EXAMPLE_SITE_URL=f"http://{LOOPBACK}:{port}")


@contextlib.contextmanager
def process(command: list[str], output: IO[str] | None, **variables: str) -> Iterator[Process]:
    """A child process that ends with the block: asked to, and waited for."""
    child = subprocess.Popen(
        command,
        cwd=HERE.parent,
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
        text=True,
        start_new_session=True,  # Ctrl-C is for this process, which then ends the child in its orderly way
    )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(40)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
