"""A fetched message with its tag, owed an acknowledgement.

Made by the sources of ``transport``, handled by ``worker.dispatch``, shown to strangers
(strategies, requests, bootsteps, batching extensions) in place of :class:`kombu.Message`, whose
attributes and methods it has.  Nothing is decoded before somebody asks.  It may not talk to a
broker: it asks its source to.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from kombu.exceptions import DecodeError, MessageStateError

from celery_clone.message import codec
from celery_clone.message.envelope import Envelope, Parts, Peek

if TYPE_CHECKING:
    from logging import Logger

__all__ = ("ACKED", "REJECTED", "REQUEUED", "Delivery", "Settler")

ACKED, REJECTED, REQUEUED = "ACK", "REJECTED", "REQUEUED"

NOT_DECODED: Any = object()

REDELIVERED = b'"redelivered": true'
WHERE_REDELIVERED = 400
"""So near to its end has a text that mark, which kombu and our sources write into its properties."""


class Settler(Protocol):
    """What a delivery needs of its source."""

    def ack(self, tags: Iterable[str]) -> None:
        """Settle as done."""

    def reject(self, tag: str, *, requeue: bool) -> None:
        """Give up or give back."""


class Delivery:
    """One message of one queue.

    ``tag`` names the delivery to its source, ``queue`` is the queue it came from, ``epoch`` the number
    of the connection it came over, ``settled`` how it was settled through this object
    (``None``, ``"ACK"``, ``"REJECTED"``, ``"REQUEUED"``).  ``channel`` is the kombu channel, where
    the source has one.  ``accept`` holds the content types :meth:`decode` may read, ``None`` for kombu's.
    """

    __slots__ = (
        "__weakref__",
        "_decoded",
        "_parts",
        "_problem",
        "accept",
        "channel",
        "delivery_tag",
        "envelope",
        "epoch",
        "facts",
        "queue",
        "settled",
        "source",
        "tag",
    )

    MessageStateError = MessageStateError

    def __init__(
        self,
        tag: str,
        queue: str,
        source: Settler | None = None,
        *,
        envelope: Envelope | None = None,
        parts: Parts | None = None,
        epoch: int = 0,
        accept: Collection[str] | None = None,
        channel: Any = None,
        delivery_tag: Any = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Exactly one of *envelope* (raw text) and *parts* (as a client library gave them) is set.

        *facts* holds delivery information the message itself does not: ``exchange``,
        ``routing_key``, ``redelivered``, ``consumer_tag``.  *delivery_tag* is the broker's own tag if
        that is not *tag*.
        """
        self.tag = tag
        self.queue = queue
        self.source = source
        self.envelope = envelope
        self.epoch = epoch
        self.accept = accept
        self.channel = channel
        self.delivery_tag = tag if delivery_tag is None else delivery_tag
        self.facts = facts
        self.settled: str | None = None
        self._parts = parts
        self._decoded: Any = NOT_DECODED
        self._problem: str | None = None

    @classmethod
    def of_raw(
        cls,
        raw: bytes,
        tag: str,
        queue: str,
        source: Settler | None = None,
        *,
        epoch: int = 0,
        accept: Collection[str] | None = None,
        channel: Any = None,
    ) -> Delivery:
        """A message that is one text (Redis, SQLite).  Any bytes will do; see :attr:`problem`."""
        return cls(tag, queue, source, envelope=Envelope(raw), epoch=epoch, accept=accept, channel=channel)

    @classmethod
    def of_parts(
        cls,
        headers: dict[str, Any] | None,
        properties: dict[str, Any] | None,
        body: Any,
        content_type: str | None,
        content_encoding: str | None,
        tag: str,
        queue: str,
        source: Settler | None = None,
        *,
        epoch: int = 0,
        accept: Collection[str] | None = None,
        channel: Any = None,
        delivery_tag: Any = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Delivery:
        """A message whose headers a client library decoded (AMQP, other kombu transports)."""
        return cls(
            tag,
            queue,
            source,
            parts=Parts(headers or {}, properties or {}, body, content_type, content_encoding),
            epoch=epoch,
            accept=accept,
            channel=channel,
            delivery_tag=delivery_tag,
            facts=facts,
        )

    @classmethod
    def of_kombu(
        cls,
        message: Any,
        queue: str,
        source: Settler | None = None,
        *,
        tag: str | None = None,
        epoch: int = 0,
        accept: Collection[str] | None = None,
    ) -> Delivery:
        """A :class:`kombu.Message`; kombu has decompressed its body already, or says why it could not."""
        delivery = cls.of_parts(
            # The body is no longer compressed, so the header that says so must go.
            {key: value for key, value in message.headers.items() if key != "compression"},
            message.properties,
            message.body,
            message.content_type,
            message.content_encoding,
            str(message.delivery_tag) if tag is None else tag,
            queue,
            source,
            epoch=epoch,
            accept=accept,
            channel=message.channel,
            delivery_tag=message.delivery_tag,
            facts=message.delivery_info or {},
        )
        payload = getattr(message, "_raw", None)
        if isinstance(payload, dict) and payload.get("redelivered"):
            # Virtual transports note it where kombu's messages do not look.
            delivery.facts = {**(delivery.facts or {}), "redelivered": True}
        if message.errors:
            delivery._problem = f"The body cannot be read: {message.errors[0][1]}"
        return delivery

    # -- what is in it --------------------------------------------------------------------------------

    def peek(self) -> Peek | None:
        """Task, id and whether the message is plain, read from raw text; ``None``: look at the headers."""
        envelope = self.envelope
        return envelope.peek() if envelope is not None else None

    @property
    def problem(self) -> str | None:
        """Why this is no usable message, or ``None``.  Looks at the envelope, not yet at the body's value."""
        if self._problem is None and self._parts is None:
            try:
                self.parts  # noqa: B018 the attempt is the test
            except DecodeError as exc:
                self._problem = str(exc)
        return self._problem

    @property
    def parts(self) -> Parts:
        """Headers, properties and the body as it was sent.

        Raises:
            kombu.exceptions.DecodeError: the envelope is damaged.
        """
        parts = self._parts
        if parts is None:
            if self.envelope is None:
                raise DecodeError("The delivery holds neither a raw text nor decoded parts.")
            parts = self._parts = self.envelope.parts()
        return parts

    @property
    def headers(self) -> dict[str, Any]:
        """The message's headers; empty for a message that cannot be opened."""
        return self.parts.headers if self.problem is None or self._parts is not None else {}

    @property
    def properties(self) -> dict[str, Any]:
        """The message's properties; empty for a message that cannot be opened."""
        return self.parts.properties if self.problem is None or self._parts is not None else {}

    @property
    def content_type(self) -> str | None:
        """The content type of the body."""
        return self.parts.content_type if self.problem is None or self._parts is not None else None

    @property
    def content_encoding(self) -> str | None:
        """The character set of the body, ``"binary"`` for none."""
        return self.parts.content_encoding if self.problem is None or self._parts is not None else None

    @property
    def body(self) -> Any:
        """The serialised body, decompressed; the raw text for a message that cannot be opened.

        Raises:
            kombu.exceptions.DecodeError: the body cannot be decompressed.
        """
        if self.problem is not None and self._parts is None:
            return self.envelope.raw if self.envelope is not None else b""
        parts = self.parts
        return codec.uncompressed(parts.body, parts.headers)

    @property
    def delivery_info(self) -> dict[str, Any]:
        """``exchange``, ``routing_key``, ``redelivered`` and what else the broker told."""
        if self.facts is not None:
            return dict(self.facts)
        info = self.properties.get("delivery_info")
        return dict(info) if isinstance(info, Mapping) else {}

    @property
    def redelivered(self) -> bool:
        """Was the message given out before?"""
        return bool(self.delivery_info.get("redelivered"))

    @property
    def came_before(self) -> bool:
        """:attr:`redelivered`, as far as it shows without opening the message."""
        if self.facts is not None:
            return bool(self.facts.get("redelivered"))
        return self.envelope is not None and REDELIVERED in self.envelope.raw[-WHERE_REDELIVERED:]

    @property
    def errors(self) -> list[DecodeError]:
        """What went wrong while the message was opened."""
        return [DecodeError(self.problem)] if self.problem is not None else []

    def decode(self) -> Any:
        """The value of the body, decoded once.

        Raises:
            kombu.exceptions.DecodeError: the message is damaged; the error says where.
            kombu.exceptions.ContentDisallowed: its content type is not accepted.
        """
        if self._decoded is NOT_DECODED:
            self._decoded = self._decode()
        return self._decoded

    def _decode(self) -> Any:
        if self.problem is not None:
            raise DecodeError(self.problem)
        return codec.loads(self.body, self.content_type, self.content_encoding, accept=self.accept)

    @property
    def payload(self) -> Any:
        """As :meth:`decode`."""
        return self.decode()

    # -- settling it ----------------------------------------------------------------------------------

    @property
    def acknowledged(self) -> bool:
        """Has it been settled in any way?"""
        return self.settled is not None

    def _settle(self, how: str) -> Settler:
        if self.source is None:
            raise MessageStateError("This message does not have a receiving channel")
        if self.settled is not None:
            raise MessageStateError(f"Message already acknowledged with state: {self.settled}")
        self.settled = how
        return self.source

    def ack(self, multiple: bool = False) -> None:
        """Settle as done.  *multiple* is accepted for kombu's sake; a source batches by itself.

        Raises:
            kombu.exceptions.MessageStateError: it was settled before.
        """
        self._settle(ACKED).ack((self.tag,))

    def reject(self, requeue: bool = False) -> None:
        """Give up: dropped, dead-lettered, or back to the queue when *requeue*.

        Raises:
            kombu.exceptions.MessageStateError: it was settled before.
        """
        self._settle(REQUEUED if requeue else REJECTED).reject(self.tag, requeue=requeue)

    def requeue(self) -> None:
        """Back to the queue.

        Raises:
            kombu.exceptions.MessageStateError: it was settled before.
        """
        self.reject(requeue=True)

    def ack_log_error(self, logger: Logger, errors: tuple[type[BaseException], ...], multiple: bool = False) -> None:
        """:meth:`ack`; *errors* are logged as critical instead of raised, except a broken pipe."""
        self._log_error("ack", lambda: self.ack(multiple), logger, errors)

    def reject_log_error(self, logger: Logger, errors: tuple[type[BaseException], ...], requeue: bool = False) -> None:
        """:meth:`reject`; *errors* are logged as critical instead of raised, except a broken pipe."""
        self._log_error("reject", lambda: self.reject(requeue), logger, errors)

    def _log_error(
        self,
        what: str,
        settle: Callable[[], None],
        logger: Logger,
        errors: tuple[type[BaseException], ...],
    ) -> None:
        try:
            settle()
        except BrokenPipeError as exc:
            logger.critical("Couldn't %s %r, reason:%r", what, self.delivery_tag, exc, exc_info=True)
            raise
        except errors as exc:
            logger.critical("Couldn't %s %r, reason:%r", what, self.delivery_tag, exc, exc_info=True)

    def __repr__(self) -> str:
        found = self.peek()
        what = f"{found.task}[{found.id}]" if found else ("unreadable" if self.problem else "message")
        return f"<{type(self).__name__} {self.tag!r} of {self.queue!r}: {what}, {self.settled or 'unsettled'}>"
