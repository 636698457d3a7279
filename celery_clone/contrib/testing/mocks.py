"""Messages that were never sent, for tests of what receives them.

They are :class:`unittest.mock.Mock` objects: ``message.ack.assert_called_once_with()``.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from unittest.mock import Mock

from kombu.serialization import dumps

from celery_clone.utils.functional import maybe_list
from celery_clone.utils.ids import uuid

__all__ = ("ContextMock", "TaskMessage", "TaskMessage1", "task_message_from_sig")


def _message(id: str, headers: dict[str, Any], payload: Any) -> Any:
    message = Mock(name=f"TaskMessage-{id}")
    message.headers = headers
    message.payload = payload
    message.content_type, message.content_encoding, message.body = dumps(payload, serializer="json")
    return message


def TaskMessage(  # noqa: N802 Celery's name
    name: str,
    id: str | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    callbacks: Sequence[Any] | None = None,
    errbacks: Sequence[Any] | None = None,
    chain: Sequence[Any] | None = None,
    shadow: str | None = None,
    utc: bool | None = None,
    **options: Any,
) -> Any:
    """A message as workers get them; *options* are further headers."""
    id = id or uuid()
    headers = {"id": id, "task": name, "shadow": shadow, **options}
    embedded = {"callbacks": callbacks, "errbacks": errbacks, "chain": chain}
    return _message(id, headers, (args, kwargs or {}, embedded))


def TaskMessage1(  # noqa: N802 Celery's name
    name: str,
    id: str | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    callbacks: Sequence[Any] | None = None,
    errbacks: Sequence[Any] | None = None,
    chain: Sequence[Any] | None = None,
    **options: Any,
) -> Any:
    """A message of the older protocol, with everything in its body; *options* are further fields of that."""
    id = id or uuid()
    body = {
        "task": name,
        "id": id,
        "args": args,
        "kwargs": kwargs or {},
        "callbacks": callbacks,
        "errbacks": errbacks,
    }
    return _message(id, {}, {**body, **options})


def task_message_from_sig(
    app: Any,
    sig: Any,
    utc: bool = True,
    TaskMessage: Callable[..., Any] = TaskMessage,  # noqa: N803
) -> Any:
    """The message that a signature would send.  The signature is frozen, and loses the options that are in it."""
    sig.freeze()
    options = sig.options
    link, link_error, countdown = (options.pop(name, None) for name in ("link", "link_error", "countdown"))
    eta, expires = options.pop("eta", None), options.pop("expires", None)
    if countdown:
        eta = app.now() + timedelta(seconds=countdown)
    if isinstance(expires, numbers.Real):
        expires = app.now() + timedelta(seconds=float(expires))
    return TaskMessage(
        sig.task,
        id=sig.id,
        args=sig.args,
        kwargs=sig.kwargs,
        callbacks=[dict(each) for each in maybe_list(link)] if link else None,
        errbacks=[dict(each) for each in maybe_list(link_error)] if link_error else None,
        eta=_text_of(eta),
        expires=_text_of(expires),
        utc=utc,
        **options,
    )


def _text_of(time: Any) -> Any:
    return time.isoformat() if isinstance(time, datetime) else time or None


class _ContextMock(Mock):
    """A mock that can stand in a ``with`` statement, which looks at classes only."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass


def ContextMock(*args: Any, **kwargs: Any) -> Any:  # noqa: N802 Celery's name
    """A mock that can stand in a ``with`` statement, and whose entering and leaving can be asserted."""
    mock: Any = _ContextMock(*args, **kwargs)
    mock.attach_mock(_ContextMock(), "__enter__")
    mock.attach_mock(_ContextMock(), "__exit__")
    mock.__enter__.return_value = mock
    # Anything true would swallow exceptions.
    mock.__exit__.return_value = None
    return mock
