"""Consumer step: takes over the clock and the revoked ids of the workers that are there already.

Started by the consumer after the connection.  It asks and goes on: the answers come in while the worker
runs, so that nobody waits for workers that may not exist.
"""

from __future__ import annotations

from typing import Any

from celery_clone.bootsteps import StartStopStep
from celery_clone.utils.log import get_logger
from celery_clone.worker.pidbox import Inquiry

__all__ = ("Mingle",)

logger = get_logger("celery.worker.consumer.mingle")


class Mingle(StartStopStep):
    """Synchronises with other workers when one starts; ``--without-mingle`` turns it off."""

    name = "celery.worker.consumer.mingle.Mingle"
    label = "Mingle"
    requires = ("celery_clone.worker.consumer.events:Events",)

    #: Brokers on which several workers are usual and can be reached all at once.
    compatible_transports = {"amqp", "redis", "gcpubsub"}

    def __init__(self, c: Any, without_mingle: bool = False, **kwargs: Any) -> None:
        self.enabled = not without_mingle and self.compatible_transport(c.app)
        self._inquiry: Inquiry | None = None
        self._synced = 0
        super().__init__(c, without_mingle=without_mingle, **kwargs)

    def compatible_transport(self, app: Any) -> bool:
        """Can the workers of *app* be asked?"""
        with app.connection_for_read() as connection:
            return connection.transport.driver_type in self.compatible_transports

    def start(self, c: Any) -> None:
        self.sync(c)

    def stop(self, c: Any) -> None:
        """Take no more answers.  Legal early and twice."""
        inquiry, self._inquiry = self._inquiry, None
        if inquiry is not None:
            inquiry.stop()

    shutdown = stop

    def sync(self, c: Any) -> None:
        """Ask the others."""
        logger.info("mingle: searching for neighbors")
        self._synced = 0
        self._inquiry = self.send_hello(c)

    def send_hello(self, c: Any) -> Inquiry:
        """Tell the other workers what this one knows as revoked; their answers go to :meth:`on_node_reply`."""

        def answered(nodename: str, reply: Any) -> None:
            # A worker of the same name answers with nothing; there the step Control warns.
            if nodename != c.hostname and reply:
                self.on_node_reply(c, nodename, reply)

        def ended(answers: int) -> None:
            if not self._synced:
                logger.info("mingle: all alone")
            else:
                logger.info("mingle: sync with %s nodes", self._synced)
                logger.info("mingle: sync complete")

        arguments = {"from_node": c.hostname, "revoked": [*c.controller.state.revoked]}
        inquiry = Inquiry(c, "hello", arguments, answered, ended)
        inquiry.start()
        return inquiry

    def on_node_reply(self, c: Any, nodename: str, reply: Any) -> None:
        """A worker answered."""
        logger.debug("mingle: processing reply from %s", nodename)
        try:
            self.sync_with_node(c, **reply)
        except (TypeError, ValueError) as exc:
            # Whatever another version sends must not end this worker.
            logger.exception("mingle: sync with %s failed: %r", nodename, exc)
        else:
            self._synced += 1

    def sync_with_node(self, c: Any, clock: int | None = None, revoked: Any = None, **kwargs: Any) -> None:
        """Take over what a worker knows."""
        self.on_clock_event(c, clock)
        self.on_revoked_received(c, revoked)

    def on_clock_event(self, c: Any, clock: int | None) -> None:
        """Move the logical clock past that of another worker."""
        if clock:
            c.app.clock.adjust(clock)
        else:
            c.app.clock.forward()

    def on_revoked_received(self, c: Any, revoked: Any) -> None:
        """Take over revoked ids."""
        if revoked:
            c.controller.state.merge_revoked(revoked)
            c.dispatcher.revoke(frozenset(revoked))
