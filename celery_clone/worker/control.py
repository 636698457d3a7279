"""The remote commands of a worker: what ``celery control`` and ``celery inspect`` can ask for.

Called by ``worker.pidbox`` with the arguments of a message, and read by ``bin.control`` for names and
help.  A command gets ``state`` (``app``, ``consumer``, ``hostname``, ``tset``) and returns what is
replied; what it raises is replied as an error.  It may not wait: it runs in the worker's loop.

Projects add commands with :func:`control_command` and :func:`inspect_command`.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from billiard.common import TERM_SIGNAME
from kombu.utils.encoding import safe_repr

from celery_clone import states
from celery_clone.exceptions import ImproperlyConfigured, WorkerShutdown
from celery_clone.local import try_import
from celery_clone.message.frames import Began
from celery_clone.platforms import EX_OK
from celery_clone.platforms import signals as process_signals
from celery_clone.transport.revocations import Revocations
from celery_clone.utils import debug
from celery_clone.utils.functional import maybe_list
from celery_clone.utils.log import get_logger
from celery_clone.utils.serialization import jsonify, strtobool
from celery_clone.utils.suggest import closest

from . import state as worker_state
from .admission import is_revoked_by_stamp
from .held import held_info, held_tasks, parked_tasks
from .limits import RateBucket
from .panel import Panel, control_command, controller_info_t, inspect_command, nok, ok
from .state import Phase

__all__ = ("Panel", "control_command", "controller_info_t", "inspect_command", "nok", "ok")

logger = get_logger("celery.worker.control")

DEFAULT_TASK_INFO_ITEMS = ("exchange", "routing_key", "rate_limit")

NOT_STARTED = frozenset({states.PENDING, states.RECEIVED, states.RETRY, states.REJECTED})
"""States in which a revoke may be written into the result store: nobody runs the task."""

STORED_AT_ONCE = 50
"""Revoked tasks marked in the result store in one pass of the loop; each costs two round trips."""

LOOK_AGAIN_S = 0.05
LOOKS = 10
"""A task handed to a process tells of its begin within moments; so often is looked for one to terminate."""

SAME_NAME = (
    "Another worker named %s has been started on this broker. Commands to that name reach both, and monitors "
    "take them for one. Give each worker a name of its own with the -n option."
)


# --- the app --------------------------------------------------------------------------


@inspect_command()
def report(state: Any) -> dict[str, Any]:
    """Show versions and settings, as for a bug report."""
    return ok(state.app.bugreport())


def _is_setting(key: Any) -> bool:
    return isinstance(key, str) and not key.startswith("__")


@inspect_command(alias="dump_conf", signature="[include_defaults=False]", args=[("with_defaults", strtobool)])
def conf(state: Any, with_defaults: bool = False, **kwargs: Any) -> Any:
    """Show the settings, with secrets masked."""
    table = state.app.conf.table(with_defaults=with_defaults)
    return jsonify(table, keyfilter=_is_setting, unknown_type_filter=safe_repr)


# --- tasks ----------------------------------------------------------------------------


@inspect_command(variadic="ids", signature="[id1 [id2 [... [idN]]]]")
def query_task(state: Any, ids: Any, **kwargs: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    """Show where the tasks with these ids are."""
    wanted = frozenset(maybe_list(ids) or ())
    found = {held.id: (held.where, held.info()) for held in held_tasks(state, ids=wanted)}
    if wanted - found.keys():
        parked = (held for held in parked_tasks(state) if held.id in wanted)
        found = {**{held.id: (held.where, held.info()) for held in parked}, **found}
    return found


@control_command(variadic="task_id", signature="[id1 [id2 [... [idN]]]]")
def revoke(state: Any, task_id: Any, terminate: bool = False, signal: Any = None, **kwargs: Any) -> dict[str, Any]:
    """Do not run these tasks.

    Arguments:
        task_id: an id, or a list of them.
        terminate: end the process of a task that runs already?
        signal: process signal for that.
    """
    ids = set(maybe_list(task_id) or ())
    signum = _signum(signal) if terminate else None
    worker_state.revoked.update(ids)
    state.consumer.remember_revoked(Revocations(ids=frozenset(ids)))
    _mark_revoked(state, sorted(ids - {held.id for held in held_tasks(state, "active", ids)}))
    if signum is None:
        state.consumer.dispatcher.revoke(ids)
        logger.info("Tasks flagged as revoked: %s", ", ".join(sorted(ids)))
        return ok(f"tasks {ids} flagged as revoked")
    found = _terminate(state, ids, signum)
    return ok(f"terminate: {', '.join(found)}" if found else "terminate: tasks unknown")


def _signum(signal: Any) -> int:
    name = signal or TERM_SIGNAME
    return process_signals.signum(name.upper() if isinstance(name, str) else name)


def _mark_revoked(state: Any, ids: Sequence[str]) -> None:
    """Write into the result store that tasks were revoked, unless they run or have a result."""
    tasks = {flight.id: flight.plan.task for flight in [*worker_state.flights.values()]}
    tasks.update((request.id, request.task) for request in [*worker_state.requests.values()])
    for task_id in ids[:STORED_AT_ONCE]:
        backend = tasks[task_id].backend if task_id in tasks else state.app.backend
        try:
            if backend.get_state(task_id) in NOT_STARTED:
                backend.mark_as_revoked(task_id, reason="revoked", store_result=True)
        except NotImplementedError:
            continue  # this app stores no results
        except Exception as exc:  # noqa: BLE001 whatever the store's client raises; the revoke itself holds
            logger.warning(
                "Could not mark task %s, and %s others, as revoked in the result store: %r. "
                "Workers will not run them all the same.",
                task_id,
                len(ids) - 1,
                exc,
            )
            return
    if ids[STORED_AT_ONCE:]:
        state.consumer.call_soon(_mark_revoked, state, ids[STORED_AT_ONCE:])


def _terminate(state: Any, ids: Collection[str], signum: int, looks: int = LOOKS) -> list[str]:
    """End the processes that run these tasks, and discard those that have not begun; the ids found."""
    consumer = state.consumer
    dispatcher, flights = consumer.dispatcher, worker_state.flights
    # The pool knows a begin before it is told of.
    dispatcher.on_reports(
        [
            Began(seq, pid, at)
            for seq, (pid, at) in consumer.pool.begun().items()
            if seq in flights and flights[seq].phase is not Phase.BEGUN
        ]
    )
    found = {*dispatcher.revoke(ids, signum)}
    for request in [*worker_state.requests.values()]:
        if request.id in ids:
            request.terminate(consumer.pool, signal=signum)
            found.add(request.id)
    if found:
        logger.info("Terminating %s (%s)", ", ".join(sorted(found)), signum)
    # On its way into a process: neither taken back nor begun.
    beginning = {flight.id for flight in [*flights.values()] if flight.id in ids and flight.phase is Phase.WAITING}
    if beginning and looks:
        again = consumer.call_soon, (_terminate, state, beginning, signum, looks - 1)
        consumer.timer.call_after(LOOK_AGAIN_S, *again)
    return sorted(found)


@control_command(variadic="headers", signature="[key1=value1 [key2=value2 [... [keyN=valueN]]]]")
def revoke_by_stamped_headers(
    state: Any, headers: Any, terminate: bool = False, signal: Any = None, **kwargs: Any
) -> dict[str, Any]:
    """Do not run tasks that carry one of these stamps.

    Arguments:
        headers: names of stamps, each with a value or a list of them; or a list of texts ``name=value``.
        terminate: end the process of a task that runs already?
        signal: process signal for that.
    """
    signum = _signum(signal)
    if isinstance(headers, (list, tuple)):
        headers = dict(pair.split("=", 1) for pair in headers)
    state.consumer.remember_revoked(Revocations(stamps=headers))
    for name, values in headers.items():
        known = worker_state.revoked_stamps.setdefault(name, [])
        known += [value for value in maybe_list(values) if value not in known]
    carriers = {
        held.id: matching_stamps(held.request, headers)
        for held in held_tasks(state)
        if is_revoked_by_stamp({"stamps": held.request.stamps}, headers)
    }
    worker_state.revoked.update(carriers.keys() - {held.id for held in held_tasks(state, "active")})
    if not terminate:
        state.consumer.dispatcher.revoke(carriers.keys())
        return ok(f"headers {headers} flagged as revoked, but not terminated")
    found = _terminate(state, carriers.keys(), signum)
    if not found:
        return ok(f"headers {headers} were not terminated")
    ended: dict[str, set[Any]] = {}
    for task_id in found:
        for name, values in carriers[task_id].items():
            ended.setdefault(name, set()).update(values)
    return ok(f"headers {ended} revoked")


def matching_stamps(request: Any, headers: Mapping[str, Any]) -> dict[str, set[Any]]:
    """Those of *headers* that a request carries, by name."""
    both = {
        name: {*(maybe_list(request.stamps.get(name)) or ())} & {*(maybe_list(values) or ())}
        for name, values in headers.items()
    }
    return {name: values for name, values in both.items() if values}


@control_command(variadic="task_id", args=[("signal", str)], signature="<signal> [id1 [id2 [... [idN]]]]")
def terminate(state: Any, signal: Any, task_id: Any, **kwargs: Any) -> Any:
    """End these tasks, whether they run or not."""
    return revoke(state, task_id, terminate=True, signal=signal)


@control_command(
    args=[("task_name", str), ("rate_limit", str)],
    signature="<task_name> <rate_limit (e.g., 5/s | 5/m | 5/h)>",
)
def rate_limit(state: Any, task_name: str, rate_limit: Any, **kwargs: Any) -> dict[str, Any]:
    """Change the rate limit of a task; 0 lifts it.

    Arguments:
        task_name: name of the task.
        rate_limit: number per second, or a text such as ``"10/m"``.
    """
    try:
        RateBucket.of(rate_limit)
    except ImproperlyConfigured as exc:
        return nok(f"Invalid rate limit string: {exc}")
    task = state.app.tasks.get(task_name)
    if task is None:
        return _unknown_task(state, task_name, "rate limit")
    task.rate_limit = rate_limit
    state.consumer.reset_rate_limits()
    if not rate_limit:
        logger.info("Rate limits disabled for tasks of type %s", task_name)
        return ok("rate limit disabled successfully")
    logger.info("New rate limit for tasks of type %s: %s.", task_name, rate_limit)
    return ok("new rate limit set successfully")


@control_command(
    args=[("task_name", str), ("soft", float), ("hard", float)],
    signature="<task_name> <soft_secs> [hard_secs]",
)
def time_limit(
    state: Any,
    task_name: str | None = None,
    hard: float | None = None,
    soft: float | None = None,
    **kwargs: Any,
) -> dict[str, Any]:
    """Change the time limits of a task.

    Arguments:
        task_name: name of the task.
        hard, soft: seconds; ``None`` for no limit.  Runs that have begun keep theirs.
    """
    task = state.app.tasks.get(task_name)
    if task is None:
        return _unknown_task(state, task_name, "time limit")
    task.soft_time_limit = soft
    task.time_limit = hard
    state.consumer.dispatcher.rebuild_plans()
    logger.info("New time limits for tasks of type %s: soft=%s hard=%s", task_name, soft, hard)
    return ok("time limits set successfully")


def _unknown_task(state: Any, name: Any, what: str) -> dict[str, Any]:
    near = closest(str(name), state.app.tasks)
    logger.error(
        "A remote command wanted to change the %s of task %r, which is not registered here.%s",
        what,
        name,
        f" Did it mean {near!r}?" if near else "",
    )
    return nok("unknown task")


# --- events ---------------------------------------------------------------------------


@inspect_command()
def clock(state: Any, **kwargs: Any) -> dict[str, Any]:
    """Show the logical clock."""
    return {"clock": state.app.clock.value}


@control_command()
def election(state: Any, id: str, topic: str, action: Any = None, **kwargs: Any) -> None:
    """Take part in choosing one worker that acts.

    Arguments:
        id: tells this election from others.
        topic: what is to be done, such as ``"task"``.
        action: with what; for ``"task"`` a signature.
    """
    if state.consumer.gossip:
        state.consumer.gossip.election(id, topic, action)


@control_command()
def enable_events(state: Any) -> dict[str, Any]:
    """Send events about tasks."""
    dispatcher = state.consumer.event_dispatcher
    if dispatcher is None:
        return nok("event dispatcher unavailable")
    if dispatcher.groups and "task" not in dispatcher.groups:
        dispatcher.groups.add("task")
        logger.info("Events about tasks were turned on by remote.")
        return ok("task events enabled")
    return ok("task events already enabled")


@control_command()
def disable_events(state: Any) -> dict[str, Any]:
    """Send no more events about tasks."""
    dispatcher = state.consumer.event_dispatcher
    if dispatcher is None:
        return nok("event dispatcher unavailable")
    if not dispatcher.groups:
        # No groups at all stands for every group.
        dispatcher.groups.update({"worker", "task"})
    if "task" in dispatcher.groups:
        dispatcher.groups.discard("task")
        logger.info("Events about tasks were turned off by remote.")
        return ok("task events disabled")
    return ok("task events already disabled")


@control_command()
def heartbeat(state: Any) -> None:
    """Send a heartbeat event now."""
    logger.debug("Heartbeat requested by remote.")
    dispatcher = state.consumer.event_dispatcher
    if dispatcher:
        dispatcher.send("worker-heartbeat", freq=5, **worker_state.SOFTWARE_INFO)


# --- the worker -----------------------------------------------------------------------


@inspect_command(visible=False)
def hello(state: Any, from_node: str, revoked: Any = None, **kwargs: Any) -> dict[str, Any] | None:
    """Exchange clock and revoked ids with a worker that starts.

    Arguments:
        from_node: its name.
        revoked: ids that it knows as revoked.
    """
    if from_node == state.hostname:
        logger.warning(SAME_NAME, from_node)
        return None
    logger.info("sync with %s", from_node)
    if revoked:
        worker_state.merge_revoked(revoked)
    worker_state.revoked.purge()
    return {"revoked": [*worker_state.revoked], "clock": state.app.clock.forward()}


@inspect_command(default_timeout=0.2)
def ping(state: Any, **kwargs: Any) -> dict[str, Any]:
    """Answer, to show that the worker is alive."""
    return ok("pong")


@inspect_command()
def stats(state: Any, **kwargs: Any) -> Any:
    """Show counters, pool, broker and what the process used."""
    return state.consumer.controller.stats()


@inspect_command(alias="dump_schedule")
def scheduled(state: Any, **kwargs: Any) -> list[dict[str, Any]]:
    """Show the tasks that wait for their time, here or in the broker."""
    return [
        {
            "eta": held.request.eta.isoformat() if held.request.eta else None,
            "priority": 6,
            "request": held.info(),
        }
        for held in (*held_tasks(state, "scheduled"), *parked_tasks(state))
    ]


@inspect_command(alias="dump_reserved")
def reserved(state: Any, **kwargs: Any) -> list[dict[str, Any]]:
    """Show the tasks that were received and have not begun."""
    return held_info(state, "reserved")


@inspect_command(alias="dump_active")
def active(state: Any, safe: bool = False, **kwargs: Any) -> list[dict[str, Any]]:
    """Show the tasks that run.

    Arguments:
        safe: show their arguments as the texts that were sent with them?
    """
    return held_info(state, "active", bool(safe))


@inspect_command(alias="dump_revoked")
def revoked(state: Any, **kwargs: Any) -> list[str]:
    """Show the ids of revoked tasks."""
    return [*worker_state.revoked]


@inspect_command(alias="dump_tasks", variadic="taskinfoitems", signature="[attr1 [attr2 [... [attrN]]]]")
def registered(state: Any, taskinfoitems: Any = None, builtins: bool = False, **kwargs: Any) -> list[str]:
    """Show the names of the tasks this worker knows.

    Arguments:
        taskinfoitems: attributes to show with each; by default exchange, routing key and rate limit.
        builtins: with those of the package itself?
    """
    items = [
        item for item in taskinfoitems or DEFAULT_TASK_INFO_ITEMS if isinstance(item, str) and not item.startswith("_")
    ]
    tasks = state.app.tasks
    names = sorted(name for name in tasks if builtins or not name.startswith(("celery.", "celery_clone.")))
    return [_described(tasks[name], items) for name in names]


def _described(task: Any, items: Iterable[str]) -> str:
    values = {item: getattr(task, item, None) for item in items}
    shown = " ".join(f"{item}={value}" for item, value in values.items() if value is not None)
    return f"{task.name} [{shown}]" if shown else str(task.name)


@control_command()
def shutdown(state: Any, msg: str = "Got shutdown from remote", **kwargs: Any) -> None:
    """Stop the worker when the tasks that run have ended.

    Raises:
        WorkerShutdown: always.
    """
    logger.warning(msg)
    raise WorkerShutdown(EX_OK)


# --- looking for leaks ----------------------------------------------------------------


@inspect_command(
    default_timeout=60.0,
    args=[("type", str), ("num", int), ("max_depth", int)],
    signature="[object_type=Request] [num=200 [max_depth=10]]",
)
def objgraph(state: Any, num: int = 200, max_depth: int = 10, type: str = "Request") -> dict[str, str]:
    """Draw what keeps objects alive; needs the package objgraph.

    Arguments:
        num: how many objects.
        max_depth: how far from them.
        type: name of their class.

    Raises:
        ImportError: objgraph is not installed.
    """
    library = try_import("objgraph")
    if library is None:
        raise ImportError("The command objgraph needs the package of that name: pip install objgraph.")
    logger.info("Drawing what keeps objects of type %r alive", type)
    objects = library.by_type(type)[:num]
    with tempfile.NamedTemporaryFile(prefix="cobjg", suffix=".png", delete=False) as picture:
        library.show_backrefs(
            objects, max_depth=max_depth, highlight=lambda value: value in objects, filename=picture.name
        )
    return {"filename": picture.name}


@inspect_command()
def memsample(state: Any, **kwargs: Any) -> str | None:
    """Show the memory in use, and remember it; needs the package psutil."""
    return debug.sample_mem()


@inspect_command(args=[("samples", int)], signature="[n_samples=10]")
def memdump(state: Any, samples: int = 10, **kwargs: Any) -> str:
    """Show what memsample remembered; needs the package psutil."""
    out = io.StringIO()
    debug.memdump(samples, file=out)
    return out.getvalue()


# --- the pool -------------------------------------------------------------------------


@control_command(args=[("n", int)], signature="[N=1]")
def pool_grow(state: Any, n: int = 1, **kwargs: Any) -> dict[str, Any]:
    """Add processes or threads to the pool."""
    return _resize(state, n, "grow")


@control_command(args=[("n", int)], signature="[N=1]")
def pool_shrink(state: Any, n: int = 1, **kwargs: Any) -> dict[str, Any]:
    """Take processes or threads out of the pool, when they are idle."""
    return _resize(state, -n, "shrink")


def _resize(state: Any, change: int, verb: str) -> dict[str, Any]:
    consumer = state.consumer
    if getattr(consumer.controller, "autoscaler", None):
        return nok(f"pool_{verb} is not supported with autoscale. Change its bounds with the autoscale command.")
    consumer.pool.resize(change)
    consumer._update_prefetch_count(change)
    return ok(f"pool will {verb}")


@control_command()
def pool_restart(
    state: Any, modules: Any = None, reload: bool = False, reloader: Any = None, **kwargs: Any
) -> dict[str, Any]:
    """Replace the processes of the pool; needs the setting worker_pool_restarts.

    Arguments:
        modules: modules to import; those of the app by default.
        reload: import them again, if they were imported before?
        reloader: what does that.

    Raises:
        ValueError: the setting is off.
    """
    if not state.app.conf.worker_pool_restarts:
        raise ValueError("Pool restarts not enabled")
    state.consumer.controller.reload(modules, reload, reloader=reloader)
    return ok("reload started")


@control_command(args=[("max", int), ("min", int)], signature="[max [min]]")
def autoscale(state: Any, max: int | None = None, min: int | None = None) -> dict[str, Any]:
    """Change the bounds of a pool that scales itself.

    Raises:
        ValueError: this one does not.
    """
    autoscaler = getattr(state.consumer.controller, "autoscaler", None)
    if not autoscaler:
        raise ValueError("Autoscale not enabled")
    highest, lowest = autoscaler.update(max, min)
    return ok(f"autoscale now max={highest} min={lowest}")


# --- queues ---------------------------------------------------------------------------


@control_command(
    args=[("queue", str), ("exchange", str), ("exchange_type", str), ("routing_key", str)],
    signature="<queue> [exchange [type [routing_key]]]",
)
def add_consumer(
    state: Any,
    queue: str,
    exchange: str | None = None,
    exchange_type: str | None = None,
    routing_key: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Take tasks from one more queue."""
    wanted = {"exchange": exchange, "exchange_type": exchange_type or "direct", "routing_key": routing_key}
    # Declaring waits for the broker's answer, which must not happen inside the delivery of this command.
    state.consumer.call_soon(_consume_from, state.consumer, queue, {**wanted, **options})
    return ok(f"add consumer {queue}")


def _consume_from(consumer: Any, name: str, wanted: dict[str, Any]) -> None:
    """Consume from a queue, if the broker lets it be declared as it is here."""
    queues = consumer.app.amqp.queues
    is_new = name not in queues and name not in queues.aliases
    if is_new:
        queues.add(name, **{**wanted, "exchange": wanted["exchange"] or name})
    try:
        # On a channel of its own: a refusal closes the channel, and with it all that it consumes.
        with consumer.connection.channel() as trial:
            queues[name](trial).declare()
    except consumer.channel_errors as exc:
        if is_new:
            del queues[name]
        logger.error(  # noqa: TRY400 the broker's text says all; the traceback is kombu's
            "Cannot consume from %s, as remote control asked: %s. Delete the queue at the broker, or ask with "
            "the arguments it was declared with.",
            name,
            exc,
        )
        return
    consumer.add_task_queue(name)


@control_command(args=[("queue", str)], signature="<queue>")
def cancel_consumer(state: Any, queue: str, **_: Any) -> dict[str, Any]:
    """Take no more tasks from a queue."""
    state.consumer.call_soon(state.consumer.cancel_task_queue, queue)
    return ok(f"no longer consuming from {queue}")


@inspect_command()
def active_queues(state: Any) -> list[dict[str, Any]]:
    """Show the queues that tasks are taken from."""
    consumer = state.consumer.task_consumer
    if not consumer:
        return []
    return [dict(queue.as_dict(recurse=True)) for queue in consumer.queues]
