"""What a dispatcher talks to, in one process and without I/O: a source, a pool, a timer, an owner.

Used by the unit tests of the worker.  Each keeps a record of what it was told; nothing here decides.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kombu.utils.uuid import uuid

from celery_clone.message.delivery import Delivery
from celery_clone.message.frames import Began, Ended, Job, Lost, Report, Unfit
from celery_clone.worker.dispatch import Dispatcher

__all__ = ("Bench", "BrokenSource", "ListSource", "ManualPool", "ManualTimer", "Owner")


class ListSource:
    """A source whose queue is a list."""

    keeps_dead = True

    def __init__(self, *, survives_reconnect: bool = False) -> None:
        self.survives_reconnect = survives_reconnect
        self.queue: list[Delivery] = []
        self.acked: list[str] = []
        self.requeued: list[str] = []
        self.dropped: list[str] = []
        self.buried: list[str] = []
        self.rewrites = True
        self.put_back_with: dict[str, int] = {}
        self.noted: dict[str, int] = {}
        self.flushes = 0
        self.is_quiet = False

    def watch(self, hub: Any, ready: Callable[[], None]) -> None:
        """There is nothing to wait for."""

    def set_queues(self, queues: Sequence[Any]) -> None:
        """There is one."""

    def take(self, credit: int, timeout: float = 0.0) -> Sequence[Delivery]:
        """The next *credit* deliveries."""
        taken, self.queue = self.queue[:credit], self.queue[credit:]
        return taken

    def ack(self, tags: Iterable[str]) -> None:
        """Note it."""
        self.acked.extend(tags)

    def reject(self, tag: str, *, requeue: bool) -> None:
        """Note it."""
        (self.requeued if requeue else self.dropped).append(tag)

    def put_back(self, delivery: Delivery, losses: int) -> bool:
        """Note it, where messages may be changed."""
        if self.rewrites:
            self.put_back_with[delivery.tag] = losses
        return self.rewrites

    def note_losses(self, delivery: Delivery, losses: int) -> None:
        """Note it."""
        self.noted[delivery.tag] = losses

    def bury(self, delivery: Delivery, reason: str) -> None:
        """Note it."""
        self.buried.append(delivery.tag)

    def park(self, delivery: Delivery, due: float) -> bool:
        """The worker must hold it."""
        return False

    def parked(self, most: int) -> Sequence[Delivery]:
        """Nothing is."""
        return ()

    def extend(self) -> None:
        """Nothing runs out."""

    def flush(self) -> None:
        """Count it."""
        self.flushes += 1

    def quiet(self) -> None:
        """Note it."""
        self.is_quiet = True

    def close(self) -> None:
        """Nothing is open."""


class BrokenSource(ListSource):
    """A source whose connection is gone: everything that would write to it fails."""

    def reject(self, tag: str, *, requeue: bool) -> None:
        """Fail."""
        raise ConnectionResetError("gone")

    def bury(self, delivery: Delivery, reason: str) -> None:
        """Fail."""
        raise ConnectionResetError("gone")

    def flush(self) -> None:
        """Fail."""
        raise ConnectionResetError("gone")

    def quiet(self) -> None:
        """Fail."""
        raise ConnectionResetError("gone")


class ManualPool:
    """A pool whose jobs begin and end when a test says so."""

    runs_here = False

    def __init__(self, processes: int = 2, depth: int = 100) -> None:
        self.num_processes = processes
        self.depth = depth
        self.jobs: dict[int, Job] = {}
        self.submitted: list[Job] = []
        self.running: dict[int, tuple[int, float]] = {}
        self.killed: list[tuple[int, int]] = []
        self.waits: list[float] = []

    def room(self) -> int:
        """How many more fit."""
        return self.depth - len(self.jobs)

    def submit(self, jobs: Sequence[Job], limits: Any = None) -> None:
        """Keep them."""
        for job in jobs:
            self.jobs[job.seq] = job
            self.submitted.append(job)

    def recall(self) -> Sequence[int]:
        """What has not begun."""
        back = [seq for seq in self.jobs if seq not in self.running]
        for seq in back:
            del self.jobs[seq]
        return back

    def begun(self) -> dict[int, tuple[int, float]]:
        """What has."""
        return dict(self.running)

    def kill(self, seq: int, signum: int) -> bool:
        """Note it."""
        self.killed.append((seq, signum))
        return seq in self.running

    def wait(self, timeout: float) -> None:
        """Note it; nothing comes by itself."""
        self.waits.append(timeout)


class ManualTimer:
    """Entries are called when a test says so."""

    def __init__(self) -> None:
        self.entries: list[tuple[float, Callable[..., Any], tuple[Any, ...]]] = []

    def call_after(self, seconds: float, function: Callable[..., Any], args: tuple[Any, ...] = ()) -> None:
        """Keep it."""
        self.entries.append((seconds, function, args))

    def fire(self) -> None:
        """Call all that are there now."""
        entries, self.entries = self.entries, []
        for _, function, args in entries:
            function(*args)


class Owner:
    """As much of a consumer as a dispatcher asks for."""

    connection_errors: tuple[type[BaseException], ...] = (ConnectionError,)
    channel_errors: tuple[type[BaseException], ...] = ()

    def __init__(self) -> None:
        self.handlers: dict[str, Callable[[Delivery], None]] = {}

    def legacy_handler(self, task: Any) -> Any:
        """The handler a test gave for the task."""
        return self.handlers.get(task.name)

    def handle_legacy(self, handler: Callable[[Delivery], None], delivery: Delivery) -> None:
        """Call it."""
        handler(delivery)


class Bench:
    """A dispatcher with everything around it, and the hands to work it."""

    def __init__(
        self, app: Any, *, processes: int = 2, prefetch: int = 8, survives: bool = False, pool: Any = None
    ) -> None:
        self.app = app
        self.now = 1000.0
        self.pool = pool or ManualPool(processes)
        self.timer = ManualTimer()
        self.owner = Owner()
        self.source = ListSource(survives_reconnect=survives)
        self.dispatcher = Dispatcher(
            app,
            "w@here",
            self.pool,
            self.timer,
            self.owner,
            prefetch=prefetch,
            elastic=False,
            clock=lambda: self.now,
            monotonic=lambda: self.now,
        )
        self.dispatcher.attach(self.source)

    def delivery(
        self,
        task: Any,
        task_id: str | None = None,
        *,
        tag: str | None = None,
        redelivered: bool = False,
        **headers: Any,
    ) -> Delivery:
        """A message of *task*, of protocol 2 unless *headers* say otherwise."""
        task_id = task_id or uuid()
        return Delivery.of_parts(
            {"task": getattr(task, "name", task), "id": task_id, "lang": "py", "retries": 0, **headers},
            {"correlation_id": task_id},
            json.dumps([[], {}, {}]).encode(),
            "application/json",
            "utf-8",
            tag or f"tag-{task_id}",
            "celery",
            self.source,
            facts={"redelivered": redelivered},
        )

    def receive(self, task: Any, task_id: str | None = None, **options: Any) -> Any:
        """Have a message of *task* received; its flight, if it has one."""
        delivery = self.delivery(task, task_id, **options)
        self.dispatcher.receive([delivery])
        return next((each for each in self.dispatcher.flights.values() if each.delivery is delivery), None)

    def begin(self, flight: Any) -> None:
        """A process begins it."""
        self.pool.running[flight.seq] = (4711, self.now)
        self.tell(Began(flight.seq, 4711, self.now))

    def tell(self, *reports: Report) -> None:
        """The pool reports."""
        for report in reports:
            if not isinstance(report, Began):
                self.pool.jobs.pop(report.seq, None)
                self.pool.running.pop(report.seq, None)
        self.dispatcher.on_reports(reports)

    def end(self, flight: Any, state: str = "SUCCESS", *, requeue: bool = False) -> None:
        """It ends in *state*."""
        self.tell(Ended(flight.seq, (state, "'x'", 1.0, None, requeue)))

    def lose(self, flight: Any) -> None:
        """Its process dies."""
        self.tell(Lost(flight.seq, 4711, -9))

    def refuse(self, flight: Any, kind: str = "undecodable") -> None:
        """Its message cannot be used."""
        self.tell(Unfit(flight.seq, kind, "no use"))

    def reconnect(self) -> None:
        """The connection is lost and there is a new one."""
        self.dispatcher.detach()
        self.source = ListSource(survives_reconnect=self.source.survives_reconnect)
        self.dispatcher.attach(self.source)

    @property
    def submitted(self) -> list[str]:
        """Names of the jobs that were handed over, in order."""
        return [job.task for job in self.pool.submitted]
