"""The tasks of the example project."""

from __future__ import annotations

from collections.abc import Iterable

from .celery import app


@app.task
def add(x: float, y: float) -> float:
    """The sum of two numbers."""
    return x + y


@app.task
def mul(x: float, y: float) -> float:
    """The product of two numbers."""
    return x * y


@app.task
def xsum(numbers: Iterable[float]) -> float:
    """The sum of many numbers."""
    return sum(numbers)
