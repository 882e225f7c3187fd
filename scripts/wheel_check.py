#!/usr/bin/env python3
"""Build the wheel, install it into an empty environment and run tasks of the example project from there.

The checkout's packages are out of reach: the example project is copied to a temporary folder. So a file
missing from the wheel, or a dependency missing from an extra, shows here and not at a user's.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("asynctasq", "asynctasq_django")
EXTRAS = "django,example"

# Thumbnails need the database, the worker's child processes and the extras; the worker drains the queue, and the last
# statement fails unless all that can be made were made. One photograph is damaged on purpose.
DISPATCH = "from example_project.shop import catalogue; print(catalogue.load_photographs())"
CONFIRM = """
from django.conf import settings
from example_project.shop import catalogue
from example_project.shop.models import Photo
made = {path.name for path in settings.MEDIA_ROOT.iterdir()}
sound = Photo.objects.filter(problem="")
assert len(sound) == Photo.objects.count() - 1, "not every photograph was handled"
assert made == {photo.thumbnail(width) for photo in sound for width in catalogue.WIDTHS}, made
"""


def step(text: str, *command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    """Run one command; on failure show all it printed and end."""
    print(f"wheel-check: {text}", flush=True)
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=600, cwd=cwd, env=env)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}wheel-check: failed: {text}")
    return done.stdout.strip()


def check_contents(wheel: Path) -> None:
    """Every tracked file of the packages, data files included, is in the wheel."""
    listing = ["git", "ls-files", "--cached", "--", *PACKAGES]
    tracked = subprocess.run(listing, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split("\n")
    missing = sorted({name for name in tracked if name} - set(zipfile.ZipFile(wheel).namelist()))
    if missing:
        sys.exit("wheel-check: not in the wheel: " + ", ".join(missing))


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="asynctasq-wheel-") as name:
        folder = Path(name)
        step("building", sys.executable, "-m", "build", "--outdir", folder / "dist", ROOT)
        (wheel,) = (folder / "dist").glob("*.whl")
        check_contents(wheel)

        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv/bin/python"
        pip = (python, "-m", "pip", "install", "-qq", "--disable-pip-version-check")
        step(f"installing {wheel.name}[{EXTRAS}]", *pip, f"{wheel}[{EXTRAS}]")

        site = folder / "site"
        leftovers = shutil.ignore_patterns("__pycache__", "*.sqlite3*", "var")
        shutil.copytree(ROOT / "example_project", site / "example_project", ignore=leftovers)
        hidden = ("ASYNCTASQ_", "DJANGO_", "PYTHON")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        question = "import asynctasq, asynctasq_django; print(asynctasq.__file__)"
        origin = step("importing", python, "-c", question, cwd=site, env=clean)
        if not Path(origin).resolve().is_relative_to(folder.resolve()):
            sys.exit(f"wheel-check: asynctasq comes from {origin}, not from the wheel")

        manage = (python, "example_project/manage.py")
        step("manage.py check", *manage, "check", cwd=site, env=clean)
        step("manage.py migrate", *manage, "migrate", "--no-input", cwd=site, env=clean)
        step("dispatching tasks", *manage, "shell", "-c", DISPATCH, cwd=site, env=clean)
        step("draining the queue with a worker", *manage, "asynctasq_worker", "--drain", cwd=site, env=clean)
        step("looking for what the tasks did", *manage, "shell", "-c", CONFIRM, cwd=site, env=clean)
    print("wheel-check: the installed wheel works")


if __name__ == "__main__":
    main()
