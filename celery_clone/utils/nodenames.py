"""Names of nodes, ``name@host``: making, splitting and filling them in.

Used by workers, by beat, by producers (for the ``origin`` of a message) and by the commands that
take a name with ``%h``, ``%n`` and the like.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from celery_clone.utils.functional import memoize
from celery_clone.utils.log import current_process_index
from celery_clone.utils.text import simple_format

if TYPE_CHECKING:
    from kombu.entity import Exchange, Queue

    WORKER_DIRECT_EXCHANGE: Exchange

__all__ = (
    "anon_nodename",
    "default_nodename",
    "gethostname",
    "host_format",
    "node_format",
    "nodename",
    "nodesplit",
    "worker_direct",
)

#: Name of the queue that leads to one worker only.
WORKER_DIRECT_QUEUE_FORMAT = "{hostname}.dq2"

#: Stands between the name of a node and its host.
NODENAME_SEP = "@"

#: Name of a worker that was given none.
NODENAME_DEFAULT = "celery"

#: Name of this host, asked once.
gethostname: Callable[[], str] = memoize(1, Cache=lambda limit: {})(socket.gethostname)


def __getattr__(name: str) -> Any:
    # Made when asked for: it needs kombu, and who only wants a name shall not load that.
    if name != "WORKER_DIRECT_EXCHANGE":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    exchange = globals()[name] = import_module("kombu").Exchange("C.dq2")
    return exchange


def worker_direct(hostname: str | Queue) -> Queue:
    """Return the queue that leads to the worker of this node name only; a queue as it is."""
    if not isinstance(hostname, str):
        return hostname
    exchange = import_module(__name__).WORKER_DIRECT_EXCHANGE
    name = WORKER_DIRECT_QUEUE_FORMAT.format(hostname=hostname)
    queue: Queue = import_module("kombu").Queue(name, exchange, hostname)
    return queue


def nodename(name: str, hostname: str) -> str:
    """Return ``name@hostname``."""
    return f"{name}{NODENAME_SEP}{hostname}"


def anon_nodename(hostname: str | None = None, prefix: str = "gen") -> str:
    """Return the node name of this process if it is no worker: ``gen<pid>@<host>``."""
    return nodename(f"{prefix}{os.getpid()}", hostname or gethostname())


def nodesplit(name: str) -> tuple[None, str] | list[str]:
    """Split a node name into its name (``None`` if there is none) and its host."""
    parts = name.split(NODENAME_SEP, 1)
    return parts if len(parts) == 2 else (None, parts[0])


def default_nodename(hostname: str | None, default_name: str = NODENAME_DEFAULT) -> str:
    """Complete a node name of which the name or the host may be missing."""
    name, host = nodesplit(hostname or "")
    return nodename(name or default_name, host or gethostname())


def node_format(s: str, name: str, **extra: Any) -> str:
    """Fill in *s* for the node *name*: as :func:`host_format`, and ``%p`` is the whole name."""
    short_name, host = nodesplit(name)
    return host_format(s, host, short_name or NODENAME_DEFAULT, p=name, **extra)


def host_format(s: str, host: str | None = None, name: str | None = None, **extra: Any) -> str:
    """Fill in *s*: ``%h`` host, ``%n`` name (or short host), ``%d`` domain, ``%%`` percent sign.

    ``%i`` is the index of this process in its pool, 0 for the main one; ``%I`` is the same with a
    dash before it, and nothing for the main one.  *extra* gives more letters.
    """
    host = host or gethostname()
    short_host, _, domain = host.partition(".")
    letters: dict[str, Any] = {
        "h": host,
        "n": name or short_host,
        "d": domain,
        "i": _process_index,
        "I": partial(_process_index, "-", ""),
    }
    return simple_format(s, {**letters, **extra})


def _process_index(prefix: str = "", default: str = "0") -> str:
    index = current_process_index()
    return f"{prefix}{index}" if index else default
