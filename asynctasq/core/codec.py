"""Arguments and results as bytes, and back with their types.

msgpack carries plain values. What it has no word for travels as one of our extension codes, never as a marker in a
user's dict: a dict that looks like anything is delivered as that dict. Anything else is refused where it is
dispatched, with its path.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec

from asynctasq.errors import AsyncTasQError, DecodeError, EncodeError

MAX_DEPTH: Final = 64
MAX_ITEMS: Final = 100_000
"""Bounds of what is packed and of what is unpacked, containers counted with their members."""
MAX_RESULT_BYTES: Final = 4 * 1024 * 1024
"""Outcomes are written in batches: one result is not to hold up all others."""

_DATETIME, _DATE, _TIME, _TIMEDELTA, _DECIMAL, _UUID = 1, 2, 3, 4, 5, 6
_SET, _FROZENSET, _TUPLE, _ENUM, _INT, _PAIRS = 7, 8, 9, 10, 11, 12
_CUSTOM: Final = 20


class Shown(NamedTuple):
    """Stands for a value of a registered type, where values are only shown."""

    name: str
    plain: Any

    def __repr__(self) -> str:
        return f"<{self.name} {self.plain!r}>"


class _CustomType(NamedTuple):
    name: str
    cls: type[Any]
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]
    blocking: bool


_custom_by_name: dict[str, _CustomType] = {}
_custom_by_class: dict[type[Any], _CustomType] = {}
_enums: dict[str, type[enum.Enum]] = {}


class NeedsThread(Exception):
    """The arguments hold a type whose decoding does I/O: decode again, off the loop, with ``blocking=True``."""


def register_type(
    cls: type[Any],
    encode: Callable[[Any], Any],
    decode: Callable[[Any], Any],
    *,
    name: str | None = None,
    blocking: bool = False,
) -> None:
    """Let instances of ``cls`` and its subclasses travel.

    ``encode`` turns one into plain values (or others that can travel), ``decode`` turns those back. ``name`` is what
    is stored, ``module.qualname`` by default. ``blocking`` says that ``decode`` does I/O: it is then never called on
    an event loop.
    """
    custom = _CustomType(name or f"{cls.__module__}.{cls.__qualname__}", cls, encode, decode, blocking)
    known = _custom_by_name.get(custom.name)
    if known is not None and known.cls.__qualname__ != cls.__qualname__:
        raise ValueError(f"a type named {custom.name!r} is registered already: {known.cls!r}")
    _custom_by_name[custom.name] = custom
    _custom_by_class[cls] = custom


def encode_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """The body of a message. Raises EncodeError naming the path of what cannot travel."""
    packer = _Packer()
    return _encoder.encode(
        (
            [packer.pack(value, f"args[{index}]", 1) for index, value in enumerate(args)],
            {name: packer.pack(value, f"kwargs.{name}", 1) for name, value in kwargs.items()},
        )
    )


def decode_arguments(body: bytes, *, blocking: bool = True) -> tuple[list[Any], dict[str, Any]]:
    """The arguments in ``body``.

    Raises DecodeError for what is not ours or is out of bounds, and NeedsThread when ``blocking`` is False and a
    type needs I/O.
    """
    return _pair(decode_value(body, blocking=blocking))


def decode_for_display(body: bytes) -> tuple[list[Any], dict[str, Any]]:
    """The same to look at: a value of a registered type is a ``Shown``, its decoding is not run."""
    return _pair(_decode(body, _display_decoder))


def _pair(value: Any) -> tuple[list[Any], dict[str, Any]]:
    match value:
        case [list() as args, dict() as kwargs] if all(type(name) is str for name in kwargs):
            return args, kwargs
    raise DecodeError("the body is not a pair of arguments")


def encode_value(value: Any, path: str = "result") -> bytes:
    """One value, for results."""
    return _encoder.encode(_Packer().pack(value, path, 0))


def encode_result(value: Any) -> bytes:
    """What a task returned. Raises EncodeError also when it is larger than MAX_RESULT_BYTES."""
    packed = encode_value(value)
    if len(packed) > MAX_RESULT_BYTES:
        raise EncodeError(
            f"result has {len(packed)} bytes, at most {MAX_RESULT_BYTES} are kept; store it elsewhere and return where"
        )
    return packed


def decode_value(data: bytes, *, blocking: bool = True) -> Any:
    """What ``encode_value`` or ``encode_arguments`` packed."""
    return _decode(data, _decoder if blocking else _loop_decoder)


def _decode(data: bytes, decoder: msgspec.msgpack.Decoder[Any]) -> Any:
    try:
        value = decoder.decode(data)
        # Depth and count cannot exceed the number of bytes: a short body needs no walk.
        if len(data) > MAX_DEPTH:
            _check_bounds(value)
        return value
    except (AsyncTasQError, NeedsThread):
        raise
    except (msgspec.DecodeError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError, LookupError) as e:
        raise DecodeError(f"undecodable arguments: {type(e).__name__}: {str(e)[:200]}") from e


class _Packer:
    """Replaces what msgpack cannot carry by extensions, and counts."""

    def __init__(self) -> None:
        self.items = 0

    def pack(self, value: Any, path: str, depth: int) -> Any:
        cls = type(value)
        if cls is str:
            if not value.isascii():
                _check_text(value, path)
            return value
        if cls is bool or value is None or cls is bytes:
            return value
        if cls is int:
            return (
                value if -(2**63) <= value < 2**64 else _ext(_INT, str(value) if abs(value) < 10**4000 else None, path)
            )
        if cls is float:
            if math.isnan(value):
                raise EncodeError(f"{path} is nan, which does not compare equal to itself on arrival; send None")
            return value
        self._count(path, depth)
        if cls is list:
            return [self.pack(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
        if cls is dict:
            return self._pack_dict(value, path, depth)
        return self._pack_other(value, cls, path, depth)

    def _count(self, path: str, depth: int) -> None:
        self.items += 1
        if depth > MAX_DEPTH:
            raise EncodeError(f"{path[:200]} is nested deeper than {MAX_DEPTH}, or contains itself")
        if self.items > MAX_ITEMS:
            raise EncodeError(f"{path[:200]}: more than {MAX_ITEMS} containers")

    def _pack_dict(self, value: dict[Any, Any], path: str, depth: int) -> Any:
        if all(type(key) is str for key in value):
            return {
                self.pack(key, path, depth): self.pack(item, f"{path}.{key}", depth + 1) for key, item in value.items()
            }
        # msgspec takes no extension as a key.
        pairs = [
            [self.pack(key, f"{path} (key {str(key)[:40]!r})", depth + 1), self.pack(item, f"{path}.{key}", depth + 1)]
            for key, item in value.items()
        ]
        return msgspec.msgpack.Ext(_PAIRS, _encoder.encode(pairs))

    def _pack_other(self, value: Any, cls: type[Any], path: str, depth: int) -> Any:
        if isinstance(value, enum.Enum):
            return _pack_enum(value, path)
        code = _SEQUENCES.get(cls)
        if code is not None:
            items = [self.pack(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
            return msgspec.msgpack.Ext(code, _encoder.encode(items))
        simple = _SIMPLE.get(cls)
        if simple is not None:
            code, to_text = simple
            return _ext(code, to_text(value), path)
        for base in cls.__mro__:
            custom = _custom_by_class.get(base)
            if custom is not None:
                try:
                    plain = custom.encode(value)
                except EncodeError as exc:
                    raise EncodeError(f"{path}: {exc}") from exc
                packed = [custom.name, self.pack(plain, path, depth + 1)]
                return msgspec.msgpack.Ext(_CUSTOM, _encoder.encode(packed))
        raise EncodeError(
            f"{path} is a {cls.__module__}.{cls.__qualname__}, which cannot travel; send plain values, "
            "or register the type with asynctasq.register_type()"
        )


def _check_text(value: str, path: str) -> None:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise EncodeError(f"{path} is text with a lone surrogate at {exc.start}, which UTF-8 cannot carry") from None


def _ext(code: int, text: str | None, path: str) -> msgspec.msgpack.Ext:
    if text is None:
        raise EncodeError(
            f"{path} cannot travel: a tzinfo other than zoneinfo or a fixed offset, a nan, or too long a number"
        )
    return msgspec.msgpack.Ext(code, text.encode())


def _pack_datetime(value: datetime | time) -> str | None:
    if isinstance(value.tzinfo, ZoneInfo):
        # ZoneInfo.from_file() makes zones without one, whatever its annotations say.
        key: str | None = value.tzinfo.key
        return None if key is None else f"{value.replace(tzinfo=None).isoformat()}|{value.fold}|{key}"
    return f"{value.isoformat()}|{value.fold}|"


def _unpack_datetime(cls: type[Any], text: str) -> Any:
    stamp, fold, key = text.split("|")
    value = cls.fromisoformat(stamp).replace(fold=int(fold))
    return value.replace(tzinfo=ZoneInfo(key)) if key else value


_SEQUENCES: dict[type[Any], int] = {set: _SET, frozenset: _FROZENSET, tuple: _TUPLE}
_SIMPLE: dict[type[Any], tuple[int, Callable[[Any], str | None]]] = {
    datetime: (_DATETIME, _pack_datetime),
    date: (_DATE, date.isoformat),
    time: (_TIME, _pack_datetime),
    timedelta: (_TIMEDELTA, lambda v: f"{v.days},{v.seconds},{v.microseconds}"),
    Decimal: (_DECIMAL, lambda v: None if v.is_nan() else str(v)),
    UUID: (_UUID, str),
}


def _unpack_timedelta(text: str) -> timedelta:
    days, seconds, microseconds = map(int, text.split(","))
    return timedelta(days, seconds, microseconds)


_FROM_TEXT: dict[int, Callable[[str], Any]] = {
    _DATETIME: lambda text: _unpack_datetime(datetime, text),
    _DATE: date.fromisoformat,
    _TIME: lambda text: _unpack_datetime(time, text),
    _TIMEDELTA: _unpack_timedelta,
    _DECIMAL: Decimal,
    _UUID: UUID,
    _INT: int,
}
_FROM_LIST: dict[int, Callable[[list[Any]], Any]] = {_SET: set, _FROZENSET: frozenset, _TUPLE: tuple, _PAIRS: dict}


def _pack_enum(value: enum.Enum, path: str) -> msgspec.msgpack.Ext:
    cls = type(value)
    if "<locals>" in cls.__qualname__:
        raise EncodeError(
            f"{path} is a member of {cls.__qualname__}, an enum made in a function: no worker would find it"
        )
    # By name, so that the members' values may be anything; a combination of flags has only its value.
    member = value.value if isinstance(value, enum.Flag) else value.name
    return msgspec.msgpack.Ext(_ENUM, _encoder.encode([f"{cls.__module__}.{cls.__qualname__}", member]))


def _unpack_enum(name: str, member: str | int) -> enum.Enum:
    """Found among the enums this process has defined, by name: neither imported nor reached by attributes."""
    if name not in _enums:
        _enums.update((f"{cls.__module__}.{cls.__qualname__}", cls) for cls in _subclasses(enum.Enum))
    cls = _enums.get(name)
    if cls is None:
        raise DecodeError(f"no enum {name[:200]!r} is defined in this process")
    return cls(member) if issubclass(cls, enum.Flag) else cls[str(member)]


def _subclasses(cls: type[enum.Enum]) -> Iterator[type[enum.Enum]]:
    for subclass in type.__subclasses__(cls):
        yield subclass
        yield from _subclasses(subclass)


def _unpack(code: int, data: memoryview, decoder: msgspec.msgpack.Decoder[Any], blocking: bool) -> Any:
    if code in _FROM_TEXT:
        return _FROM_TEXT[code](str(data, "utf-8"))
    if code in _FROM_LIST:
        items = decoder.decode(data)
        if type(items) is not list:
            raise DecodeError(f"extension {code} does not hold a list")
        return _FROM_LIST[code](items)
    if code not in (_ENUM, _CUSTOM):
        raise DecodeError(f"unknown extension {code}")
    match decoder.decode(data):
        case [str() as name, str() | int() as member] if code == _ENUM:
            return _unpack_enum(name, member)
        case [str() as name, plain] if code == _CUSTOM:
            if decoder is _display_decoder:
                return Shown(name, plain)
            custom = _custom_by_name.get(name)
            if custom is None:
                raise DecodeError(f"no type {name[:200]!r} is registered in this process")
            if custom.blocking and not blocking:
                raise NeedsThread
            return custom.decode(plain)
    raise DecodeError(f"extension {code} is malformed")


def _check_bounds(value: Any) -> None:
    level = [value]
    items = 0
    for _ in range(MAX_DEPTH + 2):
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                deeper += item.values()
            elif isinstance(item, list | tuple | set | frozenset):
                deeper += item
        items += len(deeper)
        if not deeper:
            return
        if items > MAX_ITEMS:
            raise DecodeError(f"more than {MAX_ITEMS} items")
        level = deeper
    raise DecodeError(f"nested deeper than {MAX_DEPTH}")


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(
    ext_hook=lambda code, data: _unpack(code, data, _decoder, True)
)
_loop_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(
    ext_hook=lambda code, data: _unpack(code, data, _loop_decoder, False)
)
_display_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(
    ext_hook=lambda code, data: _unpack(code, data, _display_decoder, False)
)
