"""``python -m asynctasq`` is the command ``asynctasq``."""

import sys

from asynctasq.cli import main

if __name__ == "__main__":
    sys.exit(main())
