"""What leaves a producer: one task message as plain values.

Made by ``message.protocol``, carried by ``app.amqp`` and ``app.calls`` to a publisher of
``transport``.  It holds values only and may not know how they are serialised or sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ("TaskMessage",)


class TaskMessage(NamedTuple):
    """One call as a message: headers, AMQP properties, body and the ``task-sent`` event.

    ``body`` is ``(args, kwargs, embed)`` in protocol 2.  ``sent_event`` holds the fields of the
    ``task-sent`` event, or ``None`` when nobody asked for that event.
    """

    headers: dict[str, Any]
    properties: dict[str, Any]
    body: tuple[Sequence[Any], Mapping[str, Any], Mapping[str, Any]] | dict[str, Any]
    sent_event: dict[str, Any] | None
