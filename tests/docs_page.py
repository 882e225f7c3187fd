"""Runs one page of the documentation: ``python tests/docs_page.py PAGE``, in an empty folder of its own.

Blocks run in the order of the page:

``python`` whose first line is a comment with a path
    is written to that file, after what is there already, and from another such line on to another file; with
    ", instead" behind the path (a variant of the settings) ``manage.py check`` runs with it and the file is then put
    back.
other ``python``, and HTML comments that begin with ``<!-- python``
    run in one namespace; with a top-level ``await`` on an event loop that is kept for the page.
``console``
    each line after ``$`` is run by a shell; the lines below it must be in its output, in this order, where ``...``
    stands for anything. A worker without ``--drain`` gets it, or it would not end.

Other languages are shown and not run. A page with ``<!-- setup: django -->`` begins in a new project ``mysite`` with
an app ``shop``.
"""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$|^<!-- python\n(.*?)^-->$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"^# ([\w/.]+\.py)(, instead)?$", re.MULTILINE)
PROJECT, APP = "mysite", "shop"


class Block(NamedTuple):
    language: str
    text: str
    line: int
    """Number of its first line in the page."""


def blocks(page: str) -> list[Block]:
    """All blocks of a page, hidden ones included."""
    found = []
    for match in BLOCK.finditer(page):
        line = page.count("\n", 0, match.start()) + 2
        hidden = match[3] is not None
        found.append(Block("python" if hidden else match[1].strip(), match[3] if hidden else match[2], line))
    return found


class Page:
    """A page that is being run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = path.read_text(encoding="utf-8")
        self.django = "<!-- setup: django -->" in self.text
        self.ready = not self.django
        self.loop = asyncio.Runner()
        module = ModuleType(f"docs_{path.stem.lower()}")
        sys.modules[module.__name__] = module
        self.namespace: dict[str, Any] = module.__dict__

    def run(self) -> None:
        if self.django:
            manage = [sys.executable, "-m", "django"]
            subprocess.run([*manage, "startproject", PROJECT, "."], check=True)
            subprocess.run([*manage, "startapp", APP], check=True)
        for block in blocks(self.text):
            if block.language == "python":
                self.python(block)
            elif block.language == "console":
                self.console(block)
        self.loop.close()

    def python(self, block: Block) -> None:
        if FILE.match(block.text) is None:
            self.execute(block)
            return
        _, *parts = FILE.split(block.text)
        for name, instead, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
            path = Path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            before = path.read_text() if path.exists() else ""
            # Below what a new project has there, so that the page need not repeat it.
            path.write_text(before + text)
            importlib.invalidate_caches()
            if instead:
                self.command(f"python manage.py check  # line {block.line}")
                path.write_text(before)

    def execute(self, block: Block) -> None:
        if not self.ready:
            import django

            os.environ["DJANGO_SETTINGS_MODULE"] = f"{PROJECT}.settings"
            django.setup()
            self.ready = True
        # Line numbers of the page in tracebacks.
        tree = ast.increment_lineno(ast.parse(block.text, str(self.path)), block.line - 1)
        code = compile(tree, str(self.path), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if code.co_flags & inspect.CO_COROUTINE:
            self.loop.run(eval(code, self.namespace))
        else:
            exec(code, self.namespace)

    def console(self, block: Block) -> None:
        output: list[str] = []
        for number, line in enumerate(block.text.splitlines(), block.line):
            if line.startswith("$ "):
                output = self.command(line[2:])
            elif line.strip():
                pattern = re.compile(".*".join(map(re.escape, line.strip().split("..."))))
                found = next((n for n, one in enumerate(output) if pattern.fullmatch(one.strip())), None)
                if found is None:
                    raise SystemExit(f"{self.path}:{number}: not in the output: {line}\n" + "\n".join(output))
                output = output[found + 1 :]

    def command(self, command: str) -> list[str]:
        words = shlex.split(command, comments=True)
        if ("worker" in words or "asynctasq_worker" in words) and "--drain" not in words:
            command = f"{shlex.join(words)} --drain"
        done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise SystemExit(f"{self.path}: {command!r} ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return (done.stdout + done.stderr).splitlines()


if __name__ == "__main__":
    # Instead of the folder of the tests, which has a folder "django".
    sys.path[0] = str(Path.cwd())
    Page(Path(sys.argv[1])).run()
