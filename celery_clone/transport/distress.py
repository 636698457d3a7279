"""Errors of a broker that is there, but cannot take anything now.

Asked by ``transport.redis_source`` and ``worker.consumer``: such an error says nothing about what was sent, and
passes by itself or by an operator's hand.  A worker waits for that as it waits for a lost connection.
It looks at errors only and imports no client library.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ("DistressedBroker", "is_distress")

REPLIES = ("OOM", "READONLY", "MISCONF", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "LOADING")
"""How Redis begins to refuse: no memory, a replica, no disk, too few replicas, no master, a script that runs on."""

CLASSES = frozenset(
    {"OutOfMemoryError", "ReadOnlyError", "MasterDownError", "ClusterDownError", "TryAgainError", "BusyLoadingError"}
)
"""Classes of redis-py for some of these; their texts have lost the first word."""


class DistressedBroker(ConnectionError):
    """The broker is there, but refuses what it is asked, for now."""


def is_distress(error: BaseException) -> bool:
    """Does *error*, or what led to it, say so?"""
    return any(isinstance(each, DistressedBroker) or refuses(each) for each in chain_of(error))


def refuses(error: BaseException) -> bool:
    """Is it an answer of Redis that means "not now"?"""
    kind = type(error)
    if kind.__module__.partition(".")[0] != "redis":
        return False
    return kind.__name__ in CLASSES or str(error).startswith(REPLIES)


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """*error* and what it was raised from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
