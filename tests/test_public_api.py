"""The names that users may rely on. To take one away is a breaking change; to add one is a decision."""

from __future__ import annotations

import importlib
import importlib.resources
import types
from typing import Any

import pytest

PUBLIC: dict[str, set[str]] = {
    "asynctasq": {
        "AsyncProcessTask",
        "AsyncTask",
        "Config",
        "CurrentTask",
        "Repository",
        "SyncProcessTask",
        "SyncTask",
        "TaskConfig",
        "TaskFunction",
        "Worker",
        "current_task",
        "dispatch_many",
        "dispatch_many_sync",
        "init",
        "register_type",
        "repository",
        "shutdown",
        "task",
    },
    "asynctasq.tasks": {
        "AsyncProcessTask",
        "AsyncTask",
        "BaseTask",
        "FunctionTask",
        "SyncProcessTask",
        "SyncTask",
        "TaskConfig",
        "TaskFunction",
        "task",
    },
    "asynctasq.testing": {"Dispatched", "Inline", "captured", "drain", "inline"},
}
DEFINED: dict[str, set[str]] = {
    "asynctasq.core.events": {
        "EventBus",
        "EventEmitter",
        "EventType",
        "LoggingEventEmitter",
        "RedisEventEmitter",
        "TaskEvent",
        "WorkerEvent",
        "printable",
    },
    "asynctasq.config": {
        "Config",
        "Option",
        "did_you_mean",
        "mask",
        "mask_url",
        "option_types",
        "options",
        "parse_option",
        "set_current",
    },
    "asynctasq.tasks.infrastructure": {"ProcessPoolManager"},
    "asynctasq.drivers.base": {
        "Capabilities",
        "Driver",
        "Inspector",
        "Maintenance",
        "Page",
        "QueueStats",
        "TaskInfo",
        "TaskQuery",
    },
}
"""Of modules that are imported by path: what they must define."""


def defined(module: types.ModuleType) -> set[str]:
    """The public classes and functions that are written in a module."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    }


@pytest.mark.parametrize("name", PUBLIC)
def test_the_public_names_of_a_package_are_these_and_are_there(name: str) -> None:
    module: Any = importlib.import_module(name)
    assert set(module.__all__) == PUBLIC[name]
    assert len(module.__all__) == len(PUBLIC[name])
    assert list(module.__all__) == sorted(module.__all__)
    for public in module.__all__:
        assert getattr(module, public) is not None


def test_nothing_else_of_the_package_looks_public() -> None:
    import asynctasq

    extra = {
        name
        for name, value in vars(asynctasq).items()
        if not name.startswith("_") and name not in PUBLIC["asynctasq"] and not isinstance(value, types.ModuleType)
    }
    # What the module itself is written with.
    assert extra <= {"Any", "BaseTask", "Sequence", "annotations", "runtime"}


@pytest.mark.parametrize("name", DEFINED)
def test_names_that_are_imported_by_path_are_defined_there(name: str) -> None:
    assert DEFINED[name] <= defined(importlib.import_module(name))


def test_every_public_name_is_documented() -> None:
    for name, names in (PUBLIC | DEFINED).items():
        module = importlib.import_module(name)
        assert module.__doc__, name
        for public in names:
            assert getattr(module, public).__doc__, f"{name}.{public}"


def test_the_package_tells_its_version_and_that_it_is_typed() -> None:
    import asynctasq

    assert asynctasq.__version__.count(".") == 2
    assert (importlib.resources.files("asynctasq") / "py.typed").is_file()


def test_errors_have_one_root_and_the_builtin_ones_that_people_catch() -> None:
    from asynctasq import errors

    tree = [value for value in vars(errors).values() if isinstance(value, type)]
    assert all(issubclass(one, errors.AsyncTasQError) for one in tree)
    caught: list[tuple[type, type]] = [
        (errors.ConfigurationError, ValueError),
        (errors.UnknownOption, TypeError),
        (errors.BrokerUnavailable, ConnectionError),
        (errors.EncodeError, TypeError),
        (errors.DecodeError, ValueError),
        (errors.TaskTimeout, TimeoutError),
        (errors.UnknownTask, LookupError),
    ]
    for one, builtin in caught:
        assert issubclass(one, builtin)
    for one in tree:
        assert one.__name__ in (errors.__doc__ or ""), f"{one.__name__} is missing in the drawing"
