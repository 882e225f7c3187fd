"""The commands that are sent: keys, scripts, and how many go into one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    pass


CHUNK = 200
"""Most messages in one script, so that none holds the server up for more than a few milliseconds."""

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
Command = tuple[Any, ...]
Place = tuple[str, str]
"""An id and its queue."""

_SCRIPTS = {path.stem: path.read_text("utf-8") for path in Path(__file__).with_name("lua").glob("*.lua")}
SHA = {name: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest() for name, text in _SCRIPTS.items()}
LOAD: list[Command] = [("SCRIPT", "LOAD", text) for text in _SCRIPTS.values()]
QUEUES = "asynctasq:queues"
SUSPECTS = "suspects"


def base_key(queue: str) -> str:
    return f"asynctasq:{{{queue}}}"


def stream_key(queue: str, stream: str) -> str:
    return f"asynctasq:{{{queue}}}:stream:{stream}"


def evalsha(name: str, queue: str, *arguments: Any) -> Command:
    return ("EVALSHA", SHA[name], 1, base_key(queue), *arguments)


def chunks(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    found: dict[K, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def to_text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
