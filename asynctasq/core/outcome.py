"""What an attempt came to, as a value. Deciding is pure; a driver writes it down later, in a batch."""

from __future__ import annotations

import random
import traceback as _traceback

import msgspec

from asynctasq.core.message import Lease
from asynctasq.core.retry import retry_delay

MAX_ERROR_MESSAGE = 2_000
MAX_TRACEBACK = 16_000
"""Characters kept of an error; the middle of a longer traceback is cut out."""


class ErrorInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An error as bounded text. Errors travel as text, never as objects."""

    type: str
    """Dotted path of the class."""
    message: str
    traceback: str = ""


class Done(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The attempt succeeded."""

    lease: Lease
    result: bytes | None = None
    """What the task returned, packed; None when it could not be or need not be kept."""
    keep: bool = False
    """Keep the task and its result as ``completed`` rather than remove it."""
    duration: float = 0.0
    """Seconds."""


class Retry(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The attempt failed and another one is to follow."""

    lease: Lease
    delay: float
    """Seconds from the settling, by the broker's clock."""
    error: ErrorInfo
    duration: float = 0.0


class Dead(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The attempt failed and was the last."""

    lease: Lease
    error: ErrorInfo
    duration: float = 0.0


class Release(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The attempt did not happen, or was called off by the worker: it does not count."""

    lease: Lease


Outcome = Done | Retry | Dead | Release


def describe(error: BaseException) -> ErrorInfo:
    """``error`` as bounded text, whatever it is: its ``str()`` may raise, its causes may be endless."""
    cls = type(error)
    try:
        message = str(error)
    except Exception as exc:  # noqa: BLE001 - a user's __str__ may raise anything
        message = f"<str() of this error raised {type(exc).__name__}>"
    try:
        # limit keeps a RecursionError to its two ends; the groups and causes are bounded likewise.
        exception = _traceback.TracebackException.from_exception(
            error, limit=-40, max_group_width=5, max_group_depth=3, compact=True
        )
        parts: list[str] = []
        size = 0
        for part in exception.format():
            parts.append(part)
            size += len(part)
            if size > 8 * MAX_TRACEBACK:
                break
        trace = "".join(parts)
    except Exception as exc:  # noqa: BLE001 - likewise
        trace = f"<the traceback could not be formatted: {type(exc).__name__}>"
    return ErrorInfo(
        type=f"{cls.__module__}.{cls.__qualname__}"[:255],
        message=clip(message, MAX_ERROR_MESSAGE),
        traceback=clip(trace, MAX_TRACEBACK),
    )


def clip(text: str, limit: int) -> str:
    """``text`` in at most ``limit`` characters that every database stores: the middle goes first,
    NUL and lone surrogates are written out."""
    if len(text) > limit:
        half = limit // 2 - 20
        text = f"{text[:half]}\n[{len(text) - 2 * half} characters left out]\n{text[-half:]}"
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def decide(
    lease: Lease, error: ErrorInfo, *, retryable: bool = True, cap: float, duration: float = 0.0
) -> Retry | Dead:
    """What follows a failed attempt: the message's own policy, and nothing of this worker's.

    ``retryable`` is what the task's ``should_retry`` said; ``cap`` the longest delay in seconds.
    """
    message = lease.message
    if message is None or not retryable or lease.attempt >= message.max_attempts:
        return Dead(lease=lease, error=error, duration=duration)
    delay = retry_delay(message.retry_strategy, message.retry_delay, lease.attempt, cap=cap, random=random.random)
    return Retry(lease=lease, delay=delay, error=error, duration=duration)
