"""Tells monitors every few seconds that the worker is there.

Owned by the consumer's step ``Heart``; uses the worker's timer and event dispatcher.
"""

from __future__ import annotations

from typing import Any

from celery_clone.signals import heartbeat_sent
from celery_clone.utils.sysinfo import load_average

from . import state

__all__ = ("Heart",)

DEFAULT_INTERVAL_S = 2.0

AGAIN_ONCE = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}
"""The events' connection may be opened again for a beat, but the worker's loop may not wait for a broker."""


class Heart:
    """Sends ``worker-online``, then ``worker-heartbeat`` every *interval* seconds, at last ``worker-offline``."""

    def __init__(self, timer: Any, eventer: Any, interval: float | None = None) -> None:
        self.timer = timer
        self.eventer = eventer
        self.interval = float(interval or DEFAULT_INTERVAL_S)
        self.tref: Any = None
        eventer.on_enabled.add(self.start)
        eventer.on_disabled.add(self.stop)

    def _send(self, event: str, retry: bool = True) -> None:
        if heartbeat_sent.receivers:
            heartbeat_sent.send(sender=self)
        begun = sum(1 for flight in [*state.flights.values()] if flight.phase is state.Phase.BEGUN)
        self.eventer.send(
            event,
            freq=self.interval,
            active=begun + len(state.active_requests),
            processed=state.all_total_count[0],
            loadavg=load_average(),
            retry=retry,
            retry_policy=AGAIN_ONCE,
            **state.SOFTWARE_INFO,
        )

    def start(self) -> None:
        """Begin; legal twice."""
        if self.eventer.enabled and self.tref is None:
            self._send("worker-online")
            self.tref = self.timer.call_repeatedly(self.interval, self._send, ("worker-heartbeat",))

    def stop(self) -> None:
        """End; legal early and twice."""
        tref, self.tref = self.tref, None
        if tref is None:
            return
        self.timer.cancel(tref)
        if self.eventer.enabled:
            self._send("worker-offline", retry=False)
