"""What travels: the message as it is stored, and the lease on one that was claimed."""

from __future__ import annotations

import os
import re
import time
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec

from asynctasq.errors import ConfigurationError, DecodeError, PayloadTooLarge

MIN_PRIORITY, MAX_PRIORITY = -100, 100
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""No broker of ours takes more; bytes beyond this are not even looked at."""

_QUEUE_NAME = re.compile(r"[^\s{}\x00-\x1f\x7f-\x9f]{1,128}")

RetryStrategy = Literal["fixed", "exponential"]
Status = Literal["scheduled", "pending", "processing", "completed", "dead", "cancelled"]
STATUSES: tuple[Status, ...] = ("scheduled", "pending", "processing", "completed", "dead", "cancelled")

_Seconds = Annotated[float, msgspec.Meta(ge=0, le=3.2e9)]


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One task as every broker stores it: a msgpack map of these fields.

    Readers ignore fields they do not know, so that old and new workers run side by side
    in a rolling deploy. The attempt count is not in it: that is the driver's to keep.
    """

    id: Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[!-~]+$")]
    """UUIDv7 text when made here; any printable ASCII of up to 64 characters otherwise."""
    queue: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    task: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    """Registered name. Looked up, never imported."""
    body: bytes
    """The arguments as :mod:`asynctasq.core.codec` packs them; opaque to drivers."""
    created_at: datetime
    """When it was dispatched, by the producer's clock. Informs; decides nothing."""
    priority: Annotated[int, msgspec.Meta(ge=MIN_PRIORITY, le=MAX_PRIORITY)] = 0
    """Larger is sooner."""
    max_attempts: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] = 3
    """Runs in all, the first included."""
    retry_strategy: RetryStrategy = "exponential"
    retry_delay: _Seconds = 60.0
    """Base delay between attempts, in seconds."""
    timeout: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Limit of one attempt in seconds; None for none."""
    visibility_timeout: Annotated[float, msgspec.Meta(gt=0, le=3.2e9)] = 300.0
    """Length of a lease in seconds; extended while the task runs."""
    delay: _Seconds = 0.0
    """Not before this many seconds after the broker took it, by the broker's clock."""
    available_at: datetime | None = None
    """Not before this instant, by the broker's clock; wins over ``delay``."""
    correlation_id: Annotated[str, msgspec.Meta(max_length=255)] | None = None
    headers: dict[str, str] = {}
    """What else is to travel: trace context, language, tenant."""
    v: Literal[1] = 1
    """Version of this format."""


class Lease(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The right to work on one message until it expires, and to settle it."""

    id: str
    queue: str
    payload: bytes
    """The message as it lies in the broker."""
    message: Message | None
    """None when the payload is not a message; then ``fault`` says why."""
    fault: str | None = None
    attempt: int
    """Which run this is, from 1."""
    receipt: Any
    """Proof for the broker that this lease is the current one."""
    visibility_timeout: float
    """Seconds from the claim, or from the last extension, to expiry."""
    claimed_at: float
    """``time.monotonic()`` from before the claim was sent: the lease lasts at least
    ``visibility_timeout`` from here."""
    suspect: bool = False
    """Earlier workers were lost while they held this message, and it may be the reason."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """The bytes a broker stores. Raises PayloadTooLarge for what no reader would read."""
    payload = _encoder.encode(message)
    if len(payload) > MAX_MESSAGE_BYTES:
        raise PayloadTooLarge(
            f"task {message.task}: a message of {len(payload)} bytes, at most {MAX_MESSAGE_BYTES} are taken"
        )
    return payload


def decode(payload: bytes) -> Message:
    """The message in ``payload``.

    Raises DecodeError for anything that is not exactly one valid message.
    """
    if len(payload) > MAX_MESSAGE_BYTES:
        raise DecodeError(f"message of {len(payload)} bytes, at most {MAX_MESSAGE_BYTES} are read")
    try:
        return _decoder.decode(payload)
    except (msgspec.DecodeError, RecursionError, MemoryError, UnicodeDecodeError, OverflowError) as exc:
        raise DecodeError(f"not a message: {str(exc)[:200]}") from exc


def open_lease(
    *,
    id: str,
    queue: str,
    payload: bytes,
    attempt: int,
    receipt: Any,
    visibility_timeout: float,
    claimed_at: float,
    suspect: bool = False,
) -> Lease:
    """A lease on ``payload``, which may be anything: what is no message becomes the lease's fault.

    ``id`` and ``queue`` are where the broker holds it; a payload that names others was
    not put there by us and is not trusted.
    """
    message: Message | None
    fault: str | None = None
    try:
        message = decode(payload)
    except DecodeError as exc:
        message, fault = None, str(exc)
    else:
        if message.id != id or message.queue != queue:
            message, fault = None, "not a message: its id or queue is not that of the place it lay in"
    return Lease(
        id=id,
        queue=queue,
        payload=payload,
        message=message,
        fault=fault,
        attempt=attempt,
        receipt=receipt,
        visibility_timeout=visibility_timeout,
        claimed_at=claimed_at,
        suspect=suspect,
    )


def check_queue_name(name: object) -> str:
    """``name`` if it can name a queue: 1 to 128 characters, none blank, control, ``{`` or ``}``.

    Raises ConfigurationError (a ValueError) otherwise.
    """
    if not isinstance(name, str) or not _QUEUE_NAME.fullmatch(name) or not name.isprintable():
        raise ConfigurationError(
            f"queue name {repr(name)[:60]} is not usable: 1 to 128 printable characters without blanks or braces"
        )
    return name


_last_tick = 0


def new_id() -> str:
    """A UUIDv7 (RFC 9562, 5.7) as text: sorts by time of creation, and within one process strictly.

    The 12 bits after the millisecond carry its fraction (method 3 of section 6.2), bumped by one
    where the clock has not moved, so that ids of one process never tie.
    """
    global _last_tick
    tick = time.time_ns() * 4096 // 1_000_000
    if tick <= _last_tick:
        tick = _last_tick + 1
    _last_tick = tick
    tail = int.from_bytes(os.urandom(8), "big") & 0x3FFF_FFFF_FFFF_FFFF
    value = (tick >> 12) << 80 | 0x7 << 76 | (tick & 0xFFF) << 64 | 0x2 << 62 | tail
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def utcnow() -> datetime:
    """Now, aware."""
    return datetime.now(UTC)
