"""Imports point down only.

The packages stand in layers. A module may import from layers below its own, and from its own layer as long as no
circle comes of it; what is imported for the type checker alone does not count. The order says what knows of what: the
errors, the message and the configuration know nobody; pure decisions need only those; drivers need the decisions to
store them; tasks and the parts of a worker stand on both; the runtime ties one process's parts together, a worker runs
in it, and the rim (the command line, the test helpers, the framework) uses all of it and is used by none.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app import ROOT

LAYERS: list[list[str]] = [
    ["errors"],
    ["core.message", "core.retry", "_sync"],
    ["config", "core.outcome"],
    ["core", "core.codec", "core.context", "core.events", "core.registry", "core.threads"],
    ["drivers.base"],
    ["drivers"],
    ["drivers.sql"],
    ["drivers.sqlite", "drivers.postgres", "drivers.mysql", "drivers.redis", "drivers.rabbitmq", "drivers.sqs"],
    ["_current", "tasks", "core.executor", "core.settler", "core.keeper", "core.janitor"],
    ["core.dispatcher", "core.repository"],
    ["_runtime"],
    ["core.worker", "core.supervisor"],
    [""],
    ["cli", "__main__", "testing"],
]
"""From the floor up, below ``asynctasq``. A name stands for the modules inside it too, unless one has its own."""

CONCRETE = LAYERS[7]


def modules(package: str) -> dict[str, Path]:
    """Every module of a package by dotted name."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules("asynctasq")


def imports(path: Path) -> Iterator[str]:
    """What a module imports when it is loaded or runs."""
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else str(node.module)
        else:
            waiting += ast.iter_child_nodes(node)


def layer(module: str) -> int:
    name = module.removeprefix("asynctasq").removeprefix(".")
    while True:
        for height, names in enumerate(LAYERS):
            if name in names:
                return height
        assert "." in name, f"{module} stands in no layer"
        name = name.rpartition(".")[0]


def within(module: str, name: str) -> bool:
    return module == f"asynctasq.{name}" or module.startswith(f"asynctasq.{name}.")


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_below_and_beside(module: str) -> None:
    for imported in imports(MODULES[module]):
        if imported in MODULES:
            assert layer(imported) <= layer(module), f"{module} reaches up to {imported}"


def test_there_is_no_circle() -> None:
    needs = {name: {one for one in imports(path) if one in MODULES and one != name} for name, path in MODULES.items()}
    # A package's __init__ is loaded before its modules, but only what it imports itself can come back to them.
    while free := [name for name, on in needs.items() if not on & needs.keys()]:
        for name in free:
            del needs[name]
    assert needs == {}


def test_nothing_but_the_table_names_a_concrete_driver() -> None:
    for module, path in MODULES.items():
        for imported in imports(path):
            for driver in CONCRETE:
                assert not within(imported, driver) or within(module, driver), f"{module} imports {imported}"


def test_the_core_knows_no_framework() -> None:
    for module, path in MODULES.items():
        for imported in imports(path):
            assert imported.partition(".")[0] not in ("django", "asynctasq_django", "channels"), module


def test_a_driver_s_client_is_imported_in_that_driver_alone() -> None:
    clients = {"psycopg": "drivers.postgres", "psycopg_pool": "drivers.postgres", "MySQLdb": "drivers.mysql"}
    clients |= {"aio_pika": "drivers.rabbitmq", "aioboto3": "drivers.sqs", "boto3": "drivers.sqs"}
    for module, path in MODULES.items():
        for imported in imports(path):
            client = imported.partition(".")[0]
            if client == "redis":
                assert within(module, "drivers.redis") or module == "asynctasq.core.events", module
            elif client in clients:
                assert within(module, clients[client]), module


def test_every_module_can_be_imported_by_itself() -> None:
    for module in MODULES:
        if not module.endswith(("__main__", "drivers.rabbitmq", "drivers.sqs")):
            importlib.import_module(module)
