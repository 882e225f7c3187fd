"""The example as its users run it: from a copy of its folder, so that nothing of a developer's own is touched."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from html import unescape
from http.cookiejar import CookieJar
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, OpenerDirector, ProxyHandler, build_opener

import MySQLdb
import psycopg
import pytest
from redis import Redis

from asynctasq.config import Config
from asynctasq.drivers.mysql.connection import options

ROOT = Path(__file__).resolve().parents[2]
POSTGRES_DSN = os.environ.get("ASYNCTASQ_POSTGRES_DSN", "postgresql://test:test@127.0.0.1:5432/test_db")
MYSQL_DSN = os.environ.get("ASYNCTASQ_MYSQL_DSN", "mysql://test:test@127.0.0.1:3306/test_db")
REDIS_URL = os.environ.get("ASYNCTASQ_REDIS_URL", "redis://127.0.0.1:6379")


class Example:
    """A copy of the example, under a name of its own on the servers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "example_project"
        self.name = f"asynctasq_example_{os.getpid()}"
        shutil.copytree(ROOT / "example_project", self.folder, ignore=shutil.ignore_patterns("var", "__pycache__"))

    def command(self, *words: str, driver: str = "sqlite") -> tuple[list[str], dict[str, str]]:
        hidden = ("ASYNCTASQ_", "DJANGO_", "EXAMPLE_")
        env = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        env |= {"ASYNCTASQ_DRIVER": driver, "EXAMPLE_NAME": self.name, "PYTHONUNBUFFERED": "1"}
        env |= {"ASYNCTASQ_POSTGRES_DSN": POSTGRES_DSN, "ASYNCTASQ_MYSQL_DSN": MYSQL_DSN}
        env["ASYNCTASQ_REDIS_URL"] = REDIS_URL
        return [sys.executable, *words], env

    def demo(self, driver: str = "sqlite") -> subprocess.CompletedProcess[str]:
        command, env = self.command(str(self.folder / "demo.py"), driver=driver)
        return subprocess.run(
            command, env=env, cwd=self.folder.parent, capture_output=True, text=True, timeout=180, check=False
        )

    @contextmanager
    def serve(self) -> Iterator[subprocess.Popen[str]]:
        command, env = self.command(str(self.folder / "serve.py"), "--port", "0")
        with subprocess.Popen(
            command, env=env, cwd=self.folder.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            try:
                yield process
            finally:
                process.terminate()


@pytest.fixture
def example(tmp_path: Path) -> Example:
    return Example(tmp_path)


@pytest.fixture
def postgres_left_clean(example: Example) -> Iterator[None]:
    yield
    with psycopg.connect(POSTGRES_DSN, autocommit=True) as server:
        server.execute(f'DROP DATABASE IF EXISTS "{example.name}" WITH (FORCE)'.encode())


@pytest.fixture
def mysql_left_clean(example: Example) -> Iterator[None]:
    yield
    where = options(Config.make({"mysql_dsn": MYSQL_DSN}))
    with closing(MySQLdb.connect(**where)) as server:
        server.cursor().execute(f"DROP DATABASE IF EXISTS `test_{example.name}`")


@pytest.fixture
def redis_left_clean(example: Example) -> Iterator[None]:
    yield
    with Redis.from_url(REDIS_URL) as server:
        for key in server.scan_iter(f"*{example.name}*"):
            server.delete(key)
        for key in server.scan_iter("asynctasq:queues*"):
            server.srem(key, example.name)


def rows(output: str) -> dict[str, list[int]]:
    """The table's numbers: dispatched, completed, retried, dead."""
    found = re.findall(r"^(\w[\w ]*?)  .*?((?: +[\d,]+){4})$", output, re.MULTILINE)
    return {name: [int(number.replace(",", "")) for number in numbers.split()] for name, numbers in found}


def check(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    table = rows(done.stdout)
    assert list(table) == ["import_country", "quote_freight", "LongestFlight", "Thumbnail", "in all"]
    dispatched, completed, retried, dead = table.pop("in all")
    assert [dispatched, completed, retried, dead] == [sum(column) for column in zip(*table.values(), strict=True)]
    assert dispatched == completed + dead > 600
    assert table["quote_freight"][2] == retried > 20
    assert table["Thumbnail"] == [36, 33, 0, 3]
    assert dead == 3
    for word in ("seconds", "tasks/s", "33 thumbnails in", "make serve", "make test"):
        assert word in done.stdout


def test_the_demo_fails_when_a_task_ends_otherwise_than_expected_and_starts_afresh_the_next_time(
    example: Example,
) -> None:
    photograph = example.folder / "photographs/coffee.jpg"
    whole = photograph.read_bytes()
    photograph.write_bytes(whole[:20_000])
    done = example.demo()
    assert done.returncode == 1
    assert rows(done.stdout)["Thumbnail"] == [36, 30, 0, 6]
    assert "Thumbnail: 30 completed, expected 33" in done.stderr
    assert "Thumbnail: 6 dead, expected 3" in done.stderr
    assert "'coffee', 'rocket-broken-off'" in done.stderr
    assert "Everything ended" not in done.stdout

    photograph.write_bytes(whole)
    check(example.demo())
    assert len(list((example.folder / "var/thumbnails").glob("*.jpg"))) == 33


@pytest.mark.usefixtures("postgres_left_clean")
def test_the_demo_succeeds_on_postgres(example: Example) -> None:
    check(example.demo("postgres"))
    # In its own database, whatever address the environment names.
    with psycopg.connect(POSTGRES_DSN) as server:
        if server.execute("SELECT to_regclass('task_queue')").fetchone() != (None,):
            elsewhere = server.execute("SELECT FROM task_queue WHERE queue_name = %s", [example.name])
            assert elsewhere.rowcount == 0


@pytest.mark.usefixtures("mysql_left_clean")
def test_the_demo_succeeds_on_mysql(example: Example) -> None:
    check(example.demo("mysql"))


@pytest.mark.usefixtures("redis_left_clean")
def test_the_demo_succeeds_on_redis(example: Example) -> None:
    check(example.demo("redis"))


def browser() -> OpenerDirector:
    return build_opener(ProxyHandler({}), HTTPCookieProcessor(CookieJar()))


def page(opener: OpenerDirector, url: str, data: dict[str, str] | None = None) -> str:
    body = urlencode(data).encode() if data else None
    with opener.open(url, body, timeout=10) as answer:
        text: str = answer.read().decode()
        return unescape(text)


def token(html: str) -> str:
    found = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', html)
    assert found
    return found[1]


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)


def read_addresses(process: subprocess.Popen[str]) -> tuple[str, str, str]:
    """Of the site and the admin, and the password, from what ``serve`` prints."""
    printed = ""
    assert process.stdout is not None
    for line in process.stdout:
        printed += line
        if "Ctrl-C ends all three" in line:
            break
    found = re.search(r"website +(\S+)\nadmin +(\S+) +user: admin +password: (\S+)", printed)
    assert found, printed
    return found[1], found[2], found[3]


def test_serve_answers_works_and_ends_on_ctrl_c(example: Example) -> None:
    with example.serve() as process:
        site, admin, password = read_addresses(process)
        visitor = browser()
        assert site.startswith("http://127.0.0.1:")
        # A button, a task, its state.
        html = page(visitor, site)
        html = page(visitor, f"{site}print/coffee/", {"csrfmiddlewaretoken": token(html)})
        assert "Task " in html
        until(lambda: "Task completed, attempt 1 of 3" in page(visitor, site))
        assert (example.folder / "var/thumbnails/coffee-160.jpg").exists()
        # What the worker does meanwhile.
        until(lambda: "Port Moresby, PG" in page(visitor, site))
        login = token(page(visitor, admin))
        html = page(
            visitor,
            f"{admin}login/?next=/admin/",
            {"csrfmiddlewaretoken": login, "username": "admin", "password": password},
        )
        assert "Log out" in html
        assert "Photos" in html
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        rest = process.stdout.read()
        assert process.wait(60) == 0, rest
        assert rest.endswith("stopped\n")
        assert "Traceback" not in rest


def test_only_one_at_a_time_works_in_a_folder(example: Example) -> None:
    with (example.folder / "manage.py").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = example.demo()
    assert done.returncode == 1
    assert "runs here already" in done.stderr
