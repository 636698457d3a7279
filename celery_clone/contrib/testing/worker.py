"""A worker inside the process of the tests.

Used by the fixtures of ``contrib.pytest`` and by test suites::

    with start_worker(app) as worker:
        assert add.delay(2, 2).get(timeout=10) == 4
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from billiard import Queue
from kombu.asynchronous import get_event_loop, set_event_loop

from celery_clone import _state
from celery_clone.contrib.testing.tasks import PING, add_ping
from celery_clone.exceptions import WorkerShutdown
from celery_clone.local import try_import
from celery_clone.result import allow_join_result
from celery_clone.utils.dispatch import Signal
from celery_clone.utils.nodenames import anon_nodename
from celery_clone.worker import state
from celery_clone.worker.worker import WorkController

__all__ = (
    "TestWorkController",
    "setup_app_for_worker",
    "start_worker",
    "test_worker_started",
    "test_worker_starting",
    "test_worker_stopped",
)

WORKER_LOGLEVEL = os.environ.get("WORKER_LOGLEVEL", "error")

DIED_AT_START = "The worker ended before it was ready (exit code {0}). Its log tells why; see the argument loglevel."
STILL_RUNS = (
    "Worker thread failed to exit within the allocated timeout. "
    "Consider raising `shutdown_timeout` if your tasks take longer to execute."
)

test_worker_starting = Signal(name="test_worker_starting", providing_args=set())
test_worker_started = Signal(name="test_worker_started", providing_args={"worker", "consumer"})
test_worker_stopped = Signal(name="test_worker_stopped", providing_args={"worker"})


class _ForwardingHandler(logging.handlers.QueueHandler):
    """Sends the records of a child to the process of the tests."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Mark the record, and leave it as it is otherwise."""
        record.from_queue = True
        return record

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 the name of logging
        """Tests shall see what cannot be sent."""
        if logging.raiseExceptions:
            raise


class TestWorkController(WorkController):
    """A worker that can be waited for, and ended from another thread."""

    #: It is no test.
    __test__ = False

    #: Where the children of the prefork pool send their log records.
    logger_queue: Any = None

    QueueHandler = _ForwardingHandler

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._on_started = threading.Event()
        self._is_ready = False
        self._end_asked = False
        self._listener: logging.handlers.QueueListener | None = None
        self._handler: logging.Handler | None = None
        # A loop of its own: another worker of this process has the one that is current.
        current = get_event_loop()
        set_event_loop(None)
        try:
            super().__init__(*args, **kwargs)
        finally:
            set_event_loop(current)
        if self.pool_cls.__module__.rpartition(".")[2] == "prefork":
            self._collect_logs_of_children()

    def _collect_logs_of_children(self) -> None:
        pid = self.pid = os.getpid()
        self.logger_queue = Queue()
        pickling = try_import("tblib.pickling_support")
        if pickling is not None:
            pickling.install()
        root: Any = logging.getLogger()
        self._listener = logging.handlers.QueueListener(self.logger_queue, root)
        self._handler = self.QueueHandler(self.logger_queue)
        self._handler.addFilter(lambda record: record.process != pid and not getattr(record, "from_queue", False))

    def start(self) -> None:
        """Run until the end."""
        if self._handler is not None and self._listener is not None:
            logging.getLogger().addHandler(self._handler)
            self._listener.start()
        try:
            super().start()
        finally:
            self._on_started.set()
            self._put_collector_away()

    def _put_collector_away(self) -> None:
        handler, self._handler = self._handler, None
        listener, self._listener = self._listener, None
        if handler is not None and listener is not None:
            logging.getLogger().removeHandler(handler)
            listener.stop()
            self.logger_queue.close()

    def register_with_event_loop(self, hub: Any) -> None:
        """Let the steps register what they wait for, and look in each pass whether this is to end."""
        super().register_with_event_loop(hub)
        hub.on_tick.add(self._end_if_asked)

    def _end_if_asked(self) -> None:
        if self._end_asked:
            # Once: what runs is finished in the same loop.
            self._end_asked = False
            raise WorkerShutdown(0)

    def end_soon(self) -> None:
        """End warm; called from another thread.  Other workers of the process go on."""
        if self.hub is None:
            state.should_stop = 0
        self._end_asked = True
        self.waker.wake()

    def on_consumer_ready(self, consumer: Any) -> None:
        """Tasks can be received."""
        self._is_ready = True
        self._on_started.set()
        test_worker_started.send(sender=self.app, worker=self, consumer=consumer)

    def ensure_started(self) -> None:
        """Wait until tasks can be received; the worker has to run in another thread.

        Raises:
            RuntimeError: it ended before.
        """
        self._on_started.wait()
        if not self._is_ready:
            raise RuntimeError(DIED_AT_START.format(self.exitcode))


@contextmanager
def start_worker(
    app: Any,
    concurrency: int = 1,
    pool: Any = "solo",
    loglevel: str | int = WORKER_LOGLEVEL,
    logfile: str | None = None,
    perform_ping_check: bool = True,
    ping_task_timeout: float = 10.0,
    shutdown_timeout: float = 10.0,
    **kwargs: Any,
) -> Iterator[Any]:
    """A worker of *app* that runs in a thread within this context.

    Arguments:
        concurrency, pool: how many tasks run at once, and in what.
        loglevel, logfile: of its log.
        perform_ping_check: run a task first?
        ping_task_timeout: seconds it may take.
        shutdown_timeout: seconds the worker may take to end.
        kwargs: see :class:`TestWorkController`.

    Raises:
        RuntimeError: the worker did not start, or did not end.
    """
    test_worker_starting.send(sender=app)
    worker = None
    try:
        with _worker_in_thread(
            app,
            concurrency=concurrency,
            pool=pool,
            loglevel=loglevel,
            logfile=logfile,
            perform_ping_check=perform_ping_check,
            shutdown_timeout=shutdown_timeout,
            **kwargs,
        ) as worker:
            if perform_ping_check:
                with allow_join_result():
                    answer = app.tasks[PING].delay().get(timeout=ping_task_timeout)
                if answer != "pong":
                    raise RuntimeError(f"The worker answered a ping with {answer!r}. Does another task have its name?")
            yield worker
    finally:
        test_worker_stopped.send(sender=app, worker=worker)


@contextmanager
def _worker_in_thread(
    app: Any,
    concurrency: int,
    pool: Any,
    loglevel: str | int,
    logfile: str | None,
    perform_ping_check: bool,
    shutdown_timeout: float,
    WorkController: Any = TestWorkController,  # noqa: N803 Celery's name
    **kwargs: Any,
) -> Iterator[Any]:
    setup_app_for_worker(app, loglevel, logfile)
    if perform_ping_check and PING not in app.tasks:
        add_ping(app)
    # A broker that is not there is told here, and not in a thread.
    with app.connection(hostname=os.environ.get("TEST_BROKER")) as connection:
        connection.ensure_connection(max_retries=1)
    worker = WorkController(
        app=app,
        concurrency=concurrency,
        hostname=kwargs.pop("hostname", None) or anon_nodename(),
        pool=pool,
        loglevel=loglevel,
        logfile=logfile,
        # on_consumer_ready() it is.
        ready_callback=None,
        without_heartbeat=kwargs.pop("without_heartbeat", True),
        without_mingle=kwargs.pop("without_mingle", True),
        without_gossip=kwargs.pop("without_gossip", True),
        **kwargs,
    )
    thread = threading.Thread(target=worker.start, name=f"worker {worker.hostname}", daemon=True)
    thread.start()
    try:
        worker.ensure_started()
        _state._set_task_join_will_block(False)
        yield worker
    finally:
        _end(worker, thread, shutdown_timeout)


def _end(worker: Any, thread: threading.Thread, timeout_s: float) -> None:
    before = state.should_stop, state.should_terminate
    try:
        worker.end_soon() if hasattr(worker, "end_soon") else setattr(state, "should_stop", 0)
        thread.join(timeout_s)
        if thread.is_alive():
            # Away from its loop, as when the broker is gone, it looks at this.
            state.should_terminate = 0
            thread.join(1.0)
        if thread.is_alive():
            raise RuntimeError(STILL_RUNS)
    finally:
        state.should_stop, state.should_terminate = before


def setup_app_for_worker(app: Any, loglevel: str | int, logfile: str | None) -> None:
    """Make *app* ready for a worker in this process: finalized, current, and with a log."""
    app.finalize()
    app.set_current()
    app.set_default()
    type(app.log)._setup = False
    app.log.setup(loglevel=loglevel, logfile=logfile)
