"""Where a broker on Redis keeps what: kombu's keys, ours beside them, and the scripts that change them.

Used by ``transport.redis_source`` and ``transport.redis_publisher``.  Names and options come from
the kombu channel, so that real Celery workers may share the broker.  Builds keys, commands and
texts; it may not open a connection.  The layout is described in ``docs/internals/redis-layout.md``.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect
from collections.abc import Callable, Iterable
from importlib import resources
from typing import Any, NamedTuple

from kombu.utils.json import dumps

__all__ = (
    "CLAIM",
    "PARK",
    "PROMOTE",
    "RENEW",
    "REWRITE",
    "SCRIPTS",
    "SETTLE",
    "SWEEP",
    "Layout",
    "Script",
    "pack",
    "restorable",
)


class Script(NamedTuple):
    """One Lua script and the name Redis gives it."""

    text: bytes
    sha: bytes


def script(*names: str) -> Script:
    """Read a script of this package, with what must stand before it."""
    text = b"".join(resources.files(__package__).joinpath(name).read_bytes() for name in names)
    return Script(text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())


CLAIM, PROMOTE = (script("due_time.lua", f"{name}.lua") for name in ("claim", "promote"))
RENEW, SWEEP, SETTLE, PARK, REWRITE = (
    script(f"{name}.lua") for name in ("renew", "sweep", "settle", "park", "rewrite")
)
SCRIPTS = (CLAIM, RENEW, SWEEP, SETTLE, PARK, PROMOTE, REWRITE)


class Layout(NamedTuple):
    """The keys and options of one broker, as its kombu channel has them.  Keys carry the global prefix."""

    prefix: str
    sep: str
    priority_steps: tuple[int, ...]
    unacked: str
    unacked_index: str
    visibility_s: float
    fair: bool

    @classmethod
    def of_channel(cls, channel: Any) -> Layout:
        """Read it from a :class:`kombu.transport.redis.Channel`."""
        prefix = channel.global_keyprefix or ""
        return cls(
            prefix,
            channel.sep,
            tuple(channel.priority_steps),
            prefix + channel.unacked_key,
            prefix + channel.unacked_index_key,
            float(channel.visibility_timeout),
            channel.queue_order_strategy == "round_robin",
        )

    @property
    def leases(self) -> str:
        """Sorted set of tag to the time until which the claim is safe."""
        return f"{self.unacked}_leases"

    @property
    def schedule(self) -> str:
        """Sorted set of parked messages to the time they are due."""
        return f"{self.unacked}_schedule"

    @property
    def sweeps(self) -> str:
        """Hash that tells since when sweeps have followed each other without a gap."""
        return f"{self.unacked}_sweeps"

    def last_claim_of(self, worker: str) -> str:
        """String with the tags of what *worker* claimed last."""
        return f"{self.unacked}_claim.{worker}"

    def list_of(self, queue: str, priority: Any = 0) -> str:
        """The list that holds the messages of *queue* with that *priority*."""
        try:
            wanted = max(0, min(int(priority), 9))
        except (TypeError, ValueError):
            wanted = 0
        step = self.priority_steps[bisect(self.priority_steps, wanted) - 1]
        return f"{self.prefix}{queue}{self.sep}{step}" if step else f"{self.prefix}{queue}"

    def lists_of(self, queues: Iterable[str]) -> list[str]:
        """All lists of *queues*, in the order in which kombu serves them."""
        names = list(queues)
        return [self.list_of(queue, step) for step in self.priority_steps for queue in names]

    def dead_list_of(self, queue: str) -> str:
        """The list of messages of *queue* that nobody could use."""
        return f"{self.prefix}{queue}.dead"

    def entry_end(self, queue: str) -> str:
        """What closes an entry in unacked: the default exchange leads straight back to the queue."""
        return f', "", {json.dumps(queue)}]'


def pack(*arguments: Any) -> bytes:
    """One command as Redis reads it; arguments are bytes, text and numbers."""
    parts = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        data = argument if isinstance(argument, bytes) else str(argument).encode("utf-8")
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def pack_script(wanted: Script, keys: Iterable[str], *arguments: Any) -> bytes:
    """The call of one script."""
    names = list(keys)
    return pack(b"EVALSHA", wanted.sha, len(names), *names, *arguments)


def restorable(entry: bytes, layout: Layout, lookup: Callable[[str, str], Iterable[str]]) -> tuple[list[str], bytes]:
    """Where an entry of unacked must be put back to, and its text, marked as redelivered like kombu does.

    *lookup* finds the queues of an exchange and a routing key.

    Raises:
        ValueError: the entry is not readable.
    """
    message, exchange, routing_key = json.loads(entry)
    if isinstance(message, str):  # a text that is no JSON, as the claim script keeps it
        return [layout.list_of(routing_key)], message.encode("latin-1")
    queues = [routing_key] if not exchange else list(lookup(exchange, routing_key))
    return [layout.list_of(queue, priority_of(message)) for queue in queues], redelivered(message)


def priority_of(message: Any) -> Any:
    """The priority a decoded message asks for."""
    return member(member(message, "properties"), "priority") or 0


def redelivered(message: Any) -> bytes:
    """The text of *message* with kombu's marks of a redelivery; only the marks that have a place."""
    for holder in (member(message, "headers"), member(member(message, "properties"), "delivery_info")):
        if isinstance(holder, dict):
            holder["redelivered"] = True
    text: str = dumps(message)
    return text.encode("utf-8")


def member(value: Any, key: str) -> Any:
    """``value[key]`` where that makes sense, else ``None``."""
    return value.get(key) if isinstance(value, dict) else None
