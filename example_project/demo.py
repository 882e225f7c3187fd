#!/usr/bin/env python3
"""The example's work from an empty database to the last task, and a table of what became of it.

    python example_project/demo.py                              the queue on the embedded SQLite driver
    ASYNCTASQ_DRIVER=postgres python example_project/demo.py    the same on PostgreSQL; or mysql, redis

Exits with 0 only if every task ended as it had to. The work is in ``shop/management/commands/demo.py``.
"""

from manage import main

if __name__ == "__main__":
    main("demo")
