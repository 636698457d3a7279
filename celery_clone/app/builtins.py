"""The tasks that every app has: ``celery.chord_unlock``, ``celery.map`` and their like.

Added to each app when it is finalized; messages of other workers name them.  They hold no state.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from celery_clone import states
from celery_clone.backends import stand_ins
from celery_clone.canvas import chord as make_chord
from celery_clone.canvas import chunks as make_chunks
from celery_clone.canvas import group as make_group
from celery_clone.canvas import maybe_signature, signature
from celery_clone.exceptions import ChordError, Ignore, Retry, TimeoutError
from celery_clone.result import allow_join_result, result_from_tuple
from celery_clone.utils.log import get_logger

__all__ = ()

logger = get_logger("celery.app.builtins")

UNLOCK_GROWTH = 1.1
UNLOCK_MOST_STEPS = 200
UNLOCK_PAUSE_MAX_S = 60.0
"""Each pause between two looks at an unfinished chord is so much longer than the last, up to this."""

DECLARATIONS: list[Callable[[Any], Any]] = []
"""Each declares one task for an app."""


def builtin(declare: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Have :func:`add_all` call *declare*."""
    DECLARATIONS.append(declare)
    return declare


def add_all(app: Any) -> None:
    """Declare the built-in tasks for *app*; called when it is finalized."""
    for declare in DECLARATIONS:
        declare(app)


def pause_before_look(interval: float, looks: int) -> float:
    """Seconds until the next look at an unfinished chord, after so many *looks*.

    About a tenth of the time it was waited already: short chords end soon, long ones cost little.
    """
    return float(min(interval * UNLOCK_GROWTH ** min(looks, UNLOCK_MOST_STEPS), max(interval, UNLOCK_PAUSE_MAX_S)))


def time_waited(interval: float, looks: int) -> float:
    """Seconds between the first of so many *looks* at a chord, and the last."""
    return sum(pause_before_look(interval, look) for look in range(looks))


def chord_lifetime(conf: Any) -> float:
    """Seconds after which the results of a chord's members are gone; 0: they stay."""
    lifetime = conf.result_expires if conf.result_chord_expires is None else conf.result_chord_expires
    return float(lifetime.total_seconds() if isinstance(lifetime, timedelta) else lifetime or 0)


def was_sent(app: Any, body: Any) -> bool:
    """Has the body of a chord begun?  Then another message that looks at the chord has sent it."""
    return not isinstance(body, make_group) and bool(body.id) and app.backend.get_state(body.id) != states.PENDING


def fail_chord(app: Any, body: Any, reason: str, cause: BaseException) -> None:
    """End a chord whose body will not run."""
    error = ChordError(reason)
    error.__cause__ = cause
    app.backend.chord_error_from_stack(callback=body, exc=error)


@builtin
def add_backend_cleanup_task(app: Any) -> Any:
    """Removes expired results; beat calls it daily."""

    @app.task(name="celery.backend_cleanup", shared=False, lazy=False)
    def backend_cleanup() -> None:
        app.backend.cleanup()

    return backend_cleanup


@builtin
def add_accumulate_task(app: Any) -> Any:
    """Gives its arguments back; ends a group that replaced a task."""

    @app.task(bind=True, name="celery.accumulate", shared=False, lazy=False)
    def accumulate(self: Any, *args: Any, **kwargs: Any) -> Any:
        index = kwargs.get("index")
        try:
            return args if index is None else args[index]
        except IndexError:
            raise IndexError(
                f"celery.accumulate was asked for argument {index} (index) and got {len(args)}: "
                "ask for one that is there, or leave the index out to get all."
            ) from None

    return accumulate


@builtin
def add_unlock_chord_task(app: Any) -> Any:
    """Polls the members of a chord, on stores that cannot count completions themselves."""

    @app.task(
        name="celery.chord_unlock",
        max_retries=None,
        shared=False,
        default_retry_delay=app.conf.result_chord_retry_interval,
        ignore_result=True,
        # Nobody else looks at the chord: a process that dies while it looks must not take the message along.
        acks_late=True,
        reject_on_worker_lost=True,
        lazy=False,
        bind=True,
    )
    def unlock_chord(
        self: Any,
        group_id: str,
        callback: Any,
        interval: float | None = None,
        max_retries: int | None = None,
        result: Any = None,
        **kwargs: Any,
    ) -> None:
        interval = self.default_retry_delay if interval is None else interval
        members = app.GroupResult(group_id, [result_from_tuple(each, app=app) for each in result], app=app)
        # The exchange's type is not part of the delivery info that a retry is routed by.
        exchange_type = kwargs.pop("_chord_unlock_exchange_type", None)
        route = {} if exchange_type is None else {"exchange_type": exchange_type}
        body = maybe_signature(callback, app=app)
        looks = self.request.retries
        # Whoever bounds the number of looks counts on their distance.
        pause = pause_before_look(interval, looks) if max_retries is None else interval
        store_error: BaseException | None = None
        try:
            try:
                ready = members.ready()
            except Exception as exc:
                store_error = exc
                raise self.retry(exc=exc, countdown=pause, max_retries=max_retries, **route) from exc
            if not ready:
                lifetime = chord_lifetime(app.conf)
                if max_retries is None and lifetime and time_waited(interval, looks) > lifetime:
                    error = TimeoutError(
                        f"not all members have ended after {lifetime:g} seconds, when their results expire "
                        "(result_chord_expires, result_expires)"
                    )
                    logger.error("Chord %r is given up: %s", group_id, error)
                    fail_chord(app, body, str(error), error)
                    return
                raise self.retry(countdown=pause, max_retries=max_retries, **route)
        except Retry:
            raise
        except Exception as exc:
            # No retry was sent, so nobody will look at this chord again: end it instead.
            logger.exception("Chord %r: chord_unlock could not be retried: %r", group_id, exc)
            cause = getattr(exc, "reason", None) or exc
            reason = f"chord_unlock could not be retried: {cause!r}"
            if store_error is not None and store_error is not cause:
                reason += f" (after reading the members' states raised {store_error!r})"
            fail_chord(app, body, reason, cause)
            raise
        if was_sent(app, body):
            return
        join = members.join_native if members.supports_native_join else members.join
        try:
            with allow_join_result():
                values = join(timeout=app.conf.result_chord_join_timeout, propagate=True)
        except Exception as exc:
            culprit = next(members._failed_join_report(), None)
            reason = repr(exc) if culprit is None else f"Dependency {culprit.id} raised {exc!r}"
            logger.exception("Chord %r raised: %r", group_id, exc)
            fail_chord(app, body, reason, exc)
            return
        try:
            body.delay(values)
        except Exception as exc:
            logger.exception("Chord %r raised: %r", group_id, exc)
            fail_chord(app, body, f"Callback error: {exc!r}", exc)

    return unlock_chord


@builtin
def add_stored_body_task(app: Any) -> Any:
    """Sends a body that was too large to travel; it is real Celery's workers that send the stand-in itself."""

    @app.task(name=stand_ins.TASK, shared=False, lazy=False, bind=True)
    def stored_body(self: Any, values: Any, group_id: str) -> None:
        stand_in = self.s(group_id=group_id)
        body = stand_ins.body_for(app.backend, stand_in)
        # It has the id of this run: whoever waits for the body waits for it by that.
        body.apply_async((values,), add_to_parent=False)
        stand_ins.let_go(app.backend, stand_in)
        raise Ignore(f"{body.task} was sent in the place of its stand-in")

    return stored_body


@builtin
def add_map_task(app: Any) -> Any:
    """Runs a task for each item, in one call."""

    @app.task(name="celery.map", shared=False, lazy=False)
    def xmap(task: Any, it: Any) -> list[Any]:
        function = signature(task, app=app).type
        return [function(item) for item in it]

    return xmap


@builtin
def add_starmap_task(app: Any) -> Any:
    """Runs a task for each argument tuple, in one call."""

    @app.task(name="celery.starmap", shared=False, lazy=False)
    def xstarmap(task: Any, it: Any) -> list[Any]:
        function = signature(task, app=app).type
        return [function(*item) for item in it]

    return xstarmap


@builtin
def add_chunk_task(app: Any) -> Any:
    """Splits argument tuples into calls of ``celery.starmap``."""

    @app.task(name="celery.chunks", shared=False, lazy=False)
    def chunks(task: Any, it: Any, n: int) -> Any:
        return make_chunks.apply_chunks(task, it, n)

    return chunks


@builtin
def add_group_task(app: Any) -> Any:
    """Sends the members of a group, for messages that name it as a task."""

    @app.task(name="celery.group", bind=True, shared=False, lazy=False)
    def group(
        self: Any, tasks: Any, result: Any, group_id: str, partial_args: Any, add_to_parent: bool = True
    ) -> Any:
        result = result_from_tuple(result, app)
        with app.publishing_together():
            for each in tasks:
                member = maybe_signature(each, app=app).clone(partial_args)
                member.apply_async(group_id=group_id, add_to_parent=False)
        parent = app.current_worker_task
        if add_to_parent and parent:
            parent.add_trail(result)
        return result

    return group


@builtin
def add_chain_task(app: Any) -> Any:
    """Only a name: a chain is sent as its first step."""

    @app.task(name="celery.chain", shared=False, lazy=False)
    def chain(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("chain is not a real task: call its signature, which sends the first step.")

    return chain


@builtin
def add_chord_task(app: Any) -> Any:
    """Sends a chord, for messages that name it as a task."""

    @app.task(name="celery.chord", bind=True, ignore_result=False, shared=False, lazy=False)
    def chord(
        self: Any,
        header: Any,
        body: Any,
        partial_args: Any = (),
        interval: float | None = None,
        countdown: float = 1,
        max_retries: int | None = None,
        eager: bool = False,
        **kwargs: Any,
    ) -> Any:
        tasks = header.tasks if isinstance(header, make_group) else header
        members = make_group([maybe_signature(each, app=app) for each in tasks], app=app)
        body = maybe_signature(body, app=app)
        whole = make_chord(members, body)
        return whole.run(members, body, partial_args, app, interval, countdown, max_retries, **kwargs)

    return chord
