#!/usr/bin/env python3
"""Website, admin and worker of the example together until Ctrl-C: ``python example_project/serve.py [--port 8000]``."""

import sys

from manage import main

if __name__ == "__main__":
    main("serve", *sys.argv[1:])
