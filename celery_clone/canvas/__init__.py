"""Workflows: signatures and what can be made of them.

The names of ``celery.canvas``, for users and for the rest of the package.  Loading it fills in what
``|``, ``chain(...)`` and ``stamp`` do, so nothing here is loaded late.
"""

from __future__ import annotations

from celery_clone.canvas import pipe as _pipe
from celery_clone.canvas.chain import _chain as _chain
from celery_clone.canvas.chain import chain
from celery_clone.canvas.chord import _chord as _chord
from celery_clone.canvas.chord import chord
from celery_clone.canvas.group import group
from celery_clone.canvas.maps import chunks, xmap, xstarmap
from celery_clone.canvas.signature import Signature, maybe_signature, signature
from celery_clone.canvas.signature import maybe_subtask as maybe_subtask
from celery_clone.canvas.signature import subtask as subtask
from celery_clone.canvas.stamping import StampingVisitor

__all__ = (
    "Signature",
    "StampingVisitor",
    "chain",
    "chord",
    "chunks",
    "group",
    "maybe_signature",
    "signature",
    "xmap",
    "xstarmap",
)

# Pickled signatures name these by the public path, which stays when a definition moves.
for _public in (*map(globals().__getitem__, __all__), _chain):
    _public.__module__ = __name__
del _public, _pipe
