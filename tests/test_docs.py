"""README and documentation: every example runs, every link leads somewhere, the reference is the code's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

import asynctasq
from asynctasq import cli, config, errors, testing
from asynctasq_django import checks
from tests.app import ROOT
from tests.docs_page import blocks

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
RUN = {"python", "console"}
SHOWN = {"sh", "sql", "ini", "text"}
"""Commands for machines and people that a test is not to touch, and what is no program."""
OURS = re.compile(r"\b(asynctasq (worker|migrate|stats|dead|config)|manage\.py|python3? )")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Path, Future[subprocess.CompletedProcess[str]]]]:
    """All pages, each run in a process and a folder of its own; two at a time."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ASYNCTASQ_")}
    environment.pop("DJANGO_SETTINGS_MODULE", None)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["PYTHONPATH"] = str(ROOT)

    def run(page: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", str(ROOT / "tests" / "docs_page.py"), str(page)],
            cwd=tmp_path_factory.mktemp(page.stem),
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    with ThreadPoolExecutor(2) as threads:
        yield {page: threads.submit(run, page) for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_run(page: Path, runs: dict[Path, Future[subprocess.CompletedProcess[str]]]) -> None:
    done = runs[page].result()
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_example_is_passed_over(page: Path) -> None:
    text = page.read_text()
    found = [block for block in blocks(text) if block.language not in RUN]
    for block in found:
        if block.language == "python no-run":
            assert block.text.startswith("# not run: "), f"{page.name}:{block.line} does not say why it is not run"
            continue
        assert block.language in SHOWN, f"{page.name}:{block.line}: {block.language!r}"
        if block.language == "sh":
            assert not OURS.search(block.text), f"{page.name}:{block.line} has a command that can be run: use console"
    assert text.count("\n```") % 2 == 0, f"{page.name}: a fence is open"


def test_hardly_an_example_is_not_run() -> None:
    everything = [block for page in PAGES for block in blocks(page.read_text())]
    assert sum(block.language == "python no-run" for block in everything) <= 3
    assert sum(block.language == "python" for block in everything) >= 40
    assert sum(block.language == "console" for block in everything) >= 10


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("C*.md"), ROOT / "SECURITY.md"], ids=lambda page: page.stem)
def test_the_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(path), f"{page.name}: {target}"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the usual renderers make them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_can_be_reached_from_the_first() -> None:
    index = (DOCS / "index.md").read_text()
    assert [page.name for page in PAGES[1:] if page.stem != "index" and f"]({page.name}" not in index] == []
    assert "](docs/" in PAGES[0].read_text()


def mentioned(names: set[str], *pages: Path) -> set[str]:
    """Those of ``names`` that stand in code on some page."""
    text = "\n".join(page.read_text() for page in pages or PAGES)
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))
    return {name for name in names if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", code)}


def test_every_public_name_is_described() -> None:
    names = set(asynctasq.__all__)
    assert names - mentioned(names) == set()
    names = set(testing.__all__)
    assert names - mentioned(names) == set()


def test_every_error_is_described() -> None:
    names = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == errors.__name__
    }
    assert names - mentioned(names) == set()


def test_every_flag_of_the_worker_is_described() -> None:
    parser = cli.build_parser()._subparsers._group_actions[0].choices["worker"]  # type: ignore[union-attr, index]
    options = {f"--{name.replace('_', '-')}" for name in config.options()}
    flags = {flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")}
    flags -= options | {flag.replace("--", "--no-", 1) for flag in options} | {"--help"}
    assert flags - mentioned(flags, DOCS / "workers.md") == set()


def test_every_system_check_is_described() -> None:
    ids = set(re.findall(r"asynctasq\.[EW]\d{3}", str(checks.__doc__)))
    assert len(ids) >= 4
    assert ids - mentioned(ids, DOCS / "django.md") == set()


def test_the_configuration_reference_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "configuration_reference.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_readme_fits_a_screen() -> None:
    assert len(re.sub(r"<!--.*?-->\n", "", PAGES[0].read_text(), flags=re.DOTALL).splitlines()) <= 75
