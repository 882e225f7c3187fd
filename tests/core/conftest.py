from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _alone(alone: None) -> None:
    """Every test here is of the core by itself."""
