"""The command line: ``asynctasq worker | migrate | stats | dead | config``.

Frameworks build their own commands from the ``add_*`` and ``run_*`` functions, so that a flag exists in both or in
neither. Exit codes: 0 done, 1 it did not work, 2 the command or the configuration is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import logging
import sys
import traceback
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from asynctasq import _runtime, _sync, drivers
from asynctasq.config import Option, option_types, options, parse_option
from asynctasq.core import message, supervisor
from asynctasq.core.display import describe_arguments
from asynctasq.core.events import printable
from asynctasq.core.worker import Worker
from asynctasq.drivers.base import TaskInfo, TaskQuery
from asynctasq.errors import AsyncTasQError, ConfigurationError, NotInitialized

T = TypeVar("T")

OK, FAILED, USAGE = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    parser = build_parser()
    namespace = parser.parse_args(argv)
    log_to_stderr(namespace.verbose)
    try:
        configure(namespace)
        code: int = namespace.run(namespace)
        return code
    except KeyboardInterrupt:
        return FAILED
    except Exception as exc:  # noqa: BLE001 - the end of the program
        # What a user can cause is one line that says what to do.
        if namespace.traceback or not isinstance(exc, AsyncTasQError | ImportError | OSError):
            traceback.print_exc()
        else:
            print(f"asynctasq: {exc}", file=sys.stderr)
        return USAGE if isinstance(exc, ConfigurationError | ImportError) else FAILED


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(prog="asynctasq", description="An async-first task queue.")
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, text, add, run in (
        ("worker", "run tasks", add_worker_arguments, run_worker),
        ("migrate", "create the tables that the driver needs", _add_nothing, run_migrate),
        ("stats", "show numbers per queue", add_stats_arguments, run_stats),
        ("dead", "list, show, requeue or delete dead letters", add_dead_arguments, run_dead),
        ("config", "show the configuration in force, secrets masked", _add_nothing, run_config),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        add(command)
        command.add_argument(
            "--app", action="append", default=[], metavar="MODULE", help="import this module first: it defines tasks"
        )
        command.add_argument("--traceback", action="store_true", help="show the traceback of an error")
        command.add_argument("-v", "--verbose", action="count", default=1, help="log more")
        command.add_argument("-q", "--quiet", action="store_const", const=0, dest="verbose", help="log warnings only")
        add_config_arguments(command)
    return parser


def _add_nothing(parser: argparse.ArgumentParser) -> None:
    pass


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for every configuration key; absent from the namespace when not given."""
    groups: dict[str, Any] = {}
    for name, field in options().items():
        option: Option = field.metadata["option"]
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(f"configuration: {option.group}")
        more: dict[str, Any] = {"type": _flag_type(name), "metavar": name.rpartition("_")[2].upper()}
        if bool in option_types(name):
            more = {"action": argparse.BooleanOptionalAction}
        groups[option.group].add_argument(
            f"--{name.replace('_', '-')}",
            dest=name,
            default=argparse.SUPPRESS,
            help=option.doc.replace("%", "%%"),
            **more,
        )


def _flag_type(name: str) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        option: Option = options()[name].metadata["option"]
        if option.secret or (option.url and urlsplit(text).password):
            flag, variable = f"--{name.replace('_', '-')}", f"ASYNCTASQ_{name.upper()}"
            print(f"asynctasq: {flag} shows a secret to everyone on this host; use {variable}", file=sys.stderr)
        return parse_option(name, text)

    return parse


def given_options(namespace: argparse.Namespace) -> dict[str, Any]:
    """The configuration keys that were given as flags."""
    return {name: value for name, value in vars(namespace).items() if name in options()}


def configure(namespace: argparse.Namespace) -> None:
    """Import the apps, which may call ``init()``, then apply the flags over what they set."""
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    for app in namespace.app:
        importlib.import_module(app)
    reconfigure(given_options(namespace))


def reconfigure(overrides: dict[str, Any]) -> None:
    """``init()`` with these options over those in force, if any."""
    try:
        current = _runtime.runtime()
    except NotInitialized:
        _runtime.init(overrides)
        return
    if overrides:
        config = current.config
        emitters = current.given_emitters
        _runtime.init({name: getattr(config, name) for name in config.given} | overrides, emitters)


def log_to_stderr(verbosity: int) -> None:
    """Log to stderr, unless the program has set up logging for us: -q warnings, by default INFO, -v DEBUG."""
    logger = logging.getLogger("asynctasq")
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel({0: logging.WARNING, 1: logging.INFO}.get(verbosity, logging.DEBUG))


# worker


def add_worker_arguments(parser: argparse.ArgumentParser) -> None:
    """What a worker takes besides the configuration."""
    parser.add_argument("--queues", type=_names, metavar="A,B", help="queues, the most urgent first (default_queue)")
    parser.add_argument("--concurrency", type=_positive, default=10, metavar="N", help="attempts at once (10)")
    parser.add_argument("--processes", type=_positive, default=1, metavar="N", help="worker processes (1)")
    parser.add_argument("--max-tasks", type=_positive, metavar="N", help="end after exactly this many attempts")
    parser.add_argument("--drain", action="store_true", help="end when nothing is left to do")
    parser.add_argument("--worker-id", metavar="TEXT", help="name in logs, events and the admin (made up)")
    parser.add_argument(
        "--heartbeat-interval", type=_seconds, default=60.0, metavar="S", help="seconds between heartbeats (60)"
    )
    parser.add_argument(
        "--shutdown-timeout", type=_seconds, default=30.0, metavar="S", help="seconds for tasks to end at a stop (30)"
    )


def run_worker(namespace: argparse.Namespace, starting: Callable[[Worker], object] | None = None) -> int:
    """Run a worker, or several under a supervisor, until they end. ``starting`` is given a single one on its loop."""
    if namespace.processes > 1:
        return supervisor.run(namespace.processes)
    worker_arguments = {
        name: getattr(namespace, name)
        for name in (
            "queues",
            "concurrency",
            "max_tasks",
            "worker_id",
            "heartbeat_interval",
            "shutdown_timeout",
            "drain",
        )
    }

    async def work() -> None:
        worker = Worker(**worker_arguments)
        if starting is not None:
            starting(worker)
        await worker.start()

    run_async(work())
    return OK


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop where it is installed: it halves the worker's own time per task."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    try:
        return [message.check_queue_name(name) for name in names]
    except ConfigurationError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be positive, got {text[:40]!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds, got {text[:40]!r}")
    return value


# the others


def run_migrate(namespace: argparse.Namespace) -> int:
    """Create the tables; twice is fine."""
    config = _runtime.runtime().config
    migrated = _sync.run(drivers.create(config.driver, config).migrate())
    print(f"{config.driver}: the tables are there" if migrated else f"{config.driver}: there is nothing to migrate")
    return OK


def add_stats_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``stats`` takes."""
    parser.add_argument("--queues", type=_names, metavar="A,B", help="only these (all)")
    parser.add_argument("--json", action="store_true", help="as JSON, one object per queue")


def run_stats(namespace: argparse.Namespace) -> int:
    """Print numbers per queue."""
    stats = _sync.run(_runtime.runtime().repository.stats(namespace.queues))
    rows = [msgspec.to_builtins(one) for one in stats]
    if namespace.json:
        print(json.dumps(rows))
        return OK
    columns = ("queue", "pending", "scheduled", "processing", "completed", "dead", "cancelled")
    print_table(columns, [[row[column] for column in columns] for row in rows])
    return OK


def add_dead_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``dead`` takes."""
    parser.add_argument("action", choices=("list", "show", "requeue", "delete"))
    parser.add_argument("ids", nargs="*", metavar="ID")
    parser.add_argument("--queue", metavar="NAME", help="list, requeue or delete only those of this queue")
    parser.add_argument("--all", action="store_true", help="requeue or delete all")
    parser.add_argument("--limit", type=_positive, default=50, metavar="N", help="list at most this many (50)")


def run_dead(namespace: argparse.Namespace) -> int:
    """List, show, requeue or delete dead letters."""
    repository = _runtime.runtime().repository
    dead = frozenset({"dead"})
    if namespace.action == "list":
        query = TaskQuery(statuses=dead, queue=namespace.queue, limit=namespace.limit)  # type: ignore[arg-type]
        rows = [
            [i.id, i.queue, i.task, f"{i.attempt}/{i.max_attempts}", i.error.type if i.error else ""]
            for i in _sync.run(repository.find(query)).items
        ]
        print_table(("id", "queue", "task", "attempts", "error"), rows)
        return OK
    if namespace.action == "show":
        found = [task for task in _sync.run(repository.get(namespace.ids)) if task.status == "dead"]
        for task in found:
            _show(task)
        return _all_found(namespace.ids, len(found))
    if bool(namespace.ids) == namespace.all:
        print(f"asynctasq: dead {namespace.action} needs ids, or --all", file=sys.stderr)
        return USAGE
    verb = repository.requeue if namespace.action == "requeue" else repository.delete
    if not namespace.all:
        # delete() takes any task that is not running; this command is about the dead alone.
        dead_ids = [t.id for t in _sync.run(repository.get(namespace.ids)) if t.status == "dead"]
        count = _sync.run(verb(dead_ids))
        print(f"{namespace.action}d {count}")
        return _all_found(namespace.ids, count)
    total = 0
    query = TaskQuery(statuses=dead, queue=namespace.queue, limit=500)  # type: ignore[arg-type]
    while True:
        page = _sync.run(repository.find(query))
        total += _sync.run(verb([task.id for task in page.items]))
        if page.next is None:
            break
        query = msgspec.structs.replace(query, cursor=page.next)
    print(f"{namespace.action}d {total}")
    return OK


def _all_found(ids: Sequence[str], count: int) -> int:
    missing = len(set(ids)) - count
    if missing or not ids:
        print(f"asynctasq: {missing or 'no'} ids are not among the dead letters", file=sys.stderr)
    return FAILED if missing or not ids else OK


def _show(task: TaskInfo) -> None:
    for name in ("id", "queue", "task", "attempt", "max_attempts", "created_at", "finished_at", "worker"):
        print(f"{name:>14}: {printable(str(getattr(task, name)))}")
    print(f"{'arguments':>14}: {printable(describe_arguments(task.payload))}")
    if task.error is not None:
        print(f"{'error':>14}: {printable(f'{task.error.type}: {task.error.message}')}")
        for line in task.error.traceback.splitlines():
            print(f"    {printable(line)}")


def run_config(namespace: argparse.Namespace) -> int:
    """Print the configuration in force, secrets masked."""
    config = _runtime.runtime().config
    print_table(
        ("option", "value", ""),
        [[name, repr(value), "" if name in config.given else "default"] for name, value in config.masked().items()],
    )
    return OK


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their columns; whatever is in them stays on its line."""
    lines = [list(columns)] + [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


if __name__ == "__main__":
    sys.exit(main())
