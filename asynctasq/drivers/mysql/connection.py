"""One connection, what it is opened with, and statements that are sent together."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import MySQLdb

from asynctasq.config import Config, did_you_mean
from asynctasq.drivers.mysql.errors import is_gone
from asynctasq.drivers.sql import Args, Row, Steps, to_json
from asynctasq.errors import ConfigurationError, PayloadTooLarge

T = TypeVar("T")

CONNECT_TIMEOUT = 3
"""Seconds; a producer is told within this time that the server is not there."""
SETTINGS = (
    # Local time made a lease an hour too long when the clocks changed.
    "SET time_zone = '+00:00', sql_mode = 'STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION', wait_timeout = 86400, "
    # A wait for a lock ends before the call's deadline.
    "innodb_lock_wait_timeout = 5;\n"
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED;\n"
    "SELECT @@max_allowed_packet"
)
PARAMETERS = (
    "unix_socket",
    "read_default_file",
    "read_default_group",
    "ssl_mode",
    "ssl_ca",
    "ssl_capath",
    "ssl_cert",
    "ssl_key",
    "ssl_cipher",
)
"""What the query of ``mysql_dsn`` may name."""


class Text:
    """A named statement as it is sent: alone, or in two steps of which the second gets the ids of the first."""

    def __init__(self, select: str, change: str) -> None:
        self.select = select
        self.change = change

    @classmethod
    def of(cls, text: str) -> Text:
        select, _, change = text.partition(";\n")
        return cls(select, change)


class Connection:
    """One connection; used by one thread at a time. Several statements are sent at once where that saves a round trip;
    every value in them is escaped by the client."""

    def __init__(self, config: Config, timeout: float) -> None:
        self._lock = threading.Lock()
        self._db = MySQLdb.connect(
            **options(config),
            charset="utf8mb4",
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=int(timeout),
            write_timeout=int(timeout),
            autocommit=True,
        )
        # Our own number for the socket: the client gives up the other in mid-call when that fails.
        self._descriptor = os.dup(self._db.fileno())
        self._let_go = weakref.finalize(self, os.close, self._descriptor)
        self.usable = True
        self.packet = 2**20
        ((self.packet,),) = self.send(SETTINGS)
        _open.add(self)

    def fetch(self, text: Text, args: Args) -> list[Row]:
        """Run one named statement in a transaction of its own."""
        with self._in_order():
            if not text.change:
                return self.send(text.select, args)
            rows = self.send(f"START TRANSACTION;\n{text.select}", args)
            if rows:
                self.send(f"{text.change};\nCOMMIT", {**args, "held": _ids(rows)})
            else:
                self.send("ROLLBACK")
            return rows

    def run(self, texts: Mapping[str, Text], steps: Callable[[], Steps[T]]) -> T:
        """Run the statements in one transaction and commit it."""
        running = steps()
        with self._in_order():
            self.send("START TRANSACTION")
            try:
                name, args = next(running)
                while True:
                    text = texts[name]
                    rows = self.send(text.select, args)
                    if text.change and rows:
                        self.send(text.change, {**args, "held": _ids(rows)})
                    name, args = running.send(rows)
            except StopIteration as stop:
                self.send("COMMIT")
                result: T = stop.value
                return result

    def send(self, text: str, args: Args | None = None) -> list[Row]:
        """Send statements; the rows of the one that returns some."""
        query = text.encode()
        if args is not None:
            query %= {name.encode(): self._db.literal(value) for name, value in args.items()}
        if len(query) > self.packet:
            raise PayloadTooLarge(
                f"a statement of {len(query)} bytes, the server's max_allowed_packet is {self.packet} bytes"
            )
        self._db.query(query)
        rows: list[Row] = []
        while True:
            result = self._db.store_result()
            if result is not None:
                rows += result.fetch_row(0)
            if self._db.next_result() == -1:
                return rows

    @contextlib.contextmanager
    def _in_order(self) -> Iterator[None]:
        """Whatever goes wrong, no transaction is left open; a connection on which that fails is of no more use."""
        with self._lock:
            try:
                yield
            except BaseException as exc:
                self.usable = isinstance(exc, MySQLdb.Error) and not is_gone(exc) and self._rolled_back()
                raise

    def _rolled_back(self) -> bool:
        try:
            self.send("ROLLBACK")
        except MySQLdb.Error:
            return False
        return True

    def hang_up(self) -> None:
        """End a call that gets no answer, from another thread."""
        self.usable = False
        if self._let_go.alive:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._descriptor)) as duplicate:
                duplicate.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Again is fine."""
        with self._lock:
            self.usable = False
            self._let_go()
            with contextlib.suppress(MySQLdb.Error):
                self._db.close()

    def forsake(self) -> None:
        """In a child after a fork: end it without a word to the server, for the parent goes on using it."""
        self.usable = False
        self._lock = threading.Lock()
        with contextlib.suppress(OSError, MySQLdb.Error), Path(os.devnull).open("rb+") as nowhere:
            os.dup2(nowhere.fileno(), self._db.fileno())


_open: weakref.WeakSet[Connection] = weakref.WeakSet()


def _forsake_all() -> None:
    for connection in list(_open):
        connection.forsake()


os.register_at_fork(after_in_child=_forsake_all)


def options(config: Config) -> dict[str, Any]:
    """What the client is to connect with. Raises ConfigurationError for a parameter that is none of ours."""
    parts = urlsplit(config.mysql_dsn)
    given: dict[str, Any] = dict(parse_qsl(parts.query))
    for name in given:
        if name not in PARAMETERS:
            raise ConfigurationError(
                f"mysql_dsn: parameter {name!r} is not known; there are {', '.join(PARAMETERS)}"
                f"{did_you_mean(name, PARAMETERS)}"
            )
    tls = {name.removeprefix("ssl_"): given.pop(name) for name in list(given) if name.startswith("ssl_")}
    mode = tls.pop("mode", None)
    password = config.mysql_password if parts.password is None else unquote(parts.password)
    named = {
        "host": unquote(parts.hostname or ""),
        "user": unquote(parts.username or ""),
        "password": password,
        "port": parts.port,
        "database": unquote(parts.path[1:]),
        "ssl_mode": mode and mode.upper(),
        "ssl": tls,
        **given,
    }
    # To the client "localhost" means a socket in the file system, whatever the port.
    named["host"] = {"localhost": "127.0.0.1"}.get(named["host"], named["host"])
    return {name: value for name, value in named.items() if value}


def _ids(rows: Sequence[Row]) -> str:
    return to_json([row[0] for row in rows])
