"""``init()``, ``Config.get()``, and what they make of right and wrong values."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import sqlite3
import subprocess
import sys
import threading
from typing import Any

import pytest

import asynctasq
from asynctasq.config import Config, mask_url, option_types, options
from asynctasq.core.events import LoggingEventEmitter
from asynctasq.errors import ConfigurationError, NotInitialized, UnknownOption
from tests.app import ROOT, Remembering

SPECIFIED: dict[str, tuple[tuple[type, ...], Any]] = {
    "driver": ((str,), "redis"),
    "default_queue": ((str,), "default"),
    "default_max_attempts": ((int,), 3),
    "default_retry_strategy": ((str,), "exponential"),
    "default_retry_delay": ((int,), 60),
    "default_timeout": ((int, type(None)), None),
    "default_visibility_timeout": ((int,), 300),
    "correlation_id": ((str, type(None)), None),
    "process_pool_size": ((int, type(None)), None),
    "process_pool_max_tasks_per_child": ((int, type(None)), None),
    "redis_url": ((str,), "redis://localhost:6379"),
    "redis_password": ((str, type(None)), None),
    "redis_db": ((int,), 0),
    "redis_max_connections": ((int,), 100),
    "postgres_dsn": ((str,), "postgresql://test:test@localhost:5432/test_db"),
    "postgres_queue_table": ((str,), "task_queue"),
    "postgres_dead_letter_table": ((str,), "dead_letter_queue"),
    "postgres_max_attempts": ((int,), 3),
    "postgres_min_pool_size": ((int,), 10),
    "postgres_max_pool_size": ((int,), 10),
    "mysql_dsn": ((str,), "mysql://test:test@localhost:3306/test_db"),
    "mysql_queue_table": ((str,), "task_queue"),
    "mysql_dead_letter_table": ((str,), "dead_letter_queue"),
    "mysql_max_attempts": ((int,), 3),
    "mysql_min_pool_size": ((int,), 10),
    "mysql_max_pool_size": ((int,), 10),
    "rabbitmq_url": ((str,), "amqp://guest:guest@localhost:5672/"),
    "rabbitmq_exchange_name": ((str,), "asynctasq"),
    "rabbitmq_prefetch_count": ((int,), 1),
    "sqs_region": ((str,), "us-east-1"),
    "sqs_queue_url_prefix": ((str, type(None)), None),
    "aws_access_key_id": ((str, type(None)), None),
    "aws_secret_access_key": ((str, type(None)), None),
    "task_scan_limit": ((int,), 10_000),
    "keep_completed_tasks": ((bool,), False),
    # Only the examples name these.
    "enable_event_emitter_redis": ((bool,), False),
    "events_redis_url": ((str, type(None)), None),
    "events_channel": ((str,), "asynctasq:events"),
    # Ours.
    "sqs_endpoint_url": ((str, type(None)), None),
    "sqlite_path": ((str,), "asynctasq.sqlite3"),
    "sqlite_queue_table": ((str,), "task_queue"),
    "sqlite_dead_letter_table": ((str,), "dead_letter_queue"),
}
SECRET = "s3cr3t-canary"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in options():
        monkeypatch.delenv(f"ASYNCTASQ_{name.upper()}", raising=False)


# ---- init and Config.get


@pytest.mark.behaviour(1)
def test_init_works_with_a_dictionary_with_nothing_by_keyword_and_with_options_as_keywords() -> None:
    init: Any = asynctasq.init  # It returns None, which mypy would not let us look at.
    assert init({"driver": "sqlite"}) is None
    assert Config.get().driver == "sqlite"
    assert init() is None
    assert Config.get().driver == "redis"
    assert init(config_overrides={"driver": "postgres"}, event_emitters=[LoggingEventEmitter()]) is None
    assert Config.get().driver == "postgres"
    asynctasq.init(config_overrides={"driver": "sqlite"})
    asynctasq.init(event_emitters=[])
    asynctasq.init(driver="sqlite", redis_db=3)
    assert (Config.get().driver, Config.get().redis_db) == ("sqlite", 3)
    asynctasq.init({"driver": "sqlite"}, redis_db=4)
    assert (Config.get().driver, Config.get().redis_db) == ("sqlite", 4)


@pytest.mark.behaviour(1)
@pytest.mark.parametrize("driver", ["sqlite", "postgres", "redis"])
def test_init_does_no_io_and_starts_no_thread(driver: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("init() did I/O")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(sqlite3, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    before = threading.active_count()
    asynctasq.init({"driver": driver, "enable_event_emitter_redis": True})
    assert threading.active_count() == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.behaviour(1)
def test_init_needs_no_event_loop_and_works_under_one() -> None:
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    asynctasq.init({"driver": "sqlite"})

    async def under_a_loop() -> None:
        asynctasq.init({"driver": "postgres"})

    asyncio.run(under_a_loop())
    assert Config.get().driver == "postgres"


@pytest.mark.behaviour(1)
def test_an_option_given_twice_and_an_emitter_that_is_none_are_refused() -> None:
    with pytest.raises(ValueError, match="redis_db is given twice"):
        asynctasq.init({"redis_db": 1}, redis_db=2)
    emitters: Any = [print]
    with pytest.raises(ValueError, match="event_emitters must hold EventEmitter objects"):
        asynctasq.init(event_emitters=emitters)


@pytest.mark.behaviour(1)
def test_dispatching_before_init_says_what_to_do() -> None:
    with pytest.raises(NotInitialized, match=r"call asynctasq.init\(\{\.\.\.\}\)"):
        asynctasq.dispatch_many_sync([])


@pytest.mark.behaviour(2)
def test_config_get_before_init_is_the_defaults_and_the_same_object_each_time() -> None:
    assert Config.get() is Config.get()
    assert Config.get() == Config()


@pytest.mark.behaviour(2)
def test_init_replaces_the_whole_configuration() -> None:
    asynctasq.init({"driver": "sqlite", "default_queue": "first"})
    first = Config.get()
    asynctasq.init({"driver": "sqlite"})
    assert Config.get() is not first
    assert Config.get() is Config.get()
    assert Config.get().default_queue == "default"


@pytest.mark.behaviour(2)
@pytest.mark.parametrize("rejected", [{"redis_db": 99}, {"nonsense": 1}, {"driver": "kafka"}])
def test_a_rejected_init_leaves_the_old_configuration_in_force(rejected: dict[str, Any]) -> None:
    asynctasq.init({"driver": "sqlite", "default_queue": "first"})
    before = Config.get()
    with pytest.raises((TypeError, ValueError)):
        asynctasq.init(rejected)
    assert Config.get() is before
    asynctasq.repository()  # The runtime is still there too.


@pytest.mark.behaviour(2)
def test_the_configuration_is_frozen() -> None:
    config: Any = Config.get()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.driver = "sqlite"


@pytest.mark.behaviour(3)
@pytest.mark.parametrize("name", SPECIFIED)
def test_every_specified_key_exists_with_its_type_and_default(name: str) -> None:
    types, default = SPECIFIED[name]
    assert getattr(Config(), name) == default
    accepted = option_types(name)
    # Where whole seconds are specified, fractions are taken as well.
    assert set(accepted) in ({*types}, {*types} - {int} | {float})
    for kind in types:
        value = {str: default, int: default or 5, bool: True, type(None): None}[kind]
        if value is None and kind is str:
            continue
        assert getattr(Config.make({name: value}), name) == value


@pytest.mark.behaviour(3)
def test_every_option_is_described() -> None:
    for name, field in options().items():
        option = field.metadata["option"]
        assert option.doc.endswith("."), name
        assert option.group, name


# ---- errors


@pytest.mark.behaviour(6)
@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"redis_db": 16}, "redis_db must be between 0 and 15"),
        ({"redis_db": -1}, "redis_db must be between 0 and 15"),
        ({"redis_max_connections": 0}, "redis_max_connections must be positive"),
        ({"default_retry_strategy": "linear"}, "default_retry_strategy must be 'fixed' or 'exponential'"),
        ({"default_visibility_timeout": 0}, "default_visibility_timeout must be positive"),
        ({"default_visibility_timeout": -3}, "default_visibility_timeout must be positive"),
        ({"default_retry_delay": -1}, "default_retry_delay must be non-negative"),
        ({"default_max_attempts": 0}, "default_max_attempts must be positive"),
        ({"default_max_attempts": -1}, "default_max_attempts must be positive"),
        ({"default_timeout": 0}, "default_timeout must be positive"),
        ({"process_pool_size": 0}, "process_pool_size must be positive"),
        ({"process_pool_max_tasks_per_child": 0}, "process_pool_max_tasks_per_child must be positive"),
        (
            {"postgres_min_pool_size": 11},
            "postgres_min_pool_size cannot be greater than postgres_max_pool_size",
        ),
        (
            {"mysql_min_pool_size": 5, "mysql_max_pool_size": 4},
            "mysql_min_pool_size cannot be greater than mysql_max_pool_size",
        ),
        ({"postgres_max_attempts": 0}, "postgres_max_attempts must be positive"),
        ({"rabbitmq_prefetch_count": 0}, "rabbitmq_prefetch_count must be positive"),
        ({"rabbitmq_exchange_name": " "}, "rabbitmq_exchange_name must not be empty"),
        ({"task_scan_limit": 0}, "task_scan_limit must be positive"),
        ({"default_retry_delay": float("nan")}, "default_retry_delay must be finite"),
        ({"default_timeout": float("inf")}, "default_timeout must be finite"),
        ({"postgres_queue_table": "x; DROP TABLE y"}, "postgres_queue_table must be a table name"),
        ({"mysql_queue_table": "a" * 49}, "mysql_queue_table must be a table name"),
        ({"sqlite_queue_table": "a.b.c"}, "sqlite_queue_table must be a table name"),
        (
            {"postgres_queue_table": "tasks", "postgres_dead_letter_table": "tasks"},
            "postgres_dead_letter_table cannot be the same table as postgres_queue_table",
        ),
        ({"default_queue": ""}, "default_queue must be 1 to 128 printable characters"),
        ({"default_queue": "two words"}, "default_queue must be 1 to 128 printable characters"),
        ({"default_queue": "tab\t"}, "default_queue must be 1 to 128 printable characters"),
        ({"default_queue": "{brace}"}, "default_queue must be 1 to 128 printable characters"),
        ({"default_queue": "nul\x00"}, "default_queue must be 1 to 128 printable characters"),
        ({"default_queue": "q" * 129}, "default_queue must be 1 to 128 printable characters"),
        ({"redis_url": "http://localhost"}, "redis_url must start with redis:// or rediss:// or unix://"),
        ({"sqs_queue_url_prefix": "ftp://x"}, "sqs_queue_url_prefix must start with http:// or https://"),
    ],
)
def test_a_wrong_value_is_a_value_error_that_names_the_key(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match="^" + text.replace("(", r"\(")) as error:
        asynctasq.init(wrong)
    assert isinstance(error.value, ConfigurationError)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250


@pytest.mark.behaviour(6)
@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("default_max_attempts", "3", "default_max_attempts must be int, not str, got '3'"),
        ("default_max_attempts", True, "default_max_attempts must be int, not bool, got True"),
        ("default_max_attempts", 3.0, "default_max_attempts must be int, not float"),
        ("default_max_attempts", None, "default_max_attempts must be int, not NoneType"),
        ("default_retry_delay", "60", "default_retry_delay must be float, not str"),
        ("default_timeout", "60", "default_timeout must be float or None, not str"),
        ("keep_completed_tasks", 1, "keep_completed_tasks must be bool, not int"),
        ("driver", 5, "driver must be str, not int"),
        ("driver", None, "driver must be str, not NoneType"),
        ("redis_db", True, "redis_db must be int, not bool"),
        ("redis_url", b"redis://x", "redis_url must be str, not bytes"),
        ("redis_password", 5, "redis_password must be str or None, not int"),
    ],
)
def test_types_are_checked(name: str, value: Any, text: str) -> None:
    with pytest.raises(ValueError, match="^" + text):
        asynctasq.init({name: value})


@pytest.mark.behaviour(6)
def test_an_unknown_key_is_a_type_error_with_a_suggestion() -> None:
    with pytest.raises(TypeError, match=r"unknown option 'redis_ulr' \(did you mean 'redis_url'\?\)") as error:
        asynctasq.init({"redis_ulr": "redis://localhost"})
    assert isinstance(error.value, UnknownOption)
    with pytest.raises(TypeError, match=r"unknown option 'zzz'$"):
        asynctasq.init(zzz=1)
    not_text: Any = {3: 1}
    with pytest.raises(TypeError, match="unknown option 3"):
        asynctasq.init(not_text)


@pytest.mark.behaviour(6)
def test_an_unknown_driver_names_the_choices_and_the_nearest() -> None:
    with pytest.raises(ValueError, match="driver must be") as error:
        asynctasq.init({"driver": "postgress"})
    for choice in ("redis", "postgres", "mysql", "rabbitmq", "sqs", "sqlite"):
        assert repr(choice) in str(error.value)
    assert "did you mean 'postgres'" in str(error.value)


@pytest.mark.behaviour(6)
@pytest.mark.parametrize("wrong", [[], 5, dict, "driver"])
def test_settings_that_are_no_dictionary_are_a_clear_error(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="config_overrides must be a dictionary of options, not"):
        asynctasq.init(wrong)


# ---- secrets


@pytest.mark.behaviour(6)
@pytest.mark.parametrize(
    "wrong",
    [
        {"redis_url": f"redis://:{SECRET}@x@localhost"},
        {"redis_url": f"redis://:{SECRET}@localhost:port"},
        {"redis_url": f"amqp://:{SECRET}@localhost"},
        {"postgres_dsn": f"postgresql://u:{SECRET}/@[localhost"},
        {"mysql_dsn": f"postgresql://u:{SECRET}@localhost"},
        {"rabbitmq_url": f"http://u:{SECRET}@localhost"},
        {"redis_password": [SECRET]},
        {"aws_secret_access_key": [SECRET]},
    ],
)
def test_an_error_never_shows_a_password(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must") as error:
        asynctasq.init(wrong)
    assert SECRET not in str(error.value)
    assert SECRET not in repr(error.value)
    assert next(iter(wrong)) in str(error.value)


@pytest.mark.behaviour(6)
def test_a_configuration_shows_no_secret() -> None:
    config = Config.make(
        {
            "redis_url": f"redis://user:{SECRET}@localhost:6379/1?password={SECRET}",
            "events_redis_url": f"redis://:{SECRET}@localhost",
            "redis_password": SECRET,
            "postgres_dsn": f"postgresql://user:{SECRET}@localhost/db",
            "postgres_password": SECRET,
            "mysql_dsn": f"mysql://user:{SECRET}@localhost/db",
            "rabbitmq_url": f"amqp://user:{SECRET}@localhost/",
            "aws_access_key_id": SECRET,
            "aws_secret_access_key": SECRET,
            "sqs_endpoint_url": f"http://u:{SECRET}@localhost",
        }
    )
    for shown in (repr(config), str(config), f"{config}", str(config.masked())):
        assert SECRET not in shown
        assert "localhost" in shown
    assert config.masked()["redis_password"] == "***"
    assert mask_url(f"redis://u:{SECRET}@[::1") == "***"


@pytest.mark.behaviour(6)
@pytest.mark.parametrize("sign", ["/", "?", "#"])
def test_a_password_that_ends_the_address_is_refused_and_not_shown(sign: str) -> None:
    for option, scheme in (("redis_url", "redis"), ("postgres_dsn", "postgresql")):
        url = f"{scheme}://u:12{sign}{SECRET}@host/0"
        with pytest.raises(ValueError, match=f"{option} must have .* percent-encoded") as raised:
            Config.make({option: url})
        assert SECRET not in str(raised.value)
        assert mask_url(url) == "***"
    Config.make({"redis_url": "unix:///run/redis@1.sock", "postgres_dsn": "postgresql:///db?options=-ca=b@c"})


# ---- environment


@pytest.mark.behaviour(7)
def test_init_wins_over_the_environment_and_the_environment_over_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ASYNCTASQ_DEFAULT_QUEUE", "from-environment")
    monkeypatch.setenv("ASYNCTASQ_DRIVER", "sqlite")
    asynctasq.init({"driver": "postgres"})
    config = Config.get()
    assert (config.driver, config.default_queue, config.default_max_attempts) == ("postgres", "from-environment", 3)
    assert config.given == {"driver", "default_queue"}


@pytest.mark.behaviour(7)
@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("default_max_attempts", "7", 7),
        ("default_retry_delay", "1.5", 1.5),
        ("default_retry_delay", "90", 90),
        ("default_timeout", "none", None),
        ("default_timeout", "", None),
        ("process_pool_size", "4", 4),
        ("keep_completed_tasks", "true", True),
        ("keep_completed_tasks", "1", True),
        ("keep_completed_tasks", "No", False),
        ("keep_completed_tasks", "off", False),
        ("redis_password", "true", "true"),
        ("redis_db", "15", 15),
        ("events_channel", "a:b", "a:b"),
    ],
)
def test_text_of_the_environment_becomes_the_option_s_type(name: str, text: str, value: Any) -> None:
    found = getattr(Config.make({}, {f"ASYNCTASQ_{name.upper()}": text}), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.behaviour(7)
@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("default_max_attempts", "many", "default_max_attempts must be int"),
        ("default_max_attempts", "0", "default_max_attempts must be positive"),
        ("default_timeout", "soon", "default_timeout must be float or None"),
        ("keep_completed_tasks", "maybe", "keep_completed_tasks must be true or false"),
        ("driver", "kafka", "driver must be"),
    ],
)
def test_a_wrong_value_in_the_environment_is_named(
    name: str, text: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ASYNCTASQ_{name.upper()}", text)
    with pytest.raises(ValueError, match="^" + problem):
        asynctasq.init()


@pytest.mark.behaviour(7)
def test_every_option_can_be_set_from_the_environment() -> None:
    for name in options():
        default = getattr(Config(), name)
        if isinstance(default, str):
            text: str = default
        elif default is None:
            text = "none"
        else:
            text = str(default)
        assert name in Config.make({}, {f"ASYNCTASQ_{name.upper()}": text}).given


# ---- addresses


@pytest.mark.behaviour(5)
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "redis://localhost:6379/0"),
        ({"redis_db": 4}, "redis://localhost:6379/4"),
        ({"redis_url": "redis://h:1/7", "redis_db": 4}, "redis://h:1/7"),
        ({"redis_url": "redis://h:1?db=7", "redis_db": 4}, "redis://h:1?db=7"),
        ({"redis_password": "p@ss/w:rd"}, "redis://:p%40ss%2Fw%3Ard@localhost:6379/0"),
        ({"redis_url": "redis://me@h", "redis_password": "x"}, "redis://me:x@h/0"),
        ({"redis_url": "redis://me:own@h", "redis_password": "x"}, "redis://me:own@h/0"),
        ({"redis_url": "rediss://h:1"}, "rediss://h:1/0"),
        ({"redis_url": "unix:///tmp/redis.sock"}, "unix:///tmp/redis.sock?db=0"),
        ({"redis_url": "unix:///tmp/r?db=7", "redis_db": 4, "redis_password": "x"}, "unix://:x@/tmp/r?db=7"),
    ],
)
def test_parts_of_the_redis_url_win_over_password_and_database(given: dict[str, Any], expected: str) -> None:
    config = Config.make(given)
    assert config.redis_location() == expected
    assert config.redis_location(events=True) == expected


@pytest.mark.behaviour(5)
def test_events_go_to_their_own_redis_where_one_is_named() -> None:
    config = Config.make({"redis_password": "x", "redis_db": 3, "events_redis_url": "redis://events:1/2"})
    assert config.redis_location(events=True) == "redis://events:1/2"


@pytest.mark.behaviour(5)
def test_importing_the_package_needs_no_driver_s_client() -> None:
    """The client of a driver is imported with that driver and not before."""
    code = (
        "import sys, asynctasq; asynctasq.init();"
        "print(sorted({'redis', 'psycopg', 'MySQLdb', 'django'} & {name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_emitters_given_to_init_are_taken_as_they_are() -> None:
    emitter = Remembering()
    asynctasq.init({"driver": "sqlite"}, iter([emitter]))
