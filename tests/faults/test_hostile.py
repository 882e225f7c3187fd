"""What nobody of ours wrote, straight in the broker, beside what we did."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from typing import Any

import msgspec

from asynctasq.core import codec
from asynctasq.core.message import Message, encode, new_id, utcnow
from asynctasq.errors import EncodeError
from tests.faults import tasks
from tests.faults.world import World

CANARY = "canary_of_the_faults"
NAP = "tests.faults.tasks.nap"
Ext = msgspec.msgpack.Ext


class Evil:
    def __reduce__(self) -> Any:
        return __import__, (CANARY,)


def sent(**fields: Any) -> Message:
    body = codec.encode_arguments(("never", 0.0), {})
    given = {"id": new_id(), "queue": "default", "task": NAP, "body": body, "created_at": utcnow(), "max_attempts": 1}
    return Message(**{**given, **fields})


def changed(message: Message, **fields: Any) -> bytes:
    """The message with fields that are not what they must be; None leaves one out."""
    plain = {**msgspec.msgpack.decode(encode(message)), **fields}
    return msgspec.msgpack.encode({name: value for name, value in plain.items() if value is not None})


def no_messages(message: Message) -> list[bytes]:
    """Bytes that are not the message they lie in the place of."""
    good = encode(message)
    return [
        b"",
        b"\x00",
        b"\xff" * (1 << 20),
        good[:-5],
        good + b"\x00",
        b"\x91" * 100_000 + b"\xc0",
        b"\xdd\x7f\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        pickle.dumps(Evil()),
        b"c__builtin__\neval\n(S'__import__(\"canary_of_the_faults\")'\ntR.",
        msgspec.json.encode({"task": f"{CANARY}.run", "id": message.id}),
        *(
            changed(message, **fields)
            for fields in (
                {"v": 99},
                {"id": None, "task": f"{CANARY}.run"},
                {"id": "x" * 10_000_000},
                {"id": new_id()},
                {"id": "one\ntwo"},
                {"queue": "another"},
                {"task": 7},
                {"task": ""},
                {"task": "t" * 256},
                {"body": "text"},
                {"max_attempts": 0},
                {"max_attempts": 2**40},
                {"priority": 1000},
                {"visibility_timeout": -1.0},
                {"visibility_timeout": float("nan")},
                {"retry_delay": float("inf")},
                {"timeout": 0},
                {"created_at": "yesterday"},
                {"created_at": Ext(20, msgspec.msgpack.encode([f"{CANARY}.Type", 1]))},
                {"retry_strategy": "\x00\x1b[2J\u202e<script>"},
                {"headers": {"deep": [[[[1]]]]}},
            )
        ),
    ]


def no_tasks() -> list[Message]:
    """Messages as we write them, but with names that are no task of this worker, or arguments that its task does not
    take: another worker, of another version, may run them, so they have as many attempts as any."""
    packed = msgspec.msgpack.encode
    names = ("os.system", "builtins.__import__", f"{CANARY}.run", f"{NAP}.__globals__", f"{NAP}\n", "\x1b[2J<i>\x00")
    bodies = (packed([["label", 0.0], {"seconds": 1}]), packed([["label"], {"__class__": 1, "no such": 2}]))
    return [*[sent(task=name) for name in names], *[sent(body=body) for body in bodies]]


def no_arguments() -> list[Message]:
    """Messages of a task with a body that is none."""
    packed = msgspec.msgpack.encode
    bodies = (
        b"",
        b"\x91" * 5_000 + b"\xc0",
        packed([[0] * 150_000, {}]),
        packed([[Ext(10, packed([f"{CANARY}.Colour", "RED"])), 0.0], {}]),
        packed([[Ext(20, packed([f"{CANARY}.Type", 1])), 0.0], {}]),
        packed([[Ext(5, b"NaN" * 100), 0.0], {}]),
        packed([[Ext(11, b"9" * 100_000), 0.0], {}]),
        packed([[Ext(1, b"2020-01-01|0|../../etc/passwd"), 0.0], {}]),
        packed([[Ext(99, b"?"), 0.0], {}]),
        pickle.dumps(Evil()),
    )
    return [sent(body=body, max_attempts=3) for body in bodies]


async def test_hostile_messages_end_in_the_dead_letters_after_one_delivery_and_import_nothing(
    world: World, tmp_path: Path
) -> None:
    (tmp_path / f"{CANARY}.py").write_text("raise SystemExit('imported')")
    search = {"PYTHONPATH": f"{world.environment()['PYTHONPATH']}:{tmp_path}", "FAULTS_CANARIES": CANARY}
    worker = world.spawn("--concurrency", "4", environment=search)
    await worker.ready()
    await world.dispatch([tasks.nap("before", 0.0)])
    written = 0
    for number in range(len(no_messages(sent()))):
        message = sent(max_attempts=3)
        world.place.put(message, no_messages(message)[number])
        written += 1
    for message in [*no_tasks(), *no_arguments()]:
        world.place.put(msgspec.structs.replace(message, task=NAP), encode(message))
        written += 1
    await world.dispatch([tasks.nap("after", 0.0)])
    assert await world.drained(within=20) == 0
    assert {line.label for line in world.ran.lines("end")} == {"before", "after"}
    dead = await world.dead()
    assert len(dead) == written
    for info in dead:
        assert info.error is not None
        assert info.error.type
        assert info.error.message
        assert info.attempt == 1
    assert worker.code is None
    assert "CANARY" not in worker.output
    assert "Traceback" not in worker.output
    assert "\x1b" not in worker.output


async def test_what_a_broker_cannot_store_is_refused_where_it_is_dispatched(world: World) -> None:
    call = tasks.nap("odd", 0.0).correlation_id("a\x00b")
    refused = False
    try:
        await asyncio.gather(call.dispatch(), tasks.nap("even", 0.0).dispatch())
    except EncodeError:
        refused = True
    assert refused == (world.place.name == "postgres")
    await world.working(1)
    await world.started("even")
    assert await world.drained() == 0
    assert bool(world.starts("odd")) != refused
