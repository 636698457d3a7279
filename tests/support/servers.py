"""What the Redis and the RabbitMQ server of the tests have in common: when they may be missing.

Used by ``redis`` and ``rabbitmq`` beside it, by ``celery_env`` and by ``conftest``.
"""

from __future__ import annotations

import os
import shutil


class Unavailable(Exception):
    """Something a test needs is not on this machine; the text says how to get it."""


def is_ci() -> bool:
    """Whether a missing server is a failure (``CI=true``) and not a reason to skip."""
    return os.environ.get("CI", "").lower() in {"1", "true", "yes"}


def program(name: str, package: str, *also: str) -> str:
    """The path of the program *name*, looked for on the PATH and at the places in *also*.

    Raises Unavailable, naming the Debian *package* that brings it.
    """
    for candidate in (name, *also):
        path = shutil.which(candidate)
        if path:
            return path
    raise Unavailable(f"{name} is not installed; get it with: apt-get install {package}")
