"""A task's arguments as people may see them: nothing is run, fetched or imported, and what names a secret is masked."""

from __future__ import annotations

import re
from typing import Any

from asynctasq.core import codec, message
from asynctasq.errors import DecodeError

SECRET = re.compile(r"passw|passphrase|token|secret|authorization|api_?key|credential|private_?key", re.IGNORECASE)
"""What is passed under a name like this is not shown."""


def describe_arguments(payload: bytes) -> str:
    """The call that a stored message stands for; a note with its size where it cannot be read."""
    try:
        args, kwargs = codec.decode_for_display(message.decode(payload).body)
    except DecodeError as exc:
        return f"<{len(payload)} bytes, not shown: {exc}>"
    shown = [repr(_masked(value)) for value in args]
    shown += [f"{name}={_masked(value, name)!r}" for name, value in kwargs.items()]
    return ", ".join(shown)


class _Mask:
    def __repr__(self) -> str:
        return "***"


def _masked(value: Any, name: object = "") -> Any:
    """``value`` with everything under a secret's name replaced."""
    if isinstance(name, str) and SECRET.search(name):
        return _Mask()
    if isinstance(value, dict):
        return {key: _masked(item, key) for key, item in value.items()}
    if isinstance(value, list | tuple) and not isinstance(value, codec.Shown):
        return type(value)(_masked(item) for item in value)
    return value
