"""Beat's mailbox: it answers ``celery inspect ping`` while the scheduler turns.

Owned by ``beat.service``.  It only looks at the service, and never makes its scheduler.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Event, Thread
from typing import Any

from kombu import pidbox
from kombu.common import ignore_errors
from kombu.utils.encoding import safe_str

from celery_clone.beat.scheduler import DEFAULT_MAX_INTERVAL
from celery_clone.utils.collections import AttributeDict
from celery_clone.utils.log import get_logger
from celery_clone.utils.nodenames import default_nodename, host_format

__all__ = ("BeatPidbox", "beat_nodename")

logger = get_logger("celery.beat")

NODENAME_DEFAULT = "celerybeat"


def beat_nodename(hostname: str | None = None) -> str:
    """The node name of a beat: ``celerybeat@<host>``, with the parts that are given and ``%h`` filled in."""
    return host_format(default_nodename(hostname, NODENAME_DEFAULT))


class Ending(BaseException):
    """Beat ends while its mailbox waits for the broker."""


class BeatNode(pidbox.Node):
    """Answers only while the scheduler turns, so that a probe sees one that hangs."""

    owner: Any = None

    def dispatch(
        self, method: str, arguments: Any = None, reply_to: Any = None, ticket: Any = None, **kwargs: Any
    ) -> Any:
        """Obey a command."""
        owner = self.owner
        if owner is not None and owner.is_stale():
            logger.warning(
                "beat pidbox: not answering %s, the scheduler has not ticked for %.1fs (over the %ss limit).",
                method,
                owner.tick_age(),
                owner.max_tick_age,
            )
            return None
        answer: Callable[..., Any] = super().dispatch
        return answer(method, arguments, reply_to, ticket, **kwargs)


class BeatPidbox:
    """Has beat answer ``celery inspect ping``, from a thread with a connection of its own.

    Arguments:
        service: the :class:`Service` that is watched.
    """

    #: Seconds before a connection that was lost is opened again.
    retry_interval = 5.0

    #: Seconds that :meth:`stop` waits for the thread.
    join_timeout = 3.0

    #: The least :attr:`max_tick_age` that is derived: a single slow turn is no fault.
    min_tick_age = 60.0

    def __init__(self, service: Any) -> None:
        self.service = service
        self.app = service.app
        self.hostname = beat_nodename(service.hostname)
        make_node: Callable[..., Any] = BeatNode
        self.node = make_node(
            safe_str(self.hostname),
            AttributeDict(app=self.app, service=service),
            handlers={"ping": lambda state, **kwargs: {"ok": "pong"}},
            mailbox=self.app.control.mailbox,
        )
        self.node.owner = self
        self.thread: Thread | None = None
        self._ending = Event()

    # -- is the scheduler well?

    @property
    def max_tick_age(self) -> float:
        """Seconds since the last turn after which beat counts as stuck; 0 for never."""
        configured = self.app.conf.beat_remote_control_max_tick_age
        if configured is not None:
            return float(configured)
        service = self.service
        interval = service.effective_max_interval or service.max_interval or DEFAULT_MAX_INTERVAL
        return float(max(interval * 2, self.min_tick_age))

    def tick_age(self) -> float | None:
        """Seconds since the last turn; ``None`` before the first."""
        last = self.service._last_tick
        return None if last is None else time.monotonic() - last

    def is_stale(self) -> bool:
        """Is the scheduler stuck?"""
        age, longest = self.tick_age(), self.max_tick_age
        return bool(longest and age is not None and age > longest)

    # -- life

    def fanout_support(self) -> tuple[bool, Any]:
        """(can this broker send one message to all?, its transport)."""
        connection = self.app.connection_for_read()
        try:
            return connection.supports_exchange_type("fanout"), connection.transport_cls
        finally:
            ignore_errors(connection, connection.release)

    def start(self) -> None:
        """Begin to answer.  Legal twice."""
        if self.thread is not None and self.thread.is_alive():
            return
        supported, transport = self.fanout_support()
        if not supported:
            logger.warning(
                "beat pidbox: the %s transport has no fanout exchanges, so remote control is unavailable.",
                transport,
            )
            return
        self._ending.clear()
        self.thread = Thread(target=self._run, name="BeatPidbox", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Answer no more.  Legal early and twice."""
        self._ending.set()
        thread = self.thread
        if thread is None:
            return
        thread.join(self.join_timeout)
        if thread.is_alive():
            logger.warning(
                "beat pidbox: the thread did not end within %s seconds; it ends with the process.",
                self.join_timeout,
            )
        else:
            self.thread = None

    def on_message(self, body: Any, message: Any) -> None:
        """A command came; all but ``ping`` are for workers."""
        if isinstance(body, dict) and body.get("method") in self.node.handlers:
            try:
                self.node.handle_message(body, message)
            except Exception as exc:
                logger.exception("beat pidbox command error: %r", exc)

    def _run(self) -> None:
        conf, ending = self.app.conf, self._ending
        setting = "broker_connection_retry"
        if conf.broker_connection_retry_on_startup is not None:
            setting = "broker_connection_retry_on_startup"
        while not ending.is_set():
            try:
                connection = self._connect(conf[setting])
            except Ending:
                return
            except Exception as exc:
                if not ending.is_set():
                    logger.exception(
                        "beat pidbox: could not connect to the broker, so beat will not answer remote control "
                        "commands for the life of this process. See broker_connection_retry, "
                        "broker_connection_retry_on_startup and broker_connection_max_retries: %r",
                        exc,
                    )
                return
            setting = "broker_connection_retry"
            try:
                with connection:
                    self._answer(connection)
            except Exception as exc:
                if ending.is_set():
                    return
                logger.exception("beat pidbox connection error: %r", exc)
                if not conf[setting]:
                    logger.warning("beat pidbox: beat will no longer answer remote control commands.")
                    return
                ending.wait(self.retry_interval)

    def _connect(self, retry: bool) -> Any:
        connection = self.app.connection_for_read()

        def report(exc: BaseException, interval: float) -> None:
            logger.error("beat pidbox: Connection error: %s. Trying again in %s seconds...", exc, interval)

        def stop_waiting() -> None:
            if self._ending.is_set():
                raise Ending

        retries = self.app.conf.broker_connection_max_retries if retry else 0
        try:
            connection.ensure_connection(report, retries, callback=stop_waiting)
        except BaseException:
            ignore_errors(connection, connection.release)
            raise
        return connection

    def _answer(self, connection: Any) -> None:
        logger.info("beat pidbox: Connected to %s.", connection.as_uri())
        self.node.channel = connection.channel()
        consumer = self.node.listen(callback=self.on_message)
        try:
            while not self._ending.is_set():
                try:
                    connection.drain_events(timeout=1.0)
                except TimeoutError:
                    continue
        finally:
            ignore_errors(connection, consumer.cancel)
