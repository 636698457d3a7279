"""The worker's loop: one pass after another until somebody asks it to stop.

Called by the consumer's last step.  ``asynloop`` waits on a hub, which every pool and source with
descriptors uses; ``synloop`` serves green pools, whose own hub must not be blocked by ours.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any

from celery_clone.bootsteps import RUN
from celery_clone.exceptions import WorkerLostError, WorkerShutdown
from celery_clone.utils.log import get_logger

from . import state

__all__ = ("asynloop", "synloop")

logger = get_logger("celery.worker.loops")


LISTEN_S = 5.0
"""How often it is looked whether the broker has said something."""

REOPEN_S = 1.0
"""How long a worker that ends waits before it tries again to reach a broker that it lost."""


def check_heartbeat(connection: Any, hub: Any, heartbeat: Any, rate: float) -> Any:
    """Have the hub send and check AMQP heartbeats *rate* times in each interval; the timer, to be cancelled."""
    if heartbeat and getattr(connection, "supports_heartbeats", False):
        silence = Silence(connection.connection)
        interval = min(LISTEN_S, max(1.0, heartbeat / max(rate, 1.0)))

        def check() -> None:
            if silence.check(time.monotonic()):
                connection.heartbeat_check(rate)

        return hub.call_repeatedly(interval, check)
    return None


class Silence:
    """Notices that an AMQP broker says nothing any more, sooner than by two missed heartbeats.

    It sends one each half of the interval.  A loop that stood still, as it does while the solo pool runs a task, has
    not listened, and may conclude nothing from that.
    """

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.limit_s = max(4.0, 0.75 * float(getattr(connection, "heartbeat", 0) or 0))
        self._received = -1
        self._since = self._looked_at = 0.0

    def check(self, now: float) -> bool:
        """To be called every few seconds; has the loop listened since the last call?

        Raises:
            ConnectionAbortedError: nothing has come for too long.
        """
        received, listened = self.connection.bytes_recv, now - self._looked_at < 3 * LISTEN_S
        self._looked_at = now
        if received != self._received or not listened:
            self._received, self._since = received, now
        elif self.limit_s < now - self._since and self.connection.heartbeat:
            raise ConnectionAbortedError(f"Nothing came from the broker for {now - self._since:.0f} s.")
        return listened


def pulse(obj: Any, heartbeat: Any, rate: float) -> Callable[[], None]:
    """What a loop without a hub calls in each pass, so that AMQP heartbeats are sent and checked there, too."""
    interval = max(1.0, heartbeat / max(rate, 1.0)) if heartbeat else 0.0
    beat_at = time.monotonic()

    def beat() -> None:
        nonlocal beat_at
        connection, now = obj.connection, time.monotonic()
        if interval and connection is not None and now - beat_at >= interval:
            listened, beat_at = now - beat_at < 2 * interval, now
            if listened and getattr(connection, "supports_heartbeats", False):
                connection.heartbeat_check(rate)

    return beat


def ticker(obj: Any, hub: Any) -> Callable[[], None]:
    """Have the dispatcher take its turn in each pass, right before the hub waits; the function registered."""
    dispatcher, waker = obj.dispatcher, obj.controller.waker

    def tick() -> None:
        # Not after the wait: what a timer or a call_soon() stirred up would wait with it.
        if dispatcher.turn():
            waker.wake()

    hub.on_tick.add(tick)
    return tick


def asynloop(
    obj: Any,
    connection: Any,
    consumer: Any,
    blueprint: Any,
    hub: Any,
    qos: Any,
    heartbeat: Any,
    clock: Any,
    hbrate: float = 2.0,
) -> None:
    """Run until the blueprint is told to stop, waiting on *hub*.

    *obj* is the consumer; each pass lets its dispatcher take and hand over.

    Raises:
        WorkerShutdown, WorkerTerminate: a stop flag was set.
        Exception: whatever the connection raises when it is lost.
    """
    obj.controller.register_with_event_loop(hub)
    obj.register_with_event_loop(hub)
    obj.heartbeat_timer = check_heartbeat(connection, hub, heartbeat, hbrate)
    if not obj.restart_count and not obj.pool.did_start_ok():
        raise WorkerLostError(
            "Could not start worker processes. See the log above for what their start raised."
        )
    # Timers must be able to end the wait for events, or nothing due would run on an idle worker.
    passes = hub.create_loop()
    tick = ticker(obj, hub)
    obj.on_ready()
    try:
        while blueprint.state == RUN and obj.connection is not None:
            state.maybe_shutdown()
            next(passes)
    finally:
        hub.on_tick.discard(tick)
        passes.close()


def synloop(
    obj: Any,
    connection: Any,
    consumer: Any,
    blueprint: Any,
    hub: Any,
    qos: Any,
    heartbeat: Any,
    clock: Any,
    hbrate: float = 2.0,
    **kwargs: Any,
) -> None:
    """Run until the blueprint is told to stop, waiting in the source's own way."""
    dispatcher = obj.dispatcher
    beat = pulse(obj, heartbeat, hbrate)
    obj.on_ready()
    while blueprint.state == RUN and obj.connection is not None:
        state.maybe_shutdown()
        beat()
        obj.perform_pending_operations()
        dispatcher.stirred = True
        try:
            dispatcher.wait(1.0)
        except TimeoutError:
            continue
        except OSError as exc:
            if exc.errno != errno.EINTR and blueprint.state == RUN:
                raise


def drain(obj: Any, hub: Any, finished: Any) -> None:
    """Go on with everything but taking, until *finished* says so.

    When the connection is lost meanwhile, what runs is still waited for.  A new connection renews and acknowledges
    it where a delivery outlives its connection; elsewhere the broker gives it out again.
    """
    passes = tick = None
    reopen_at: float | None = None
    if hub is not None:
        passes, tick = hub.create_loop(), ticker(obj, hub)
    beat = pulse(obj, obj.amqheartbeat, obj.amqheartbeat_rate)
    try:
        while not finished():
            try:
                if passes is None:
                    obj.pool.wait(0.1)
                    beat()
                    obj.perform_pending_operations()
                    obj.dispatcher.turn()
                else:
                    next(passes)
                if reopen_at is not None and time.monotonic() >= reopen_at:
                    reopen_at = None if obj.reopen() else time.monotonic() + REOPEN_S
            except (*obj.connection_errors, *obj.channel_errors) as exc:
                logger.warning("Connection to the broker lost while running tasks are finished: %r", exc)
                obj.let_go_of_connection()
                reopen_at = time.monotonic()
                passes = hub.create_loop() if hub is not None else None
            except WorkerShutdown:
                # Asked for again, by remote control: it is what happens already.
                passes = hub.create_loop() if hub is not None else None
        if reopen_at is not None:
            obj.reopen()
    finally:
        if tick is not None:
            hub.on_tick.discard(tick)
        if passes is not None:
            passes.close()
