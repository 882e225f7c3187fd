"""Tasks as classes: how they are made, what travels, and their hooks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import field
from typing import Any, ClassVar

import pytest

import asynctasq
from asynctasq import AsyncProcessTask, AsyncTask, SyncProcessTask, SyncTask, TaskConfig, tasks
from asynctasq.core import registry
from asynctasq.errors import DuplicateTask, TaskTimeout
from asynctasq.tasks import BaseTask
from asynctasq.testing import captured, inline
from tests.app import App

seen: list[Any] = []


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    seen.clear()


class Plain(AsyncTask[None]):
    """Its keyword arguments become attributes."""

    async def execute(self) -> None:
        seen.append((self.a, self.b))  # type: ignore[attr-defined]


class Fields(SyncTask[str]):
    path: str
    size: int = 200
    tags: list[str] = []
    extra: dict[str, int] = field(default_factory=dict)
    count: ClassVar[int] = 3

    def execute(self) -> str:
        seen.append((self.path, self.size, self.tags, self.extra))
        self.tags.append("used")
        return self.path


class OwnInit(AsyncTask[None]):
    def __init__(self, number: int, *, factor: int = 2) -> None:
        super().__init__()
        self.product = number * factor

    async def execute(self) -> None:
        seen.append(self.product)


@pytest.mark.behaviour(10)
def test_the_four_kinds_are_importable_from_both_places() -> None:
    for name in ("AsyncTask", "SyncTask", "AsyncProcessTask", "SyncProcessTask", "TaskConfig", "task"):
        assert getattr(asynctasq, name) is getattr(tasks, name)
    for kind in (AsyncTask, SyncTask, AsyncProcessTask, SyncProcessTask):
        assert issubclass(kind, BaseTask)


@pytest.mark.behaviour(10)
async def test_keyword_arguments_become_attributes(app: App) -> None:
    call = Plain(a=1, b=[2])
    assert call.a == 1  # type: ignore[attr-defined]
    assert type(await call.dispatch()) is str
    await app.work(1)
    assert seen == [(1, [2])]


@pytest.mark.behaviour(10)
async def test_annotated_fields_work_like_a_dataclass_s(app: App) -> None:
    app.configure(keep_completed_tasks=True)
    first = await Fields("a.png", extra={"x": 1}).dispatch()
    await Fields(path="b.png", size=0, tags=["t"]).dispatch()
    await app.work(2, concurrency=1)
    assert seen == [("a.png", 200, ["used"], {"x": 1}), ("b.png", 0, ["t", "used"], {})]
    assert await app.result(first) == "a.png"
    assert Fields("c.png").tags == []


@pytest.mark.behaviour(10)
@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Fields(), "Fields misses a value for its field 'path'"),
        (lambda: Fields("a", 1, [], {}, 5), "Fields takes 4 arguments, 5 were given"),
        (lambda: Fields("a", path="b"), "Fields got two values for 'path'"),
        (lambda: Fields("a", colour=1), "Fields has no field 'colour'"),
        (lambda: Plain(1), "Plain has no annotated fields and takes keyword arguments only"),
        (
            lambda: OwnInit(),  # type: ignore[call-arg]
            "missing 1 required positional argument: 'number'",
        ),
    ],
)
def test_wrong_arguments_are_a_type_error(make: Callable[[], object], text: str) -> None:
    with pytest.raises(TypeError, match=text):
        make()


@pytest.mark.behaviour(10)
async def test_with_an_own_constructor_what_it_was_given_travels(app: App) -> None:
    await OwnInit(5, factor=3).dispatch()
    await OwnInit(number=4).dispatch()
    await app.work(2, concurrency=1)
    assert seen == [15, 8]


@pytest.mark.behaviour(10)
def test_fields_are_inherited_and_may_get_a_default(embedded: App) -> None:
    class Larger(Fields):
        path: str = "default.png"
        depth: int = 1

        def execute(self) -> str:
            return f"{self.path}/{self.size}/{self.depth}"

    with inline() as ran:
        assert ran.result(Larger(depth=2).dispatch_sync()) == "default.png/200/2"
        assert ran.result(Larger("x", 1).dispatch_sync()) == "x/1/1"


@pytest.mark.behaviour(10)
@pytest.mark.parametrize(
    "name",
    [
        "dispatch",
        "delay",
        "config",
        "run",
        "execute",
        "failed",
        "should_retry",
        "current_attempt",
        "_private",
    ],
)
def test_reserved_names_and_leading_underscores_are_refused_for_classes(name: str) -> None:
    reason = "begins with an underscore" if name.startswith("_") else "is reserved"
    with pytest.raises(ValueError, match=f"Plain: the argument name '{name}' {reason}; choose another"):
        Plain(**{name: 1})


@pytest.mark.behaviour(10)
def test_a_reserved_field_is_refused_where_the_class_is_defined() -> None:
    with pytest.raises(ValueError, match="Bad: the argument name 'dispatch' is reserved"):
        type("Bad", (SyncTask,), {"__annotations__": {"dispatch": int}, "execute": print, "__module__": __name__})
    with pytest.raises(ValueError, match="Bad: the argument name '_x' begins with an underscore"):
        type("Bad", (SyncTask,), {"__annotations__": {"_x": int}, "execute": print, "__module__": __name__})


@pytest.mark.behaviour(17)
def test_a_class_may_have_a_name_and_aliases() -> None:
    class Named(SyncTask[None], name="shop.tasks.Named", aliases=("shop.tasks.Older",)):
        def execute(self) -> None: ...

    assert Named.task_name == "shop.tasks.Named"
    older: Any = registry.get("shop.tasks.Older")
    assert older is Named
    assert Plain.task_name == f"{__name__}.Plain"
    with pytest.raises(DuplicateTask):

        class Other(SyncTask[None], name="shop.tasks.Older"):
            def execute(self) -> None: ...


@pytest.mark.behaviour(10)
def test_a_class_without_execute_is_a_base_and_no_task() -> None:
    class Base(SyncTask[None]):
        where: str

    assert f"{__name__}.{Base.__qualname__}" not in registry.names()


@pytest.mark.behaviour(9)
async def test_the_chaining_methods_work_although_the_class_sets_attributes_of_their_names(app: App) -> None:
    class Both(SyncTask[None]):
        timeout = 30  # type: ignore[assignment]
        max_attempts = 4  # type: ignore[assignment]
        queue = "own"
        number: int = 1

        def execute(self) -> None:
            seen.append(self.number)

    with captured() as dispatched:
        Both().dispatch_sync()
        call: Any = Both(number=2)  # The type checker sees the attributes alone.
        call.timeout(5).max_attempts(1).dispatch_sync()
    first, second = dispatched.messages
    assert (first.timeout, first.max_attempts, first.queue) == (30, 4, "own")
    assert (second.timeout, second.max_attempts, second.queue) == (5, 1, "own")


# ---- the running task


@pytest.mark.behaviour(13)
@pytest.mark.parametrize("kind", [AsyncTask, SyncTask])
async def test_current_attempt_counts_from_one(app: App, kind: Any) -> None:
    attempts: list[int] = []

    def fail(self: Any) -> None:
        attempts.append(self.current_attempt)
        if self.current_attempt < 3:
            raise OSError("not yet")

    async def fail_async(self: Any) -> None:
        fail(self)

    execute = fail_async if kind is AsyncTask else fail
    flaky = type("Flaky", (kind,), {"execute": execute, "__module__": __name__, "config": TaskConfig(max_attempts=5)})
    assert flaky().current_attempt == 0
    await flaky().dispatch()
    await app.work(3)
    assert attempts == [1, 2, 3]


# ---- hooks


class Hooks(AsyncTask[None]):
    """Fails, and tells what its hooks are told."""

    config = TaskConfig(max_attempts=3)
    retryable: bool = True

    async def execute(self) -> None:
        seen.append("execute")
        raise LookupError("nothing there")

    def should_retry(self, exception: BaseException) -> bool:
        seen.append(("should_retry", str(exception)))
        return self.retryable

    async def failed(self, exception: BaseException) -> None:
        await asyncio.sleep(0)
        seen.append(("failed", type(exception)))


@pytest.mark.behaviour(10)
async def test_hooks_are_asked_after_each_failure_and_told_once_when_it_is_final(app: App) -> None:
    id = await Hooks().dispatch()
    await app.work(3)
    asked = ["execute", ("should_retry", "nothing there")]
    assert seen == [*asked, *asked, "execute", ("failed", LookupError)]
    assert (await app.info(id)).status == "dead"


@pytest.mark.behaviour(10)
@pytest.mark.behaviour(18)
async def test_should_retry_false_ends_the_task_at_once(app: App) -> None:
    id = await Hooks(retryable=False).dispatch()
    await app.work(1)
    assert seen == ["execute", ("should_retry", "nothing there"), ("failed", LookupError)]
    info = await app.info(id)
    assert (info.status, info.attempt) == ("dead", 1)


@pytest.mark.behaviour(10)
async def test_a_sync_task_s_hooks_run_off_the_loop(embedded: App) -> None:
    threads: list[threading.Thread] = []

    class Sync(SyncTask[None]):
        def execute(self) -> None:
            raise LookupError

        def should_retry(self, exception: BaseException) -> bool:
            threads.append(threading.current_thread())
            return False

        def failed(self, exception: BaseException) -> None:
            threads.append(threading.current_thread())

    await Sync().dispatch()
    await embedded.work(1)
    assert len(threads) == 2
    assert threading.main_thread() not in threads


@pytest.mark.behaviour(10)
async def test_hooks_that_raise_harm_nothing(app: App, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(AsyncTask[None]):
        config = TaskConfig(max_attempts=2)

        async def execute(self) -> None:
            raise LookupError("the real one")

        def should_retry(self, exception: BaseException) -> bool:
            raise ValueError("a hook's own")

        def failed(self, exception: BaseException) -> None:
            raise asyncio.CancelledError

    id = await Broken().dispatch()
    worker = await app.work(2)
    info = await app.info(id)
    assert info.error is not None
    assert (info.status, info.attempt, info.error.message) == ("dead", 2, "the real one")
    assert (worker.retried, worker.dead) == (1, 1)
    assert "a hook of the task raised ValueError" in caplog.text


@pytest.mark.behaviour(10)
async def test_a_timeout_is_the_hooks_to_see(app: App) -> None:
    class Slow(AsyncTask[None]):
        config = TaskConfig(timeout=0.05, max_attempts=1)

        async def execute(self) -> None:
            await asyncio.sleep(30)

        def failed(self, exception: BaseException) -> None:
            seen.append(exception)

    await Slow().dispatch()
    await app.work(1)
    assert [type(one) for one in seen] == [TaskTimeout]
    assert "timeout of 0.05 s" in str(seen[0])


@pytest.mark.behaviour(10)
@pytest.mark.parametrize("kind", [AsyncTask, SyncTask])
async def test_a_constructor_that_raises_in_the_worker_is_a_failure_of_that_task(
    app: App, kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    armed = False

    def init(self: Any) -> None:
        if armed:
            raise LookupError("cannot be built")

    async def execute_async(self: Any) -> None: ...
    def execute(self: Any) -> None: ...

    fragile = type(
        "Fragile",
        (kind,),
        {"__init__": init, "execute": execute_async if kind is AsyncTask else execute, "__module__": __name__},
    )
    id = await fragile().max_attempts(1).dispatch()
    armed = True
    await app.work(1)
    info = await app.info(id)
    assert info.error is not None
    assert (info.status, info.error.type, info.error.message) == ("dead", "builtins.LookupError", "cannot be built")
