"""From ``settings.ASYNCTASQ`` to the configuration, without a single connection."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from django.apps import apps
from django.db import connections
from psycopg.conninfo import conninfo_to_dict

import asynctasq
from asynctasq import Config, drivers
from asynctasq.core import registry
from asynctasq.core.events import EventEmitter
from asynctasq.errors import ConfigurationError
from asynctasq_django import conf
from tests.django.app import tasks


class Silent(EventEmitter):
    """Does nothing."""

    async def emit(self, event: Any) -> None: ...


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DRIVER", "POSTGRES_DSN", "MYSQL_DSN", "REDIS_URL", "SQLITE_PATH"):
        monkeypatch.delenv(f"ASYNCTASQ_{name}", raising=False)


@pytest.mark.parametrize("spell", [str.lower, str.upper])
def test_keys_are_read_in_lower_and_in_upper_case(settings: Any, spell: Any) -> None:
    given = {"driver": "redis", "default_queue": "mail", "enqueue_on_commit": False}
    settings.ASYNCTASQ = {spell(name): value for name, value in given.items()}
    assert (Config.get().driver, Config.get().default_queue) == ("redis", "mail")
    assert conf.current.enqueue_on_commit is False


def test_without_settings_the_queue_is_in_the_default_database(settings: Any) -> None:
    del settings.ASYNCTASQ
    asynctasq_app = apps.get_app_config("asynctasq_django")
    asynctasq_app.ready()
    config = Config.get()
    assert config.driver == "sqlite"
    assert conf.alias_of(config.driver, config) == "default"


@pytest.mark.parametrize(("alias", "driver"), [("default", "sqlite"), ("postgres", "postgres"), ("mysql", "mysql")])
def test_with_an_alias_the_driver_follows_its_vendor(settings: Any, alias: str, driver: str) -> None:
    settings.ASYNCTASQ = {"database": alias}
    assert Config.get().driver == driver
    assert conf.alias_of(driver, Config.get()) == alias


def test_a_driver_that_is_not_the_aliass_leaves_it_to_transactions(settings: Any) -> None:
    settings.ASYNCTASQ = {"database": "default", "driver": "redis"}
    assert conf.alias_of("redis", Config.get()) is None
    assert conf.current.database == "default"


def test_a_sql_driver_without_an_address_is_in_the_default_database(settings: Any) -> None:
    settings.ASYNCTASQ = {"driver": "sqlite"}
    assert conf.alias_of("sqlite", Config.get()) == "default"
    located = drivers.create("sqlite", Config.get()).config
    assert located.sqlite_path == str(connections["default"].settings_dict["NAME"])


def test_a_sql_driver_with_an_address_of_its_own_is_there(settings: Any) -> None:
    settings.ASYNCTASQ = {"driver": "sqlite", "sqlite_path": "elsewhere.sqlite3"}
    assert conf.alias_of("sqlite", Config.get()) is None
    assert drivers.create("sqlite", Config.get()).config.sqlite_path == "elsewhere.sqlite3"


def test_an_alias_beside_an_address_is_whose_transactions_count(settings: Any) -> None:
    settings.ASYNCTASQ = {"database": "default", "driver": "postgres", "postgres_dsn": "postgresql://elsewhere/x"}
    assert conf.problem is None
    assert conf.alias_of("postgres", Config.get()) is None


def test_an_alias_of_a_database_without_a_driver_needs_one_named(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections["default"], "vendor", "oracle")
    settings.ASYNCTASQ = {"database": "default"}
    assert str(conf.problem).startswith("database: no driver keeps a queue in oracle")
    settings.ASYNCTASQ = {"database": "default", "driver": "redis"}
    assert conf.problem is None


def test_an_alias_in_the_settings_goes_before_an_address_in_the_environment(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASYNCTASQ_POSTGRES_DSN", "postgresql://elsewhere/other")
    settings.ASYNCTASQ = {"database": "postgres"}
    assert conf.alias_of("postgres", Config.get()) == "postgres"
    settings.ASYNCTASQ = {"driver": "postgres"}
    assert conf.alias_of("postgres", Config.get()) is None


def test_a_driver_follows_its_database_when_the_test_runner_swaps_it(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.ASYNCTASQ = {"database": "postgres"}
    home = asynctasq._runtime.runtime().drivers
    before = home.unconnected("postgres")
    assert home.unconnected("postgres") is before
    monkeypatch.setitem(connections["postgres"].settings_dict, "NAME", "swapped")
    after = home.unconnected("postgres")
    assert after is not before
    assert after.config.postgres_dsn.endswith("/swapped")


def test_a_dsn_holds_any_name_and_password() -> None:
    database = {
        "NAME": "büro/1?x",
        "USER": "o'hara@shop",
        "PASSWORD": "p@ss:w/rd%23 &=#",
        "HOST": "db.example.org",
        "PORT": 5433,
        "OPTIONS": {
            "sslmode": "require",
            "options": "-c search_path=a,b",
            "pool": True,
            "isolation_level": 2,
            "assume_role": "app",
        },
    }
    assert conninfo_to_dict(conf.dsn("postgres", database)) == {
        "user": "o'hara@shop",
        "password": "p@ss:w/rd%23 &=#",
        "host": "db.example.org",
        "port": "5433",
        "dbname": "büro/1?x",
        "sslmode": "require",
        "options": "-c search_path=a,b",
    }


@pytest.mark.parametrize(
    ("database", "parts"),
    [
        ({"NAME": "shop"}, {"dbname": "shop"}),
        ({"NAME": "shop", "HOST": "/run/postgresql"}, {"dbname": "shop", "host": "/run/postgresql"}),
        (
            {"NAME": "shop", "HOST": "/run/postgresql", "PORT": "5433", "USER": "u"},
            {"dbname": "shop", "host": "/run/postgresql", "port": "5433", "user": "u"},
        ),
        ({"NAME": "shop", "HOST": "::1", "USER": "u"}, {"dbname": "shop", "host": "::1", "user": "u"}),
        ({"NAME": None, "OPTIONS": {"service": "shop"}}, {"service": "shop"}),
    ],
)
def test_a_dsn_may_lead_to_a_socket_an_address_or_a_service(database: dict[str, Any], parts: dict[str, str]) -> None:
    assert conninfo_to_dict(conf.dsn("postgres", database)) == parts


@pytest.mark.parametrize(
    ("database", "dsn"),
    [
        ({"NAME": "shop"}, "mysql:///shop"),
        ({"NAME": "shop", "HOST": "localhost", "USER": "u"}, "mysql://u@/shop"),
        ({"NAME": "shop", "HOST": "/run/mysqld.sock"}, "mysql:///shop?unix_socket=%2Frun%2Fmysqld.sock"),
        (
            {
                "NAME": "büro/1?x",
                "HOST": "db.example.org",
                "PORT": "3307",
                "USER": "o'hara@shop",
                "PASSWORD": "p@ss:w/#",
            },
            "mysql://o%27hara%40shop:p%40ss%3Aw%2F%23@db.example.org:3307/b%C3%BCro%2F1%3Fx",
        ),
        (
            {
                "NAME": "shop",
                "HOST": "::1",
                "OPTIONS": {
                    "charset": "utf8mb4",
                    "isolation_level": "repeatable read",
                    "init_command": "SET sql_mode = ''",
                    "ssl": {"ca": "/etc/ssl/ca.pem"},
                    "ssl_mode": "VERIFY_CA",
                },
            },
            "mysql://[::1]/shop?ssl_mode=VERIFY_CA&ssl_ca=%2Fetc%2Fssl%2Fca.pem",
        ),
        ({"NAME": None, "OPTIONS": {"read_default_file": "~/my.cnf"}}, "mysql:///?read_default_file=~%2Fmy.cnf"),
    ],
)
def test_a_mysql_dsn_says_how_the_server_is_reached_and_nothing_else(database: dict[str, Any], dsn: str) -> None:
    made = conf.dsn("mysql", database)
    assert made == dsn
    assert Config.make({"mysql_dsn": made}).mysql_dsn == dsn


def test_event_emitters_are_made_from_their_paths(settings: Any) -> None:
    settings.ASYNCTASQ = {"driver": "redis", "event_emitters": [f"{__name__}.Silent"]}
    (made,) = asynctasq._runtime.runtime().given_emitters
    assert isinstance(made, EventEmitter)
    assert type(made).__name__ == "Silent"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"defualt_queue": "x"}, r"unknown option 'defualt_queue' \(did you mean 'default_queue'\?\)"),
        ({"databse": "default"}, r"unknown option 'databse' \(did you mean 'database'\?\)"),
        ({1: 2}, "unknown option '1'"),
        ({"driver": "redis", "DRIVER": "redis"}, "'driver' twice"),
        ({"database": "defualt"}, r"database must be an alias of DATABASES \(did you mean 'default'\?\)"),
        ({"database": []}, "database must be an alias"),
        ({"database": "default", "driver": "postgres"}, "database 'default' is sqlite and driver is 'postgres'"),
        ({"database": "default", "driver": 5}, "driver must be str"),
        ({"driver": "rediss"}, "driver must be"),
        ({"driver": "redis", "redis_db": 16}, "redis_db must be between 0 and 15"),
        ({"driver": "redis", "redis_db": "1"}, "redis_db must be int"),
        ({"driver": "redis", "enqueue_on_commit": 1}, "enqueue_on_commit must be bool"),
        ({"driver": "redis", "event_emitters": "a.b"}, "event_emitters must be a list"),
        ({"driver": "redis", "event_emitters": 5}, "event_emitters must be a list"),
        ({"driver": "redis", "event_emitters": [5]}, "event_emitters must be a list"),
        ({"driver": "redis", "event_emitters": ["no.such.Emitter"]}, "'no.such.Emitter' cannot be made"),
        ({"driver": "redis", "event_emitters": ["builtins.dict"]}, "'builtins.dict' is no EventEmitter"),
        ("redis", "ASYNCTASQ must be a dictionary, not str"),
    ],
)
def test_what_is_wrong_is_kept_for_the_checks_and_told_to_who_dispatches(settings: Any, given: Any, text: str) -> None:
    settings.ASYNCTASQ = given
    assert conf.problem is not None
    with pytest.raises(ConfigurationError, match=f"ASYNCTASQ.*{text}" if given != "redis" else text):
        tasks.accept().dispatch_sync()


def test_the_app_gets_ready_without_any_connection(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("ready() opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for alias in connections:
        monkeypatch.setattr(connections[alias], "connect", refuse)
    for given in ({"database": "postgres"}, {"database": "default"}, {"driver": "redis"}):
        settings.ASYNCTASQ = given
        apps.get_app_config("asynctasq_django").ready()
        assert conf.problem is None


def test_tasks_modules_of_installed_apps_are_found() -> None:
    assert "tests.django.app.tasks.write" in registry.names()


def test_settings_that_a_test_overrides_are_in_force_and_go_with_it(settings: Any) -> None:
    from django.test import override_settings

    settings.ASYNCTASQ = {"driver": "redis", "default_queue": "outer"}
    with override_settings(ASYNCTASQ={"driver": "redis", "default_queue": "inner"}):
        assert Config.get().default_queue == "inner"
    assert Config.get().default_queue == "outer"
