"""The worker's steps: hub, pool, timer, beat, state file, consumer.

Started by ``worker.worker`` in the order written there.  Each step makes one part, gives it to the
worker and ends it.
"""

from __future__ import annotations

import atexit
import gc
import os
import socket
from typing import Any

from kombu.asynchronous import Hub as KombuHub
from kombu.asynchronous import get_event_loop, set_event_loop
from kombu.asynchronous.semaphore import DummyLock, LaxBoundedSemaphore
from kombu.asynchronous.timer import Timer as HubTimer

from celery_clone import bootsteps, transport
from celery_clone._state import _set_task_join_will_block
from celery_clone.app.runner import TaskRunner
from celery_clone.exceptions import ImproperlyConfigured
from celery_clone.utils.imports import symbol_by_name
from celery_clone.utils.log import get_logger

__all__ = ("Beat", "Consumer", "Hub", "Pool", "StateDB", "Timer", "Waker")

logger = get_logger("celery.worker.components")

LONGEST_SLEEP_S = 10.0
NOT_OBEYED = "The %s pool does not wholly obey %s: %s. The prefork pool does."
EMBEDDED_BEAT = "celery_clone.beat:EmbeddedService"


class Waker:
    """Ends the hub's wait from a signal handler or another thread.

    Descriptors are made by :meth:`start` and closed by :meth:`stop`; both may be called twice.
    """

    def __init__(self) -> None:
        self._ends: tuple[socket.socket, socket.socket] | None = None

    def start(self, hub: Any) -> None:
        """Register with *hub*."""
        if self._ends is None:
            self._ends = socket.socketpair()
            for end in self._ends:
                end.setblocking(False)
            hub.add_reader(self._ends[0].fileno(), self._drain)

    def _drain(self) -> None:
        if self._ends is not None:
            try:
                self._ends[0].recv(4096)
            except BlockingIOError:
                pass  # somebody read it already: the hub is awake, which was the point

    def wake(self) -> None:
        """End the wait."""
        if self._ends is not None:
            try:
                self._ends[1].send(b"!")
            except OSError:
                pass  # the buffer is full of such bytes, or the worker is gone

    def stop(self, hub: Any) -> None:
        """Let go of the descriptors."""
        ends, self._ends = self._ends, None
        if ends is not None:
            hub.remove_reader(ends[0].fileno())
            for end in ends:
                end.close()


class Timer(bootsteps.Step):
    """Makes the timer: the hub's, or a thread where there is no hub."""

    name = "celery.worker.components.Timer"

    def create(self, w: Any) -> None:
        if w.use_eventloop:
            w.timer = HubTimer(max_interval=LONGEST_SLEEP_S)
            return
        w.timer_cls = w.timer_cls or w.pool_cls.Timer
        w.timer = self.instantiate(
            w.timer_cls,
            max_interval=w.timer_precision,
            on_error=self.on_timer_error,
            on_tick=self.on_timer_tick,
        )

    def on_timer_error(self, exc: BaseException) -> None:
        """A timed call raised."""
        logger.error("Timer error: %r", exc, exc_info=exc)

    def on_timer_tick(self, delay: float) -> None:
        """The timer thread goes to sleep."""
        logger.debug("Timer wake-up! Next ETA %s secs.", delay)


class Hub(bootsteps.StartStopStep):
    """Makes the hub that the worker's loop waits on."""

    name = "celery.worker.components.Hub"
    requires = (Timer,)

    def __init__(self, w: Any, **kwargs: Any) -> None:
        w.hub = None
        super().__init__(w, **kwargs)

    def include_if(self, w: Any) -> bool:
        return bool(w.use_eventloop)

    def create(self, w: Any) -> Any:
        w.hub = get_event_loop()
        if w.hub is None:
            w.hub = set_event_loop((getattr(w._conninfo, "requires_hub", None) or KombuHub)(w.timer))
        # One thread runs everything that takes this lock.
        w.app.clock.mutex = DummyLock()
        return self

    def start(self, w: Any) -> None:
        w.waker.start(w.hub)

    def stop(self, w: Any) -> None:
        if w.hub is not None:
            w.waker.stop(w.hub)
            w.hub.close()

    def terminate(self, w: Any) -> None:
        self.stop(w)


class Pool(bootsteps.StartStopStep):
    """Makes the pool and starts its processes, before any connection exists."""

    name = "celery.worker.components.Pool"
    requires = (Hub,)

    def __init__(self, w: Any, autoscale: Any = None, **kwargs: Any) -> None:
        w.pool = None
        w.max_concurrency = None
        w.min_concurrency = w.concurrency
        self.optimization = w.optimization
        if isinstance(autoscale, str):
            highest, _, lowest = autoscale.partition(",")
            autoscale = [int(highest), int(lowest or 0)]
        self._refused: dict[str, Any] = {}
        if autoscale and "autoscale" in getattr(w.pool_cls, "cannot", ()):
            self._refused["autoscale"] = ",".join(map(str, autoscale))
            autoscale = None
        w.autoscale = autoscale
        if autoscale:
            w.max_concurrency, w.min_concurrency = autoscale
        super().__init__(w, **kwargs)

    def create(self, w: Any) -> Any:
        processes = max(1, w.min_concurrency)
        w.process_task = w._process_task
        semaphore = None
        if w.use_eventloop:
            semaphore = w.semaphore = LaxBoundedSemaphore(processes)
        pool = w.pool = self.instantiate(
            w.pool_cls,
            processes,
            initargs=(w.app, w.hostname),
            maxtasksperchild=w.max_tasks_per_child,
            max_memory_per_child=w.max_memory_per_child,
            timeout=w.time_limit,
            soft_timeout=w.soft_time_limit,
            putlocks=w.pool_putlocks and not w.use_eventloop,
            lost_worker_timeout=w.worker_lost_wait,
            threads=not w.use_eventloop,
            allow_restart=w.pool_restarts,
            forking_enable=w.pool_start_method == "fork",
            semaphore=semaphore,
            sched_strategy=self.optimization,
            app=w.app,
        )
        _set_task_join_will_block(pool.task_join_will_block)
        return pool

    def start(self, w: Any) -> None:
        self._say_what_is_not_obeyed(w)
        # What is imported now is shared by all processes; what each imports later is its own.
        transport.load(w._conninfo)
        w.app.finalize()
        if w.app.backend is not None:
            gc.collect()
        w.pool.bind(TaskRunner(w.app, w.hostname), w.on_pool_reports)
        w.pool.start()
        if w.hub is not None:
            w.pool.watch(w.hub)

    def _say_what_is_not_obeyed(self, w: Any) -> None:
        """One line for each option that this kind of pool cannot obey, or not wholly."""
        for option, why in getattr(w.pool, "cannot", {}).items():
            value = self._refused.get(option) or getattr(w, option, None)
            if value:
                logger.warning(NOT_OBEYED, w.pool.name, f"--{option.replace('_', '-')}={value}", why)
            elif option == "time_limit":
                limited = sorted(name for name, task in w.app.tasks.items() if task.time_limit)
                if limited:
                    logger.warning(NOT_OBEYED, w.pool.name, f"the time_limit of {', '.join(limited)}", why)

    def close(self, w: Any) -> None:
        if w.pool is not None:
            w.pool.close()

    def stop(self, w: Any) -> None:
        if w.pool is not None:
            w.pool.stop()
            if w.hub is not None:
                w.pool.unwatch(w.hub)

    def terminate(self, w: Any) -> None:
        if w.pool is not None:
            w.pool.terminate()
            if w.hub is not None:
                w.pool.unwatch(w.hub)

    def info(self, w: Any) -> dict[str, Any]:
        return {"pool": w.pool.info if w.pool else "N/A"}

    def register_with_event_loop(self, w: Any, hub: Any) -> None:
        """Let the pool register what it waits for; again is harmless."""
        w.pool.register_with_event_loop(hub)


class Beat(bootsteps.StartStopStep):
    """Runs beat inside the worker (``-B``)."""

    name = "celery.worker.components.Beat"
    label = "Beat"
    conditional = True

    def __init__(self, w: Any, beat: bool = False, **kwargs: Any) -> None:
        self.enabled = beat
        w.beat = None
        super().__init__(w, beat=beat, **kwargs)

    def create(self, w: Any) -> Any:
        pool_module = w.pool_cls if isinstance(w.pool_cls, str) else w.pool_cls.__module__
        if pool_module.endswith(("gevent", "eventlet")):
            raise ImproperlyConfigured(
                "-B option doesn't work with eventlet/gevent pools: use the celery beat command instead."
            )
        service = symbol_by_name(EMBEDDED_BEAT)
        w.beat = service(w.app, schedule_filename=w.schedule_filename, scheduler_cls=w.scheduler)
        return w.beat


class StateDB(bootsteps.Step):
    """Keeps revoked ids in a file (``--statedb``)."""

    name = "celery.worker.components.StateDB"

    def __init__(self, w: Any, **kwargs: Any) -> None:
        self.enabled = bool(w.statedb)
        w._persistence = None
        super().__init__(w, **kwargs)

    def create(self, w: Any) -> None:
        w._persistence = w.state.Persistent(w.state, w.statedb, w.app.clock)
        owner = os.getpid()

        def save() -> None:
            # A forked child runs the same exit functions, but the file is the parent's.
            if os.getpid() == owner:
                w._persistence.save()

        atexit.register(save)


class Consumer(bootsteps.StartStopStep):
    """Makes the consumer and runs it: the last step, which returns when the worker ends."""

    name = "celery.worker.components.Consumer"
    last = True

    def create(self, w: Any) -> Any:
        widest = max(w.max_concurrency, 1) if w.max_concurrency else w.concurrency
        w.consumer = self.instantiate(
            w.consumer_cls,
            w.process_task,
            hostname=w.hostname,
            task_events=w.task_events,
            init_callback=w.ready_callback,
            initial_prefetch_count=widest * w.prefetch_multiplier,
            pool=w.pool,
            timer=w.timer,
            app=w.app,
            controller=w,
            hub=w.hub,
            worker_options=w.options,
            disable_rate_limits=w.disable_rate_limits,
            prefetch_multiplier=w.prefetch_multiplier,
        )
        return w.consumer
