"""Task classes, hooks, options, workers, emitters: what a strictly typed project writes."""

from __future__ import annotations

from typing import assert_type

import asynctasq
from asynctasq import AsyncTask, Config, Repository, SyncProcessTask, SyncTask, TaskConfig, Worker, current_task
from asynctasq.core.events import EventEmitter, EventType, LoggingEventEmitter, TaskEvent, WorkerEvent


class Thumbnail(SyncProcessTask[str]):
    config = TaskConfig(queue="images", visibility_timeout=120)
    path: str
    size: int = 200

    def execute(self) -> str:
        return f"{self.path} {self.size} {self.current_attempt}"


class Welcome(AsyncTask[None]):
    config: TaskConfig = {"queue": "emails", "max_attempts": 5, "timeout": None}

    def __init__(self, user: int) -> None:
        super().__init__()
        self.user = user

    async def execute(self) -> None: ...

    def should_retry(self, exception: BaseException) -> bool:
        return not isinstance(exception, LookupError)

    async def failed(self, exception: BaseException) -> None: ...


class Plain(SyncTask[int]):
    def execute(self) -> int:
        return 1

    def failed(self, exception: BaseException) -> None: ...


class WrongOption(SyncTask[None]):
    config: TaskConfig = {"max_attempt": 5}  # E: Extra key "max_attempt" for TypedDict "TaskConfig"

    def execute(self) -> None: ...


class WrongHook(SyncTask[None]):
    def execute(self) -> None: ...

    def should_retry(self, exception: BaseException) -> str:  # E: incompatible with return type "bool"
        return ""


class Counting(EventEmitter):
    async def emit(self, event: TaskEvent | WorkerEvent) -> None:
        assert_type(event.type, EventType)


TaskConfig(retry_strategy="linear")  # E: Incompatible types (expression has type
Welcome("5")  # E: Argument 1 to "Welcome" has incompatible type "str"; expected "int"
Counting().emit(5)  # E: Argument 1 to "emit" of "Counting" has incompatible type "int"

asynctasq.init({"driver": "redis"}, [LoggingEventEmitter(), Counting()])
asynctasq.init(driver="redis", redis_db=1)
asynctasq.init(event_emitters=[print])  # E: List item 0 has incompatible type


async def use() -> None:
    assert_type(await Thumbnail(path="a", size=1).on_queue("q").dispatch(), str)
    assert_type(Welcome(5).delay(1.5), Welcome)
    assert_type(Plain().dispatch_sync(), str)
    assert_type(Config.get().driver, str)
    assert_type(Config.get().default_timeout, float | None)
    assert_type(asynctasq.repository(), Repository)
    current = current_task()
    assert_type(current, asynctasq.CurrentTask | None)
    print(current.id)  # E: Item "None" of "CurrentTask | None" has no attribute "id"
    worker = Worker(queues=["a"], concurrency=5, max_tasks=1, heartbeat_interval=5.0)
    await worker.start()
    Worker(concurrency="5")  # E: Argument "concurrency" to "Worker" has incompatible type "str"; expected "int"
