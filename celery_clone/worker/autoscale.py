"""A pool that grows with the work and shrinks without it (``--autoscale=MAX,MIN``).

The step is one of the worker's; its autoscaler is asked by the hub's timer, or by a thread of its own where
there is no hub.  It looks at the worker's flights and may do nothing but resize the pool.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from celery_clone import bootsteps
from celery_clone.exceptions import ImproperlyConfigured
from celery_clone.utils.log import get_logger
from celery_clone.utils.threads import bgThread

from . import state
from .components import Pool

__all__ = ("Autoscaler", "WorkerComponent")

logger = get_logger("celery.worker.autoscale")


def seconds_of(variable: str, default: float) -> float:
    """A number of seconds from the environment.

    Raises:
        ImproperlyConfigured: it is no number.
    """
    text = os.environ.get(variable) or default
    try:
        return float(text)
    except ValueError as exc:
        raise ImproperlyConfigured(f"The environment variable {variable} is {text!r}: write seconds, as 30.") from exc


AUTOSCALE_KEEPALIVE = seconds_of("AUTOSCALE_KEEPALIVE", 30)
"""Seconds for which a pool does not shrink after it grew; from the environment variable of this name."""

LOOK_EVERY_S = 0.5
"""How often the work is looked at."""


class WorkerComponent(bootsteps.StartStopStep):
    """Makes the autoscaler when the worker was started with ``--autoscale``."""

    name = "celery.worker.autoscale.WorkerComponent"
    label = "Autoscaler"
    conditional = True
    requires = (Pool,)

    def __init__(self, w: Any, **kwargs: Any) -> None:
        self.enabled = bool(w.autoscale)
        w.autoscaler = None
        super().__init__(w, **kwargs)

    def create(self, w: Any) -> Any:
        w.autoscaler = self.instantiate(w.autoscaler_cls, w.pool, w.max_concurrency, w.min_concurrency, worker=w)
        # With a hub its timer asks, without one a thread does.
        return None if w.use_eventloop else w.autoscaler

    def register_with_event_loop(self, w: Any, hub: Any) -> None:
        """Have the hub's timer ask."""
        hub.call_repeatedly(LOOK_EVERY_S, w.autoscaler.maybe_scale)

    def info(self, w: Any) -> dict[str, Any]:
        """What ``inspect stats`` shows."""
        return {"autoscaler": w.autoscaler.info()}


class Autoscaler(bgThread):
    """Keeps the number of processes between its bounds, at the number of tasks at hand.

    Arguments:
        pool: what is resized.
        max_concurrency, min_concurrency: the bounds.
        worker: whose consumer takes as many tasks as the largest pool can.
        keepalive: seconds for which the pool does not shrink after it grew.
        mutex: a lock, if the caller has one.
    """

    def __init__(
        self,
        pool: Any,
        max_concurrency: int,
        min_concurrency: int = 0,
        worker: Any = None,
        keepalive: float = AUTOSCALE_KEEPALIVE,
        mutex: Any = None,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.mutex = mutex or threading.RLock()
        self.max_concurrency = max_concurrency
        self.min_concurrency = min_concurrency
        self.worker = worker
        self.keepalive = keepalive
        self._grew_at: float | None = None

    def body(self) -> None:
        """One look, then a nap."""
        self.maybe_scale()
        self._shall_stop.wait(LOOK_EVERY_S)

    def maybe_scale(self, req: Any = None) -> bool:
        """Bring the pool to the size that the work asks for; has it changed?"""
        with self.mutex:
            # One process at least: the first task after a pause should not wait for its start.
            wanted = max(self.min_concurrency, min(self.qty, self.max_concurrency), 1)
            missing = wanted - self.processes
            if missing > 0:
                self.scale_up(missing)
            elif missing < 0:
                return self.scale_down(-missing)
            return missing > 0

    def on_task_received(self, req: Any) -> None:
        """A task came; for extensions, the timer looks often enough."""
        self.maybe_scale(req)

    def update(self, max: int | None = None, min: int | None = None) -> tuple[int, int]:
        """Change the bounds; returns them as ``(max, min)``.

        Raises:
            ValueError: a bound is negative, or the lower one above the upper one.
        """
        with self.mutex:
            highest = self.max_concurrency if max is None else int(max)
            lowest = self.min_concurrency if min is None else int(min)
            if not 0 <= lowest <= highest or not highest:
                raise ValueError(f"autoscale needs 0 <= min <= max and max > 0, not max={highest} min={lowest}")
            self.max_concurrency, self.min_concurrency = highest, lowest
            consumer = getattr(self.worker, "consumer", None)
            if consumer is not None and consumer.initial_prefetch_count:
                # The window is for the largest pool, or a small one would never see that there is more to do.
                consumer.initial_prefetch_count = highest * consumer.prefetch_multiplier
                consumer.dispatcher.rebase(consumer.initial_prefetch_count)
            if self.processes > highest:
                self.pool.resize(highest - self.processes)
            elif self.processes < lowest:
                self.pool.resize(lowest - self.processes)
            return highest, lowest

    def scale_up(self, n: int) -> None:
        """Start *n* more processes."""
        self._grew_at = time.monotonic()
        logger.info("Scaling up %s processes.", n)
        self.pool.resize(n)

    def scale_down(self, n: int) -> bool:
        """Have *n* processes leave when they are idle, unless the pool grew just now; has it changed?"""
        if self._grew_at is not None and time.monotonic() - self._grew_at < self.keepalive:
            return False
        logger.info("Scaling down %s processes.", n)
        self.pool.resize(-n)
        return True

    def info(self) -> dict[str, Any]:
        """Bounds and sizes."""
        return {
            "max": self.max_concurrency,
            "min": self.min_concurrency,
            "current": self.processes,
            "qty": self.qty,
        }

    @property
    def qty(self) -> int:
        """How many tasks are at hand: they run, or could."""
        ours = sum(flight.phase is not state.Phase.HELD for flight in [*state.flights.values()])
        return ours + len(state.reserved_requests)

    @property
    def processes(self) -> int:
        """How many processes there should be now."""
        return int(self.pool.num_processes)
