"""Task functions keep their parameters and results. Lines with `# E:` must be refused, with these words."""

from __future__ import annotations

from typing import assert_type

from asynctasq import TaskFunction, dispatch_many, dispatch_many_sync, task
from asynctasq.tasks import FunctionTask


@task
async def add(a: int, b: int = 0) -> int:
    return a + b


@task(queue="slow", max_attempts=5, timeout=30, retry_strategy="fixed", priority=3)
def join(parts: list[str], *, by: str = ", ") -> str:
    return by.join(parts)


@task(process=True, name="shop.tasks.crunch", aliases=("shop.tasks.old",))
def crunch() -> None: ...


assert_type(add(1), FunctionTask[int])
assert_type(add(1, b=2), FunctionTask[int])
assert_type(join(["a"], by="-"), FunctionTask[str])
assert_type(crunch(), FunctionTask[None])
assert_type(add, TaskFunction[..., int])  # E: Expression is of type

add("1")  # E: Argument 1 to "__call__" of "TaskFunction" has incompatible type "str"; expected "int"
add()  # E: Missing positional argument "a"
add(1, 2, 3)  # E: Too many arguments
add(1, c=3)  # E: Unexpected keyword argument "c"
join(["a"], "-")  # E: Too many positional arguments
join(by="-")  # E: Missing positional argument "parts"


@task(queue=5)  # E: No overload variant of "task" matches
def wrong_queue() -> None: ...


@task(retry_strategy="linear")  # E: No overload variant of "task" matches
def wrong_strategy() -> None: ...


@task(max_attempt=5)  # E: Unexpected keyword argument "max_attempt"
def unknown_option() -> None: ...


async def dispatching() -> None:
    assert_type(await add(1).dispatch(), str)
    assert_type(add(1).dispatch_sync(), str)
    assert_type(await add(1).delay(5).on_queue("q").timeout(None).dispatch(), str)
    assert_type(await dispatch_many([add(1), join(["a"])]), list[str])
    assert_type(dispatch_many_sync([crunch()]), list[str])
    await add.func(1, b="2")  # E: Argument "b" has incompatible type "str"; expected "int"
    assert_type(add.task_name, str)
    add(1).delay("5")  # E: Argument 1 to "delay" of "BaseTask" has incompatible type "str"; expected "float"
    add(1).on_queue(5)  # E: Argument 1 to "on_queue" of "BaseTask" has incompatible type "int"; expected "str"
    add(1).max_attempts(None)  # E: Argument 1 to "max_attempts" of "BaseTask" has incompatible type "None"
    add.dispatch()  # E: "TaskFunction[[int, int], int]" has no attribute "dispatch"
    await dispatch_many([add])  # E: List item 0 has incompatible type
