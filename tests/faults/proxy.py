"""A proxy that lets the server do what it is asked, and keeps the answer."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import suppress
from importlib import resources

from tests.drivers.places import Proxy

DOES = 0.2
"""Seconds that a server is given to do what it was asked."""


class Deaf(Proxy):
    """Once ``marker`` has passed, no answer is heard any more, and shortly after all connections break."""

    marker: bytes | None = None

    @property
    def heard(self) -> bool:
        """Whether the marker has passed."""
        return self.marker is None

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                await gate.wait()
                breaking = gate is self.requests and self.marker is not None and self.marker in data
                if breaking:
                    self.marker = None
                    self.replies.clear()
                writer.write(data)
                await writer.drain()
                if breaking:
                    await asyncio.sleep(DOES)
                    self.cut()
                    self.heal()
        writer.transport.abort()


def marker(driver: str, call: str) -> bytes:
    """What is in the first request of a connection for that call: ``enqueue`` or ``ack``."""
    if driver == "mysql":
        return {"enqueue": b"INSERT INTO", "ack": b"DELETE t"}[call]
    if driver == "postgres":
        return {"enqueue": b"WITH fresh AS", "ack": b"DELETE FROM"}[call]
    script = resources.files("asynctasq.drivers.redis").joinpath("lua").joinpath(f"{call}.lua").read_text("utf-8")
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest().encode()
