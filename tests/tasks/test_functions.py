"""``@task``: what it makes of a function, and its options."""

from __future__ import annotations

import functools
from typing import Any

import pytest

import asynctasq
from asynctasq import TaskFunction, task
from asynctasq.core import codec, registry
from asynctasq.errors import DuplicateTask, UnknownOption
from asynctasq.testing import captured
from tests.app import App


@pytest.mark.behaviour(8)
async def test_calling_a_task_builds_it_and_dispatching_runs_it_later(app: App) -> None:
    runs: list[Any] = []

    @task
    async def add(a: int, b: int = 0) -> int:
        runs.append((a, b))
        return a + b

    call = add(1, b=2)
    assert runs == []
    id = await call.dispatch()
    assert type(id) is str
    assert runs == []
    await app.work(1)
    assert runs == [(1, 2)]


@pytest.mark.behaviour(8)
async def test_the_plain_function_stays_reachable(embedded: App) -> None:
    @task(queue="elsewhere")
    async def add(a: int, b: int = 0) -> int:
        """Adds."""
        return a + b

    assert await add.func(1, b=2) == 3
    assert (add.__name__, add.__doc__, add.__module__) == ("add", "Adds.", __name__)
    assert isinstance(add, TaskFunction)
    assert "add" in repr(add)


@pytest.mark.behaviour(8)
def test_every_option_of_the_decorator_reaches_the_message(embedded: App) -> None:
    @task(
        queue="slow",
        max_attempts=7,
        retry_delay=1.5,
        retry_strategy="exponential",
        timeout=9,
        visibility_timeout=11,
        correlation_id="corr",
        priority=5,
    )
    def work() -> None: ...

    with captured() as dispatched:
        work().dispatch_sync()
    (message,) = dispatched.messages
    assert (message.queue, message.max_attempts, message.retry_delay) == ("slow", 7, 1.5)
    assert (message.retry_strategy, message.timeout, message.visibility_timeout) == ("exponential", 9, 11)
    assert (message.correlation_id, message.priority) == ("corr", 5)


@pytest.mark.behaviour(8)
@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {}), ((1, 2, 3), {}), ((1,), {"c": 3}), ((1,), {"a": 1})],
)
async def test_wrong_arguments_are_a_type_error_at_dispatch_and_nothing_is_sent(
    embedded: App, args: Any, kwargs: Any
) -> None:
    @task
    async def add(a: int, b: int = 0) -> int:
        return a + b

    call: Any = add
    with pytest.raises(TypeError, match="add: "):
        await call(*args, **kwargs).dispatch()
    with pytest.raises(TypeError, match="add: "):
        call(*args, **kwargs).dispatch_sync()
    with pytest.raises(TypeError, match="add: "):
        await asynctasq.dispatch_many([add(1), call(*args, **kwargs)])
    assert await embedded.counts() == {}


@pytest.mark.behaviour(10)
async def test_function_tasks_take_any_parameter_name(app: App) -> None:
    seen: list[Any] = []

    @task
    async def odd(self: int, dispatch: int, args: int, kwargs: int, func: int, cls: int, *, _private: int) -> None:
        seen.append((self, dispatch, args, kwargs, func, cls, _private))

    call: Any = odd
    await call(1, 2, 3, 4, 5, 6, _private=7).dispatch()
    await call(self=1, dispatch=2, args=3, kwargs=4, func=5, cls=6, _private=7).dispatch()
    await app.work(2)
    assert seen == [(1, 2, 3, 4, 5, 6, 7)] * 2


@pytest.mark.behaviour(8)
async def test_star_arguments_and_keyword_only_ones_arrive(embedded: App) -> None:
    seen: list[Any] = []

    @task
    def everything(a: int, /, b: int, *more: int, c: int, **named: int) -> None:
        seen.append((a, b, more, c, named))

    everything(1, 2, 3, 4, c=5, d=6, e=7).dispatch_sync()
    await embedded.work(1)
    assert seen == [(1, 2, (3, 4), 5, {"d": 6, "e": 7})]


@pytest.mark.behaviour(8)
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_attempts": 0}, "max_attempts must be positive"),
        ({"max_attempts": -1}, "max_attempts must be positive"),
        ({"max_attempts": "3"}, "max_attempts must be int, not str"),
        ({"max_attempts": True}, "max_attempts must be int, not bool"),
        ({"retry_delay": -1}, "retry_delay must be non-negative"),
        ({"retry_delay": float("nan")}, "retry_delay must be non-negative"),
        ({"retry_strategy": "linear"}, "retry_strategy must be 'fixed' or 'exponential'"),
        ({"timeout": 0}, "timeout must be positive"),
        ({"timeout": float("inf")}, "timeout must be positive"),
        ({"visibility_timeout": 0}, "visibility_timeout must be positive"),
        ({"visibility_timeout": None}, "visibility_timeout must be a number of seconds"),
        ({"queue": ""}, "queue must be 1 to 128"),
        ({"queue": "a b"}, "queue must be 1 to 128"),
        ({"priority": 101}, "priority must be between -100 and 100"),
        ({"correlation_id": ""}, "correlation_id must be text"),
        ({"driver": 5}, "driver must be"),
    ],
)
def test_a_wrong_option_is_named_where_the_task_is_defined(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"work: {text}"):

        @task(**options)
        def work() -> None: ...


@pytest.mark.behaviour(8)
def test_an_unknown_option_is_a_type_error_with_a_suggestion() -> None:
    options: Any = {"max_attempt": 3}
    with pytest.raises(TypeError, match=r"unknown option 'max_attempt'.*did you mean 'max_attempts'") as error:

        @task(**options)
        def work() -> None: ...

    assert isinstance(error.value, UnknownOption)


@pytest.mark.behaviour(8)
@pytest.mark.parametrize("wrong", [5, functools.partial(print), type("Callable", (), {"__call__": print})()])
def test_only_functions_can_be_decorated(wrong: Any) -> None:
    with pytest.raises(TypeError, match="@task decorates functions, not"):
        task(wrong)


# ---- names


@pytest.mark.behaviour(17)
def test_a_task_is_named_after_its_module_and_qualified_name_or_as_it_says() -> None:
    assert at_module_level.task_name == f"{__name__}.at_module_level"

    @task(name="shop.tasks.named")
    def other() -> None: ...

    assert other.task_name == "shop.tasks.named"
    assert registry.get("shop.tasks.named") is other


@task
def at_module_level() -> None: ...


@pytest.mark.behaviour(17)
def test_two_different_tasks_of_one_name_are_an_error_where_the_second_is_defined() -> None:
    @task(name="shop.tasks.twice")
    def first() -> None: ...

    with pytest.raises(DuplicateTask, match=r"two tasks are named 'shop\.tasks\.twice': .*first.*second"):

        @task(name="shop.tasks.twice")
        def second() -> None: ...

    with pytest.raises(DuplicateTask):

        class Third(asynctasq.SyncTask[None], name="shop.tasks.twice"):
            def execute(self) -> None: ...

    assert registry.get("shop.tasks.twice") is first


@pytest.mark.behaviour(17)
def test_a_reloaded_module_replaces_its_tasks() -> None:
    def define() -> TaskFunction[[], None]:
        @task(name="shop.tasks.reloaded")
        def again() -> None: ...

        return again

    define()
    second = define()
    assert registry.get("shop.tasks.reloaded") is second


@pytest.mark.behaviour(17)
async def test_a_renamed_task_still_runs_what_was_dispatched_under_its_old_name(app: App) -> None:
    runs: list[int] = []

    @task(name="shop.tasks.old_name")
    async def before(number: int) -> None: ...

    await before(5).dispatch()
    del registry._tasks["shop.tasks.old_name"]

    @task(name="shop.tasks.new_name", aliases=("shop.tasks.old_name",))
    async def after(number: int) -> None:
        runs.append(number)

    await app.work(1)
    assert runs == [5]


# ---- what may travel is checked at dispatch


@pytest.mark.behaviour(14)
async def test_what_cannot_travel_is_refused_at_dispatch_with_its_path(embedded: App) -> None:
    @task
    async def work(*args: Any, **kwargs: Any) -> None: ...

    with pytest.raises(TypeError, match=r"^kwargs\.cb is a builtins\.function"):
        await work(cb=lambda: None).dispatch()
    with pytest.raises(TypeError, match=r"^args\[1\]\.deep\[2\] is a builtins\.object"):
        work(1, {"deep": [0, 1, object()]}).dispatch_sync()
    assert await embedded.counts() == {}


@pytest.mark.behaviour(12)
async def test_a_result_is_kept_with_its_type(app: App) -> None:
    app.configure(keep_completed_tasks=True)

    @task
    async def pair() -> tuple[int, set[str]]:
        return 1, {"a"}

    id = await pair().dispatch()
    await app.work(1)
    assert await app.result(id) == (1, {"a"})


def test_the_codec_keeps_arguments_apart_from_each_other(embedded: App) -> None:
    @task
    def work(items: list[int]) -> None: ...

    items = [1]
    with captured() as dispatched:
        call = work(items)
        call.dispatch_sync()
        items.append(2)
        call.dispatch_sync()
    first, second = (codec.decode_arguments(message.body)[0] for message in dispatched.messages)
    assert (first, second) == ([[1]], [[1, 2]])
    assert dispatched.messages[0].id != dispatched.messages[1].id
