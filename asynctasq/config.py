"""The configuration: one frozen object, validated where it is made, handed down from there.

Every option is one field of :class:`Config`. The field carries its default, its check and its
description; the command line's flags, the environment variables and the reference in the
documentation are all read from these fields.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

from asynctasq.core.message import check_queue_name
from asynctasq.errors import ConfigurationError, UnknownOption

ENVIRONMENT_PREFIX = "ASYNCTASQ_"
DRIVERS = ("redis", "postgres", "mysql", "rabbitmq", "sqs", "sqlite")

_TABLE_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_]{0,47}\.)?[A-Za-z_][A-Za-z0-9_]{0,47}")


class Option(typing.NamedTuple):
    """What is known of an option besides its type and default."""

    doc: str
    group: str
    check: Callable[[Any], str | None] | None = None
    """Returns what the value must be ("must be positive"), or None when it is fine."""
    choices: tuple[str, ...] = ()
    secret: bool = False
    """Never shown."""
    url: bool = False
    """Shown with its password masked."""


def _option(default: Any, group: str, doc: str, **more: Any) -> Any:
    return dataclasses.field(default=default, metadata={"option": Option(doc, group, **more)})


def _positive(value: float) -> str | None:
    return None if value > 0 else "must be positive"


def _non_negative(value: float) -> str | None:
    return None if value >= 0 else "must be non-negative"


def _between(low: int, high: int) -> Callable[[int], str | None]:
    return lambda value: None if low <= value <= high else f"must be between {low} and {high}"


def _table(value: str) -> str | None:
    if _TABLE_NAME.fullmatch(value):
        return None
    return "must be a table name: letters, digits and _, at most 48, with one optional schema before a dot"


def _queue(value: str) -> str | None:
    try:
        check_queue_name(value)
    except ConfigurationError:
        return "must be 1 to 128 printable characters without blanks or braces"
    return None


def _not_empty(value: str) -> str | None:
    return None if value.strip() else "must not be empty"


def _is_cut_short(parts: SplitResult) -> bool:
    """Whether a password with an unescaped '/', '?' or '#' seems to end the address: its rest has the '@'."""
    rest = parts.path + parts.query.partition("=")[0] + parts.fragment
    return "@" not in parts.netloc and parts.scheme != "unix" and "@" in rest


def _url(*schemes: str) -> Callable[[str], str | None]:
    """A check that says what is wrong without repeating the value: it may hold a password."""

    def check(value: str) -> str | None:
        allowed = " or ".join(f"{scheme}://" for scheme in schemes)
        try:
            parts = urlsplit(value)
            _ = parts.port
        except ValueError:
            return f"must be a URL ({allowed}); percent-encode special characters in its password"
        if parts.scheme not in schemes:
            return f"must start with {allowed}"
        if parts.netloc.count("@") > 1:
            return "must have '@' in its user name or password percent-encoded as %40"
        if _is_cut_short(parts):
            return "must have '/', '?' and '#' in its password percent-encoded"
        return None

    return check


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Config:
    """All options, with their defaults. Durations are seconds."""

    # Driver selection
    driver: str = _option("redis", "Driver selection", "Queue driver to use.", choices=DRIVERS)

    # Task defaults
    default_queue: str = _option("default", "Task defaults", "Queue of tasks that name none.", check=_queue)
    default_max_attempts: int = _option(
        3, "Task defaults", "How often a task is run in all before it goes to the dead letters.", check=_positive
    )
    default_retry_strategy: str = _option(
        "exponential",
        "Task defaults",
        "`fixed`: the same delay before each retry; `exponential`: twice the last one.",
        choices=("fixed", "exponential"),
    )
    default_retry_delay: float = _option(
        60, "Task defaults", "Base delay before a retry, in seconds.", check=_non_negative
    )
    max_retry_delay: float = _option(
        3600, "Task defaults", "Longest delay that `exponential` grows to, in seconds.", check=_positive
    )
    default_timeout: float | None = _option(
        None, "Task defaults", "Limit of one attempt in seconds; None for none.", check=_positive
    )
    default_visibility_timeout: float = _option(
        300,
        "Task defaults",
        "Crash recovery: seconds after which the task of a worker that died is run by another. "
        "Running tasks are extended, so it need not be longer than the task.",
        check=_positive,
    )
    correlation_id: str | None = _option(
        None, "Task defaults", "Correlation id of tasks dispatched outside any task.", check=_not_empty
    )

    # Process pool
    process_pool_size: int | None = _option(
        None, "Process pool", "Child processes for process tasks; None for the number of CPUs.", check=_positive
    )
    process_pool_max_tasks_per_child: int | None = _option(
        None, "Process pool", "Replace a child after this many tasks; None for never.", check=_positive
    )

    # SQLite
    sqlite_path: str = _option(
        "asynctasq.sqlite3",
        "SQLite",
        "Database file; `:memory:` for one that lives with the process.",
        check=_not_empty,
    )
    sqlite_synchronous: str = _option(
        "full",
        "SQLite",
        "`full`: an enqueued task survives a power cut; `normal`: it survives any crash of the process, and is faster.",
        choices=("full", "normal"),
    )
    sqlite_queue_table: str = _option("task_queue", "SQLite", "Queue table name.", check=_table)
    sqlite_dead_letter_table: str = _option("dead_letter_queue", "SQLite", "Dead letter table name.", check=_table)

    # Redis
    redis_url: str = _option(
        "redis://localhost:6379", "Redis", "Connection URL.", check=_url("redis", "rediss", "unix"), url=True
    )
    redis_password: str | None = _option(None, "Redis", "Password, unless the URL has one.", secret=True)
    redis_db: int = _option(0, "Redis", "Database number, unless the URL has one.", check=_between(0, 15))
    redis_max_connections: int = _option(100, "Redis", "Most connections in a pool.", check=_positive)

    # PostgreSQL
    postgres_dsn: str = _option(
        "postgresql://test:test@localhost:5432/test_db",
        "PostgreSQL",
        "Connection DSN.",
        check=_url("postgresql", "postgres"),
        url=True,
    )
    postgres_password: str | None = _option(None, "PostgreSQL", "Password, unless the DSN has one.", secret=True)
    postgres_queue_table: str = _option("task_queue", "PostgreSQL", "Queue table name.", check=_table)
    postgres_dead_letter_table: str = _option(
        "dead_letter_queue", "PostgreSQL", "Dead letter table name.", check=_table
    )
    postgres_max_attempts: int = _option(
        3, "PostgreSQL", "When given: `default_max_attempts` for tasks on this driver.", check=_positive
    )
    postgres_min_pool_size: int = _option(10, "PostgreSQL", "Connections a worker's pool keeps open.", check=_positive)
    postgres_max_pool_size: int = _option(10, "PostgreSQL", "Most connections in a pool.", check=_positive)

    # MySQL
    mysql_dsn: str = _option(
        "mysql://test:test@localhost:3306/test_db", "MySQL", "Connection DSN.", check=_url("mysql", "mariadb"), url=True
    )
    mysql_password: str | None = _option(None, "MySQL", "Password, unless the DSN has one.", secret=True)
    mysql_queue_table: str = _option("task_queue", "MySQL", "Queue table name.", check=_table)
    mysql_dead_letter_table: str = _option("dead_letter_queue", "MySQL", "Dead letter table name.", check=_table)
    mysql_max_attempts: int = _option(
        3, "MySQL", "When given: `default_max_attempts` for tasks on this driver.", check=_positive
    )
    mysql_min_pool_size: int = _option(10, "MySQL", "Connections a worker's pool keeps open.", check=_positive)
    mysql_max_pool_size: int = _option(10, "MySQL", "Most connections in a pool.", check=_positive)

    # RabbitMQ
    rabbitmq_url: str = _option(
        "amqp://guest:guest@localhost:5672/", "RabbitMQ", "Connection URL.", check=_url("amqp", "amqps"), url=True
    )
    rabbitmq_password: str | None = _option(None, "RabbitMQ", "Password, unless the URL has one.", secret=True)
    rabbitmq_exchange_name: str = _option("asynctasq", "RabbitMQ", "Exchange name.", check=_not_empty)
    rabbitmq_prefetch_count: int = _option(
        1, "RabbitMQ", "When given: what the broker is asked to send ahead.", check=_positive
    )

    # SQS
    sqs_region: str = _option("us-east-1", "AWS SQS", "Region.", check=_not_empty)
    sqs_queue_url_prefix: str | None = _option(
        None, "AWS SQS", "What stands before the queue name in its URL.", check=_url("http", "https")
    )
    sqs_endpoint_url: str | None = _option(
        None, "AWS SQS", "Another endpoint than AWS's own.", check=_url("http", "https"), url=True
    )
    aws_access_key_id: str | None = _option(
        None, "AWS SQS", "Access key id; None for the credential chain.", secret=True
    )
    aws_secret_access_key: str | None = _option(
        None, "AWS SQS", "Secret access key; None for the credential chain.", secret=True
    )

    # Events
    enable_event_emitter_redis: bool = _option(False, "Events", "Publish every event to a Redis channel.")
    events_redis_url: str | None = _option(
        None,
        "Events",
        "Redis for events; None for `redis_url` with its password and database.",
        check=_url("redis", "rediss", "unix"),
        url=True,
    )
    events_channel: str = _option("asynctasq:events", "Events", "Channel to publish to.", check=_not_empty)

    # Repository
    task_scan_limit: int = _option(
        10_000, "Task repository", "Most tasks that one repository query looks at.", check=_positive
    )
    keep_completed_tasks: bool = _option(
        False, "Task repository", "Keep tasks that succeeded, with result, worker and times (not on SQS)."
    )

    given: frozenset[str] = dataclasses.field(default=frozenset(), metadata={"internal": True}, compare=False)
    """The keys that were set rather than left at their default."""

    _current: ClassVar[Config | None] = None

    @classmethod
    def get(cls) -> Config:
        """The configuration in force: what the last ``asynctasq.init()`` made, else the defaults."""
        if Config._current is None:
            Config._current = cls()
        return Config._current

    @classmethod
    def make(cls, overrides: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Config:
        """A configuration from ``overrides``, then the environment, then the defaults.

        Raises UnknownOption (a TypeError) for a key that does not exist and
        ConfigurationError (a ValueError) for a wrong value; both name the key.
        """
        known = options()
        values: dict[str, Any] = {}
        for name, field in known.items():
            text = (os.environ if environ is None else environ).get(ENVIRONMENT_PREFIX + name.upper())
            if text is not None:
                values[name] = _parse(name, text, field)
        for name in overrides:
            if name not in known:
                raise UnknownOption(f"unknown option {name!r}{did_you_mean(str(name), known)}")
        values.update(overrides)
        for name, value in values.items():
            _check(name, value, known[name])
        config = cls(**values, given=frozenset(values))
        config._check_together()
        return config

    def _check_together(self) -> None:
        for driver in ("postgres", "mysql"):
            if getattr(self, f"{driver}_min_pool_size") > getattr(self, f"{driver}_max_pool_size"):
                raise ConfigurationError(
                    f"{driver}_min_pool_size cannot be greater than {driver}_max_pool_size "
                    f"({getattr(self, f'{driver}_min_pool_size')} > {getattr(self, f'{driver}_max_pool_size')})"
                )
        for driver in ("sqlite", "postgres", "mysql"):
            if getattr(self, f"{driver}_queue_table") == getattr(self, f"{driver}_dead_letter_table"):
                raise ConfigurationError(f"{driver}_dead_letter_table cannot be the same table as {driver}_queue_table")

    def redis_location(self, *, events: bool = False) -> str:
        """The Redis URL with password and database filled in where the URL itself has none."""
        if events and self.events_redis_url is not None:
            return self.events_redis_url
        parts = urlsplit(self.redis_url)
        netloc, path = parts.netloc, parts.path
        if self.redis_password is not None and parts.password is None:
            host = netloc.rpartition("@")[2]
            netloc = f"{quote(unquote(parts.username or ''), safe='')}:{quote(self.redis_password, safe='')}@{host}"
        if parts.scheme == "unix":
            # The path is the socket's, and urlunsplit would drop the slashes before it.
            query = parts.query if "db=" in parts.query else f"{parts.query}&db={self.redis_db}".lstrip("&")
            return f"unix://{netloc}{path}?{query}"
        if path in ("", "/") and "db=" not in parts.query:
            path = f"/{self.redis_db}"
        return urlunsplit((parts.scheme, netloc, path, parts.query, ""))

    def masked(self) -> dict[str, Any]:
        """Every option with its value, secrets replaced by ``***``: safe to print."""
        return {name: mask(name, getattr(self, name)) for name in options()}

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={mask(name, getattr(self, name))!r}" for name in sorted(self.given))
        return f"Config({shown})"


def options() -> dict[str, dataclasses.Field[Any]]:
    """The fields of Config that are options, by name, in the order of the reference."""
    return {f.name: f for f in dataclasses.fields(Config) if "option" in f.metadata}


_TYPES: dict[str, tuple[type, ...]] = {}


def option_types(name: str) -> tuple[type, ...]:
    """The types an option's value may have: ``(float, NoneType)`` for a number or nothing."""
    if not _TYPES:
        hints = typing.get_type_hints(Config)
        for key in options():
            hint = hints[key]
            _TYPES[key] = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return _TYPES[name]


def set_current(config: Config | None) -> None:
    """Make ``config`` what ``Config.get()`` returns; None for the defaults."""
    Config._current = config


def mask(name: str, value: Any) -> Any:
    """``value`` of option ``name`` as it may be shown."""
    option: Option = options()[name].metadata["option"]
    if value is None:
        return None
    if option.secret:
        return "***"
    return mask_url(value) if option.url else value


def mask_url(url: str) -> str:
    """``url`` with the password, and any query values, replaced by ``***``."""
    try:
        parts = urlsplit(url)
        if _is_cut_short(parts):
            return "***"
        user, at, host = parts.netloc.rpartition("@")
        name, colon, _ = user.partition(":")
        query = re.sub(r"=[^&]*", "=***", parts.query)
        return urlunsplit((parts.scheme, f"{name}{':***' if colon else ''}{at}{host}", parts.path, query, ""))
    except ValueError:
        return "***"


def did_you_mean(name: str, known: typing.Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` when something known is close, else nothing."""
    close = difflib.get_close_matches(name.lower(), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _check(name: str, value: Any, field: dataclasses.Field[Any]) -> None:
    option: Option = field.metadata["option"]
    allowed = option_types(name)
    if not _has_type(value, allowed):
        expected = " or ".join("None" if t is types.NoneType else t.__name__ for t in allowed)
        raise ConfigurationError(f"{name} must be {expected}, not {type(value).__name__}{_shown(option, value)}")
    if value is None:
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigurationError(f"{name} must be finite{_shown(option, value)}")
    problem = None
    if option.choices and value not in option.choices:
        quoted = [repr(choice) for choice in option.choices]
        problem = f"must be {', '.join(quoted[:-1])} or {quoted[-1]}"
        if len(quoted) > 2:
            problem += did_you_mean(value, option.choices)
    elif option.check is not None:
        problem = option.check(value)
    if problem is not None:
        raise ConfigurationError(f"{name} {problem}{_shown(option, value)}")


def _has_type(value: Any, allowed: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in allowed
    return isinstance(value, allowed) or (float in allowed and isinstance(value, int))


def _shown(option: Option, value: Any) -> str:
    return "" if option.secret or option.url else f", got {repr(value)[:60]}"


def _parse(name: str, text: str, field: dataclasses.Field[Any]) -> Any:
    """The value an environment variable or a flag stands for."""
    allowed = option_types(name)
    if types.NoneType in allowed and text.lower() in ("", "none"):
        return None
    if bool in allowed:
        if text.lower() in ("1", "true", "yes", "on"):
            return True
        if text.lower() in ("0", "false", "no", "off", ""):
            return False
        raise ConfigurationError(f"{name} must be true or false, got {text[:60]!r}")
    for kind in (int, float):
        if kind in allowed or (kind is int and float in allowed):
            try:
                return kind(text)
            except ValueError:
                continue
    return text


def parse_option(name: str, text: str) -> Any:
    """The value of option ``name`` written as text on a command line; not yet checked."""
    return _parse(name, text, options()[name])
