"""The public API under a strict type checker: the files in ``typing/`` have exactly the errors that they announce."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.app import ROOT

FOLDER = ROOT / "tests" / "typing"
FILES = sorted(FOLDER.glob("*.py"))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], list[str]]:
    """What mypy says of all the files, by file and line."""
    settings = tmp_path_factory.mktemp("mypy") / "mypy.ini"
    settings.write_text("[mypy]\nstrict = True\n")
    command = [sys.executable, "-m", "mypy", f"--config-file={settings}", f"--cache-dir={ROOT / '.mypy_cache' / 'api'}"]
    command += ["--no-error-summary", "--hide-error-context", *map(str, FILES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stderr == ""
    errors: dict[tuple[str, int], list[str]] = {}
    for line in done.stdout.splitlines():
        match = re.fullmatch(r"(.+?):(\d+): (error|note): (.*)", line)
        assert match is not None, line
        if match[3] == "error":
            errors.setdefault((Path(match[1]).name, int(match[2])), []).append(match[4])
    return errors


@pytest.mark.behaviour(8)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_errors_are_those_announced(path: Path, found: dict[tuple[str, int], list[str]]) -> None:
    announced = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        _, mark, words = line.partition("# E: ")
        if mark:
            announced[path.name, number] = words
    errors = {place: texts for place, texts in found.items() if place[0] == path.name}
    assert {place: texts for place, texts in errors.items() if place not in announced} == {}
    missing = [
        f"{place}: announced {words!r}, found {errors.get(place)}"
        for place, words in announced.items()
        if not any(words in text for text in errors.get(place, []))
    ]
    assert missing == []
