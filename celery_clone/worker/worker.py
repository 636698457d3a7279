"""``WorkController``: builds and owns everything a worker is made of, and ends it in order.

Made by ``apps.worker`` and by embedders.  It runs in one thread; process signals and remote
commands set flags or nudge it, and the loop acts on them.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from functools import partial
from importlib import reload as reload_module
from typing import Any

from billiard import cpu_count
from kombu.exceptions import SerializerNotInstalled
from kombu.utils.compat import detect_environment

from celery_clone import bootsteps, concurrency, signals
from celery_clone.bootsteps import RUN, TERMINATE
from celery_clone.concurrency.prefork import TaskPool as PreforkPool
from celery_clone.exceptions import ImproperlyConfigured, TaskRevokedError, WorkerTerminate
from celery_clone.message.codec import accepted
from celery_clone.platforms import EX_FAILURE, EX_OK, LockFailed, create_pidlock
from celery_clone.utils.imports import reload_from_cwd
from celery_clone.utils.log import get_logger, mlevel
from celery_clone.utils.nodenames import default_nodename, worker_direct
from celery_clone.utils.suggest import hint
from celery_clone.utils.sysinfo import cpu_budget, is_auto_concurrency
from celery_clone.utils.text import str_to_list

from . import loops, state
from .components import Waker
from .health import at_a_glance
from .lifecycle import Nudge, Phase, after

__all__ = ("WorkController",)

logger = get_logger("celery.worker")

START_METHODS = ("fork", "spawn")
USAGE_FIELDS = tuple(name[3:] for name in dir(resource.struct_rusage) if name.startswith("ru_"))

UNKNOWN_QUEUE = (
    "Trying to {verb} queue subset of {asked!r}, but queue {missing} isn't defined in the `task_queues` setting."
    "{hint}\n\nIf you want to automatically declare unknown queues you can enable the "
    "`task_create_missing_queues` setting."
)

NOT_EXCLUDED = (
    "--exclude-queues names the queue %r, which is not declared, so nothing is left out for it.%s "
    "Correct the name, or declare the queue in `task_queues`."
)
NO_QUEUES = (
    "This worker consumes from no queue, so it will get no task. Look at --queues and --exclude-queues, "
    "or let it have one: celery control add_consumer <queue>."
)

COLD_STOP_S = 0.5
"""What children get between TERM and KILL when the worker ends cold."""


def whole_number(name: str, value: Any, meaning: str) -> int:
    """A setting that counts something.

    Raises:
        ImproperlyConfigured: it is no whole number from 0 up; *meaning* says what it stands for.
    """
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = -1
    if number < 0:
        raise ImproperlyConfigured(f"{name} is {value!r}: set a whole number from 0 up, {meaning}.")
    return number


def content_must_be_known(accept_content: Any) -> None:
    """Raise :exc:`ImproperlyConfigured` if the setting names a serializer that nobody registered."""
    try:
        accepted(accept_content)
    except SerializerNotInstalled as exc:
        raise ImproperlyConfigured(
            f"accept_content is {accept_content!r}: {exc}. Name serializers that are registered here, such as 'json', "
            "or install the library of this one."
        ) from exc


class WorkController:
    """A worker that can be embedded: :meth:`start` returns when it has ended.

    Arguments:
        app: the app whose tasks are run.
        hostname: node name; ``celery@<host>`` when missing.
        kwargs: the options of the ``celery worker`` command.
    """

    app: Any = None
    pidlock: Any = None
    blueprint: Any = None
    pool: Any = None
    semaphore: Any = None
    exitcode: Any = None
    consumer: Any = None
    timer: Any = None
    hub: Any = None
    concurrency: Any
    loglevel: Any
    pool_cls: Any

    #: Logs what ``auto`` came to, which is found before there is a log.
    _say_of_auto: Callable[[], None] | None = None

    class Blueprint(bootsteps.Blueprint):
        """The steps of a worker, in the order they start."""

        name = "Worker"
        default_steps = (
            "celery_clone.worker.components:Timer",
            "celery_clone.worker.components:Hub",
            "celery_clone.worker.components:Pool",
            "celery_clone.worker.components:StateDB",
            "celery_clone.worker.components:Beat",
            "celery_clone.worker.autoscale:WorkerComponent",
            "celery_clone.worker.health:Health",
            "celery_clone.worker.components:Consumer",
        )

    def __init__(self, app: Any = None, hostname: str | None = None, **kwargs: Any) -> None:
        self.app = app or self.app
        self.hostname = default_nodename(hostname)
        self.startup_time = datetime.now(timezone.utc)
        self.phase = Phase.RUNNING
        self.waker = Waker()
        self._soft_deadline: float | None = None
        self._asked_exitcode: int | None = None
        self.app.loader.init_worker()
        content_must_be_known(self.app.conf.accept_content)
        self.on_before_init(**kwargs)
        self.setup_defaults(**kwargs)
        self.on_after_init(**kwargs)
        self.setup_instance(**self.prepare_args(**kwargs))

    # --- set-up --------------------------------------------------------------------

    def setup_instance(
        self,
        queues: Any = None,
        ready_callback: Any = None,
        pidfile: str | None = None,
        include: Any = None,
        use_eventloop: bool | None = None,
        exclude_queues: Any = None,
        **kwargs: Any,
    ) -> None:
        """Make the steps.  *queues* and *exclude_queues* choose what is consumed."""
        self.pidfile = pidfile
        not_excluded = self.setup_queues(queues, exclude_queues)
        self.setup_includes(str_to_list(include))
        self.concurrency = self._resolve_concurrency(self.concurrency)
        self.loglevel = mlevel(self.loglevel)
        self.ready_callback = ready_callback or self.on_consumer_ready
        self._conninfo = self.app.connection_for_read()
        self.pool_cls = concurrency.get_implementation(self.pool_cls)
        self.use_eventloop = self.should_use_eventloop() if use_eventloop is None else use_eventloop
        self.options = kwargs
        signals.worker_init.send(sender=self)
        self.steps: list[Any] = []
        self.on_init_blueprint()
        # From here on there is a log.
        if self._say_of_auto is not None:
            self._say_of_auto()
        for name in not_excluded or ():
            logger.warning(NOT_EXCLUDED, name, hint(name, self.app.amqp.queues))
        if not self.app.amqp.queues.consume_from:
            logger.warning(NO_QUEUES)
        self.blueprint = self.Blueprint(
            steps=self.app.steps["worker"],
            on_start=self.on_start,
            on_close=self.on_close,
            on_stopped=self.on_stopped,
        )
        self.blueprint.apply(self, **kwargs)

    def _resolve_concurrency(self, asked: Any) -> int:
        """A number of processes: as asked, or one per core; ``auto`` also asks the limits of the container."""
        if is_auto_concurrency(asked):
            pool = concurrency.get_implementation(self.pool_cls)
            has_processes = isinstance(pool, type) and issubclass(pool, PreforkPool)
            budget = cpu_budget(use_cgroup_quota=has_processes)
            quota = "no cgroup cpu quota found" if budget.quota is None else f"cgroup cpu quota={budget.quota:.2f}"
            self._say_of_auto = partial(
                logger.info,
                "worker_concurrency='auto' resolved to %d (pool=%s, %s, available cpus=%d).",
                budget.count,
                "prefork" if has_processes else self.pool_cls,
                quota if has_processes else "whose tasks share a process",
                budget.available,
            )
            return budget.count
        if isinstance(asked, str):
            try:
                asked = int(asked)
            except ValueError:
                logger.warning(
                    "worker_concurrency=%r is no number and not 'auto'; using the number of cores.", asked
                )
                asked = None
        if asked:
            if int(asked) < 0:
                raise ImproperlyConfigured(
                    f"worker_concurrency is {asked!r}: set the number of tasks that run at once, from 1 up, 'auto' "
                    "for what this container may use, or leave it out for one per processor."
                )
            return int(asked)
        try:
            return len(os.sched_getaffinity(0))
        except AttributeError:
            return int(cpu_count())

    def setup_defaults(
        self,
        concurrency: Any = None,
        loglevel: Any = "WARN",
        logfile: str | None = None,
        task_events: bool | None = None,
        pool: Any = None,
        consumer_cls: Any = None,
        timer_cls: Any = None,
        timer_precision: float | None = None,
        autoscaler_cls: Any = None,
        pool_putlocks: bool | None = None,
        pool_restarts: bool | None = None,
        optimization: str | None = None,
        O: str | None = None,  # noqa: E741, N803 the option's name
        statedb: str | None = None,
        time_limit: float | None = None,
        soft_time_limit: float | None = None,
        scheduler: Any = None,
        pool_cls: Any = None,
        state_db: str | None = None,
        task_time_limit: float | None = None,
        task_soft_time_limit: float | None = None,
        scheduler_cls: Any = None,
        schedule_filename: str | None = None,
        max_tasks_per_child: int | None = None,
        prefetch_multiplier: int | None = None,
        disable_rate_limits: bool | None = None,
        worker_lost_wait: float | None = None,
        max_memory_per_child: int | None = None,
        pool_start_method: str | None = None,
        **_kw: Any,
    ) -> None:
        """Take the options given, and the settings for those that were not."""
        either = self.app.either
        self.loglevel = loglevel
        self.logfile = logfile
        self.concurrency = either("worker_concurrency", concurrency)
        self.task_events = either("worker_send_task_events", task_events)
        self.pool_cls = either("worker_pool", pool, pool_cls)
        self.consumer_cls = either("worker_consumer", consumer_cls)
        self.timer_cls = either("worker_timer", timer_cls)
        self.timer_precision = either("worker_timer_precision", timer_precision)
        self.optimization = optimization or O
        self.autoscaler_cls = either("worker_autoscaler", autoscaler_cls)
        self.pool_putlocks = either("worker_pool_putlocks", pool_putlocks)
        self.pool_restarts = either("worker_pool_restarts", pool_restarts)
        self.pool_start_method = either("worker_pool_start_method", pool_start_method)
        if self.pool_start_method not in START_METHODS:
            raise ImproperlyConfigured(
                f"worker_pool_start_method must be 'fork' or 'spawn', got {self.pool_start_method!r}."
            )
        self.statedb = either("worker_state_db", statedb, state_db)
        self.schedule_filename = either("beat_schedule_filename", schedule_filename)
        self.scheduler = either("beat_scheduler", scheduler, scheduler_cls)
        self.time_limit = either("task_time_limit", time_limit, task_time_limit)
        self.soft_time_limit = either("task_soft_time_limit", soft_time_limit, task_soft_time_limit)
        self.max_tasks_per_child = either("worker_max_tasks_per_child", max_tasks_per_child)
        self.max_memory_per_child = either("worker_max_memory_per_child", max_memory_per_child)
        #: A number that the user chose is kept; the default one may grow while tasks are short.
        self.prefetch_is_elastic = prefetch_multiplier is None and not self.app.conf.value_set_for(
            "worker_prefetch_multiplier"
        )
        self.prefetch_multiplier = whole_number(
            "worker_prefetch_multiplier",
            either("worker_prefetch_multiplier", prefetch_multiplier),
            "how many tasks may wait in the worker for each of its processes, 0 for no bound",
        )
        if self.app.conf.worker_disable_prefetch:
            # What runs counts, too: one message for each process, taken when that process is free.
            self.prefetch_multiplier, self.prefetch_is_elastic = 1, False
        self.disable_rate_limits = either("worker_disable_rate_limits", disable_rate_limits)
        self.worker_lost_wait = either("worker_lost_wait", worker_lost_wait)

    def setup_queues(self, include: Any, exclude: Any = None) -> list[str]:
        """Choose what is consumed; the names in *exclude* that nobody declared are returned.

        Raises:
            ImproperlyConfigured: a queue is not declared, and may not be made.
        """
        queues = self.app.amqp.queues
        known = {*queues, *queues.aliases}
        not_excluded = [name for name in str_to_list(exclude) or () if name not in known]
        for verb, names, choose in (
            ("select", str_to_list(include), queues.select),
            ("deselect", str_to_list(exclude), queues.deselect),
        ):
            try:
                choose(names)
            except KeyError as exc:
                near = hint(str(exc.args[0]), queues)
                text = UNKNOWN_QUEUE.format(verb=verb, asked=names, missing=exc, hint=near)
                raise ImproperlyConfigured(text) from exc
        if self.app.conf.worker_direct:
            queues.select_add(worker_direct(self.hostname))
        return not_excluded

    def setup_includes(self, includes: Iterable[str] | None) -> None:
        """Import further task modules, and note all that hold tasks, for processes made later."""
        before = tuple(self.app.conf.include)
        for module in includes or ():
            self.app.loader.import_task_module(module)
        self.include = includes
        holding_tasks = {task.__class__.__module__ for task in self.app.tasks.values()}
        self.app.conf.include = tuple({*before, *(includes or ()), *holding_tasks})

    def prepare_args(self, **kwargs: Any) -> dict[str, Any]:
        """Called with the options before they are used; for subclasses."""
        return kwargs

    def should_use_eventloop(self) -> bool:
        """Does the loop wait on a hub?  Always, but for green pools and on Windows."""
        return detect_environment() == "default" and not self.app.IS_WINDOWS

    def on_init_blueprint(self) -> None:
        """Called before the steps are made; for subclasses."""

    def on_before_init(self, **kwargs: Any) -> None:
        """Called first; for subclasses."""

    def on_after_init(self, **kwargs: Any) -> None:
        """Called when the options are known; for subclasses."""

    def on_consumer_ready(self, consumer: Any) -> None:
        """Called when tasks can be received; for subclasses."""

    # --- life ------------------------------------------------------------------------

    def on_start(self) -> None:
        """The first step is about to start."""
        if self.pidfile:
            self.pidlock = create_pidlock(self.pidfile)

    def on_close(self) -> None:
        """The steps are about to be closed."""
        self.app.loader.shutdown_worker()

    def on_stopped(self) -> None:
        """All steps have stopped."""
        self.timer.stop()
        self.consumer.shutdown()
        if self.pidlock:
            self.pidlock.release()

    def start(self) -> None:
        """Run until the worker ends; the reason is in :attr:`exitcode`."""
        try:
            self.blueprint.start(self)
        except WorkerTerminate as exc:
            self.terminate()
            if self.exitcode is None:
                self.exitcode = exc.code if self._asked_exitcode is None else self._asked_exitcode
        except SystemExit as exc:
            self.stop(exitcode=exc.code)
        except KeyboardInterrupt:
            self.stop(exitcode=EX_FAILURE)
        except (ImproperlyConfigured, LockFailed) as exc:
            logger.critical("%s", exc)
            self.stop(exitcode=EX_FAILURE)
        except Exception as exc:
            logger.critical("Unrecoverable error: %r", exc, exc_info=True)
            self.stop(exitcode=EX_FAILURE)

    def nudge(self, nudge: Nudge, exitcode: int = 0) -> Phase:
        """Move on towards the end, as a process signal asks.  Safe in a signal handler."""
        before, self.phase = self.phase, after(self.phase, nudge)
        if before is Phase.RUNNING and self.phase is not before:
            # The first nudge decides, whatever comes after: one that was told to end by QUIT ends as it was told to.
            self._asked_exitcode = EX_OK if nudge is Nudge.QUIT else exitcode
        if self.phase is Phase.SOFT and not self._soft_timeout():
            self.phase = Phase.COLD
        if self.phase is not before:
            if self.phase is Phase.WARM:
                state.should_stop = exitcode
            elif self.phase is Phase.SOFT:
                self._soft_deadline = time.monotonic() + self._soft_timeout()
                if state.should_stop in (None, False):
                    state.should_stop = self._asked_exitcode
            else:
                state.should_terminate = exitcode
            self.waker.wake()
        return self.phase

    def _soft_timeout(self) -> float:
        return float(self.app.conf.worker_soft_shutdown_timeout or 0)

    def wait_for_soft_shutdown(self) -> None:
        """Let running tasks finish for ``worker_soft_shutdown_timeout`` seconds, before a cold end."""
        seconds = self._soft_timeout()
        if seconds <= 0 or not self.consumer:
            return
        if self.consumer.dispatcher.running or self.app.conf.worker_enable_soft_shutdown_on_idle:
            logger.warning("Initiating Soft Shutdown, terminating in %s seconds", seconds)
            self._soft_deadline = time.monotonic() + seconds
            self.phase = Phase.SOFT
            self._drain()

    def _drain(self) -> None:
        """Finish what was begun, with everything else still at work: acks, events, heartbeats."""
        consumer = self.consumer
        if consumer is None or self.blueprint.state != RUN or self.pool is None:
            return
        dispatcher = consumer.dispatcher
        dispatcher.stop_taking()

        def finished() -> bool:
            if self.phase in (Phase.COLD, Phase.DEAD):
                return True
            if self._soft_deadline is not None and time.monotonic() >= self._soft_deadline:
                self.nudge(Nudge.TIMEOUT)
                return True
            return bool(dispatcher.running == 0 and not state.handed_over())

        loops.drain(consumer, self.hub, finished)

    def stop(self, in_sighandler: bool = False, exitcode: Any = None) -> None:
        """End warm: what was begun is finished.  A further nudge makes it cold."""
        if exitcode is not None:
            self.exitcode = exitcode
        if self.blueprint.state == RUN:
            if self.phase is Phase.RUNNING:
                self.phase = Phase.WARM
            self.signal_consumer_close()
            if not in_sighandler or self.pool.signal_safe:
                self._drain()
                self._shutdown(warm=self.phase not in (Phase.COLD, Phase.DEAD))
        self._send_worker_shutdown()

    def terminate(self, in_sighandler: bool = False) -> None:
        """End cold: what runs is cancelled, what is not acknowledged goes back to its queue."""
        if self.blueprint.state != TERMINATE:
            self.signal_consumer_close()
            if not in_sighandler or self.pool.signal_safe:
                self.phase = Phase.COLD
                self._shutdown(warm=False)
            self._send_worker_shutdown()

    def _shutdown(self, warm: bool = True) -> None:
        consumer = self.consumer
        if consumer is not None and self.pool is not None:
            dispatcher = consumer.dispatcher
            dispatcher.stop_taking()
            if not warm:
                consumer.cancel_active_requests()
                # The processes end first, so that nothing given back is still run here.
                self.pool.kill_all(COLD_STOP_S)
                given = dispatcher.give_back_late()
                if given:
                    logger.warning("Gave back %s running tasks that were not acknowledged.", given)
            consumer.ignoring_errors(dispatcher.flush)
        self.blueprint.stop(self, terminate=not warm)
        self.blueprint.join()

    def signal_consumer_close(self) -> None:
        """Tell the consumer that the end has begun."""
        if self.consumer is not None and hasattr(self.consumer, "close"):
            self.consumer.close()

    def _send_worker_shutdown(self) -> None:
        signals.worker_shutdown.send(sender=self)

    def register_with_event_loop(self, hub: Any) -> None:
        """Let the steps register what they wait for."""
        self.blueprint.send_all(self, "register_with_event_loop", args=(hub,), description="hub.register")

    def on_pool_reports(self, reports: Sequence[Any]) -> None:
        """What the pool tells goes to the dispatcher."""
        if self.consumer is not None:
            self.consumer.dispatcher.on_reports(reports)

    def _process_task(self, req: Any) -> None:
        """Run a ``Request`` that an extension made."""
        try:
            req.execute_using_pool(self.pool)
        except TaskRevokedError:
            logger.debug("Request %s was revoked before it ran.", req.id)

    # --- for operators -----------------------------------------------------------------

    def reload(
        self, modules: Iterable[str] | None = None, reload: bool = False, reloader: Any = None
    ) -> None:
        """Import (with *reload*: again) task modules, and start the pool's processes anew."""
        for module in {*(self.app.loader.task_modules if modules is None else modules or ())}:
            if module not in sys.modules:
                logger.debug("importing module %s", module)
                self.app.loader.import_from_cwd(module)
            elif reload:
                logger.debug("reloading module %s", module)
                reload_from_cwd(sys.modules[module], reloader or reload_module)
        if self.consumer:
            self.consumer.update_strategies()
            self.consumer.reset_rate_limits()
        self.pool.restart()

    def info(self) -> dict[str, Any]:
        """Counters and identity, for ``inspect stats``."""
        uptime = datetime.now(timezone.utc) - self.startup_time
        return {
            "total": self.state.total_count,
            "pid": os.getpid(),
            "clock": str(self.app.clock),
            "uptime": round(uptime.total_seconds()),
        }

    def rusage(self) -> dict[str, Any]:
        """What this process used, by the names of :func:`resource.getrusage` without ``ru_``."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {field: getattr(usage, f"ru_{field}") for field in USAGE_FIELDS}

    def stats(self) -> dict[str, Any]:
        """Everything that ``inspect stats`` shows."""
        return {
            **self.info(),
            "health": at_a_glance(self),
            **self.blueprint.info(self),
            **self.consumer.blueprint.info(self.consumer),
            "rusage": self.rusage(),
        }

    @property
    def state(self) -> Any:
        """The module with what the worker knows of its tasks."""
        return state

    def __repr__(self) -> str:
        return f"<Worker: {self.hostname} ({self.blueprint.human_state() if self.blueprint else 'INIT'})>"

    def __str__(self) -> str:
        return self.hostname
