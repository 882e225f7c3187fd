#!/usr/bin/env python3
"""Write the reference in ``docs/configuration.md`` anew from the fields of ``asynctasq.Config``.

Without arguments the file is rewritten; ``--check`` exits with 1 when it is not up to date; ``--print`` shows the
reference and writes nothing.
"""

import argparse
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from asynctasq.config import ENVIRONMENT_PREFIX, Option, mask, option_types, options  # noqa: E402

PAGE = ROOT / "docs" / "configuration.md"
BEGIN = "<!-- begin: written by scripts/configuration_reference.py -->"
END = "<!-- end -->"
COLUMNS = ("Key", "Type", "Default", "Environment variable", "Flag", "Description")


def reference() -> str:
    """All options in Markdown, a table for each group."""
    groups: dict[str, list[str]] = {}
    for name, field in options().items():
        option: Option = field.metadata["option"]
        groups.setdefault(option.group, []).append(row(name, field.default, option))
    head = f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}"
    return "\n\n".join(f"### {group}\n\n{head}\n" + "\n".join(rows) for group, rows in groups.items())


def row(name: str, default: object, option: Option) -> str:
    kinds = [kind.__name__ for kind in option_types(name) if kind is not types.NoneType]
    if types.NoneType in option_types(name):
        kinds.append("None")
    flag = f"--{name.replace('_', '-')}"
    flags = f"`{flag}`, `--no-{flag[2:]}`" if bool in option_types(name) else f"`{flag}`"
    doc = option.doc
    if option.choices:
        doc += f" One of {', '.join(f'`{choice}`' for choice in option.choices)}."
    if option.secret:
        doc += " Never shown."
    # The defaults are for a server on one's own host, and their passwords are no secrets.
    shown = mask(name, default) if option.secret else default
    cells = (
        f"`{name}`",
        " or ".join(f"`{kind}`" for kind in kinds),
        f"`{shown!r}`" if isinstance(shown, str) else f"`{shown}`",
        f"`{ENVIRONMENT_PREFIX}{name.upper()}`",
        flags,
        doc,
    )
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def page(text: str) -> str:
    """``text`` with the reference between its two marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{PAGE} lacks the marks {BEGIN!r} and {END!r}")
    return f"{before}{begin}\n\n{reference()}\n\n{end}{after}"


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the file is up to date")
    parser.add_argument("--print", action="store_true", help="print the reference, write nothing")
    arguments = parser.parse_args()
    if arguments.print:
        print(reference())
        return 0
    found = PAGE.read_text(encoding="utf-8")
    wanted = page(found)
    if arguments.check:
        if found != wanted:
            print(f"{PAGE} is out of date: run scripts/configuration_reference.py", file=sys.stderr)
        return int(found != wanted)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
