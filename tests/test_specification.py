"""Every sample of the specification runs as written, and every numbered behaviour has a test."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

import pytest

import asynctasq
from asynctasq.config import Config, options
from asynctasq.core.events import LoggingEventEmitter
from asynctasq.tasks.infrastructure import ProcessPoolManager
from tests.app import ROOT

BEHAVIOURS = range(1, 32)
TEXT = (ROOT / "tests" / "specification_samples" / "configuration.md").read_text()
SAMPLES = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
ENVIRONMENTS = next(sample for sample in SAMPLES if "APP_ENV" in sample)
POOL = next(sample for sample in SAMPLES if "ProcessPoolManager" in sample)


@pytest.fixture(autouse=True)
def _as_on_a_new_machine(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*(f"ASYNCTASQ_{name.upper()}" for name in options()), "APP_ENV"]:
        monkeypatch.delenv(name, raising=False)


def run(sample: str) -> dict[str, Any]:
    """The names a sample leaves. Its missing import is added."""
    names: dict[str, Any] = {"asynctasq": asynctasq}
    exec(compile(sample, "<sample>", "exec"), names)
    return names


def options_given(sample: str) -> Iterator[dict[str, Any]]:
    """The dictionaries that a sample hands to ``init()``."""
    for node in ast.walk(ast.parse(sample)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "asynctasq.init":
            given = node.args[0] if node.args else node.keywords[0].value
            if isinstance(given, ast.Dict):
                yield ast.literal_eval(given)


def test_all_samples_are_here() -> None:
    assert len(SAMPLES) == 17


@pytest.mark.behaviour(4)
@pytest.mark.behaviour(1)
@pytest.mark.parametrize("sample", [one for one in SAMPLES if list(options_given(one))])
def test_a_configuration_sample_is_in_force_as_written(sample: str) -> None:
    run(sample)
    (given,) = options_given(sample)
    assert given
    for name, value in given.items():
        assert getattr(Config.get(), name) == value
    assert Config.get().given == set(given)


@pytest.mark.behaviour(1)
def test_the_sample_with_an_emitter_registers_it() -> None:
    sample = next(one for one in SAMPLES if "event_emitters" in one)
    emitter = run(sample)["custom_emitter"]
    assert isinstance(emitter, LoggingEventEmitter)
    assert emitter in asynctasq.runtime().events.emitters  # type: ignore[attr-defined]


@pytest.mark.behaviour(2)
def test_the_sample_of_config_get_prints_the_default_driver(capsys: pytest.CaptureFixture[str]) -> None:
    run(next(one for one in SAMPLES if "Config.get()" in one))
    assert capsys.readouterr().out == "redis\n"


@pytest.mark.behaviour(4)
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (None, {"driver": "redis", "keep_completed_tasks": True, "enable_event_emitter_redis": False}),
        ("development", {"redis_url": "redis://localhost:6379", "default_max_attempts": 3}),
        (
            "staging",
            {
                "redis_url": "redis://staging-redis:6379",
                "redis_password": "staging-password",
                "events_channel": "asynctasq:staging:events",
                "enable_event_emitter_redis": True,
            },
        ),
        (
            "production",
            {
                "default_max_attempts": 5,
                "default_retry_delay": 120,
                "default_timeout": 300,
                "process_pool_size": 4,
                "events_redis_url": "redis://prod-events-cluster:6379",
                "keep_completed_tasks": False,
            },
        ),
    ],
)
def test_the_sample_for_environments_configures_each(
    environment: str | None, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if environment:
        monkeypatch.setenv("APP_ENV", environment)
    run(ENVIRONMENTS)
    assert {name: getattr(Config.get(), name) for name in expected} == expected


@pytest.mark.behaviour(4)
def test_the_sample_for_environments_refuses_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_ENV", "moon")
    with pytest.raises(ValueError, match="Unknown environment: moon"):
        run(ENVIRONMENTS)


@pytest.mark.behaviour(28)
def test_the_sample_of_the_process_pool_starts_four_warm_children() -> None:
    run(POOL)
    pool = ProcessPoolManager.get_default_manager().pool()
    assert len(pool.pids()) == 4
    assert (pool.size, pool.max_tasks_per_child, pool.warm) == (4, 100, True)


def test_every_sample_is_run_by_one_of_these_tests() -> None:
    for sample in SAMPLES:
        assert list(options_given(sample)) or sample in (ENVIRONMENTS, POOL) or "Config.get()" in sample


def numbers_of_tests() -> dict[int, int]:
    """How many test functions carry each behaviour's number."""
    found = dict.fromkeys(BEHAVIOURS, 0)
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                for mark in node.decorator_list:
                    if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.behaviour":
                        found[ast.literal_eval(mark.args[0])] += 1
    return found


def test_every_behaviour_has_a_test_that_carries_its_number() -> None:
    found = numbers_of_tests()
    assert set(found) == set(BEHAVIOURS)
    assert [number for number, count in found.items() if not count] == []
