"""The parts a task passes through between ``dispatch()`` and its outcome."""
