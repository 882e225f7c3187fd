"""How long to wait before the next attempt."""

from __future__ import annotations

from collections.abc import Callable

from asynctasq.core.message import RetryStrategy

JITTER = 0.1
"""A delay is lengthened by up to this share, so that tasks that failed together part company.
It is never shortened: ``retry_delay`` seconds are a promise to whoever is being called."""


def retry_delay(
    strategy: RetryStrategy, base: float, attempt: int, *, cap: float, random: Callable[[], float]
) -> float:
    """Seconds between attempt number ``attempt`` (from 1) and the next.

    ``fixed``: base each time. ``exponential``: base, 2 base, 4 base... Neither beyond
    ``cap`` seconds, but a base that is itself longer is kept.
    """
    limit = max(base, cap)
    # 2.0 ** 1100 overflows a float; no cap is that far off.
    delay = base if strategy == "fixed" else min(base * 2.0 ** min(attempt - 1, 100), limit)
    return delay * (1.0 + JITTER * random())
