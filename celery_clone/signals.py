"""Every signal: what happens, where, and what its receivers are told.

Sent by ``app``, ``worker``, ``concurrency``, ``beat`` and ``bin``; received by the users' code.
Declares only.  Signals of one app (``app.on_configure`` and others) are made in ``app.base``.

Senders check ``signal.receivers`` before they prepare arguments: no receivers, no cost.
"""

from __future__ import annotations

from celery_clone.utils.dispatch import Signal

__all__ = (
    "after_setup_logger",
    "after_setup_task_logger",
    "after_task_publish",
    "beat_embedded_init",
    "beat_init",
    "before_task_publish",
    "celeryd_after_setup",
    "celeryd_init",
    "eventlet_pool_apply",
    "eventlet_pool_postshutdown",
    "eventlet_pool_preshutdown",
    "eventlet_pool_started",
    "heartbeat_sent",
    "import_modules",
    "setup_logging",
    "task_failure",
    "task_internal_error",
    "task_postrun",
    "task_prerun",
    "task_received",
    "task_rejected",
    "task_retry",
    "task_revoked",
    "task_sent",
    "task_success",
    "task_unknown",
    "user_preload_options",
    "worker_before_create_process",
    "worker_init",
    "worker_process_init",
    "worker_process_shutdown",
    "worker_ready",
    "worker_shutdown",
    "worker_shutting_down",
)


def _signal(name: str, *provided: str) -> Signal:
    return Signal(name=name, providing_args=provided)


# -- in the process that sends a task; the sender is the task's name

#: About to be published.  Receivers may edit the body, the headers and the properties.
before_task_publish = _signal(
    "before_task_publish",
    *("body", "exchange", "routing_key", "headers", "properties", "declare", "retry_policy"),
)
#: Published.
after_task_publish = _signal("after_task_publish", "body", "headers", "exchange", "routing_key")
#: Old form of :data:`after_task_publish`.
task_sent = _signal("task_sent", "task_id", "task", "args", "kwargs", "eta", "taskset")

# -- in the process that runs a task; the sender is the task

#: About to run.
task_prerun = _signal("task_prerun", "task_id", "task", "args", "kwargs")
#: Has run, whatever the end.
task_postrun = _signal("task_postrun", "task_id", "task", "args", "kwargs", "retval", "state")
#: Returned.  ``runtime`` is in seconds.
task_success = _signal("task_success", "result", "runtime")
#: Will be tried again.
task_retry = _signal("task_retry", "request", "reason", "einfo")
#: Raised.  Sent by the main process if the running process was lost or ran out of time.
task_failure = _signal("task_failure", "task_id", "exception", "args", "kwargs", "traceback", "einfo")
#: Ended by an error of the machinery, not of the task.
task_internal_error = _signal(
    "task_internal_error",
    *("task_id", "args", "kwargs", "request", "exception", "traceback", "einfo"),
)

# -- in the worker's main process

#: Arrived at the worker.  The sender is the consumer.
task_received = _signal("task_received", "request")
#: Cancelled.  The sender is the task.
task_revoked = _signal("task_revoked", "request", "terminated", "signum", "expired")
#: A message that is not a task.  The sender is the consumer.
task_rejected = _signal("task_rejected", "message", "exc")
#: A message for a task that is not registered.  The sender is the consumer.
task_unknown = _signal("task_unknown", "message", "exc", "name", "id")

#: The worker's app is set up, nothing is configured yet.  The sender is the node name.
celeryd_init = _signal("celeryd_init", "instance", "conf", "options")
#: The worker is set up and has not begun.  The sender is the node name.
celeryd_after_setup = _signal("celeryd_after_setup", "instance", "conf")
#: The worker is about to begin.
worker_init = _signal("worker_init")
#: The worker takes tasks.  The sender is the consumer.
worker_ready = _signal("worker_ready")
#: A heartbeat left.  The sender is the heart.
heartbeat_sent = _signal("heartbeat_sent")
#: The worker was asked to end.  The sender is the node name; ``how`` is ``"Warm"`` or ``"Cold"``.
worker_shutting_down = _signal("worker_shutting_down", "sig", "how", "exitcode")
#: The worker ends.
worker_shutdown = _signal("worker_shutdown")

# -- around the worker's processes

#: In the parent, before a child is made.  The sender is the pool.
worker_before_create_process = _signal("worker_before_create_process")
#: In a child, before its first task.  The receivers must be done within seconds.
worker_process_init = _signal("worker_process_init")
#: In a child that is about to end.
worker_process_shutdown = _signal("worker_process_shutdown", "pid", "exitcode")

# -- eventlet; the sender is the pool

eventlet_pool_started = _signal("eventlet_pool_started")
eventlet_pool_preshutdown = _signal("eventlet_pool_preshutdown")
eventlet_pool_postshutdown = _signal("eventlet_pool_postshutdown")
eventlet_pool_apply = _signal("eventlet_pool_apply", "target", "args", "kwargs")

# -- in any program

#: Task modules are to be imported now.  The sender is the app.
import_modules = _signal("import_modules")
#: Logging is to be set up.  If there are receivers, they do it and the app does not.
setup_logging = _signal("setup_logging", "loglevel", "logfile", "format", "colorize")
#: The logger of the program was set up.
after_setup_logger = _signal("after_setup_logger", "logger", "loglevel", "logfile", "format", "colorize")
#: The logger of tasks was set up.
after_setup_task_logger = _signal(
    "after_setup_task_logger",
    *("logger", "loglevel", "logfile", "format", "colorize"),
)
#: Beat begins.  The sender is its service.
beat_init = _signal("beat_init")
#: Beat begins inside a worker.  Sent besides :data:`beat_init`.
beat_embedded_init = _signal("beat_embedded_init")
#: The options every command takes were read.  The sender is the command.
user_preload_options = _signal("user_preload_options", "app", "options")
