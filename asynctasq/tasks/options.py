"""The options of a task: who may set them, what they may be, and which wins."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypedDict

from asynctasq.config import did_you_mean
from asynctasq.core.message import MAX_PRIORITY, MIN_PRIORITY, RetryStrategy, check_queue_name
from asynctasq.errors import ConfigurationError, UnknownOption

if TYPE_CHECKING:
    from asynctasq.config import Config
    from asynctasq.drivers.base import Driver

    class TaskConfig(TypedDict, total=False):
        """Options of a task class; each optional, durations in seconds."""

        queue: str
        max_attempts: int
        retry_delay: float
        retry_strategy: RetryStrategy
        timeout: float | None
        visibility_timeout: float
        driver: str | Driver | None
        correlation_id: str | None
        priority: int
else:

    class TaskConfig(dict[str, Any]):
        """Options of a task, readable as items and as attributes."""

        def __getattr__(self, name: str) -> Any:
            try:
                return self[name]
            except KeyError:
                raise AttributeError(f"option {name!r} is not set") from None


def _number(value: Any, what: str, fits: Callable[[float], bool]) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"must be a number of seconds, not {type(value).__name__}"
    return None if math.isfinite(value) and fits(value) else what


def _check_queue(value: Any) -> str | None:
    try:
        check_queue_name(value)
    except ConfigurationError:
        return "must be 1 to 128 printable characters without blanks or braces"
    return None


def _check_integer(low: int, high: int, what: str) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int):
            return f"must be int, not {type(value).__name__}"
        return None if low <= value <= high else what

    return check


def _check_text(value: Any) -> str | None:
    return None if value is None or (isinstance(value, str) and 0 < len(value) <= 255) else "must be text of 1 to 255"


def check_delay(value: Any) -> str | None:
    """What a delay must be, or None when it is fine."""
    return _number(value, "must be non-negative and finite", lambda v: v >= 0)


CHECKS: Mapping[str, Callable[[Any], str | None]] = {
    "queue": _check_queue,
    "max_attempts": _check_integer(1, 2**31 - 1, "must be positive"),
    "retry_delay": check_delay,
    "retry_strategy": lambda v: None if v in ("fixed", "exponential") else "must be 'fixed' or 'exponential'",
    "timeout": lambda v: None if v is None else _number(v, "must be positive", lambda n: n > 0),
    "visibility_timeout": lambda v: _number(v, "must be positive", lambda n: n > 0),
    "driver": lambda v: (
        None if v is None or isinstance(v, str) or hasattr(v, "enqueue") else "must be a name or a driver"
    ),
    "correlation_id": _check_text,
    "priority": _check_integer(MIN_PRIORITY, MAX_PRIORITY, f"must be between {MIN_PRIORITY} and {MAX_PRIORITY}"),
}
"""Each option of a task with its check: what the value must be, or None when it is fine."""


def check_option(name: str, value: Any) -> Any:
    """``value`` if option ``name`` may have it. Raises ConfigurationError (a ValueError) naming the option."""
    problem = CHECKS[name](value)
    if problem is not None:
        raise ConfigurationError(f"{name} {problem}, got {repr(value)[:60]}")
    return value


def check_options(options: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """A checked copy. Raises UnknownOption (a TypeError) or ConfigurationError naming ``owner`` and the option."""
    for name, value in options.items():
        if name not in CHECKS:
            raise UnknownOption(f"{owner}: unknown option {name!r}{did_you_mean(name, CHECKS)}")
        try:
            check_option(name, value)
        except ConfigurationError as exc:
            raise ConfigurationError(f"{owner}: {exc}") from None
    return dict(options)


def from_configuration(config: Config, driver: str) -> dict[str, Any]:
    """The options of a task that sets none, on ``driver``: its own defaults where they were given."""
    own = f"{driver}_max_attempts"
    return {
        "queue": config.default_queue,
        "max_attempts": getattr(config, own) if own in config.given else config.default_max_attempts,
        "retry_delay": config.default_retry_delay,
        "retry_strategy": config.default_retry_strategy,
        "timeout": config.default_timeout,
        "visibility_timeout": config.default_visibility_timeout,
        "priority": 0,
    }
