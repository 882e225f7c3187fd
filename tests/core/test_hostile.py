"""Messages that are none, exceptions that misbehave, results that cannot travel: the worker lives."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

import asynctasq
from asynctasq import task
from asynctasq.core.codec import encode_arguments
from asynctasq.core.message import Message, encode, new_id, utcnow
from asynctasq.core.outcome import MAX_ERROR_MESSAGE, MAX_TRACEBACK
from asynctasq.errors import BrokerUnavailable
from tests.app import App, Remembering, until
from tests.drivers.places import closed_port


def message(task: str = "shop.tasks.unknown", body: bytes = encode_arguments((), {}), **fields: Any) -> Message:
    given = {"id": new_id(), "created_at": utcnow(), "queue": "default", "retry_delay": 0.02, "retry_strategy": "fixed"}
    return Message(task=task, body=body, **{**given, **fields})


def altered(original: Message, **fields: Any) -> bytes:
    """The message with fields that its class would refuse."""
    plain: dict[str, Any] = msgspec.msgpack.decode(encode(original))
    plain.update(fields)
    return msgspec.msgpack.encode({name: value for name, value in plain.items() if value is not ...})


BAD_PAYLOADS: dict[str, Callable[[Message], bytes]] = {
    "empty": lambda m: b"",
    "one byte": lambda m: b"\x00",
    "1 MiB of 0xff": lambda m: b"\xff" * 2**20,
    "truncated": lambda m: encode(m)[:-3],
    "trailing bytes": lambda m: encode(m) + b"\x00",
    "deeply nested": lambda m: b"\x91" * 100_000,
    "huge array header": lambda m: b"\xdd\x7f\xff\xff\xff",
    "version 99": lambda m: altered(m, v=99),
    "no id": lambda m: altered(m, id=...),
    "id of 100 kB": lambda m: altered(m, id="x" * 100_000),
    "another id": lambda m: altered(m, id=new_id()),
    "another queue": lambda m: altered(m, queue="elsewhere"),
    "name of type int": lambda m: altered(m, task=5),
    "negative attempts": lambda m: altered(m, max_attempts=-1),
    "pickle": lambda m: pickle.dumps({"task": "os.system", "args": ["true"]}),
    "json": lambda m: b'{"task": "os.system", "args": ["true"]}',
    "markup": lambda m: b"<script>alert(1)</script>\r\n\x1b[31m",
}


@pytest.mark.behaviour(18)
async def test_what_is_no_message_is_buried_after_one_delivery_with_the_reason_and_its_bytes(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    for make in BAD_PAYLOADS.values():
        one = message()
        app.place.put(one, make(one))
    runs: list[int] = []

    @task
    async def innocent(number: int) -> None:
        runs.append(number)

    await asynctasq.dispatch_many([innocent(number) for number in range(5)])
    worker = await app.work(len(BAD_PAYLOADS) + 5)
    assert sorted(runs) == list(range(5))
    assert (worker.completed, worker.dead, worker.retried) == (5, len(BAD_PAYLOADS), 0)
    dead = (await asynctasq.repository().find(asynctasq.drivers.base.TaskQuery(limit=100))).items
    assert len(dead) == len(BAD_PAYLOADS)
    for info in dead:
        assert info.error is not None
        assert (info.status, info.error.type, info.attempt) == ("dead", "asynctasq.errors.DecodeError", 1)
        assert info.error.message
        assert len(info.error.message) < 500
    assert b"\xff" * 1000 in max((info.payload for info in dead), key=len)
    # One line of the log for each, whatever is in it.
    lines = [record.getMessage() for record in caplog.records if "failed for good" in record.getMessage()]
    assert len(lines) == len(BAD_PAYLOADS)
    assert not any(ord(character) < 32 for line in lines for character in line)


@pytest.mark.behaviour(18)
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_arguments_that_are_not_ours_are_buried_without_a_retry(app: App, kind: str) -> None:
    @task(name="shop.tasks.async")
    async def on_the_loop(*args: Any) -> None: ...

    @task(name="shop.tasks.sync")
    def off_the_loop(*args: Any) -> None: ...

    bodies = [b"", b"\xc1", b"\x91" * 1000, msgspec.msgpack.encode([1]), pickle.dumps(([], {}))]
    for body in bodies:
        one = message(f"shop.tasks.{kind}", body)
        app.place.put(one, encode(one))
    worker = await app.work(len(bodies))
    assert (worker.dead, worker.retried) == (len(bodies), 0)
    assert await app.counts() == {"dead": len(bodies)}


@pytest.mark.behaviour(18)
async def test_arguments_that_do_not_fit_the_task_are_its_failure(app: App) -> None:
    @task(name="shop.tasks.strict")
    async def strict(a: int) -> None: ...

    one = message("shop.tasks.strict", encode_arguments((1, 2), {"b": 3}), max_attempts=1)
    app.place.put(one, encode(one))
    await app.work(1)
    info = await app.info(one.id)
    assert info.error is not None
    assert (info.status, info.error.type) == ("dead", "builtins.TypeError")


NAMES = [
    "os.system",
    "__import__",
    "builtins.exec",
    "antigravity",
    "tests.jobs.note.func",
    "tests.jobs.__class__",
    "tests.jobs.note\n",
    "<script>alert(1)</script>",
    "x" * 255,
]


@pytest.mark.behaviour(17)
async def test_an_unknown_name_is_retried_then_buried_and_never_imported(app: App) -> None:
    assert "antigravity" not in sys.modules
    messages = [message(name, max_attempts=2) for name in NAMES]
    for one in messages:
        app.place.put(one, encode(one))
    worker = await app.work(2 * len(NAMES))
    assert (worker.retried, worker.dead) == (len(NAMES), len(NAMES))
    for one in messages:
        info = await app.info(one.id)
        assert info.error is not None
        assert (info.status, info.attempt, info.error.type) == ("dead", 2, "asynctasq.errors.UnknownTask")
        assert "is registered in this process" in info.error.message
    assert "antigravity" not in sys.modules


@pytest.mark.behaviour(17)
async def test_a_task_that_a_later_release_knows_is_run_by_it(app: App) -> None:
    """A rolling deploy: the old worker puts it off, the new one runs it."""
    one = message("shop.tasks.newer", max_attempts=5)
    app.place.put(one, encode(one))
    old = await app.work(1)
    assert old.retried == 1
    runs: list[int] = []

    @task(name="shop.tasks.newer")
    async def newer() -> None:
        runs.append(1)

    await app.work(1)
    assert runs == [1]


@pytest.mark.behaviour(17)
async def test_fields_of_a_newer_release_are_ignored(app: App) -> None:
    runs: list[int] = []

    @task(name="shop.tasks.today")
    async def today() -> None:
        runs.append(1)

    one = message("shop.tasks.today")
    app.place.put(one, altered(one, colour="red", nested={"deep": [1]}))
    await app.work(1)
    assert runs == [1]


# ---- exceptions


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class VeryOddError(BaseException):
    """Not even an Exception."""


def cyclic() -> Exception:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    return first


def deep() -> Exception:
    error = ValueError("0")
    for number in range(2_000):
        outer = ValueError(str(number))
        outer.__context__ = error
        error = outer
    return error


RAISED: dict[str, tuple[Callable[[], BaseException], str]] = {
    "str() raises": (lambda: UnprintableError(), f"{__name__}.UnprintableError"),
    "SystemExit": (lambda: SystemExit(1), "builtins.SystemExit"),
    "KeyboardInterrupt": (lambda: KeyboardInterrupt(), "builtins.KeyboardInterrupt"),
    "GeneratorExit": (lambda: GeneratorExit(), "builtins.GeneratorExit"),
    "StopIteration": (lambda: StopIteration(1), "builtins.StopIteration"),
    "StopAsyncIteration": (lambda: StopAsyncIteration(1), "builtins.StopAsyncIteration"),
    "CancelledError": (lambda: asyncio.CancelledError("own"), "asynctasq.errors.TaskCancelled"),
    "BaseException": (lambda: VeryOddError("odd"), f"{__name__}.VeryOddError"),
    "MemoryError": (lambda: MemoryError(), "builtins.MemoryError"),
    "RecursionError": (lambda: RecursionError("deep"), "builtins.RecursionError"),
    "100 MB": (lambda: ValueError("x" * 100_000_000), "builtins.ValueError"),
    "NUL and surrogate": (lambda: ValueError("a\x00b\ud800c"), "builtins.ValueError"),
    "cyclic causes": (cyclic, "builtins.ValueError"),
    "long chain": (deep, "builtins.ValueError"),
    "group of 10,000": (
        lambda: ExceptionGroup("g", [ValueError(str(n)) for n in range(10_000)]),
        "builtins.ExceptionGroup",
    ),
    "BrokerUnavailable": (lambda: BrokerUnavailable("the task's own"), "asynctasq.errors.BrokerUnavailable"),
    "ConfigurationError": (lambda: asynctasq.errors.ConfigurationError("x"), "asynctasq.errors.ConfigurationError"),
}


@pytest.mark.behaviour(18)
async def test_whatever_a_task_raises_is_recorded_and_the_worker_lives(app: App) -> None:
    @task(max_attempts=1)
    async def on_the_loop(what: str) -> None:
        raise RAISED[what][0]()

    @task(max_attempts=1)
    def off_the_loop(what: str) -> None:
        raise RAISED[what][0]()

    made = {(kind, what): await kind(what).dispatch() for kind in (on_the_loop, off_the_loop) for what in RAISED}
    worker = await app.work(len(made), within=60)
    assert (worker.dead, worker.retried, worker.completed) == (len(made), 0, 0)
    for (kind, what), id in made.items():
        info = await app.info(id)
        assert info.error is not None
        expected = RAISED[what][1]
        if what in ("StopIteration", "StopAsyncIteration") and kind is on_the_loop and "Async" not in what:
            expected = "builtins.RuntimeError"  # So Python itself has it for coroutines.
        assert (info.status, info.error.type) == ("dead", expected), what
        assert len(info.error.message) <= MAX_ERROR_MESSAGE
        assert len(info.error.traceback) <= MAX_TRACEBACK
    first = (await app.info(made[on_the_loop, "str() raises"])).error
    assert first is not None
    assert first.message == "<str() of this error raised RuntimeError>"


@pytest.mark.behaviour(18)
async def test_a_task_that_cancels_itself_or_its_children_hits_nobody_else(app: App) -> None:
    @task(max_attempts=1)
    async def cancel_self() -> None:
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        await asyncio.sleep(5)

    @task
    async def cancel_self_and_return() -> None:
        current = asyncio.current_task()
        assert current is not None
        current.cancel()

    @task
    async def cancel_child() -> None:
        child = asyncio.create_task(asyncio.sleep(5))
        child.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await child

    ids = await asynctasq.dispatch_many([cancel_self(), cancel_child(), cancel_self_and_return()])
    worker = await app.work(3)
    assert (worker.completed, worker.dead) == (2, 1)
    info = await app.info(ids[0])
    assert info.error is not None
    assert info.error.type == "asynctasq.errors.TaskCancelled"


@pytest.mark.behaviour(10)
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, UnprintableError])
async def test_whatever_a_hook_raises_changes_nothing(app: App, error: type[BaseException]) -> None:
    class OnTheLoop(asynctasq.AsyncTask[None]):
        async def execute(self) -> None:
            raise LookupError("its own")

        def should_retry(self, exception: BaseException) -> bool:
            raise error

        async def failed(self, exception: BaseException) -> None:
            raise error

    class OffTheLoop(asynctasq.SyncTask[None]):
        def execute(self) -> None:
            raise LookupError("its own")

        def should_retry(self, exception: BaseException) -> bool:
            raise error

        def failed(self, exception: BaseException) -> None:
            raise error

    ids = [await kind().max_attempts(2).dispatch() for kind in (OnTheLoop, OffTheLoop)]
    worker = await app.work(4)
    assert (worker.retried, worker.dead) == (2, 2)
    for id in ids:
        info = await app.info(id)
        assert info.error is not None
        assert info.error.type == "builtins.LookupError"


@pytest.mark.behaviour(18)
async def test_a_task_that_raises_our_timeout_itself_is_an_ordinary_failure(app: App) -> None:
    @task(max_attempts=1)
    async def impatient() -> None:
        raise asynctasq.errors.TaskTimeout("its own")

    id = await impatient().dispatch()
    await app.work(1)
    info = await app.info(id)
    assert info.error is not None
    assert (info.error.type, info.error.message) == ("asynctasq.errors.TaskTimeout", "its own")


# ---- results


@pytest.mark.behaviour(12)
@pytest.mark.parametrize("keep", [True, False])
async def test_a_result_that_cannot_travel_is_not_kept_and_the_task_not_run_again(
    app: App, keep: bool, caplog: pytest.LogCaptureFixture
) -> None:
    remembering = Remembering()
    app.configure([remembering], keep_completed_tasks=keep)
    runs: list[str] = []

    @task
    async def on_the_loop() -> object:
        runs.append("async")
        return object()

    @task
    def off_the_loop() -> Iterator[int]:
        runs.append("sync")
        return iter(())

    ids = await asynctasq.dispatch_many([on_the_loop(), off_the_loop()])
    worker = await app.work(2)
    assert (sorted(runs), worker.completed, worker.retried) == (["async", "sync"], 2, 0)
    assert caplog.text.count("its result is not kept") == 2
    assert await app.counts() == ({"completed": 2} if keep else {})
    await until(lambda: all(len(remembering.of(id)) == 3 for id in ids))
    assert remembering.of(ids[0])[-1].result_size is None


# ---- secrets

CANARY = "c4n4ry"


@pytest.mark.behaviour(6)
async def test_no_secret_is_in_any_log_error_event_or_repr(app: App, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    shown = io.StringIO()
    remembering = Remembering()
    port = closed_port()

    @task(max_attempts=1)
    async def failing(password: str) -> None:
        raise LookupError("nothing there")

    others = {"mysql_password": CANARY, "postgres_password": CANARY, "aws_secret_access_key": CANARY}
    app.configure([remembering], **others)
    call = failing(CANARY)
    id = await call.dispatch()
    worker = await app.work(1)
    print(repr(call), repr(failing), repr(worker), repr(asynctasq.Config.get()), remembering.events, file=shown)
    print((await app.info(id)).error, file=shown)
    for options in (
        {"driver": "redis", "redis_url": f"redis://:{CANARY}@127.0.0.1:{port}"},
        {"driver": "postgres", "postgres_dsn": f"postgresql://test:{CANARY}@127.0.0.1:{port}/test_db"},
        {"driver": "postgres", "postgres_dsn": f"postgresql://127.0.0.1:{port}/d", "postgres_password": CANARY},
        {"driver": "mysql", "mysql_dsn": f"mysql://test:{CANARY}@127.0.0.1:{port}/test_db"},
        {"driver": "mysql", "mysql_dsn": f"mysql://test@127.0.0.1:{port}/d", "mysql_password": CANARY},
    ):
        asynctasq.init(options, [remembering])
        for dispatching in (failing("").dispatch(), asyncio.to_thread(failing("").dispatch_sync)):
            with pytest.raises(BrokerUnavailable) as error:
                await dispatching
            print(repr(error.value), error.value, error.value.__cause__, file=shown)
        print(repr(asynctasq.Config.get()), asynctasq.Config.get().masked(), file=shown)
    assert CANARY not in shown.getvalue()
    assert CANARY not in caplog.text


@pytest.mark.behaviour(18)
async def test_a_worker_leaves_no_thread_behind(app: App) -> None:
    @task
    def nothing() -> None: ...

    for _ in range(3):
        await asynctasq.dispatch_many([nothing() for _ in range(5)])
        await app.work(5)
    await asyncio.to_thread(asynctasq.shutdown)
    await until(lambda: not [one for one in threading.enumerate() if one.name.startswith("asynctasq")])
