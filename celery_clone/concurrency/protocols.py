"""The shape of every pool, and of what a pool runs.

Implemented by the pools of this package, used by ``worker.dispatch`` and ``worker.components``.
Types only: it may not start anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from celery_clone.message.frames import Ended, Job, Report, Returned, Unfit

__all__ = ("Pool", "Runner")


class Runner(Protocol):
    """Runs jobs where user code may run.  Made once in the parent, used in each child.

    The child calls :meth:`prepare` once, then one job after another, and :meth:`flush` before it
    waits for the next job or reports what ended.  Nothing but ``SystemExit`` and the like leaves it.
    """

    def prepare(self) -> None:
        """Make this process ready to run tasks (after the fork, before the first job)."""

    def __call__(self, job: Job, begin: Callable[[], None]) -> Ended | Unfit | Returned:
        """Run one job.  Results of tasks known to be short may still be unsent when it returns.

        *begin* is called once, when the message is understood and the task is the next thing to run:
        from then on the job counts as begun.  A job that turns out unfit before has left no trace.
        """

    @property
    def unsent(self) -> bool:
        """Are there results that :meth:`flush` would store?"""

    def flush(self) -> None:
        """Store the results that wait, in one round trip.  Safe to call from a second thread."""

    def finish(self) -> None:
        """The process is about to end: flush and close what :meth:`prepare` opened."""


class Pool(Protocol):
    """Runs jobs.  All methods are called by the worker's loop.

    ``tell`` (given to :meth:`bind`) is called in the loop's thread with the reports of one turn.
    A report for every submitted job comes exactly once: ``Ended``, ``Unfit``, ``Returned`` or ``Lost``;
    ``Began`` and ``Overtime`` may come before it.  A job that is taken back, by :meth:`recall` or because
    the pool ends before it began, has no report.
    """

    @property
    def name(self) -> str:
        """The short name of the pool."""

    @property
    def green(self) -> bool:
        """Does it need the blocking loop?"""

    @property
    def info(self) -> dict[str, Any]:
        """What ``inspect stats`` shows of the pool."""

    @property
    def num_processes(self) -> int:
        """How many jobs it can run at once."""

    def bind(self, runner: Runner, tell: Callable[[Sequence[Report]], None]) -> None:
        """What runs the jobs, and who is told of them.  Before :meth:`start`."""

    def start(self) -> None:
        """Start the processes or threads.  Returns when jobs may be submitted."""

    def did_start_ok(self) -> bool:
        """Has no process failed to start so far?"""

    def watch(self, hub: Any) -> None:
        """Register descriptors and timers with the loop.  Legal again, as after the hub was reset."""

    def unwatch(self, hub: Any) -> None:
        """Take back what :meth:`watch` registered."""

    def wait(self, timeout: float) -> None:
        """For a loop without a hub: tell what there is, after waiting at most *timeout* seconds for it."""

    def room(self) -> int:
        """How many jobs may be handed over now."""

    def submit(
        self, jobs: Sequence[Job], limits: Sequence[tuple[float | None, float | None]] | None = None
    ) -> None:
        """Hand jobs over.  *limits* gives (soft, hard) seconds for each job, counted from its begin."""

    def recall(self) -> Sequence[int]:
        """Take back every job handed over and not begun; their numbers."""

    def begun(self) -> dict[int, tuple[int, float]]:
        """The jobs running now: number to (pid, monotonic time of begin)."""

    def kill(self, seq: int, signum: int) -> bool:
        """Signal the child that runs *seq*; a ``Lost`` follows if it dies.  ``False``: it does not run."""

    def resize(self, change: int) -> None:
        """Grow or shrink by *change* children."""

    def restart(self) -> None:
        """Replace every child, each when its job has ended."""

    def stop(self, *, deadline: float | None = None) -> None:
        """End.  ``None``: wait for begun jobs; else wait at most that many seconds, then kill."""

    def kill_all(self, grace: float) -> None:
        """End at once, with *grace* seconds between TERM and KILL.  Nothing is told of the jobs that die."""
