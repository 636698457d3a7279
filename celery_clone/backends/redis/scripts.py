"""The Lua scripts of the Redis store.  Each begins with a legend of the keys it touches."""

from __future__ import annotations

import hashlib
from importlib import resources

from celery_clone.transport.redis_layout import Script

__all__ = ("CHORD_DONE", "CHORD_PART", "CHORD_SIZE", "SCRIPTS", "STORE")


def script(*names: str, end: str = "") -> Script:
    """A script made of files of this package."""
    folder = resources.files(__package__)
    text = "\n".join([*(folder.joinpath(name).read_text() for name in names), end]).encode()
    return Script(text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())


STORE = script("store.lua", end="return store(KEYS[1], ARGV[1], ARGV[2], ARGV[3])")
CHORD_PART = script("store.lua", "chord_part.lua")
CHORD_DONE = script("chord_done.lua")
CHORD_SIZE = script("chord_size.lua")
SCRIPTS = (STORE, CHORD_PART, CHORD_DONE, CHORD_SIZE)
