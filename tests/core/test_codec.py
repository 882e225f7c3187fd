"""Arguments and results travel with their types, or are refused with their path."""

from __future__ import annotations

import datetime as dt
import enum
import math
import re
import struct
import sys
from collections import Counter, OrderedDict, namedtuple
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asynctasq import register_type
from asynctasq.core import codec
from asynctasq.core.codec import MAX_DEPTH, MAX_ITEMS, decode_arguments, decode_value, encode_arguments, encode_value
from asynctasq.errors import DecodeError, EncodeError


class Colour(enum.Enum):
    RED = "red"
    ODD = (1, object())


def named(value: object) -> str:
    """A test's name for a value: the same in every process."""
    return re.sub(r" at 0x\w+", "", repr(value))[:40]


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    YES = "yes"


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Money:
    def __init__(self, amount: Decimal, currency: str) -> None:
        self.amount, self.currency = amount, currency

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and (self.amount, self.currency) == (other.amount, other.currency)

    def __hash__(self) -> int:
        return hash((self.amount, self.currency))


class Price(Money):
    """Travels as its base does."""


register_type(Money, lambda money: (money.amount, money.currency), lambda pair: Money(*pair))

zones = st.sampled_from([None, dt.UTC, dt.timezone(dt.timedelta(hours=-3, minutes=30)), ZoneInfo("Europe/Berlin")])
hashable_scalars = (
    st.none()
    | st.booleans()
    | st.integers(min_value=-(10**100), max_value=10**100)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary()
    | st.datetimes(timezones=zones, allow_imaginary=False)
    | st.dates()
    | st.times(timezones=st.sampled_from([None, dt.UTC]))
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids()
    | st.sampled_from([Colour.RED, Colour.ODD, Level.LOW, Word.YES, Rights.READ, Rights.READ | Rights.WRITE])
    | st.builds(Money, st.decimals(allow_nan=False, allow_infinity=False), st.sampled_from(["EUR", "CHF"]))
)
hashable = st.recursive(
    hashable_scalars, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=5
)
values = st.recursive(
    hashable_scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
        | st.dictionaries(hashable, inner, max_size=4)
        | st.sets(hashable, max_size=4)
        | st.frozensets(hashable, max_size=4)
        | st.tuples(inner, inner)
        | st.tuples()
    ),
    max_leaves=15,
)


def same(left: Any, right: Any) -> bool:
    """Equal, and of the same types all the way down."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return len(left) == len(right) and all(
            same(a, b) and same(left[a], right[b]) for a, b in zip(left, right, strict=True)
        )
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, set | frozenset):
        return bool(left == right) and sorted(map(repr, map(type, left))) == sorted(map(repr, map(type, right)))
    if isinstance(left, float):
        return struct.pack("d", left) == struct.pack("d", right)
    if isinstance(left, dt.datetime | dt.time):
        return (left, left.tzinfo, left.fold) == (right, right.tzinfo, right.fold)
    if isinstance(left, Decimal):
        return str(left) == str(right)
    return bool(left == right)


@pytest.mark.behaviour(14)
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(values)
def test_every_value_arrives_with_its_types(value: Any) -> None:
    assert same(decode_value(encode_value(value)), value)


@pytest.mark.behaviour(14)
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(values, max_size=3), st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), values, max_size=3))
def test_arguments_arrive_as_they_were(args: list[Any], kwargs: dict[str, Any]) -> None:
    found_args, found_kwargs = decode_arguments(encode_arguments(tuple(args), kwargs))
    assert same(found_args, args)
    assert same(found_kwargs, kwargs)


@pytest.mark.behaviour(14)
@pytest.mark.parametrize(
    "value",
    [
        2**63,
        -(2**63),
        2**64 - 1,
        2**64,
        2**70,
        -(2**70),
        10**3999,
        -0.0,
        math.inf,
        sys.float_info.min,
        Decimal("Infinity"),
        Decimal("1E+1000"),
        Decimal("0.10"),
        dt.timedelta.max,
        dt.timedelta.min,
        dt.datetime.max.replace(tzinfo=dt.UTC),
        dt.datetime.min,  # noqa: DTZ901 - naive ones travel too
        dt.datetime(2025, 10, 26, 2, 30, tzinfo=ZoneInfo("Europe/Berlin")),
        dt.datetime(2025, 10, 26, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
        dt.time(1, 2, 3, 4, tzinfo=dt.UTC),
        dt.date.min,
        UUID(int=0),
        b"\x00\xff",
        "\x00",
        "\U0001f600",
        "",
        (),
        frozenset(),
        {"": {}},
        {1: "a", "1": "b", (1,): "c", None: "d"},
        [[[[]]]],
        Colour.ODD,
        Rights(0),
        {"__type__": "datetime", "value": "2020-01-01"},
        {"__class__": "os.system", "$ref": 1, "py/object": "x"},
    ],
    ids=named,
)
def test_edges_arrive_unchanged(value: Any) -> None:
    assert same(decode_value(encode_value(value)), value)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def containing_itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


Point = namedtuple("Point", "x y")


@pytest.mark.behaviour(14)
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (object(), r"^result is a builtins\.object, which cannot travel"),
        (lambda: None, r"^result is a builtins\.function"),
        (print, r"^result is a builtins\.builtin_function_or_method"),
        ((n for n in "ab"), r"^result is a builtins\.generator"),
        (sys.stdin, "^result is a .*, which cannot travel"),
        (int, r"^result is a builtins\.type"),
        (1j, r"^result is a builtins\.complex"),
        (range(3), r"^result is a builtins\.range"),
        (bytearray(b"x"), r"^result is a builtins\.bytearray"),
        (Point(1, 2), r"^result is a tests\.core\.test_codec\.Point"),
        (OrderedDict(), r"^result is a collections\.OrderedDict"),
        (Counter(), r"^result is a collections\.Counter"),
        (ValueError("x"), r"^result is a builtins\.ValueError"),
        (float("nan"), "^result is nan"),
        (Decimal("NaN"), "^result cannot travel: .*a nan"),
        (Decimal("sNaN"), "^result cannot travel: .*a nan"),
        ("\ud800", "^result is text with a lone surrogate at 0"),
        (10**4001, "^result cannot travel: .*too long a number"),
        ([1, {"a": (2, {3: object()})}], r"^result\[1\]\.a\[1\]\.3 is a builtins\.object"),
        ({object(): 1}, r"^result \(key .*\) is a builtins\.object"),
        ({"\udc00": 1}, "^result is text with a lone surrogate"),
        ({1, Point(1, 2)}, r"^result\[\d\] is a tests\.core\.test_codec\.Point"),
        (nested(MAX_DEPTH + 2), f"is nested deeper than {MAX_DEPTH}, or contains itself"),
        (containing_itself(), f"is nested deeper than {MAX_DEPTH}, or contains itself"),
        ([[] for _ in range(MAX_ITEMS + 1)], f"more than {MAX_ITEMS} containers"),
    ],
    ids=named,
)
def test_anything_else_is_refused_with_its_path(value: Any, text: str) -> None:
    with pytest.raises(EncodeError, match=text) as error:
        encode_value(value)
    assert isinstance(error.value, TypeError)
    assert len(str(error.value)) < 500


@pytest.mark.behaviour(14)
def test_an_enum_of_a_function_is_refused_and_one_the_worker_lacks_is_no_import() -> None:
    class Local(enum.Enum):
        ONE = 1

    with pytest.raises(EncodeError, match="an enum made in a function"):
        encode_value(Local.ONE)
    foreign = msgspec.msgpack.encode(msgspec.msgpack.Ext(10, msgspec.msgpack.encode(["antigravity.Enum", "X"])))
    with pytest.raises(DecodeError, match=r"no enum 'antigravity\.Enum' is defined"):
        decode_value(foreign)
    assert "antigravity" not in sys.modules


# ---- own types


@pytest.mark.behaviour(14)
def test_own_types_travel_once_they_are_registered_and_their_subclasses_with_them() -> None:
    money = Money(Decimal("1.50"), "EUR")
    assert decode_value(encode_value({"price": [money]})) == {"price": [money]}
    assert decode_value(encode_value(Price(Decimal(1), "EUR"))) == Money(Decimal(1), "EUR")


@pytest.mark.behaviour(14)
def test_two_types_cannot_share_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "_custom_by_name", codec._custom_by_name.copy())
    monkeypatch.setattr(codec, "_custom_by_class", codec._custom_by_class.copy())
    register_type(Money, str, str, name="shop.Money")
    register_type(Money, str, str, name="shop.Money")
    with pytest.raises(ValueError, match=r"a type named 'shop\.Money' is registered already"):
        register_type(Point, str, str, name="shop.Money")


@pytest.mark.behaviour(14)
def test_a_type_the_worker_lacks_or_that_decodes_badly_is_a_decode_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "_custom_by_name", codec._custom_by_name.copy())
    packed = encode_value(Money(Decimal(1), "EUR"))
    del codec._custom_by_name[f"{__name__}.Money"]
    with pytest.raises(DecodeError, match=r"no type '.*Money' is registered in this process"):
        decode_value(packed)


@pytest.mark.behaviour(14)
def test_a_type_whose_decoding_does_io_is_not_decoded_on_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "_custom_by_name", codec._custom_by_name.copy())
    monkeypatch.setattr(codec, "_custom_by_class", codec._custom_by_class.copy())
    register_type(Point, lambda point: [point.x, point.y], lambda pair: Point(*pair), blocking=True)
    packed = encode_arguments((Point(1, 2),), {})
    with pytest.raises(codec.NeedsThread):
        decode_arguments(packed, blocking=False)
    assert decode_arguments(packed) == ([Point(1, 2)], {})


# ---- bytes that are not ours

HOSTILE = [
    b"",
    b"\x00",
    b"\xc1",
    b"\xff" * 1024,
    b"\x92\x90",
    b"\x92\x90\x80\x00",
    b"\xdd\x7f\xff\xff\xff",
    b"\xdf\x7f\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\x91" * 100_000,
    b"\x92" + b"\x91" * 70 + b"\x90" + b"\x80",
    b"\x81\xa1a" * 70 + b"\x90",
    msgspec.msgpack.encode([1, 2]),
    msgspec.msgpack.encode([[], {1: 2}]),
    msgspec.msgpack.encode([[], {}, []]),
    msgspec.msgpack.encode([{}, []]),
    msgspec.msgpack.encode([[0] * (MAX_ITEMS + 1), {}]),
    *(
        msgspec.msgpack.encode([[msgspec.msgpack.Ext(code, data)], {}])
        for code in (1, 4, 5, 6, 7, 10, 11, 12, 20, 99)
        for data in (b"", b"\xff\xfe", b"nonsense", b"\x94\x01\x02\x03", b"\x92\xa1x\x91")
    ),
    msgspec.msgpack.encode([[msgspec.msgpack.Ext(7, msgspec.msgpack.encode([[1]]))], {}]),
    msgspec.msgpack.encode([[msgspec.msgpack.Ext(11, b"9" * 5000)], {}]),
    *(
        msgspec.msgpack.encode([[msgspec.msgpack.Ext(1, b"2020-01-01T00:00:00|0|" + zone)], {}])
        for zone in (
            b"../../../etc/passwd",
            b"/etc/passwd",
            b"antigravity/x",
            b"this",
            b"tzdata.zoneinfo",
            b"\x00",
            b"a" * 9000,
        )
    ),
    msgspec.msgpack.encode(
        [[msgspec.msgpack.Ext(10, msgspec.msgpack.encode(["tests.core.test_codec.Colour", "x"]))], {}]
    ),
]


@pytest.mark.behaviour(14)
@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("data", HOSTILE, ids=lambda data: f"{len(data)}:{data[:12].hex()}")
def test_bytes_that_are_not_arguments_are_one_decode_error(data: bytes, blocking: bool) -> None:
    with pytest.raises(DecodeError):
        decode_arguments(data, blocking=blocking)


@pytest.mark.behaviour(14)
@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200))
def test_no_bytes_at_all_make_decoding_raise_anything_else(data: bytes) -> None:
    try:
        decode_arguments(data)
    except DecodeError:
        pass


@pytest.mark.behaviour(14)
def test_nesting_through_extensions_is_bounded_too() -> None:
    data = msgspec.msgpack.encode(1)
    for _ in range(500):
        data = msgspec.msgpack.encode(msgspec.msgpack.Ext(9, b"\x91" + data))
    with pytest.raises(DecodeError):
        decode_value(data)


@pytest.mark.behaviour(14)
def test_decoding_hostile_bytes_imports_opens_and_starts_nothing() -> None:
    events: list[str] = []
    watching = True

    def watch(event: str, args: object) -> None:
        if watching and event.partition(".")[0] in ("import", "exec", "open", "subprocess", "os", "socket", "compile"):
            events.append(f"{event}{args!r:.100}")

    for data in HOSTILE:  # Once for what Python itself imports lazily, such as a codec.
        with pytest.raises(DecodeError):
            decode_arguments(data)
    sys.addaudithook(watch)
    try:
        for data in HOSTILE:
            with pytest.raises(DecodeError):
                decode_arguments(data)
    finally:
        watching = False
    assert events == []
