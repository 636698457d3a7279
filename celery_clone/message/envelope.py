"""One raw message as a broker without a message format of its own keeps it: JSON text.

Made by ``message.delivery`` for what Redis and SQLite give, by ``transport.redis_publisher`` for
what it sends, and opened again in a child.  Reads and writes text; it may not talk to a broker.

The layout is kombu's (``virtual.Channel``): an object with ``body``, ``content-encoding``,
``content-type``, ``headers`` and ``properties``, the body as base64 unless the properties say otherwise.
"""

from __future__ import annotations

import base64
import json
import re
from typing import Any, NamedTuple

from kombu.exceptions import DecodeError

__all__ = ("Envelope", "Parts", "Peek", "with_losses")


class Peek(NamedTuple):
    """What can be read from the raw text without decoding it.

    ``plain``: no eta, no expires and no time limit, so nothing has to be decided before it may run.
    """

    task: str
    id: str
    tag: str
    plain: bool


class Parts(NamedTuple):
    """An opened message; ``body`` is still serialised and maybe compressed."""

    headers: dict[str, Any]
    properties: dict[str, Any]
    body: Any
    content_type: str | None
    content_encoding: str | None


# The beginning and the end of a message as Celery's producers write it.  Why user data cannot imitate it:
# a JSON string holds no bare quote, so START and the end of the body are where they seem to be, and HEAD
# follows them in one piece up to the last header it reads.  The text behind the last bare TAIL_START has the
# braces of two objects and closes three: it is the outermost "properties", and the tag its last member.
START = b'{"body": "'
BODY_END = b'", "content-encoding": '
TAIL_START = b', "properties": {"'
TAG_START = b', "delivery_tag": "'
TAIL_END = b'"}}'

WORD = rb"[^\"\\]"
TEXT = rb'(?:null|"' + WORD + rb'*")'
HEAD = re.compile(
    rb'", "content-encoding": ' + TEXT + rb', "content-type": ' + TEXT + rb', "headers": \{"lang": ' + TEXT
    # The names a worker dispatches on.
    + rb', "task": "(' + WORD + rb'+)", "id": "(' + WORD + rb'+)", "shadow": ' + TEXT + rb', "eta": '
    # Matches only when there is nothing to wait for and nothing to limit.
    + rb'(null, "expires": null, "group": ' + TEXT + rb', "group_index": (?:null|\d+), "retries": \d+, '
    + rb'"timelimit": \[null, null\], )?'
)  # fmt: skip

decode_json = json.JSONDecoder().decode


class Envelope:
    """One message as fetched.  Construction never fails; opening it may."""

    __slots__ = ("_message", "_peek", "raw")

    raw: bytes

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self._peek: Peek | bool | None = None
        self._message: dict[str, Any] | None = None

    def peek(self) -> Peek | None:
        """The fields that dispatching needs; ``None`` for an unusual layout, to be decoded instead."""
        found = self._peek
        if found is None:
            found = self._peek = peek(self.raw) or False
        return found or None  # type: ignore[return-value]

    def message(self) -> dict[str, Any]:
        """The decoded envelope, decoded once.

        Raises:
            kombu.exceptions.DecodeError: the text is not a message; the error says what is wrong with it.
        """
        message = self._message
        if message is None:
            message = self._message = open_message(self.raw)
        return message

    def parts(self) -> Parts:
        """Headers, properties and the body as bytes.

        Raises:
            kombu.exceptions.DecodeError: as :meth:`message`, or the body is not valid base64.
        """
        message = self.message()
        properties = message.get("properties") or {}
        return Parts(
            message.get("headers") or {},
            properties,
            decode_body(message.get("body"), properties.get("body_encoding")),
            message.get("content-type"),
            message.get("content-encoding"),
        )

    def __repr__(self) -> str:
        found = self.peek()
        what = f"{found.task} {found.id}" if found else f"{len(self.raw)} bytes"
        return f"<{type(self).__name__}: {what}>"


def with_losses(raw: bytes, losses: int, *, redelivered: bool = False) -> bytes:
    """The text of a message whose process died, *losses* times by now, marked as *redelivered* if it is.

    Raises:
        kombu.exceptions.DecodeError: the text is not a message.
    """
    message = open_message(raw)
    headers = message["headers"] = {**(message.get("headers") or {}), "losses": losses}
    info = (message.get("properties") or {}).get("delivery_info")
    if redelivered:
        headers["redelivered"] = True
        if isinstance(info, dict):
            info["redelivered"] = True
    return json.dumps(message).encode()


def peek(raw: bytes) -> Peek | None:
    """Read a message of the usual layout without decoding it; ``None`` for any other."""
    # Hot: runs once per fetched message.  About 2 us against 5 us for a parse, and no dict to collect later.
    if not raw.startswith(START) or not raw.endswith(TAIL_END):
        return None
    head = HEAD.match(raw, raw.find(BODY_END, len(START) - 1))
    if head is None:
        return None
    tail = raw[raw.rfind(TAIL_START, head.end()) :]
    if tail.count(b"{") != 2 or tail.count(b"}") != 3:
        return None
    _, mark, tag = tail[: -len(TAIL_END)].rpartition(TAG_START)
    if not mark or b'"' in tag or b"\\" in tag:
        return None
    task, task_id, plain = head.groups()
    try:
        return Peek(task.decode("ascii"), task_id.decode("ascii"), tag.decode("ascii"), plain is not None)
    except UnicodeDecodeError:
        return None


def open_message(raw: bytes) -> dict[str, Any]:
    """Decode an envelope and check its shape, not yet the values in it."""
    try:
        message = decode_json(raw.decode("utf-8"))
    except (ValueError, RecursionError) as exc:
        raise DecodeError(f"The text is not JSON: {exc}") from exc
    if not isinstance(message, dict):
        raise DecodeError(f"The text is JSON, but a {type(message).__name__} instead of an object.")
    if "body" not in message:
        raise DecodeError(f"The object has no 'body'; its keys are {sorted(message)[:10]}.")
    for key in ("headers", "properties"):
        if not isinstance(message.get(key), dict | None):
            raise DecodeError(f"{key!r} of the message is a {type(message[key]).__name__}, not an object.")
    for key in ("content-type", "content-encoding"):
        if not isinstance(message.get(key), str | None):
            raise DecodeError(f"{key!r} of the message is a {type(message[key]).__name__}, not a text.")
    return message


def decode_body(body: Any, encoding: str | None) -> Any:
    """The body as bytes; a body that was never encoded is returned as it is.

    Raises:
        kombu.exceptions.DecodeError: the encoding is unknown or does not fit.
    """
    if not body or not encoding or (isinstance(encoding, str) and encoding.lower() == "utf-8"):
        return body.encode("utf-8") if isinstance(body, str) else body
    if encoding != "base64":
        raise DecodeError(f"The body is encoded as {encoding!r}; only 'base64' and 'utf-8' are known.")
    try:
        return base64.b64decode(body)
    except (TypeError, ValueError) as exc:
        raise DecodeError(f"The body is not valid base64: {exc}") from exc
