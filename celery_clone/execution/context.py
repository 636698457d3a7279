"""What a running task sees as ``self.request``.

Made by ``app.trace`` from the message headers for every run, by ``app.task`` for eager runs and
by ``backends`` when an error handler needs a request.  Holds values only.
"""

from __future__ import annotations

from typing import Any

__all__ = ("Context",)

X_DEATH_HEADERS = frozenset(
    {
        "x-death",
        "x-first-death-exchange",
        "x-first-death-queue",
        "x-first-death-reason",
        "x-last-death-exchange",
        "x-last-death-queue",
        "x-last-death-reason",
    }
)
"""Written by RabbitMQ when a message was dead-lettered; resent, they look like a cycle to it."""


class Context:
    """The request variables of one run, with a default for each name.

    Any header of the message may be read as an attribute.  ``timelimit`` is ``[hard, soft]`` in
    seconds as on the wire; ``time_limit`` and ``soft_time_limit`` follow it.
    """

    _children: list[Any] | None = None
    _protected = 0
    _wants_summary = True
    args: Any = None
    callbacks: Any = None
    called_directly: bool = True
    chain: Any = None
    chord: Any = None
    correlation_id: str | None = None
    delivery_info: dict[str, Any] | None = None
    errbacks: Any = None
    eta: Any = None
    expires: Any = None
    group: str | None = None
    group_index: int | None = None
    headers: dict[str, Any] | None = None
    hostname: str | None = None
    id: str | None = None
    ignore_result: bool | None = False
    is_eager: bool = False
    kwargs: Any = None
    logfile: str | None = None
    loglevel: int | None = None
    losses: int = 0
    origin: str | None = None
    parent_id: str | None = None
    properties: dict[str, Any] | None = None
    retries: int = 0
    reply_to: str | None = None
    replaced_task_nesting: int = 0
    root_id: str | None = None
    shadow: str | None = None
    taskset: str | None = None
    timelimit: Any = None
    time_limit: float | None = None
    soft_time_limit: float | None = None
    utc: bool | None = None
    stamped_headers: Any = None
    stamps: dict[str, Any] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.update(*args, **kwargs)
        if self.headers is None:
            # What the caller sent beyond the known names: ``apply_async(headers={...})``.
            values = self.__dict__
            custom = {name: values[name] for name in values if name not in KNOWN_NAMES}
            if custom:
                self.headers = custom

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Set attributes, with the arguments of :meth:`dict.update`."""
        values = self.__dict__
        before = values.get("timelimit", values)
        values.update(*args, **kwargs)
        after = values.get("timelimit", values)
        if after is not before:
            pair = isinstance(after, (list, tuple)) and len(after) >= 2
            self.time_limit, self.soft_time_limit = (after[0], after[1]) if pair else (None, None)

    def clear(self) -> None:
        """Forget every value that was set."""
        self.__dict__.clear()

    def get(self, key: str, default: Any = None) -> Any:
        """The attribute *key*, or *default*."""
        return getattr(self, key, default)

    def __getattr__(self, name: str) -> Any:
        # Present for the type checker alone: any header may be read as an attribute.
        raise AttributeError(f"The request of this task has no value {name!r}.")

    def __repr__(self) -> str:
        return f"<Context: {vars(self)!r}>"

    def as_execution_options(self) -> dict[str, Any]:
        """The options of ``apply_async`` that would make the same call again."""
        hard, soft = self.timelimit or (None, None)
        headers = {name: value for name, value in (self.headers or {}).items() if name not in X_DEATH_HEADERS}
        options: dict[str, Any] = {
            "task_id": self.id,
            "root_id": self.root_id,
            "parent_id": self.parent_id,
            "group_id": self.group,
            "group_index": self.group_index,
            "shadow": self.shadow,
            "chord": self.chord,
            "chain": self.chain,
            "link": self.callbacks,
            "link_error": self.errbacks,
            "expires": self.expires,
            "soft_time_limit": soft,
            "time_limit": hard,
            "headers": headers,
            "retries": self.retries,
            "reply_to": self.reply_to,
            "replaced_task_nesting": self.replaced_task_nesting,
            "origin": self.origin,
        }
        if self.stamps is not None and self.stamped_headers is not None:
            options["stamped_headers"] = self.stamped_headers
            options.update(
                (name, value) for name, value in self.stamps.items() if name in self.stamped_headers
            )
        return options

    @property
    def children(self) -> list[Any]:
        """Results of the calls this run made."""
        if self._children is None:
            self._children = []
        return self._children


KNOWN_NAMES = frozenset(Context.__dict__) | {
    "lang",
    "task",
    "argsrepr",
    "kwargsrepr",
    "compression",
    "time_limit",
    "soft_time_limit",
}
