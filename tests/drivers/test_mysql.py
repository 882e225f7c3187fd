"""What is peculiar to MySQL and MariaDB."""

from __future__ import annotations

import asyncio
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import MySQLdb
import pytest

from asynctasq import drivers
from asynctasq.config import Config
from asynctasq.core.message import utcnow
from asynctasq.core.outcome import Dead, Done, ErrorInfo, Retry
from asynctasq.drivers.base import Driver, TaskQuery
from asynctasq.drivers.mysql.connection import Connection, options
from asynctasq.drivers.mysql.driver import MySqlDriver
from asynctasq.drivers.sql import enqueue_rows
from asynctasq.errors import BrokerFull, BrokerUnavailable, ConfigurationError, PayloadTooLarge
from tests.drivers.conftest import (
    ERROR,
    HOUR,
    Another,
    claim,
    claim_all,
    claim_one,
    counts,
    ids,
    look,
    message,
    messages,
)
from tests.drivers.places import MySqlPlace, Place
from tests.faults.servers import services

PASSWORD = "p@ss:w/rd #%"
CERTIFICATE = [
    *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"),
    *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "ca.pem"),
]


@pytest.fixture
def place(places: Callable[[str], Place]) -> MySqlPlace:
    one = places("mysql")
    assert isinstance(one, MySqlPlace)
    one.reset()
    return one


@pytest.fixture
def mysql(driver: Driver) -> MySqlDriver:
    assert isinstance(driver, MySqlDriver)
    return driver


@contextmanager
def raw(place: MySqlPlace, **more: Any) -> Iterator[Any]:
    """A cursor on a connection of our own, in a transaction."""
    with closing(MySQLdb.connect(**options(Config.make(place.options)), charset="utf8mb4", **more)) as connection:
        connection.cursor().execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        yield connection.cursor()


# ---- how the server is reached


def test_a_dsn_is_decoded_and_localhost_is_an_address() -> None:
    dsn = "mysql://o%27hara%40shop:p%40ss%3Aw%2F%23@localhost:3307/b%C3%BCro?ssl_mode=verify_ca&ssl_ca=/etc/ca.pem"
    assert options(Config.make({"mysql_dsn": dsn})) == {
        "user": "o'hara@shop",
        "password": "p@ss:w/#",
        "host": "127.0.0.1",
        "port": 3307,
        "database": "büro",
        "ssl_mode": "VERIFY_CA",
        "ssl": {"ca": "/etc/ca.pem"},
    }


@pytest.mark.parametrize(("dsn", "password"), [("mysql://u@h/d", "given"), ("mysql://u:own@h/d", "own")])
def test_a_password_in_the_dsn_wins(dsn: str, password: str) -> None:
    assert options(Config.make({"mysql_dsn": dsn, "mysql_password": "given"}))["password"] == password


def test_a_dsn_without_a_host_leads_to_a_socket() -> None:
    assert options(Config.make({"mysql_dsn": "mysql:///shop?unix_socket=/run/db.sock"})) == {
        "database": "shop",
        "unix_socket": "/run/db.sock",
    }


async def test_a_parameter_that_is_not_known_is_refused(place: MySqlPlace) -> None:
    driver = place.create(mysql_dsn=f"{place.options['mysql_dsn']}?ssl_modus=REQUIRED")
    with pytest.raises(ConfigurationError, match=r"'ssl_modus' is not known.*did you mean 'ssl_mode'"):
        await driver.connect()


@pytest.mark.parametrize(
    ("change", "match"),
    [({"password": "wrong"}, "Access denied"), ({"path": "/no_such_database"}, "Access denied|Unknown database")],
)
async def test_what_only_a_person_can_mend_is_a_configuration_error(
    place: MySqlPlace, change: dict[str, str], match: str
) -> None:
    parts = urlsplit(place.options["mysql_dsn"])
    if "password" in change:
        change = {"netloc": f"{parts.username}:{change['password']}@{parts.hostname}:{parts.port or 3306}"}
    driver = place.create(mysql_dsn=parts._replace(**change).geturl())
    with pytest.raises(ConfigurationError, match=match) as error:
        await driver.connect()
    assert "wrong" not in str(error.value)
    with pytest.raises(ConfigurationError, match=match):
        await asyncio.to_thread(driver.enqueue_sync, [message()])


async def test_missing_tables_say_what_to_run(place: MySqlPlace) -> None:
    driver = place.create(mysql_queue_table="not_there")
    for call in (driver.connect, lambda: asyncio.to_thread(driver.enqueue_sync, [message()])):
        with pytest.raises(ConfigurationError, match=r"asynctasq migrate.*manage\.py migrate"):
            await call()
    driver.close_sync()


# ---- the session


async def test_every_session_has_the_clock_and_the_isolation_that_leases_need(mysql: MySqlDriver) -> None:
    (row,) = await mysql._call(
        lambda connection: connection.send(
            "SELECT @@time_zone, (SELECT VARIABLE_VALUE FROM information_schema.SESSION_VARIABLES"
            " WHERE VARIABLE_NAME IN ('tx_isolation', 'transaction_isolation') LIMIT 1), @@collation_connection"
        ),
        True,
    )
    assert row[:2] == ("+00:00", "READ-COMMITTED")


async def test_instants_do_not_depend_on_the_time_zone_of_whoever_enqueues(
    place: MySqlPlace, mysql: MySqlDriver
) -> None:
    """As on the connection of a framework, which has a time zone of its own."""
    now, later = message(), message(delay=HOUR)
    with raw(place) as cursor:
        cursor.execute("SET time_zone = '+05:30'")
        cursor.execute(mysql.sql["enqueue"], enqueue_rows([now, later]))
        cursor.execute("COMMIT")
    assert await counts(mysql) == {"pending": 1, "scheduled": 1}
    info = await look(mysql, later.id)
    assert info.created_at is not None
    assert info.available_at is not None
    assert abs(info.created_at - later.created_at) < timedelta(milliseconds=1)
    assert abs(info.available_at - utcnow() - timedelta(seconds=HOUR)) < timedelta(seconds=30)


# ---- the size of a statement


async def test_a_message_larger_than_a_statement_is_refused_before_anything_is_sent(
    place: MySqlPlace, mysql: MySqlDriver
) -> None:
    [(packet,)] = place.ask("SELECT @@max_allowed_packet")
    large = message(body=bytes(packet))
    producer, stranger = place.create(), place.create()
    assert isinstance(stranger, MySqlDriver)
    for call in (
        lambda: mysql.enqueue([message(), large]),
        lambda: asyncio.to_thread(producer.enqueue_sync, [message(), large]),
        # For a connection that is not the driver's own.
        lambda: asyncio.to_thread(stranger.enqueue_parts, [message(), large]),
    ):
        with pytest.raises(PayloadTooLarge, match=f"max_allowed_packet is {packet} bytes"):
            await call()
    producer.close_sync()
    assert await counts(mysql) == {}


async def test_messages_larger_together_than_a_statement_are_all_stored(place: MySqlPlace, mysql: MySqlDriver) -> None:
    [(packet,)] = place.ask("SELECT @@max_allowed_packet")
    sent = [message(body=bytes(packet // 8)) for _ in range(9)]
    await mysql.enqueue(sent)
    assert sorted(ids(await claim_all(mysql, limit=2))) == sorted(ids(sent))


async def test_outcomes_larger_together_than_a_statement_are_all_settled(mysql: MySqlDriver) -> None:
    mysql._packet = 2**20
    sent = messages(60)
    await mysql.enqueue(sent)
    leases = await claim(mysql)
    error = ErrorInfo(type="E", message="'" * 2000, traceback="\n\"'" * 5000)
    assert await mysql.dead_letter([Dead(lease=lease, error=error) for lease in leases[:20]]) == []
    assert await mysql.retry([Retry(lease=lease, delay=HOUR, error=error) for lease in leases[20:40]]) == []
    kept = [Done(lease=lease, keep=True, result=bytes(100_000)) for lease in leases[40:]]
    assert await mysql.ack(kept) == []
    assert await counts(mysql) == {"dead": 20, "scheduled": 20, "completed": 20}


# ---- locks


async def test_a_deadlock_is_resolved_without_anyone_hearing_of_it(
    place: MySqlPlace, mysql: MySqlDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = messages(300)
    await mysql.enqueue(sent)
    leases = await claim(mysql)
    failures: list[int] = []
    send = Connection.send

    def heard(self: Connection, *args: Any) -> Any:
        try:
            return send(self, *args)
        except MySQLdb.Error as exc:
            failures.append(exc.args[0])
            raise

    monkeypatch.setattr(Connection, "send", heard)
    with raw(place) as cursor:
        # Whoever has changed more is not the victim.
        cursor.execute(f"UPDATE {place.queue} SET worker = 'other' WHERE id > %s", (sent[0].id,))
        acking = asyncio.create_task(mysql.ack([Done(lease=lease) for lease in leases[:2]]))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(cursor.execute, f"UPDATE {place.queue} SET worker = 'o' WHERE id = %s", (sent[0].id,))
        cursor.execute("COMMIT")
    assert await acking == []
    assert failures == [1213]
    assert await counts(mysql) == {"processing": 298}


async def test_a_wait_for_a_lock_ends_before_the_deadline_and_the_call_is_made_again(
    place: MySqlPlace, mysql: MySqlDriver
) -> None:
    await mysql.enqueue(messages(1))
    lease = await claim_one(mysql)
    with raw(place) as cursor:
        cursor.execute(f"SELECT id FROM {place.queue} FOR UPDATE")
        acking = asyncio.create_task(mysql.ack([Done(lease=lease)]))
        await asyncio.sleep(5.5)
        assert not acking.done()
        cursor.execute("ROLLBACK")
    assert await acking == []


async def test_a_claim_locks_what_it_returns_and_no_more(place: MySqlPlace, mysql: MySqlDriver) -> None:
    await mysql.enqueue([*messages(500), *messages(100, priority=5), *messages(100, "other")])
    select = mysql._text["claim"].select
    with raw(place) as cursor:
        cursor.execute(select, {"queue": "work", "suspect": False, "limit": 7, "receipt": 1})
        assert len(cursor.fetchall()) == 7
        assert len(await claim(mysql)) == 593
        assert len(await claim(mysql, "other")) == 100
    assert len(await claim(mysql)) == 7


# ---- plans


@pytest.mark.parametrize(
    ("statement", "args", "rows"),
    [
        ("claim", {"queue": "work", "suspect": False, "limit": 7, "receipt": 1}, 7),
        ("claim", {"queue": "none", "suspect": False, "limit": 7, "receipt": 1}, 0),
        ("promote", {"queue": "work", "limit": 7}, 0),
        ("expired", {"queue": "work", "limit": 7}, 0),
        ("due", {"queues": '["work", "none"]'}, 2),
        ("waiting", {"queues": '["none", "work"]'}, 1),
        ("waiting", {"queues": '["none"]'}, 0),
        ("purge", {"queue": "work", "limit": 7}, 7),
    ],
)
async def test_what_is_done_often_examines_no_more_rows_than_it_returns(
    place: MySqlPlace, mysql: MySqlDriver, statement: str, args: dict[str, Any], rows: int
) -> None:
    """On tables that were never analysed, too."""
    await mysql.enqueue([*messages(300), *messages(50, priority=5), *messages(100, "other")])
    await mysql.enqueue([*messages(200, delay=HOUR), *messages(200, "held")])
    await claim(mysql, "held")
    assert await examined(place, mysql, statement, args, rows) <= rows + 12


async def test_settling_examines_the_rows_that_it_settles(place: MySqlPlace, mysql: MySqlDriver) -> None:
    await mysql.enqueue(messages(400))
    leases = await claim(mysql)
    rows = f'[{{"id": "{leases[3].id}", "receipt": {leases[3].receipt}}}]'
    assert await examined(place, mysql, "hold", {"rows": rows}, 1) <= 4
    ids = f'["{leases[3].id}"]'
    assert await examined(place, mysql, "get", {"ids": ids}, 1) <= 8


async def examined(place: MySqlPlace, mysql: MySqlDriver, statement: str, args: dict[str, Any], rows: int) -> int:
    """How many rows the server reads for the first step of a statement, which returns ``rows``."""
    with raw(place) as cursor:

        def reads() -> int:
            cursor.execute("SHOW SESSION STATUS LIKE 'Handler_read%'")
            return sum(int(value) for _, value in cursor.fetchall())

        before = reads()
        idle = reads() - before
        cursor.execute(mysql._text[statement].select, args)
        assert len(cursor.fetchall()) == rows
        return reads() - before - 2 * idle


# ---- waiting


async def test_an_idle_worker_asks_less_than_twice_a_second(
    mysql: MySqlDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    send = Connection.send

    def counted(self: Connection, text: str, *args: Any) -> Any:
        sent.extend(text.split(";\n"))
        return send(self, text, *args)

    mysql._pause = 100.0
    await claim(mysql)
    monkeypatch.setattr(Connection, "send", counted)
    for _ in range(2):
        await mysql.claim(["work"], 1, 4.0)
    # The janitor asks once a second besides.
    assert len(sent) < 8


@pytest.mark.parametrize("door", ["enqueue", "enqueue_sync"])
async def test_work_of_the_same_process_ends_the_longest_wait_at_once(
    mysql: MySqlDriver, another: Another, door: str
) -> None:
    mysql._pause = HOUR
    waiting = asyncio.create_task(mysql.claim(["work"], 1, 9.0))
    await asyncio.sleep(0.3)
    producer = await another()
    before = time.monotonic()
    if door == "enqueue":
        await producer.enqueue([message()])
    else:
        await asyncio.to_thread(producer.enqueue_sync, [message()])
    assert len(await waiting) == 1
    assert time.monotonic() - before < 1.0


# ---- a server of our own: rights, TLS, replicas


class Owned(Place):
    """A place on our own server, with an administrator and a role that has a worker's rights alone."""

    name = "mysql"

    def __init__(self, server: Any) -> None:
        self.server = server
        self.certificate = server.data / "ca.pem"
        self.port = urlsplit(server.url).port
        self.options = {"mysql_dsn": server.url, "mysql_min_pool_size": 2, "mysql_max_pool_size": 2}

    def as_(self, user: str, password: str, query: str = "") -> dict[str, Any]:
        return {"mysql_dsn": f"mysql://{user}:{quote(password, safe='')}@127.0.0.1:{self.port}/test_db{query}"}

    def give_room(self) -> None:
        self.server.more = ":autoextend"
        self.server.restart()

    def administer(self, statement: str) -> list[Any]:
        where = options(Config.make(self.as_("admin", "admin")))
        with closing(MySQLdb.connect(**where, autocommit=True)) as connection:
            cursor = connection.cursor()
            cursor.execute(statement)
            return list(cursor.fetchall())

    def reset(self) -> None:
        self.administer("DELETE FROM task_queue")
        self.administer("DELETE FROM dead_letter_queue")

    def put(self, message: Any, payload: bytes) -> None: ...

    def traces(self) -> int:
        return 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Owned]:
    module = services()

    # The module is a script, loaded by its path: its types are not known here.
    class Server(module.MariaDB):  # type: ignore[misc, name-defined]
        more = ""

        def prepare(self) -> None:
            super().prepare()
            with (self.directory / "provision.sql").open("a") as file:
                for user, password in (("admin", "admin"), ("shop_worker", PASSWORD)):
                    file.write(f"CREATE USER IF NOT EXISTS '{user}'@'localhost' IDENTIFIED BY '{password}';\n")
                file.write("GRANT ALL ON *.* TO 'admin'@'localhost' WITH GRANT OPTION;\n")
            subprocess.run(CERTIFICATE, check=True, capture_output=True, cwd=self.data, **self._identity())

        def command(self) -> list[str | Path]:
            # No more than 64 MiB of room.
            room = (f"--innodb-data-file-path=ibdata1:12M;more:52M{self.more}", "--innodb-file-per-table=0")
            return [*super().command(), "--ssl-cert=ca.pem", "--ssl-key=key.pem", *room]

    one = Server(tmp_path_factory.mktemp("mysql") / "server")
    one.start()
    place = Owned(one)
    asyncio.run(place.prepare())
    for table in ("task_queue", "dead_letter_queue"):
        place.administer(f"GRANT SELECT, INSERT, UPDATE, DELETE ON test_db.{table} TO 'shop_worker'@'localhost'")
    yield place
    one.remove()


@pytest.fixture
async def own(server: Owned) -> AsyncIterator[Driver]:
    """A driver on our own server as a worker that may read and write the two tables and nothing else."""
    server.reset()
    driver = server.create(**server.as_("shop_worker", PASSWORD))
    await driver.connect()
    yield driver
    await driver.close()


async def test_the_rights_of_the_documentation_are_enough(own: Driver) -> None:
    assert isinstance(own, MySqlDriver)
    sent = [*messages(6), message(delay=0.01)]
    await own.enqueue(sent)
    await asyncio.to_thread(own.enqueue_sync, [extra := message()])
    leases = await claim(own)
    assert len(leases) == 7
    await own.ack([Done(lease=leases[0], keep=True, result=b"r"), Done(lease=leases[1])])
    await own.retry([Retry(lease=leases[2], delay=0.0, error=ERROR)])
    await own.dead_letter([Dead(lease=leases[3], error=ERROR)])
    await own.release([leases[4]])
    await own.extend([leases[5]])
    await asyncio.sleep(0.05)
    assert (await own.maintain(["work"], 10)).promoted == 1
    assert len((await own.find(TaskQuery())).items) == 7
    assert await own.requeue([leases[3].id]) == 1
    assert await own.cancel([leases[3].id]) == 1
    assert await own.delete([leases[0].id]) == 1
    assert await own.purge("work") == 3
    assert extra.id in ids(leases)
    with pytest.raises(ConfigurationError, match="denied"):
        await drivers.create("mysql", own.config).migrate()


async def test_a_connection_may_be_encrypted_and_the_server_verified(server: Owned) -> None:
    for query, ends in (
        (f"?ssl_mode=VERIFY_CA&ssl_ca={server.certificate}", None),
        ("?ssl_mode=VERIFY_CA&ssl_ca=/nowhere/ca.pem", ConfigurationError),
    ):
        driver = server.create(**server.as_("shop_worker", PASSWORD, query))
        assert isinstance(driver, MySqlDriver)
        if ends is not None:
            with pytest.raises(ends):
                await driver.connect()
            continue
        await driver.connect()
        (row,) = await driver._call(lambda one: one.send("SHOW SESSION STATUS LIKE 'Ssl_cipher'"), True)
        assert row[1]
        await driver.close()


async def test_when_the_server_is_read_only_the_connections_are_made_anew(server: Owned, own: Driver) -> None:
    assert isinstance(own, MySqlDriver)
    await own.enqueue(messages(1))
    before = set(own._idle)
    server.administer("SET GLOBAL read_only = 1")
    try:
        with pytest.raises(BrokerUnavailable, match="read-only"):
            await own.enqueue(messages(1))
    finally:
        server.administer("SET GLOBAL read_only = 0")
    await own.enqueue(messages(1))
    assert not before & set(own._idle)
    assert await counts(own) == {"pending": 2}


async def test_connections_that_were_killed_are_replaced(server: Owned, own: Driver) -> None:
    producer = server.create(**server.as_("shop_worker", PASSWORD))
    done = threading.Event()

    def produce() -> None:
        producer.enqueue_sync(messages(1))
        done.wait()
        producer.enqueue_sync(messages(1))
        producer.close_sync()

    producing = asyncio.create_task(asyncio.to_thread(produce))
    await asyncio.gather(*(own.enqueue(messages(1)) for _ in range(5)))
    await asyncio.sleep(0.1)
    for (number,) in server.administer("SELECT id FROM information_schema.processlist WHERE user = 'shop_worker'"):
        server.administer(f"KILL {number}")
    done.set()
    await producing
    await own.enqueue(messages(1))
    assert await counts(own) == {"pending": 8}


async def test_a_full_server_is_a_full_broker_until_there_is_room(server: Owned, own: Driver) -> None:
    async def fill() -> None:
        for _ in range(100):
            await own.enqueue([message("bulk", body=bytes(2**20))])

    with pytest.raises(BrokerFull, match="full"):
        await fill()
    assert (await counts(own, "bulk"))["pending"] > 20
    await asyncio.to_thread(server.give_room)
    await own.enqueue(messages(1))
    assert len(await claim(own)) == 1
