#!/usr/bin/env python3
"""Django's commands for the example, from any directory: ``python example_project/manage.py migrate``."""

import os
import sys
from pathlib import Path

# The package example_project is found in the folder above, and nothing in this one as a top-level module.
sys.path[0] = str(Path(__file__).resolve().parent.parent)


def main(*arguments: str) -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example_project.settings")
    from django.core.management import execute_from_command_line

    execute_from_command_line(["manage.py", *arguments])


if __name__ == "__main__":
    main(*sys.argv[1:])
