"""Rates of the drivers beside what their clients reach alone. ``python -m benchmarks --help``."""
