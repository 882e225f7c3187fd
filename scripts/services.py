#!/usr/bin/env python3
"""Find or start the servers that the tests, the demo and the benchmarks talk to.

    services.py up [redis postgres mariadb]    one line per server; the addresses go to .services/env
    services.py status
    services.py down [--remove]                end exactly what `up` started; --remove also deletes its data

A server is looked for at the address in the environment, then at the default address. Where none can be used, one
of our own is started on the loopback: with `docker compose` if an engine runs, else from Debian's packages; it stays
in use until `down`. SERVICES=private skips the looking and takes other ports than the default ones. Only the
standard library is needed (Python 3.11).

Tests import the classes to have servers they may kill: `Redis(directory, port)` and so on.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib
import importlib.util
import json
import os
import pwd
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import SplitResult, unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".services"
LOOPBACK = "127.0.0.1"
CONNECT_TIMEOUT = 3
START_TIMEOUT = 90
STOP_TIMEOUT = 30


class ServiceError(Exception):
    """The server cannot be had; the text says why, in one line."""


class Silent(ServiceError):
    """Nothing that speaks the protocol is at the address."""


class NotInstalled(ServiceError):
    """A program is missing."""


class Refused(ServiceError):
    """A server is there and does not let us work: a role, a right or a database is missing."""


def run(command: Sequence[str | Path], **options: Any) -> str:
    """Run a program and return what it printed; raise ServiceError with its last words if it fails."""
    options = {"timeout": 60, "stdin": subprocess.DEVNULL} | options
    if "input" in options:
        del options["stdin"]
    name = Path(command[0]).name
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    except (FileNotFoundError, PermissionError):  # or only where we may not look
        raise NotInstalled(f"{name} is not installed") from None
    except subprocess.TimeoutExpired as error:
        raise ServiceError(f"{name} did not finish in {error.timeout:g} s") from None
    if done.returncode:
        words = " ".join((done.stderr.strip() or done.stdout).split()).removeprefix(f"{name}: ")
        raise ServiceError(f"{name}: {words[-400:] or f'exit code {done.returncode}'}")
    return done.stdout.strip()


def apt_install(title: str, packages: Sequence[str]) -> None:
    wanted = " ".join(packages)
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise NotInstalled(f"install {wanted} and run this again")
    print(f"{title}: installing Debian packages: {wanted}", flush=True)
    # In run level 1 a package's own service is installed without being started.
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120"]
    run([*apt, "update"], env=quiet, timeout=300)
    run([*apt, "install", "-y", "--no-install-recommends", *packages], env=quiet, timeout=900)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        port: int = listener.getsockname()[1]
        return port


def port_is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def birth(pid: int) -> str | None:
    """What tells a process from a later one with the same number; None if it is gone (or only a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        with contextlib.suppress(ServiceError):
            return run(["ps", "-o", "lstart=", "-p", str(pid)]) or None
        return None
    return None if fields[0] in "ZX" else f"{boot}/{fields[19]}"


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError, ValueError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def wait_until_gone(births: dict[int, str | None], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(born and birth(pid) == born for pid, born in births.items()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def reachable(directory: Path, account: pwd.struct_passwd) -> bool:
    """Whether the account may walk down to the directory."""
    for parent in directory.resolve().parents:
        if not parent.exists():
            continue
        status = parent.stat()
        shift = 6 if status.st_uid == account.pw_uid else 3 if status.st_gid == account.pw_gid else 0
        if not status.st_mode >> shift & 1:
            return False
    return True


def sql_text(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


class Service(ABC):
    """One kind of server, and one of our own of that kind: its data in `directory`, listening on `port`."""

    name: ClassVar[str]
    title: ClassVar[str]
    variable: ClassVar[str]
    default: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    account: ClassVar[str | None] = None  # who runs it when we are root: some servers refuse to
    client: ClassVar[tuple[str, str, str] | None] = None  # program, Python module that does too, package
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, directory: Path | str, port: int | None = None) -> None:
        self.directory = Path(directory)
        self.record = self._read_record()
        self.port = port or self.record.get("port") or free_port()
        self._process: subprocess.Popen[bytes] | None = None

    # ---- what each kind of server brings

    @classmethod
    @abstractmethod
    def answers(cls, url: str) -> str:
        """Log in and return the server's version; raise Silent or Refused."""

    @classmethod
    def provision(cls, url: str) -> None:
        """Make what `answers` found missing on a server that runs, or raise ServiceError."""
        raise ServiceError("the server refuses the login")

    @classmethod
    def require_client(cls) -> None:
        """Have what `answers` logs in with: the usual program, or else a Python module of the environment."""
        if cls.client and not which(cls.client[0]) and not importlib.util.find_spec(cls.client[1]):
            try:
                apt_install(cls.title, cls.client[2:])
            except NotInstalled as error:
                raise NotInstalled(f"{cls.client[0]} is not installed; {error}") from None

    @classmethod
    @abstractmethod
    def binary(cls) -> Path | None:
        """The server program, if installed."""

    def prepare(self) -> None:
        """Fill the empty data directory."""

    @abstractmethod
    def command(self) -> list[str | Path]:
        """The server in the foreground."""

    # ---- one of our own

    @property
    def url(self) -> str:
        parts = urlsplit(self.default)
        login = f"{parts.username}:{parts.password}@" if parts.username else ""
        return f"{parts.scheme}://{login}{LOOPBACK}:{self.port}{parts.path}"

    @property
    def data(self) -> Path:
        return self.directory.resolve() / "data"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def pid(self) -> int | None:
        """Our server's process, if it runs and really is ours."""
        pid = self.record.get("pid")
        return pid if pid and birth(pid) == self.record["born"] else None

    @property
    def started(self) -> bool:
        return bool(self.pid or self.record.get("container"))

    def start(self) -> None:
        """Start the server unless it runs, and wait until it lets us in."""
        if self.pid:
            return
        if self.binary() is None:
            self._install()
        self._place()
        self._prepare_once()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(part) for part in self.command()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.data,
                start_new_session=True,  # Ctrl-C in the terminal is not for the server
                **self._identity(),
            )
        self._write_record(pid=self._process.pid, born=birth(self._process.pid), port=self.port)
        self._wait_until_it_answers()

    def start_container(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._compose("up", "--detach", self.name, timeout=600)
        self._write_record(container=True, port=self.port)
        self._wait_until_it_answers()

    def stop(self) -> None:
        """End the server in its orderly way."""
        if self.record.get("container"):
            self._compose("rm", "--stop", "--force", "--volumes", self.name)
        elif pid := self.pid:
            born = {pid: birth(pid)}
            os.kill(pid, self.stop_signal)
            self._reap(STOP_TIMEOUT)
            if not wait_until_gone(born, STOP_TIMEOUT):
                self.kill()
        self._write_record(port=self.port)

    def kill(self) -> None:
        """End the server the way a power cut would: kill -9, its children too."""
        if pid := self.pid:
            born = {each: birth(each) for each in (pid, *children(pid))}
            for each in born:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
            self._reap(STOP_TIMEOUT)
            wait_until_gone(born, STOP_TIMEOUT)
        self._write_record(port=self.port)

    def restart(self) -> None:
        self.stop()
        self.start()

    def remove(self) -> None:
        """Stop the server and delete its data."""
        self.stop()
        shutil.rmtree(self.directory.resolve(), ignore_errors=True)
        if self.directory.is_symlink():
            self.directory.unlink()

    # ---- how that is done

    def _compose(self, *arguments: str, timeout: float = 120) -> str:
        port = {f"ASYNCTASQ_{self.name.upper()}_PORT": str(self.port)}
        project = "asynctasq-" + hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]
        compose: list[str | Path] = ["docker", "compose", "--file", ROOT / "compose.yaml"]
        return run([*compose, "--project-name", project, *arguments], timeout=timeout, env=os.environ | port)

    def _install(self) -> None:
        try:
            apt_install(self.title, self.packages)
        except NotInstalled as error:
            raise NotInstalled(f"the server is not installed; {error}") from None
        if self.binary() is None:
            raise NotInstalled(f"{' '.join(self.packages)} was installed and brought no server")

    def _account(self) -> pwd.struct_passwd | None:
        if not self.account or os.geteuid() != 0:
            return None
        try:
            return pwd.getpwnam(self.account)
        except KeyError:
            raise ServiceError(f"it does not run as root, and there is no account {self.account}") from None

    def _identity(self) -> dict[str, Any]:
        account = self._account()
        return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}

    def _place(self) -> None:
        """Make the directory; where the server's account cannot walk, as a link to where it can."""
        account = self._account()
        if self.directory.is_symlink() and not self.directory.exists():
            self.directory.unlink()
        if account and not self.directory.exists() and not reachable(self.directory, account):
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            self.directory.symlink_to(tempfile.mkdtemp(prefix=f"asynctasq-{self.name}-"))
        self.directory.mkdir(parents=True, exist_ok=True)
        if account:
            os.chown(self.directory, account.pw_uid, account.pw_gid)

    def _prepare_once(self) -> None:
        prepared = self.directory / "prepared"
        if prepared.exists():
            return
        shutil.rmtree(self.data, ignore_errors=True)  # what an interrupted attempt left
        self.data.mkdir(mode=0o700)
        if account := self._account():
            os.chown(self.data, account.pw_uid, account.pw_gid)
        self.prepare()
        prepared.touch()

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                if self.record.get("container"):
                    find(type(self), self.url)
                else:
                    self.answers(self.url)
            except ServiceError as error:
                if not self.started:
                    raise ServiceError(f"it ended at once: {self._last_words()}") from None
                if time.monotonic() > deadline:
                    raise ServiceError(f"started, but no answer in {START_TIMEOUT} s: {error}") from None
            else:
                return
            time.sleep(0.05)

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").split("\n") if self.log.exists() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), f"no word in {self.log}")

    def _reap(self, seconds: float) -> None:
        if self._process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)

    def _read_record(self) -> dict[str, Any]:
        try:
            record: dict[str, Any] = json.loads((self.directory / "server.json").read_text())
        except (OSError, ValueError):
            return {}
        return record

    def _write_record(self, **record: Any) -> None:
        self.record = record
        if self.directory.exists():
            (self.directory / "server.json").write_text(json.dumps(record))


class Redis(Service):
    name = "redis"
    title = "Redis"
    variable = "ASYNCTASQ_REDIS_URL"
    default = "redis://localhost:6379"
    packages = ("redis-server",)

    @classmethod
    def answers(cls, url: str) -> str:
        parts = urlsplit(url)
        try:
            connection = socket.create_connection((parts.hostname or LOOPBACK, parts.port or 6379), CONNECT_TIMEOUT)
            if parts.scheme == "rediss":
                connection = ssl.create_default_context().wrap_socket(connection, server_hostname=parts.hostname)
        except OSError as error:
            raise Silent(error.strerror or str(error)) from None
        with connection, connection.makefile("rwb") as stream:
            try:
                if parts.password:
                    user = [unquote(parts.username)] if parts.username else []
                    cls._call(stream, "AUTH", *user, unquote(parts.password))
                cls._call(stream, "PING")
                info = cls._call(stream, "INFO", "server")
            except OSError as error:
                raise Silent(f"no answer to PING: {error}") from None
        facts = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
        return facts.get("redis_version", "of unknown version")

    @staticmethod
    def _call(stream: Any, *words: str) -> str:
        stream.write(b"*%d\r\n" % len(words))
        for word in words:
            stream.write(b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()))
        stream.flush()
        line: str = stream.readline().decode(errors="replace").rstrip("\r\n")
        if line.startswith("-"):
            raise Refused(line[1:])
        if line.startswith("+"):
            return line[1:]
        if line.startswith("$") and line[1:].isdecimal():
            return str(stream.read(int(line[1:]) + 2).decode(errors="replace"))
        raise Silent("what is there does not speak Redis' protocol")

    @classmethod
    def binary(cls) -> Path | None:
        return which("redis-server")

    def command(self) -> list[str | Path]:
        return [
            *(
                self.binary() or "redis-server",
                "--port",
                str(self.port),
                "--bind",
                LOOPBACK,
                "--dir",
                self.data,
            ),
            *("--daemonize", "no", "--logfile", "", "--save", "", "--appendonly", "yes"),
            *("--maxmemory-policy", "noeviction"),
        ]


class Postgres(Service):
    name = "postgres"
    title = "PostgreSQL"
    variable = "ASYNCTASQ_POSTGRES_DSN"
    default = "postgresql://test:test@localhost:5432/test_db"
    packages = ("postgresql",)
    client = ("psql", "psycopg", "postgresql-client")
    account = "postgres"
    stop_signal = signal.SIGINT  # "fast": does not wait for clients to leave

    # What the tests need: making databases (Django makes its own) and tables.
    QUESTION = """SELECT current_setting('server_version'), (rolcreatedb OR rolsuper)
        AND has_schema_privilege('public', 'CREATE') FROM pg_roles WHERE rolname = current_user"""
    ADMIN_QUESTION = """SELECT rolsuper OR rolcreaterole AND rolcreatedb
        FROM pg_roles WHERE rolname = current_user"""

    @classmethod
    def answers(cls, url: str) -> str:
        try:
            version, _, able = cls._ask(url, cls.QUESTION).partition("|")
        except ServiceError as error:
            text = str(error)
            raise (Refused if "FATAL" in text else Silent)(text) from None
        if able != "t":
            raise Refused("the role may not create databases, or no tables in its database")
        return version.split()[0]

    @classmethod
    def provision(cls, url: str) -> None:
        parts = urlsplit(url)
        role, database = unquote(parts.username or ""), parts.path.lstrip("/")
        if not role or not database:
            raise ServiceError("the address names no role or no database")
        admin, as_postgres = cls._admin(parts)

        def ask(question: str, database: str = "postgres") -> str:
            return cls._ask(f"{admin} dbname={database}", question, as_postgres=as_postgres)

        quoted_role, quoted_database = ('"' + name.replace('"', '""') + '"' for name in (role, database))
        known = f"SELECT 1 FROM pg_roles WHERE rolname = {sql_text(role)}"
        if not ask(known):
            password = sql_text(unquote(parts.password or ""))
            ask(f"CREATE ROLE {quoted_role} LOGIN CREATEDB PASSWORD {password}")
        elif not ask(f"{known} AND (rolcreatedb OR rolsuper)"):
            ask(f"ALTER ROLE {quoted_role} CREATEDB")
        if not ask(f"SELECT 1 FROM pg_database WHERE datname = {sql_text(database)}"):
            ask(f"CREATE DATABASE {quoted_database} OWNER {quoted_role}")
        ask(f"GRANT ALL ON SCHEMA public TO {quoted_role}", database)

    @classmethod
    def _admin(cls, parts: SplitResult) -> tuple[str, bool]:
        """The first way in that may create roles, and whether it is for the account postgres only."""
        port = f"port={parts.port or 5432}"
        ways = [(f"host={parts.hostname or LOOPBACK} user=postgres {port}", False)]
        if is_local(parts):
            ways += [(port, False), (port, True)]
        for way, as_postgres in ways:
            with contextlib.suppress(ServiceError):
                if cls._ask(f"{way} dbname=postgres", cls.ADMIN_QUESTION, as_postgres=as_postgres) == "t":
                    return way, as_postgres
        raise ServiceError("the role or the database is missing and no way in as an administrator was found")

    @classmethod
    def _ask(cls, address: str, question: str, *, as_postgres: bool = False) -> str:
        client = which("psql")
        if not client and not as_postgres:
            return cls._ask_in_python(address, question)
        become = ["runuser", "--user", "postgres", "--"] if as_postgres else []
        if become and os.geteuid() != 0:
            raise ServiceError("only root can become postgres")
        options = ["--no-psqlrc", "--no-align", "--tuples-only", "--quiet", "--no-password"]
        timeout = {"PGCONNECT_TIMEOUT": str(CONNECT_TIMEOUT)}
        command = [*become, client or "psql", *options, "--dbname", address, "--command", question]
        return run(command, env=os.environ | timeout, cwd="/")

    @staticmethod
    def _ask_in_python(address: str, question: str) -> str:
        psycopg = importlib.import_module("psycopg")
        try:
            with psycopg.connect(address, autocommit=True, connect_timeout=CONNECT_TIMEOUT) as connection:
                cursor = connection.execute(question)
                row = (cursor.fetchone() or ()) if cursor.description else ()
        except psycopg.Error as error:
            raise ServiceError(" ".join(str(error).split())) from None
        return "|".join("t" if value is True else "f" if value is False else str(value) for value in row)

    @staticmethod
    def _programs(name: str) -> Iterator[Path]:
        """Debian keeps the server's programs off PATH, a directory per version; newest first."""
        found = Path("/usr/lib/postgresql").glob(f"*/bin/{name}")
        yield from sorted(found, key=lambda path: float(path.parts[4]), reverse=True)

    @classmethod
    def binary(cls) -> Path | None:
        return next(cls._programs("postgres"), None) or which("postgres")

    def prepare(self) -> None:
        server = self.binary() or Path("postgres")
        # The superuser has no password and so no way in over TCP: that would be a way to run programs as us.
        access = ["--username=postgres", "--auth-local=peer", "--auth-host=scram-sha-256"]
        initdb: list[str | Path] = [
            server.resolve().with_name("initdb"),
            "--encoding=UTF8",
            "--no-locale",
            *access,
        ]
        places = {"cwd": "/", **self._identity()}
        run([*initdb, "--pgdata", self.data], **places)
        statements = "CREATE ROLE test LOGIN CREATEDB PASSWORD 'test'\nCREATE DATABASE test_db OWNER test\n"
        run([server, "--single", "-D", self.data, "postgres"], input=statements, **places)

    def command(self) -> list[str | Path]:
        settings = {
            "listen_addresses": LOOPBACK,
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": 200,
            "fsync": "on",
        }
        return [
            *(self.binary() or "postgres", "-D", self.data),
            *(f"--{name}={value}" for name, value in settings.items()),
        ]


class MariaDB(Service):
    name = "mariadb"
    title = "MariaDB"
    variable = "ASYNCTASQ_MYSQL_DSN"
    default = "mysql://test:test@localhost:3306/test_db"
    packages = ("mariadb-server",)
    client = ("mariadb", "MySQLdb", "mariadb-client")
    account = "mysql"

    # Rights on the database that Django makes for its tests: its name starts with test_.
    RIGHTS = r"GRANT ALL ON `test\_%`.* TO {who}"
    QUESTION = """SELECT VERSION(),
        (SELECT COUNT(*) FROM information_schema.USER_PRIVILEGES WHERE PRIVILEGE_TYPE = 'CREATE')
        + (SELECT COUNT(*) FROM information_schema.SCHEMA_PRIVILEGES
           WHERE PRIVILEGE_TYPE = 'CREATE' AND CONCAT('test_', DATABASE()) LIKE TABLE_SCHEMA)"""

    @classmethod
    def answers(cls, url: str) -> str:
        parts = urlsplit(url)
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        try:
            version, able = cls._ask(parts, user, cls.QUESTION, password, parts.path.lstrip("/")).split("\t")
        except ServiceError as error:
            refused = any(f"ERROR {number} " in str(error) for number in (1044, 1045, 1049, 1698))
            raise (Refused if refused else Silent)(str(error)) from None
        if able == "0":
            raise Refused("the user may not create test databases")
        return version.partition("-")[0]

    @classmethod
    def provision(cls, url: str) -> None:
        parts = urlsplit(url)
        user, database = unquote(parts.username or ""), parts.path.lstrip("/")
        if not user or not database:
            raise ServiceError("the address names no user or no database")
        as_seen, ask = cls._admin(parts)
        for host in dict.fromkeys((as_seen, "localhost", LOOPBACK)):
            who = f"{sql_text(user)}@{sql_text(host)}"
            ask(f"CREATE USER IF NOT EXISTS {who} IDENTIFIED BY {sql_text(unquote(parts.password or ''))}")
            ask(cls.RIGHTS.format(who=who))
            ask(f"GRANT ALL ON `{database}`.* TO {who}")
        ask(f"CREATE DATABASE IF NOT EXISTS `{database}`")

    @classmethod
    def _admin(cls, parts: SplitResult) -> tuple[str, Any]:
        """The host we come from in the server's eyes, and a function that asks as an administrator."""

        def over_tcp(question: str) -> str:
            return cls._ask(parts, "root", question)

        def over_socket(question: str) -> str:
            return cls._ask(None, "root", question)

        for ask in (over_tcp, over_socket) if is_local(parts) else (over_tcp,):
            with contextlib.suppress(ServiceError):
                host, port = ask("SELECT SUBSTRING_INDEX(USER(), '@', -1), @@port").split("\t")
                # The socket may be another server's.
                if ask is over_tcp or port == str(parts.port or 3306):
                    return host, ask
        raise ServiceError("the user or the database is missing and no way in as root was found")

    @staticmethod
    def _ask(parts: SplitResult | None, user: str, question: str, password: str = "", database: str = "") -> str:
        client = which("mariadb")
        if not client and parts:
            return MariaDB._ask_in_python(parts, user, question, password, database)
        where = ["--protocol=SOCKET"]
        if parts:
            where = ["--protocol=TCP", f"--host={parts.hostname or LOOPBACK}", f"--port={parts.port or 3306}"]
        options = [*where, f"--user={user}", f"--connect-timeout={CONNECT_TIMEOUT}", f"--database={database}"]
        command = [
            client or "mariadb",
            "--no-defaults",
            *options,
            "--batch",
            "--skip-column-names",
            "--execute",
            question,
        ]
        return run(command, env=os.environ | {"MYSQL_PWD": password})

    @staticmethod
    def _ask_in_python(parts: SplitResult, user: str, question: str, password: str, database: str) -> str:
        client = importlib.import_module("MySQLdb")
        address = {"host": parts.hostname or LOOPBACK, "port": parts.port or 3306}
        login = {"user": user, "password": password, "database": database}
        try:
            connection = client.connect(**address, **login, connect_timeout=CONNECT_TIMEOUT)
            with contextlib.closing(connection), connection.cursor() as cursor:
                cursor.execute(question)
                row = cursor.fetchone() or ()
        except client.Error as error:
            raise ServiceError("ERROR {} {}".format(*error.args)) from None
        return "\t".join(map(str, row))

    @classmethod
    def binary(cls) -> Path | None:
        return which("mariadbd") or which("mysqld")

    def prepare(self) -> None:
        installer = which("mariadb-install-db") or which("mysql_install_db") or Path("mariadb-install-db")
        account = pwd.getpwuid(os.geteuid()).pw_name if not self._account() else self.account
        access = ["--auth-root-authentication-method=socket", f"--auth-root-socket-user={account}"]
        install: list[str | Path] = [
            installer,
            "--no-defaults",
            f"--datadir={self.data}",
            "--skip-test-db",
            *access,
        ]
        run(install, cwd=self.data, **self._identity())
        lines = ["CREATE DATABASE IF NOT EXISTS test_db"]
        for host in ("localhost", LOOPBACK):
            who = f"'test'@'{host}'"
            lines += [f"CREATE USER IF NOT EXISTS {who} IDENTIFIED BY 'test'", self.RIGHTS.format(who=who)]
        (self.directory / "provision.sql").write_text(";\n".join(lines) + ";\n")

    def command(self) -> list[str | Path]:
        return [
            *(self.binary() or "mariadbd", "--no-defaults", f"--datadir={self.data}", f"--port={self.port}"),
            # Relative to the data directory: a socket's whole path may have 107 characters at most.
            *(
                f"--bind-address={LOOPBACK}",
                "--socket=mariadb.sock",
                f"--pid-file={self.data / 'mariadb.pid'}",
            ),
            *("--character-set-server=utf8mb4", "--max-connections=200", "--innodb-buffer-pool-size=64M"),
            f"--init-file={self.directory.resolve() / 'provision.sql'}",
        ]


SERVICES: dict[str, type[Service]] = {each.name: each for each in (Redis, Postgres, MariaDB)}


def which(program: str) -> Path | None:
    """Like the shell's, but also where servers are for users whose PATH leaves them out."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
    found = shutil.which(program, path=path)
    return Path(found) if found else None


def is_local(parts: SplitResult) -> bool:
    return (parts.hostname or LOOPBACK) in {"localhost", LOOPBACK, "::1"}


def place(url: str) -> str:
    """The address without the login."""
    parts = urlsplit(url)
    return f"{parts.hostname or LOOPBACK}:{parts.port}{parts.path}" if parts.port else parts.hostname or "?"


def find(kind: type[Service], url: str) -> str:
    """The version of the server at the address, which can be worked with from now on."""
    try:
        return kind.answers(url)
    except Refused as refusal:
        try:
            kind.provision(url)
        except ServiceError as error:
            raise Refused(f"{refusal}; {error}") from None
        return kind.answers(url)


def engine_runs() -> bool:
    with contextlib.suppress(ServiceError):
        run(["docker", "info"], timeout=15)
        run(["docker", "compose", "version"], timeout=15)
        return True
    return False


def own(kind: type[Service], *, default_port_allowed: bool) -> Service:
    service = kind(HOME / kind.name)
    default_port = urlsplit(kind.default).port or 0
    if not service.started:
        if default_port_allowed and port_is_free(default_port):
            service.port = default_port
        elif service.port == default_port or not port_is_free(service.port):
            service.port = free_port()
    return service


def start_own(service: Service, reasons: list[str]) -> str:
    """Start the server in one of the two ways and return which; `reasons` is why none was found."""
    if engine_runs():
        try:
            service.start_container()
        except ServiceError as error:
            reasons.append(f"container: {error}")
            service.stop()
        else:
            return "started in a container"
    try:
        service.start()
    except ServiceError as error:
        raise ServiceError("; ".join([*reasons, f"own: {error}"])) from None
    return "started"


def obtain(kind: type[Service]) -> tuple[str, str, str]:
    """The address of a server to use, its version, and how it was come by."""
    private = os.environ.get("SERVICES") == "private"
    named = "" if private else os.environ.get(kind.variable, "")
    reasons = []
    kind.require_client()
    service = own(kind, default_port_allowed=not private)

    def look(url: str, how: str) -> tuple[str, str, str] | None:
        try:
            return url, find(kind, url), how
        except ServiceError as error:
            reasons.append(f"at {place(url)}: {error}")
            return None

    if named and named != service.url:
        if found := look(named, "found"):
            return found
        print(f"{kind.title}: {kind.variable} cannot be used, {reasons[0]}", file=sys.stderr)
    if service.started:  # and stays in use until `down`
        if found := look(service.url, "started earlier"):
            return found
        service.stop()
    if not private and (found := look(kind.default.replace("localhost", LOOPBACK), "found")):
        return found
    how = start_own(service, reasons)
    return service.url, find(kind, service.url), how


def up(names: Sequence[str]) -> int:
    addresses, failed = {}, 0
    for name in names or SERVICES:
        kind = SERVICES[name]
        try:
            url, version, how = obtain(kind)
        except ServiceError as error:
            failed = 1
            print(f"{kind.title}: not to be had; {error}", file=sys.stderr)
        else:
            addresses[kind.variable] = url
            print(f"{kind.title} {version} at {place(url)}, {how}", flush=True)
    text = "".join(f"{variable}={shlex.quote(url)}\n" for variable, url in addresses.items())
    draft = HOME / "env.new"
    draft.write_text(text)
    draft.replace(HOME / "env")
    return failed


def down(*, remove: bool) -> int:
    for name, kind in SERVICES.items():
        service = kind(HOME / name)
        if service.started:
            print(f"{kind.title} at {place(service.url)}, stopping", flush=True)
            service.stop()
        if remove and service.directory.exists():
            service.remove()
    (HOME / "env").unlink(missing_ok=True)
    return 0


def status() -> int:
    for name, kind in SERVICES.items():
        service = kind(HOME / name)
        urls = [service.url] if service.started else [kind.default.replace("localhost", LOOPBACK)]
        whose = "started here" if service.started else "not started here"
        try:
            print(f"{kind.title} {kind.answers(urls[0])} at {place(urls[0])}, {whose}")
        except ServiceError as error:
            print(f"{kind.title} does not answer at {place(urls[0])}, {whose}: {error}")
    return 0


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    HOME.mkdir(exist_ok=True)
    with (HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    actions = parser.add_subparsers(dest="action", required=True)
    starter = actions.add_parser("up", help="find or start servers")
    starter.add_argument("names", nargs="*", metavar="service", help=", ".join(SERVICES))
    ender = actions.add_parser("down", help="end what was started")
    ender.add_argument("--remove", action="store_true", help="delete its data too")
    actions.add_parser("status", help="say what runs")
    chosen = parser.parse_args(arguments)
    if unknown := [name for name in getattr(chosen, "names", []) if name not in SERVICES]:
        parser.error(f"unknown service {unknown[0]!r}; known: {', '.join(SERVICES)}")
    with one_at_a_time():
        if chosen.action == "up":
            return up(chosen.names)
        return down(remove=chosen.remove) if chosen.action == "down" else status()


if __name__ == "__main__":
    sys.exit(main())
