"""The guide of results shows every store, and of each what its class does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from celery_clone.app.backends import BACKEND_ALIASES, by_name
from celery_clone.backends.base import Backend

ROOT = Path(__file__).resolve().parents[3]
ROW = re.compile(r"^\| \[?[^|]+\| `(\w+)[^|]*\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
ALSO = {"rediss": "redis", "sentinel": "redis", "database": "db"}
"""Names of stores that are told of in the row of another one."""


class Loader:
    override_backends: dict[str, str] = {}


def rows() -> dict[str, tuple[str, ...]]:
    """By scheme: what to install, how chords are counted, how results expire."""
    section = (ROOT / "docs/guides/results.md").read_text().partition("\n## Which store\n")[2].partition("\n## ")[0]
    return {scheme: tuple(rest) for scheme, *rest in ROW.findall(section)}


def counted(store: Any, scheme: str) -> str:
    if scheme == "rpc":
        return "no chords"
    if store.apply_chord is not Backend.apply_chord:
        return "in the transaction"
    return "by a counter" if getattr(store, "implements_incr", False) else "by looking"


def expired(store: Any) -> str:
    if store.supports_autoexpire:
        return "by itself"
    return "by the daily sweep" if store.cleanup is not Backend.cleanup else "by a rule of yours"


def test_every_store_has_its_row() -> None:
    assert set(rows()) == set(BACKEND_ALIASES) - {"disabled"} - set(ALSO)


@pytest.mark.parametrize("scheme", sorted(rows()))
def test_a_row_says_what_the_store_does(scheme: str) -> None:
    install, counting, expiry = rows()[scheme]
    store = by_name(scheme, Loader)

    assert (counting, expiry) == (counted(store, scheme), expired(store))
    extras = re.findall(r"^([\w]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert install == "nothing" or set(re.findall(r"`(\w+)`", install.partition(",")[0])) <= set(extras)
