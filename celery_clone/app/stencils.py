"""Calls made like one before: what they have in common is worked out once.

``app.amqp`` keeps stencils and sends with them: one for the calls of a group, and one for each task
that is called without options.  Values only; it may not send, and may not read the configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from celery_clone.message.outgoing import TaskMessage

from .calls import Way

__all__ = ("Plain", "Stencil")

OF_EACH = frozenset({"task_id", "group_index"})
"""Options that each call of a group has for itself."""

OF_STENCILS = OF_EACH | {
    "add_to_parent",
    "chord",
    "group_id",
    "parent_id",
    "priority",
    "queue",
    "reply_to",
    "root_id",
    "serializer",
}
"""Options with which a call can be a stencil: none says when it is sent, as what, or by whom."""


class Stencil(NamedTuple):
    """A call that was made, to make those after it that differ in id, place in their group and arguments only.

    ``options`` are those it was made with.
    """

    options: Mapping[str, Any]
    message: TaskMessage
    way: Way
    wants_result: bool

    @staticmethod
    def allows(options: Mapping[str, Any]) -> bool:
        """May a call with these options be the stencil of a group?"""
        return options.get("add_to_parent") is False and options.keys() <= OF_STENCILS

    def fits(self, options: Mapping[str, Any]) -> bool:
        """Are all options the very same, but for those that each call has for itself?"""
        mine = self.options
        if len(options) != len(mine):
            return False
        for key, value in options.items():
            if key not in mine or (mine[key] is not value and key not in OF_EACH):
                return False
        return True

    def filled(
        self,
        task_id: str,
        group_index: int | None,
        args: Any,
        kwargs: Any,
        argsrepr: str,
        kwargsrepr: str,
        reply_to: str | None = None,
    ) -> TaskMessage:
        """The message of such a call; with *reply_to* where another thread than the stencil's makes it."""
        headers, properties, body, _ = self.message
        embed = cast("tuple[Any, Any, Mapping[str, Any]]", body)[2]
        headers = {
            **headers,
            "id": task_id,
            "group_index": group_index,
            # A call that nobody sent on is its own root.
            "root_id": task_id if headers["root_id"] == headers["id"] else headers["root_id"],
            "argsrepr": argsrepr,
            "kwargsrepr": kwargsrepr,
        }
        properties = {**properties, "correlation_id": task_id, "reply_to": reply_to or properties["reply_to"]}
        return TaskMessage(headers, properties, (args, kwargs, embed), None)


class Plain(NamedTuple):
    """The stencil of the calls of one task that have no options, and what it was made of.

    ``conf``, ``preset`` (options of the task) and ``queue`` are compared by identity: what was changed
    in place announces it, or is looked at here.
    """

    stencil: Stencil
    task: Any
    conf: Any
    preset: Any
    queue: Any

    @staticmethod
    def allows(message: TaskMessage) -> bool:
        """Is there nothing in *message* that depends on when or by whom it was sent?"""
        headers = message.headers
        return (
            message.sent_event is None
            and headers["eta"] is None
            and headers["expires"] is None
            and headers["parent_id"] is None
            and headers["stamped_headers"] is None
            and headers["root_id"] == headers["id"]
            and "expiration" not in message.properties
        )
