"""What is peculiar to the drivers whose broker is a database."""

from __future__ import annotations

from typing import Any

import pytest

from asynctasq.drivers.base import Driver
from asynctasq.drivers.postgres import PostgresDriver
from asynctasq.drivers.sql import SqlDriver
from asynctasq.errors import BrokerUnavailable
from tests.drivers.conftest import ids, message


@pytest.fixture
def sql(driver: Driver) -> SqlDriver:
    if not isinstance(driver, SqlDriver):
        pytest.skip("not a SQL driver")
    return driver


async def test_a_claim_that_fails_half_way_hands_out_what_it_has_taken(
    sql: SqlDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = message("first")
    await sql.enqueue([first])
    fetch = sql._fetch

    async def failing(statement: str, /, **args: Any) -> Any:
        if args.get("queue") == "second" and not args["suspect"]:
            raise BrokerUnavailable("the connection was lost")
        return await fetch(statement, **args)

    monkeypatch.setattr(sql, "_fetch", failing)
    assert ids(await sql.claim(["first", "second"], 10, 0)) == [first.id]
    with pytest.raises(BrokerUnavailable):
        await sql.claim(["first", "second"], 10, 0)


@pytest.mark.parametrize(
    ("statement", "args", "conditions"),
    [
        ("promote", {"queue": "work", "limit": 10}, ["queue_name", "available_at <= "]),
        ("expired", {"queue": "work", "limit": 10}, ["queue_name", "locked_until < "]),
        ("due", {"queues": '["work"]'}, ["queue_name"]),
        (
            "claim",
            {"queue": "work", "suspect": False, "limit": 10, "worker": "w", "receipt": 1},
            ["suspect", "queue_name"],
        ),
    ],
)
async def test_what_is_done_each_second_reads_by_index_what_it_needs_and_nothing_behind_it(
    sql: SqlDriver, statement: str, args: dict[str, Any], conditions: list[str]
) -> None:
    """On tables that were never analysed, too: these are new."""
    if not isinstance(sql, PostgresDriver):
        pytest.skip("has no plan to ask for")
    sql._text["plan"] = b"EXPLAIN " + sql._text[statement]
    plan = [row[0] for row in await sql._fetch("plan", **args)]
    reads = [line for line in plan if "Index Cond" in line]
    assert any(all(condition in line for condition in conditions) for line in reads), plan
    assert not any(word in line for line in plan for word in ("Seq Scan", "Sort")), plan
