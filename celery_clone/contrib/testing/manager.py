"""Waiting for tasks that real workers run, in integration tests."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

from kombu.exceptions import ContentDisallowed
from kombu.utils.functional import retry_over_time

from celery_clone import states
from celery_clone.exceptions import TimeoutError
from celery_clone.result import ResultSet
from celery_clone.utils.text import truncate
from celery_clone.utils.time import humanize_seconds

__all__ = ("Manager", "ManagerMixin", "Sentinel")

STILL_WAITING = "Still waiting for {0}.  Trying again {when}: {exc!r}"
STILL_JOINING = "Still waiting for {0}/{1}: [{2}]: {3!r}"

#: Replies of ``inspect query_task`` for a task that a worker has, and for one that it runs.
RECEIVED = frozenset({"reserved", "active", "ready"})
ACCEPTED = frozenset({"active", "ready"})


class Sentinel(Exception):
    """What was waited for has not happened yet."""


class ManagerMixin:
    """Waiting, for a class that has ``app``; call :meth:`_init_manager` first."""

    app: Any

    def _init_manager(
        self,
        block_timeout: float = 30 * 60.0,
        no_join: bool = False,
        stdout: Any = None,
        stderr: Any = None,
    ) -> None:
        self.stdout = sys.stdout if stdout is None else stdout
        self.stderr = sys.stderr if stderr is None else stderr
        self.connerrors = self.app.connection().recoverable_connection_errors
        self.block_timeout = block_timeout
        self.no_join = no_join

    # --- telling

    def remark(self, s: str, sep: str = "-") -> None:
        """Print a remark."""
        print(f"{sep}{s}", file=self.stdout)

    def warn(self, s: str) -> None:
        """Print a warning."""
        print(s, file=self.stderr)

    # --- waiting

    def retry_over_time(self, *args: Any, **kwargs: Any) -> Any:
        """See :func:`kombu.utils.functional.retry_over_time`."""
        return retry_over_time(*args, **kwargs)

    def wait_for(
        self,
        fun: Callable[..., Any],
        catch: Any,
        desc: str = "thing",
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        errback: Callable[..., Any] | None = None,
        max_retries: int = 10,
        interval_start: float = 0.1,
        interval_step: float = 0.5,
        interval_max: float = 5.0,
        emit_warning: bool = False,
        **options: Any,
    ) -> Any:
        """Call *fun* until it does not raise *catch*, and return its value.

        The pauses begin with *interval_start* seconds and grow by *interval_step* up to *interval_max*; after
        *max_retries* of them the exception is raised.  *errback* takes it, the pause and the number of tries.
        """

        def on_error(exc: BaseException, intervals: Iterator[float], retries: int) -> float:
            pause = next(intervals)
            if emit_warning:
                when = humanize_seconds(pause, "in", " ", microseconds=True)
                self.warn(STILL_WAITING.format(desc, when=when, exc=exc))
            if errback:
                errback(exc, pause, retries)
            return pause

        return self.retry_over_time(
            fun,
            catch,
            args=args,
            kwargs=dict(kwargs or {}),
            errback=on_error,
            max_retries=max_retries,
            interval_start=interval_start,
            interval_step=interval_step,
            interval_max=interval_max,
            **options,
        )

    def ensure_not_for_a_while(
        self,
        fun: Callable[..., Any],
        catch: Any,
        desc: str = "thing",
        max_retries: int = 20,
        interval_start: float = 0.1,
        interval_step: float = 0.02,
        interval_max: float = 1.0,
        emit_warning: bool = False,
        **options: Any,
    ) -> None:
        """Fail if *fun* does not raise *catch* at one of several calls; the arguments are those of :meth:`wait_for`.

        Raises:
            AssertionError: it happened.
        """
        try:
            self.wait_for(
                fun,
                catch,
                desc=desc,
                max_retries=max_retries,
                interval_start=interval_start,
                interval_step=interval_step,
                interval_max=interval_max,
                emit_warning=emit_warning,
                **options,
            )
        except catch:
            return
        raise AssertionError(f"Should not have happened: {desc}")

    def true_or_raise(self, fun: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The value of *fun*.

        Raises:
            Sentinel: it is not true.
        """
        value = fun(*args, **kwargs)
        if not value:
            raise Sentinel
        return value

    # --- results

    def missing_results(self, r: Iterable[Any]) -> list[str]:
        """The ids of the results that are not there yet."""
        return [result.id for result in r if not result.ready()]

    def join(self, r: Any, propagate: bool = False, max_retries: int = 10, **kwargs: Any) -> Any:
        """The values of *r*, over time-outs and lost connections.

        Raises:
            AssertionError: they are not there after *max_retries* tries (0 for no bound).
        """
        if self.no_join:
            return None
        results = r if isinstance(r, ResultSet) else self.app.ResultSet([r])
        received: dict[str, Any] = {}
        for _ in range(max_retries) if max_retries else count():
            received.clear()
            try:
                results.get(callback=received.__setitem__, propagate=propagate, **kwargs)
                return [received[result.id] for result in results.results]
            except TimeoutError as error:
                missing = truncate(", ".join(self.missing_results(results)))
                left = len(results) - len(received)
                self.remark(STILL_JOINING.format(left, len(results), missing, error), "!")
            except self.connerrors as error:
                self.remark(f"join: connection lost: {error!r}", "!")
        raise AssertionError("Test failed: Missing task results")

    @staticmethod
    def is_result_task_in_progress(results: Iterable[Any], **kwargs: Any) -> bool:
        """Have all tasks begun or succeeded?"""
        return all(result.state in (states.STARTED, states.SUCCESS) for result in results)

    def assert_result_tasks_in_progress_or_completed(
        self,
        async_results: Iterable[Any],
        interval: float = 0.5,
        desc: str = "waiting for tasks to be started or completed",
        **policy: Any,
    ) -> Any:
        """Wait until all tasks have begun or succeeded."""
        return self.assert_task_state_from_result(
            self.is_result_task_in_progress, async_results, interval=interval, desc=desc, **policy
        )

    def assert_task_state_from_result(
        self, fun: Callable[..., Any], results: Iterable[Any], interval: float = 0.5, **policy: Any
    ) -> Any:
        """Wait until ``fun(results, timeout=interval)`` is true."""
        return self.wait_for(lambda: self.true_or_raise(fun, results, timeout=interval), (Sentinel,), **policy)

    # --- workers

    def inspect(self, timeout: float = 3.0) -> Any:
        """What asks workers; they have *timeout* seconds to answer."""
        return self.app.control.inspect(timeout=timeout)

    def query_tasks(self, ids: Iterable[str], timeout: float = 0.5) -> Iterator[tuple[str, Any]]:
        """What each worker knows about tasks: its name, and its answer."""
        yield from (self.inspect(timeout).query_task(*ids) or {}).items()

    def query_task_states(self, ids: Iterable[str], timeout: float = 0.5) -> defaultdict[str, set[str]]:
        """The ids of tasks by what workers say of them: ``reserved``, ``active``, ``ready``."""
        found: defaultdict[str, set[str]] = defaultdict(set)
        for _, reply in self.query_tasks(ids, timeout=timeout):
            for task_id, (state, _) in reply.items():
                found[state].add(task_id)
        return found

    def assert_accepted(
        self, ids: Iterable[str], interval: float = 0.5, desc: str = "waiting for tasks to be accepted", **policy: Any
    ) -> Any:
        """Wait until workers run all these tasks."""
        return self.assert_task_worker_state(self.is_accepted, ids, interval=interval, desc=desc, **policy)

    def assert_received(
        self, ids: Iterable[str], interval: float = 0.5, desc: str = "waiting for tasks to be received", **policy: Any
    ) -> Any:
        """Wait until workers have all these tasks."""
        return self.assert_task_worker_state(self.is_received, ids, interval=interval, desc=desc, **policy)

    def assert_task_worker_state(
        self, fun: Callable[..., Any], ids: Iterable[str], interval: float = 0.5, **policy: Any
    ) -> Any:
        """Wait until ``fun(ids, timeout=interval)`` is true."""
        return self.wait_for(lambda: self.true_or_raise(fun, ids, timeout=interval), (Sentinel,), **policy)

    def is_received(self, ids: Iterable[str], **kwargs: Any) -> bool:
        """Do workers have all these tasks?"""
        return self._all_in(RECEIVED, ids, **kwargs)

    def is_accepted(self, ids: Iterable[str], **kwargs: Any) -> bool:
        """Do workers run all these tasks?"""
        return self._all_in(ACCEPTED, ids, **kwargs)

    def _all_in(self, expected: Iterable[str], ids: Iterable[str], timeout: float = 0.5) -> bool:
        ids = list(ids)
        found = self.query_task_states(ids, timeout=timeout)
        return set(ids) <= set().union(*(found[state] for state in expected))

    def wait_until_idle(self) -> None:
        """Empty the queues, and wait until no worker runs anything."""
        with self.app.connection() as connection:
            while self.app.control.purge(connection=connection):
                pass
            inspect = self.app.control.inspect()
            inspect.connection = connection
            try:
                while any((inspect.active() or {}).values()):
                    pass
            except ContentDisallowed:
                return  # they speak in a way that we may not read: nothing more can be known


class Manager(ManagerMixin):
    """Waiting for the tasks of *app*.

    Arguments:
        block_timeout: kept for subclasses, in seconds.
        no_join: do not wait for results?
        stdout, stderr: where to tell of what is waited for.
    """

    def __init__(self, app: Any, **kwargs: Any) -> None:
        self.app = app
        self._init_manager(**kwargs)
