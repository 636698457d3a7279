"""The table of remote commands: how a command gets into it, and what is known of each.

Filled by ``worker.control`` and by projects, which find all of this there; read by ``worker.pidbox`` and
``bin.control``.  It may not call a command.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

__all__ = ("Panel", "control_command", "controller_info_t", "inspect_command", "nok", "ok")


class controller_info_t(NamedTuple):  # noqa: N801 Celery's name
    """What is known of a command beside its function."""

    alias: str | None
    type: str
    visible: bool
    default_timeout: float
    help: str
    signature: str | None
    args: Sequence[tuple[str, Callable[[Any], Any]]] | None
    variadic: str | None


def ok(value: Any) -> dict[str, Any]:
    """The reply of a command that did what was asked."""
    return {"ok": value}


def nok(value: Any) -> dict[str, Any]:
    """The reply of a command that could not."""
    return {"error": value}


class Panel(UserDict):  # type: ignore[type-arg]  # not generic at run time in Celery's surface
    """All commands by name; one table for the whole process."""

    data: dict[str, Callable[..., Any]] = {}
    meta: dict[str, controller_info_t] = {}

    @classmethod
    def register(cls, *args: Any, **kwargs: Any) -> Any:
        """Decorator that adds a command; with or without options.

        Arguments:
            name: name of the command; the function's if not given.
            alias: a second name.
            type: ``"control"`` or ``"inspect"``.
            visible: show it in the command line's help?
            default_timeout: seconds a client waits for replies.
            help: one line for the command line; the docstring's first by default.
            signature: how its arguments are shown there.
            args: names of positional arguments of the command line, each with what converts it.
            variadic: name of the argument that takes the rest of the command line.
        """
        decorate = cls._register(**kwargs)
        return decorate(*args) if args else decorate

    @classmethod
    def _register(
        cls,
        name: str | None = None,
        alias: str | None = None,
        type: str = "control",
        visible: bool = True,
        default_timeout: float = 1.0,
        help: str | None = None,
        signature: str | None = None,
        args: Sequence[tuple[str, Callable[[Any], Any]]] | None = None,
        variadic: str | None = None,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def add(function: Callable[..., Any]) -> Callable[..., Any]:
            known_as = name or function.__name__
            text = help or (function.__doc__ or "").strip().split("\n")[0]
            cls.data[known_as] = function
            cls.meta[known_as] = controller_info_t(
                alias, type, visible, default_timeout, text, signature, args, variadic
            )
            if alias:
                cls.data[alias] = function
            return function

        return add


def control_command(**kwargs: Any) -> Any:
    """Decorator: a command that changes something.  Arguments as :meth:`Panel.register`."""
    return Panel.register(type="control", **kwargs)


def inspect_command(**kwargs: Any) -> Any:
    """Decorator: a question.  Arguments as :meth:`Panel.register`."""
    return Panel.register(type="inspect", **kwargs)
