"""The supervisor by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from asynctasq.core import supervisor


def test_a_signal_that_comes_while_a_process_is_being_started_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    start = subprocess.Popen

    def interrupted(*args: Any, **more: Any) -> Any:
        process = start(*args, **more)
        os.kill(os.getpid(), signal.SIGTERM)
        return process

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    before = time.monotonic()
    supervisor.run(2, [sys.executable, "-c", "import time; time.sleep(20)"])
    assert time.monotonic() - before < 10
