"""Where each kind of task runs, and what it knows of itself there."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import threading
from typing import Any

import pytest

from asynctasq import CurrentTask, current_task, task
from tests.app import App, until
from tests.jobs import Doubling, LoopOfChild, crunch, pid_of_child, record_of_child


@pytest.mark.behaviour(12)
async def test_async_functions_run_on_the_loop_and_sync_ones_off_its_thread(app: App) -> None:
    where: dict[str, tuple[threading.Thread, int]] = {}

    @task
    async def on_the_loop() -> None:
        asyncio.get_running_loop()
        where["async"] = threading.current_thread(), os.getpid()

    @task
    def off_the_loop() -> None:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        where["sync"] = threading.current_thread(), os.getpid()

    await on_the_loop().dispatch()
    await off_the_loop().dispatch()
    worker = await app.work(2)
    assert worker.completed == 2
    assert where["async"] == (threading.current_thread(), os.getpid())
    assert where["sync"][0] is not threading.current_thread()
    assert where["sync"][1] == os.getpid()


@pytest.mark.behaviour(12)
async def test_process_tasks_run_in_another_process(app: App, ledger: Any) -> None:
    app.configure(keep_completed_tasks=True, process_pool_size=1)
    ids = [
        await pid_of_child().dispatch(),
        await crunch(str(ledger), "one").dispatch(),
        await LoopOfChild().dispatch(),
        await Doubling(21).correlation_id("corr").dispatch(),
    ]
    await app.work(4)
    pids = {await app.result(ids[0]), await app.result(ids[1]), (await app.result(ids[2]))[0]}
    double = await app.result(ids[3])
    pids.add(double.pop("pid"))
    assert len(pids) == 1
    assert os.getpid() not in pids
    assert double == {"double": 42, "attempt": 1, "id": ids[3], "correlation_id": "corr"}


@pytest.mark.behaviour(13)
async def test_a_running_task_knows_who_it_is(app: App) -> None:
    found: dict[str, CurrentTask | None] = {}

    @task(queue="here", max_attempts=4, correlation_id="corr")
    async def on_the_loop() -> None:
        await asyncio.sleep(0)
        found["async"] = current_task()

    @task(queue="here")
    def off_the_loop() -> None:
        found["sync"] = current_task()

    assert current_task() is None
    first = await on_the_loop().dispatch()
    second = await off_the_loop().dispatch()
    await app.work(2, queues=["here"])
    assert found["async"] == CurrentTask(
        id=first, name=on_the_loop.task_name, queue="here", attempt=1, max_attempts=4, correlation_id="corr"
    )
    assert found["sync"] == CurrentTask(
        id=second, name=off_the_loop.task_name, queue="here", attempt=1, max_attempts=3, correlation_id=None
    )
    assert current_task() is None


@pytest.mark.behaviour(13)
async def test_child_tasks_inherit_the_correlation_id_unless_they_have_their_own(app: App) -> None:
    found: dict[str, str | None] = {}

    @task
    async def child(label: str) -> None:
        current = current_task()
        assert current is not None
        found[label] = current.correlation_id

    @task
    async def parent() -> None:
        await child("async").dispatch()
        await child("own").correlation_id("its own").dispatch()

    @task
    def sync_parent() -> None:
        child("sync").dispatch_sync()

    app.configure(correlation_id="from configuration")
    await parent().correlation_id("corr").dispatch()
    await sync_parent().correlation_id("corr").dispatch()
    await child("no parent").dispatch()
    await app.work(6)
    assert found == {"async": "corr", "own": "its own", "sync": "corr", "no parent": "from configuration"}


@pytest.mark.behaviour(13)
async def test_log_records_carry_the_running_task(app: App, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("shop")

    @task(correlation_id="corr")
    async def on_the_loop() -> None:
        logger.warning("from the loop")

    @task(correlation_id="corr")
    def off_the_loop() -> None:
        logger.warning("from a thread")

    ids = [await on_the_loop().dispatch(), await off_the_loop().dispatch()]
    await app.work(2)
    logger.warning("from outside")
    records: dict[str, Any] = {record.getMessage(): record for record in caplog.records if record.name == "shop"}
    names = [on_the_loop.task_name, off_the_loop.task_name]
    for text, id, name in zip(("from the loop", "from a thread"), ids, names, strict=True):
        record = records[text]
        assert (record.task_id, record.task_name, record.correlation_id) == (id, name, "corr")
    assert not hasattr(records["from outside"], "task_id")


@pytest.mark.behaviour(13)
async def test_log_records_of_a_process_task_carry_it_too(embedded: App) -> None:
    embedded.configure(keep_completed_tasks=True, process_pool_size=1)
    id = await record_of_child().correlation_id("corr").dispatch()
    await embedded.work(1)
    assert await embedded.result(id) == (id, record_of_child.task_name, "corr")


@pytest.mark.behaviour(13)
async def test_workers_that_end_in_any_order_leave_log_records_as_they_were(
    embedded: App, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("shop")
    before = logging.getLogRecordFactory()

    @task
    async def say() -> None:
        logger.warning("said")

    first, second = embedded.working(queues=["a"]), embedded.working(queues=["b"])
    await first.__aenter__()
    async with second:
        await say().on_queue("a").dispatch()
        await until(lambda: caplog.text.count("said") == 1)
        await first.__aexit__(None, None, None)
        await say().on_queue("b").dispatch()
        await until(lambda: caplog.text.count("said") == 2)
    said: list[Any] = [record for record in caplog.records if record.getMessage() == "said"]
    assert all(record.task_name == say.task_name for record in said)
    assert logging.getLogRecordFactory() is before


@pytest.mark.behaviour(13)
async def test_every_attempt_has_a_fresh_context(app: App) -> None:
    leaking: contextvars.ContextVar[str] = contextvars.ContextVar("leaking", default="clean")
    found: list[str] = []

    @task
    async def on_the_loop() -> None:
        found.append(leaking.get())
        leaking.set("dirty")

    @task
    def off_the_loop() -> None:
        found.append(leaking.get())
        leaking.set("dirty")

    for _ in range(2):
        await on_the_loop().dispatch()
        await off_the_loop().dispatch()
    await app.work(4, concurrency=1)
    assert found == ["clean"] * 4
