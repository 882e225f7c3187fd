"""Arguments as people may see them."""

from __future__ import annotations

from typing import Any

from asynctasq.core.codec import encode_arguments, register_type
from asynctasq.core.display import describe_arguments
from asynctasq.core.message import Message, encode, new_id, utcnow


def stored(*args: Any, **kwargs: Any) -> bytes:
    body = encode_arguments(args, kwargs)
    return encode(Message(id=new_id(), queue="q", task="t", body=body, created_at=utcnow()))


def test_a_call_is_shown_as_it_was_written() -> None:
    assert describe_arguments(stored(1, "two", {"three": [4]}, five=(6,))) == "1, 'two', {'three': [4]}, five=(6,)"


def test_what_is_passed_under_the_name_of_a_secret_is_masked_at_any_depth() -> None:
    payload = stored({"list": [{"API_KEY": "canary"}]}, password="canary", user={"auth_token": {"deep": "canary"}})
    shown = describe_arguments(payload)
    assert "canary" not in shown
    assert shown == "{'list': [{'API_KEY': ***}]}, password=***, user={'auth_token': ***}"


class Stored:
    """A type whose decoding must not run for display."""


def test_a_value_of_a_registered_type_is_shown_without_decoding_it() -> None:
    def decode(plain: Any) -> Stored:
        raise AssertionError("decoded for display")

    register_type(Stored, lambda value: ["shop", 7], decode, name="tests.stored", blocking=True)
    assert describe_arguments(stored(Stored(), n=1)) == "<tests.stored ['shop', 7]>, n=1"


def test_what_is_no_message_is_said_to_be_none() -> None:
    assert describe_arguments(b"\xff" * 10).startswith("<10 bytes, not shown: ")
