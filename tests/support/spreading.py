"""Which tests go to which process when the suite runs in several, with pytest-xdist (``pytest -n 3``).

Used by ``conftest`` alone, through the hook that xdist has for it. What shares fixtures that are dear stays
together, and what takes long begins first, so that no process is still busy when the others have nothing left.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from xdist.scheduler import LoadScopeScheduling

FOLDERS = ("chaos", "integration", "interop", "contracts", "surface", "unit")
"""Folders of the tests, those with the longest tests first."""

LINKS = ("rabbitmq_rpc", "rabbitmq_redis", "redis")
"""Pairs of broker and store that real Celery and we are on together: four processes each, open for the session."""

VARIANTS = ("sqlite", "redis", "amqp", "rabbitmq", "postgresql", "mariadb")
"""Tests of one file with different ones of these share no fixture that is dear."""


def folder_of(path: str) -> str:
    """The folder below ``tests`` that the test file at *path* lies in, or nothing."""
    return next((part for part in PurePosixPath(path).parts if part in FOLDERS), "")


def unit_of(node: str) -> str:
    """What the test with the id *node* belongs to; the tests of one unit run in one process, in their order."""
    path, _, test = node.partition("::")
    _, bracketed, parameters = test.partition("[")
    words = parameters.removesuffix("]").split("-") if bracketed else []
    folder = folder_of(path)
    if folder == "interop":
        for link in LINKS:
            if link in words:
                return f"{folder} over {link}"
    elif folder != "unit":
        for variant in VARIANTS:
            if variant in words:
                return f"{path} with {variant}"
    return path


class LongestFirst(LoadScopeScheduling):  # type: ignore[misc]
    """A process with nothing left takes the next unit, in the order of :data:`FOLDERS` and of the number of tests."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)

    def _assign_work_unit(self, node: Any) -> None:
        longest = min(self.workqueue, key=self._place)
        self.workqueue.move_to_end(longest, last=False)
        super()._assign_work_unit(node)

    def _place(self, unit: str) -> tuple[int, int]:
        tests = self.workqueue[unit]
        folder = folder_of(next(iter(tests)).partition("::")[0])
        return (FOLDERS.index(folder) if folder else len(FOLDERS)), -len(tests)
