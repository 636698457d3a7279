"""Deliveries in, jobs to the pool, reports back, acknowledgements out: the hot path.

Owned by the consumer, called by ``worker.loops`` once per turn and by the pool with its reports,
all in the loop's thread.  It owns the flights and the books of prefetching, outside of any
connection; what may run is decided by ``worker.admission``, what is acknowledged by
``execution.acks``.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kombu.exceptions import ContentDisallowed, DecodeError

from celery_clone import states
from celery_clone.exceptions import (
    InvalidTaskError,
    NotRegistered,
    Reject,
    TimeLimitExceeded,
    WorkerLostError,
)
from celery_clone.execution.acks import (
    Settle,
    settle_on_end,
    settle_on_loss,
    settle_on_timeout,
)
from celery_clone.execution.outcome import Outcome
from celery_clone.message.frames import (
    MAY_WAIT,
    TELL_BEGIN,
    WANT_SUMMARY,
    Began,
    Ended,
    Job,
    Lost,
    Overtime,
    Report,
    Unfit,
)
from celery_clone.transport.credit import Credit
from celery_clone.utils.log import get_logger

from . import state
from .admission import Discard, Hold, Run, Verdict, admit, epoch
from .announce import Announcer, describe_exit, headers_of, losses_of
from .limits import RateBucket
from .orphans import Orphans
from .plans import SHORT_S, TaskPlan
from .state import InFlight, Phase

if TYPE_CHECKING:
    from celery_clone.concurrency.protocols import Pool
    from celery_clone.message.delivery import Delivery
    from celery_clone.transport.protocols import MessageSource

__all__ = ("Dispatcher",)

request_logger = get_logger("celery.worker.request")
consumer_logger = get_logger("celery.worker.consumer.consumer")

STALLED_S = 0.05
"""When a job thought short runs longer, its slot is looked at, so that early acknowledgement is not late."""

PARK_S = 1.0
"""A delivery due later than this is parked in the broker, where the broker can hold it."""

BATCH = 64
"""The most deliveries taken in one turn."""

GATHER_S = 0.001
"""How long a take waits at most for the end of what the one before it brought."""

FEW = 16
"""Takes that bring so many need not be made rarer."""

MOST_LOSSES = 20
"""How often the processes of one message may die where ``task_max_losses`` does not say."""

DEADLY = "Worker exited prematurely, {losses} times by now: the task is not run again."

LOOK_S = 0.05
"""How long a loop without a hub waits for the pool before it looks at the broker again."""

WIDEST = 64
"""How many deliveries per process may be outstanding while tasks are short."""

REDUCED = (
    "Temporarily reducing the prefetch count to %s to avoid over-fetching since %s tasks are currently being "
    "processed. The prefetch count will be gradually restored to %s as the tasks complete processing."
)

UNFIT: Mapping[str, type[Exception]] = {
    "content": ContentDisallowed,
    "undecodable": DecodeError,
    "invalid": InvalidTaskError,
    "unknown": NotRegistered,
    "crashed": WorkerLostError,
}
"""What the caller of a message that turned out unfit in its process is told, by the reason."""


class Dispatcher:
    """Carries tasks from the source to the pool and their ends back.

    Arguments:
        app: the app whose tasks are run.
        hostname: node name of the worker.
        pool: runs the jobs.
        timer: has ``call_after(seconds, function, args)``.
        owner: the consumer; sender of the signals, and what legacy handlers get.
        prefetch: how many deliveries may be outstanding; 0 for no bound.
        elastic: may the window grow while tasks are short?
    """

    def __init__(
        self,
        app: Any,
        hostname: str,
        pool: Pool,
        timer: Any,
        owner: Any,
        *,
        prefetch: int,
        elastic: bool,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.app = app
        self.hostname = hostname
        self.pool = pool
        self.timer = timer
        self.owner = owner
        self.clock = clock
        self.monotonic = monotonic
        self.base = prefetch
        self.widest = max(prefetch, self.processes() * WIDEST) if elastic and prefetch else prefetch
        self.credit = Credit(prefetch, app.conf.worker_eta_task_limit)
        #: Runs of a lost connection that do not count any more (worker_enable_prefetch_count_reduction is off).
        self.uncounted: set[int] = set()
        self.source: MessageSource | None = None
        self.quiet = False
        self.announcer = Announcer(app, hostname, owner)
        self.flights = state.flights
        self.waiting: deque[InFlight] = deque()
        #: What was raised when the broker could not be told something; the next turn raises it.
        self.broken: BaseException | None = None
        #: Taken and not looked at yet; there is something in it only after a connection broke in the middle.
        self.arrived: deque[Delivery] = deque()
        self.plans: dict[str, TaskPlan] = {}
        self.limits_off = False
        #: Something may be in the broker that was not taken yet.
        self.stirred = True
        #: What ended while the broker was away, where a delivery stays ours over a reconnect.
        self.unsettled: list[tuple[str, Settle]] = []
        #: Runs whose connection was lost before they were acknowledged, and how they ended.
        self.orphans = Orphans()
        #: When jobs with the pool must no longer begin, by number, in epoch seconds.
        self.expiring: dict[int, float] = {}
        #: Tags of deliveries that the task's own handler settles.
        self.handled: set[str] = set()
        self._seq = 0
        self._watching_slots = False
        #: When there was a take, in monotonic seconds, and how many deliveries it brought.
        self._took_at, self._took = 0.0, 0
        #: What is raised when a connection is lost.
        self.lost: tuple[type[BaseException], ...] = (*owner.connection_errors, *owner.channel_errors)
        #: How often the processes of one message may die; ``None`` for no bound.
        self.most_losses: int | None = app.conf.get("task_max_losses", MOST_LOSSES)
        #: Does a task hold up the loop?
        self.pool_runs_here = bool(getattr(pool, "runs_here", False))

    # --- set-up --------------------------------------------------------------

    def processes(self) -> int:
        """How many jobs the pool can run at once."""
        return max(1, int(getattr(self.pool, "num_processes", 1) or 1))

    def stir(self) -> None:
        """The source says that there may be something to take."""
        self.stirred = True

    def attach(self, source: MessageSource, eventer: Any = None) -> None:
        """Work with a new source, after (re)connecting."""
        self.source = source
        self.announcer.eventer = eventer
        self.quiet = False
        self.stirred = True
        self.broken = None
        unsettled, self.unsettled = self.unsettled, []
        for tag, how in unsettled:
            self._tell_source(tag, how)

    def detach(self) -> None:
        """The source is gone.

        What no process has begun is forgotten where the broker will give it out again, and kept where
        the delivery stays ours; runs that go on keep their flights.
        """
        source, self.source = self.source, None
        self.broken = None
        if source is None or source.survives_reconnect:
            return
        self.arrived.clear()
        self.orphans.lose(self.monotonic())
        self.credit.settled(len(self.handled))
        self.handled.clear()
        back = {*self.pool.recall(), *(flight.seq for flight in self.waiting)}
        self.waiting.clear()
        for flight in [*self.flights.values()]:
            if flight.phase is Phase.HELD or flight.seq in back:
                self._forget(flight)
            elif flight.owed:
                self.orphans.add(flight)
            flight.owed = False
        self._reduce_prefetch()

    def _reduce_prefetch(self) -> None:
        """What still runs counts until it ends, so that less is taken ahead; the setting can turn that off."""
        running = [seq for seq in self.flights if seq not in self.uncounted]
        if not running or not self.credit.limit or self.quiet:
            return
        if self.app.conf.worker_enable_prefetch_count_reduction:
            consumer_logger.info(REDUCED, max(0, self.credit.limit - len(running)), len(running), self.credit.limit)
            return
        self.uncounted.update(running)
        self.credit.settled(len(running))

    def _count_out(self, flight: InFlight) -> None:
        if self.uncounted and flight.seq in self.uncounted:
            self.uncounted.discard(flight.seq)
        else:
            self.credit.settled()

    def _adopt(self, delivery: Delivery, task_id: str) -> bool:
        """Is this the message of a run that outlived its connection?  Then it is not run again."""
        found = self.orphans.claim(delivery, task_id)
        if found is None:
            return False
        flight, how = found
        if flight is None:
            consumer_logger.info("Task [%s] was given out again after it was acknowledged: not run twice.", task_id)
            self._tell_source(delivery.tag, how)
            return True
        consumer_logger.info("Task %s[%s] was given out again while it ran: not run twice.", flight.name, task_id)
        flight.delivery = delivery
        flight.owed = True
        if flight.seq in self.flights:
            if flight.plan.early and flight.phase is Phase.BEGUN:
                self._settle(flight, Settle.ACK)
        else:
            self._settle(flight, how)
        return True

    def abandon(self, flight: InFlight) -> None:
        """Give up a run that was cancelled: what becomes of it is nothing, and its message may run anew."""
        self._forget(flight)
        flight.owed = False
        self.orphans.drop(flight)

    def _forget(self, flight: InFlight | None) -> None:
        if flight is None or self.flights.pop(flight.seq, None) is None:
            return
        if flight.phase is Phase.HELD:
            self.credit.repay()
        self._count_out(flight)

    def plan(self, name: str) -> TaskPlan | None:
        """The plan of a task; ``None`` if the app does not know it."""
        plan = self.plans.get(name)
        if plan is None:
            task = self.app.tasks.get(name)
            if task is None:
                return None
            bucket = None if self.limits_off else RateBucket.of(task.rate_limit, name)
            plan = self.plans[name] = TaskPlan(name, task, self.owner.legacy_handler(task), bucket)
        return plan

    def rebase(self, prefetch: int) -> None:
        """The pool has another size: the window follows."""
        grew, self.base = prefetch - self.base, prefetch
        if self.widest > self.base:
            self.widest = max(self.base, self.processes() * WIDEST)
        else:
            self.widest = self.base
        self.credit.limit = max(self.base, min(self.credit.limit + grew, self.widest))
        self.stirred = True

    def wait(self, timeout: float) -> None:
        """Take, waiting at most *timeout* seconds for a delivery; for loops without a hub."""
        self._raise_broken()
        self._hand_over()
        source = self.source
        if source is None or self.quiet:
            return
        # There are two to wait for and one can be waited for: what is at work is looked at often.
        busy = not getattr(self.pool, "green", False) and len(self.flights) > self.credit.lent
        self.pool.wait(min(timeout, LOOK_S) if busy else 0.0)
        timeout = 0.0 if busy else timeout
        room = self.credit.available if self.credit.is_bounded else BATCH
        if room > 0:
            self.receive(source.take(min(room, BATCH), timeout))
        else:
            source.flush()
            self.pool.wait(timeout)

    def rebuild_plans(self) -> None:
        """Read the tasks' options anew (a rate or time limit was changed, modules were reloaded)."""
        limited: list[InFlight] = []
        for plan in self.plans.values():
            if plan.bucket is not None:
                # Emptied, as its timer may still be running.
                limited.extend(plan.bucket.waiting)
                plan.bucket.waiting.clear()
        self.plans.clear()
        for flight in self.flights.values():
            if flight.phase is not Phase.BEGUN:
                flight.plan = self.plan(flight.name) or flight.plan
        for flight in limited:
            if flight.seq in self.flights:
                self.credit.repay()
                flight.phase = Phase.WAITING
                self._run(flight)

    # --- in --------------------------------------------------------------------

    def turn(self) -> bool:
        """Hand over what waits, take what may be taken.  Called once per pass of the loop.

        Returns whether there may be more to take right now.
        """
        if self.waiting:
            self._hand_over()
        self._raise_broken()
        source = self.source
        if source is None:
            return False
        if self.arrived:
            self.receive(())
        if self.stirred and not self.quiet:
            wanted = min(self._may_take(), BATCH)
            if wanted > 0:
                self._gather()
                deliveries = source.take(wanted)
                self._took_at, self._took = self.monotonic(), len(deliveries)
                if deliveries:
                    self.receive(deliveries)
                if len(deliveries) < wanted:
                    self.stirred = False
                return self.stirred and self._may_take() > 0
        source.flush()
        return False

    def _gather(self) -> None:
        """Before a take: if the last one brought little just now, wait for the end of what it brought, briefly.

        A fast producer would otherwise have each of its messages taken and acknowledged alone, which
        costs several times as much.  A message that comes to an idle worker does not wait.
        """
        left = GATHER_S - (self.monotonic() - self._took_at)
        if left > 0 and 0 < self._took < FEW and self.handed_over() > 0:
            self.pool.wait(left)

    def _raise_broken(self) -> None:
        broken, self.broken = self.broken, None
        if broken is not None:
            raise broken

    def _may_take(self) -> int:
        return self.credit.available if self.credit.is_bounded else self.pool.room() + BATCH

    def receive(self, deliveries: Sequence[Delivery]) -> None:
        """Admit deliveries and hand over those that may run.

        One that cannot be admitted is buried, whatever is wrong with it.

        Raises:
            Exception: what a broken connection raises.  What was not admitted then is kept for the next turn.
        """
        arrived = self.arrived
        arrived.extend(deliveries)
        while arrived:
            delivery = arrived[0]
            try:
                self._receive_one(delivery)
            except (DecodeError, InvalidTaskError, ContentDisallowed) as exc:
                self._refuse(delivery, str(exc))
            except self.lost:
                self._undo(delivery)
                raise
            except Exception as exc:
                consumer_logger.exception("A message of queue %r could not be admitted", delivery.queue)
                self._refuse(delivery, repr(exc))
            arrived.popleft()
        self._hand_over()

    def _refuse(self, delivery: Delivery, reason: str) -> None:
        """Bury a message that could not be admitted, and forget what was noted of it."""
        self._undo(delivery)
        self.bury(delivery, reason)

    def _undo(self, delivery: Delivery) -> None:
        flight = self.flights.get(self._seq)
        if flight is not None and flight.delivery is delivery:
            self._forget(flight)

    def _receive_one(self, delivery: Delivery) -> None:
        peek = delivery.peek()
        headers: dict[str, Any] = {}
        if peek is not None:
            name, task_id, plain = peek.task, peek.id, peek.plain
        else:
            if delivery.problem is not None:
                self.bury(delivery, delivery.problem)
                return
            headers = headers_of(delivery)
            name, task_id = headers["task"], headers["id"]
            plain = not headers.get("eta") and not headers.get("expires") and not any(headers.get("timelimit") or ())
        plan = self.plan(name)
        if plan is None:
            self.refuse_unknown(delivery, name, task_id)
            return
        if plan.handler is not None:
            self._hand_to_handler(plan.handler, delivery)
            return
        if self.orphans and self._adopt(delivery, task_id):
            return
        self._seq += 1
        flight = InFlight(self._seq, delivery, plan, name, task_id, self.announcer.make_request)
        flight.received_at = self.clock()
        if not plain:
            headers = headers or headers_of(delivery)
        flight.limits = plan.soft_hard if plain else self._limits_of(headers, plan)
        verdict = self._verdict(flight, plain, headers)
        if not plan.early and delivery.came_before and self._is_deadly(flight):
            return
        if not plain:
            flight.expires = epoch(headers.get("expires"), "expires")
        self.flights[flight.seq] = flight
        self.credit.taken(1)
        self.announcer.received(flight)
        if isinstance(verdict, Run):
            self._run(flight)
        elif isinstance(verdict, Hold):
            self._hold(flight, verdict.due)
        else:
            self._discard(flight, verdict)

    def _is_deadly(self, flight: InFlight) -> bool:
        """Has a task killed as many processes as it may?  Then it is given up instead of run."""
        losses = losses_of(flight.delivery)
        if self.most_losses is None or losses < self.most_losses:
            return False
        self._give_up(flight, WorkerLostError(DEADLY.format(losses=losses)), losses)
        return True

    def _give_up(self, flight: InFlight, error: WorkerLostError, losses: int) -> None:
        """Fail a task that killed *losses* processes, and put its message aside."""
        self.announcer.failed(flight, error)
        flight.owed = False
        self.bury(flight.delivery, f"the process that ran task {flight.name}[{flight.id}] died {losses} times")

    def _hand_to_handler(self, handler: Any, delivery: Delivery) -> None:
        """Leave a delivery to the task's own handler, which settles it through this object."""
        delivery.source = self
        self.handled.add(delivery.tag)
        self.credit.taken(1)
        try:
            self.owner.handle_legacy(handler, delivery)
        except (DecodeError, InvalidTaskError, ContentDisallowed):
            raise
        except Exception as exc:
            consumer_logger.exception("The handler of messages of queue %r raised: %r", delivery.queue, exc)
            raise InvalidTaskError(f"its handler raised {exc!r}") from exc

    def ack(self, tags: Iterable[str]) -> None:
        """A task's own handler is done with its deliveries."""
        for tag in tags:
            self._settle_handled(tag, Settle.ACK)

    def reject(self, tag: str, *, requeue: bool) -> None:
        """A task's own handler gives a delivery up, or back."""
        self._settle_handled(tag, Settle.REQUEUE if requeue else Settle.DROP)

    def _settle_handled(self, tag: str, how: Settle) -> None:
        if tag not in self.handled:
            return  # of a connection that is lost: the broker has given it out again
        self._let_go(tag)
        self.stirred = True
        if self.source is None:
            self.unsettled.append((tag, how))
        else:
            self._tell_source(tag, how)

    def _let_go(self, tag: str) -> None:
        if tag in self.handled:
            self.handled.discard(tag)
            self.credit.settled()

    def _verdict(self, flight: InFlight, plain: bool, known: Mapping[str, Any] | None = None) -> Verdict:
        """What to do with a task as things stand now."""
        now, revoked, stamps = self.clock(), state.revoked, state.revoked_stamps
        return admit(flight.id, plain, lambda: known or headers_of(flight.delivery), now, revoked, stamps)

    def _is_over(self, flight: InFlight) -> Discard | None:
        """Was it revoked, or has its time run out, since it was admitted?"""
        if flight.expires is None and not state.revoked and not state.revoked_stamps:
            return None
        verdict = self._verdict(flight, flight.expires is None)
        return verdict if isinstance(verdict, Discard) else None

    def _limits_of(self, headers: Mapping[str, Any], plan: TaskPlan) -> tuple[float | None, float | None]:
        """(soft, hard) seconds: those of the message, else of the task."""
        hard, soft = None, None
        pair = headers.get("timelimit")
        if isinstance(pair, (list, tuple)) and len(pair) >= 2:
            hard, soft = pair[0], pair[1]
        return (soft or plan.soft_hard[0], hard or plan.soft_hard[1])

    # --- holding -----------------------------------------------------------------

    def _run(self, flight: InFlight) -> None:
        bucket = flight.plan.bucket
        if bucket is not None and (bucket.waiting or not bucket.take(self.monotonic())):
            flight.phase = Phase.HELD
            self.credit.lend()
            bucket.waiting.append(flight)
            if len(bucket.waiting) == 1:
                self.timer.call_after(bucket.wait(self.monotonic()), self._drain_bucket, (bucket,))
            return
        self.waiting.append(flight)

    def _drain_bucket(self, bucket: RateBucket) -> None:
        waiting = bucket.waiting
        while waiting:
            if waiting[0].seq not in self.flights:
                waiting.popleft()  # given back or forgotten meanwhile: it costs nobody a token
            elif bucket.take(self.monotonic()):
                self._release(waiting.popleft())
            else:
                break
        if waiting:
            self.timer.call_after(bucket.wait(self.monotonic()), self._drain_bucket, (bucket,))
        self._hand_over()

    def _hold(self, flight: InFlight, due: float) -> None:
        now = self.clock()
        if self._should_park(due - now) and self.source is not None and self.source.park(flight.delivery, due):
            # The broker gives it out again when it is due; until then it is nobody's.
            flight.owed = False
            self._forget(flight)
            return
        flight.phase = Phase.HELD
        flight.due = due
        self.credit.lend()
        self.timer.call_after(max(0.0, due - now), self._due, (flight,))

    def _should_park(self, seconds: float) -> bool:
        """Is what is due in *seconds* better kept by the broker?  Some brokers cannot show what they keep."""
        source = self.source
        if seconds > getattr(source, "holds_for_s", 0.0):
            return seconds > PARK_S
        return seconds > PARK_S and self.credit.lent >= getattr(source, "holds_at_most", 0)

    def _due(self, flight: InFlight) -> None:
        if flight.seq not in self.flights:
            return
        over = self._is_over(flight)
        if over is not None:
            self.credit.repay()
            self._discard(flight, over)
            return
        remaining = (flight.due or 0.0) - self.clock()
        if remaining > 0.001:
            # Wall clock and timer need not agree over hours.
            self.timer.call_after(remaining, self._due, (flight,))
            return
        bucket = flight.plan.bucket
        self.credit.repay()
        flight.phase = Phase.WAITING
        if bucket is None:
            self.waiting.append(flight)
        else:
            self._run(flight)
        self._hand_over()

    def _release(self, flight: InFlight) -> None:
        """A held flight may run now."""
        self.credit.repay()
        flight.phase = Phase.WAITING
        self.waiting.append(flight)

    def parked(self, most: int) -> list[InFlight]:
        """What waits in the broker for its time, to be looked at: flights that this worker has no part in."""
        found: list[InFlight] = []
        for delivery in self.source.parked(most) if self.source is not None else ():
            try:
                headers = headers_of(delivery)
            except (DecodeError, InvalidTaskError):
                continue  # it is buried when it comes
            plan = self.plan(headers["task"])
            if plan is not None:
                flight = InFlight(0, delivery, plan, plan.name, headers["id"], self.announcer.make_request)
                flight.phase, flight.owed = Phase.HELD, False
                found.append(flight)
        return found

    # --- to the pool ---------------------------------------------------------------

    def _hand_over(self) -> None:
        """Give the pool as many jobs as it has room for."""
        waiting = self.waiting
        if not waiting:
            return
        room = self.pool.room()
        # Deeper than the pool's own depth only for jobs that will not keep the others waiting.
        if waiting[0].plan.short:
            room = max(room, self.depth_for_short() - self.handed_over())
        if room <= 0:
            return
        jobs: list[Job] = []
        limits: list[tuple[float | None, float | None]] = []
        wants_summary = WANT_SUMMARY if self.announcer.tells_of_tasks() else 0
        # A publisher may be waiting for this very acknowledgement; with a queue behind it, it waits for none.
        tell_early = len(waiting) == 1 and getattr(self.source, "ack_confirms", False)
        while waiting and len(jobs) < room:
            flight = waiting.popleft()
            if flight.seq not in self.flights:
                continue
            over = self._is_over(flight)
            if over is not None:
                self._discard(flight, over)
                continue
            if flight.expires is not None:
                self.expiring[flight.seq] = flight.expires
            plan = flight.plan
            flags = wants_summary
            has_limits = flight.limits != (None, None)
            if not plan.short or has_limits or wants_summary or (plan.early and (tell_early or self.pool_runs_here)):
                flags |= TELL_BEGIN
            elif not plan.early and flight.delivery.came_before:
                flags |= TELL_BEGIN  # so that a loss of this worker is counted
            if plan.short:
                flags |= MAY_WAIT
            jobs.append(self._job(flight, flags))
            limits.append(flight.limits)
        if jobs:
            self.pool.submit(jobs, limits)
            if not self._watching_slots:
                self._watching_slots = True
                self.timer.call_after(STALLED_S, self._look_at_slots, ())

    def depth_for_short(self) -> int:
        """How many short jobs may be with the pool at once."""
        return self.credit.limit or BATCH

    def handed_over(self) -> int:
        """How many jobs are with the pool."""
        return len(self.flights) - len(self.waiting) - self.credit.lent

    def _job(self, flight: InFlight, flags: int) -> Job:
        delivery = flight.delivery
        if delivery.envelope is not None:
            # What only the broker knows of a raw message: that it was given out before.
            return Job(flight.seq, flight.name, raw=delivery.envelope.raw, facts=delivery.facts, flags=flags)
        parts = delivery.parts
        return Job(
            flight.seq,
            flight.name,
            parts=(parts.headers, parts.properties, parts.body, parts.content_type, parts.content_encoding),
            facts=delivery.delivery_info,
            flags=flags,
        )

    def _look_at_slots(self) -> None:
        """Acknowledge what runs longer than was thought.  Comes back while anything is with the pool."""
        self._watching_slots = len(self.flights) > self.credit.lent
        if self._watching_slots:
            self.timer.call_after(STALLED_S * 2, self._look_at_slots, ())
        now = self.monotonic()
        for seq, (pid, at) in self.pool.begun().items():
            if now - at >= STALLED_S:
                self._began(Began(seq, pid, at))
        if self.expiring:
            self._look_at_clock()

    def _look_at_clock(self) -> None:
        """Take back what has expired in front of a busy process."""
        now = self.clock()
        over = [seq for seq, expires in self.expiring.items() if expires <= now or seq not in self.flights]
        for seq in over:
            del self.expiring[seq]
        if any(seq in self.flights and self.flights[seq].phase is Phase.WAITING for seq in over):
            self._take_back()
            self._hand_over()

    # --- from the pool -----------------------------------------------------------

    def on_reports(self, reports: Iterable[Report]) -> None:
        """What the pool tells: runs began, ended, were lost.

        Raises nothing: the pool may be in the middle of something, a task's run included.
        """
        ended = began = 0
        for report in reports:
            try:
                if isinstance(report, Ended):
                    self._ended(report)
                    ended += 1
                elif isinstance(report, Began):
                    self._began(report)
                    began += 1
                elif isinstance(report, Lost):
                    self._lost(report)
                    ended += 1
                elif isinstance(report, Overtime):
                    self._overtime(report)
                elif isinstance(report, Unfit):
                    self._unfit(report)
                    ended += 1
            except self.lost as exc:
                self.broken = exc
            except Exception as exc:
                consumer_logger.exception("The report %r could not be used: %r", report, exc)
        if began and self.pool_runs_here:
            # The loop stands still until the task ends, and the broker must know before.
            self._guarded(self.flush)
        if ended:
            self.stirred = self.stirred or self._was_full(ended)
            self._hand_over()

    def _guarded(self, call: Callable[[], None]) -> bool:
        """Call something that talks to the broker; a broken connection is for the next turn to raise."""
        try:
            call()
        except self.lost as exc:
            self.broken = exc
            return False
        return True

    def _was_full(self, ended: int) -> bool:
        """Did the window keep something in the broker before these ended?"""
        return self.credit.limit > 0 and self.credit.available <= ended

    def _began(self, report: Began) -> None:
        flight = self.flights.get(report.seq)
        if flight is None or flight.phase is Phase.BEGUN:
            return
        flight.phase = Phase.BEGUN
        flight.pid = report.pid
        flight.began_at = report.at
        state.count_accepted(flight.name)
        if flight.plan.early:
            self._settle(flight, Settle.ACK)
        elif flight.owed and self.most_losses is not None and flight.delivery.came_before:
            self._note_loss_to_come(flight)
        if flight._request is not None:
            flight._request.time_start, flight._request.worker_pid = report.at, report.pid
        self.announcer.event(flight, "task-started")
        if request_logger.isEnabledFor(logging.DEBUG):
            request_logger.debug("Task accepted: %s[%s] pid:%r", flight.name, flight.id, report.pid)
        if flight.terminating is not None:
            self.pool.kill(flight.seq, flight.terminating)

    def _note_loss_to_come(self, flight: InFlight) -> None:
        """It was given out before: should this whole worker die as well, that is a loss more.

        A first time is not noted.  It would cost every task something, and the mark of what was given out again
        cannot tell whom the worker ran from whom it only held.
        """
        source = self.source
        if source is not None:
            losses = losses_of(flight.delivery) + 1
            self._guarded(lambda: source.note_losses(flight.delivery, losses))
            self._guarded(source.flush)

    def _ended(self, report: Ended) -> None:
        flight = self.flights.pop(report.seq, None)
        if flight is None:
            return
        if flight.phase is not Phase.BEGUN:
            state.count_accepted(flight.name)
        plan = flight.plan
        succeeded, runtime = report.outcome[0] == states.SUCCESS, report.outcome[2]
        if succeeded:
            state.succeeded.append(flight.id)
        plan.ran(runtime if runtime else (0.0 if succeeded else SHORT_S))
        if plan.early:
            self._settle(flight, Settle.ACK)
        else:
            outcome = Outcome.unpack(report.outcome)
            self._settle(flight, settle_on_end(plan.ack, outcome))
        self._count_out(flight)
        if plan.short:
            if self.base <= self.credit.limit < self.widest:
                self.credit.limit = min(self.widest, self.credit.limit * 2)
                self.stirred = True
        elif self.credit.limit > self.base:
            # The first run that is not short ends the trust: what waits here could run elsewhere.
            self.credit.limit = self.base
        rejected = report.outcome[0] == states.REJECTED
        if rejected or self.announcer.tells(plan):
            outcome = Outcome.unpack(report.outcome)
            if rejected and not outcome.requeue:
                # Nobody will run it again, and its caller waits.
                self.announcer.failed(flight, Reject(outcome.summary, requeue=False))
            self.announcer.ended(flight, outcome)

    def _unfit(self, report: Unfit) -> None:
        flight = self.flights.pop(report.seq, None)
        if flight is None:
            return
        self._count_out(flight)
        known = report.why in UNFIT
        error = UNFIT[report.why](report.detail) if known else RuntimeError(report.detail)
        self.announcer.failed(flight, error)
        if flight.owed:
            flight.owed = False
            self.bury(flight.delivery, report.detail)
        else:
            request_logger.error("Task %s[%s] was not run to its end: %s", flight.name, flight.id, report.detail)

    def _settle(self, flight: InFlight, how: Settle) -> None:
        """Acknowledge, drop or give back; once, and only on the connection it came over."""
        if how is Settle.NONE:
            return
        source = self.source
        if not flight.owed:
            self.orphans.note(flight, how)
            return
        flight.owed = False
        if source is None:
            self.unsettled.append((flight.delivery.tag, how))
            return
        if how is not Settle.REQUEUE and not source.survives_reconnect:
            self.orphans.settled(flight, how, self.monotonic())
        self._tell_source(flight.delivery.tag, how)

    def _tell_source(self, tag: str, how: Settle) -> None:
        source = self.source
        if source is None:
            return
        if how is Settle.ACK:
            source.ack((tag,))
            return
        told = self._guarded(lambda: source.reject(tag, requeue=how is Settle.REQUEUE))
        if not told and source.survives_reconnect:
            self.unsettled.append((tag, how))

    # --- endings that are not the task's own ----------------------------------------

    def _overtime(self, report: Overtime) -> None:
        flight = self.flights.get(report.seq)
        if flight is None:
            return
        self._began(Began(report.seq, flight.pid or 0, flight.began_at or self.monotonic()))
        if report.soft:
            request_logger.warning("Soft time limit (%ss) exceeded for %s[%s]", report.limit, flight.name, flight.id)
            return
        request_logger.error("Hard time limit (%ss) exceeded for %s[%s]", report.limit, flight.name, flight.id)
        self.flights.pop(report.seq, None)
        self._count_out(flight)
        error = TimeLimitExceeded(report.limit)
        self.announcer.failed(flight, error)
        self.announcer.call_hooks(flight, error)
        self._settle(flight, settle_on_timeout(flight.plan.ack))

    def _lost(self, report: Lost) -> None:
        flight = self.flights.pop(report.seq, None)
        if flight is None:
            return
        self._count_out(flight)
        if flight.phase is not Phase.BEGUN:
            state.count_accepted(flight.name)
        if flight.terminating is not None:
            self.announcer.revoked(flight, terminated=True, signum=flight.terminating, expired=False)
            self._settle(flight, Settle.ACK)
            return
        if self.announcer.has_succeeded(flight):
            request_logger.warning(
                "Task %s[%s] succeeded before its process was lost: %s",
                flight.name,
                flight.id,
                describe_exit(report.exitcode),
            )
            self._settle(flight, Settle.ACK)
            self.announcer.event(flight, "task-succeeded", result="", runtime=None)
            return
        error = WorkerLostError(f"Worker exited prematurely: {describe_exit(report.exitcode)} Job: {report.seq}.")
        request_logger.error("Task handler raised error: %r", error, extra={"data": {"id": flight.id}})
        task, how = flight.plan.task, settle_on_loss(flight.plan.ack)
        losses = losses_of(flight.delivery) + 1
        retries = int(headers_of(flight.delivery).get("retries") or 0) + 1
        exhausted = bool(task.retry_on_worker_lost) and task.max_retries is not None and retries > task.max_retries
        if task.retry_on_worker_lost and not exhausted and self.announcer.retry(flight, error, retries):
            how = Settle.ACK
        elif how is Settle.REQUEUE and not exhausted:
            if flight.owed and self.most_losses is not None and losses >= self.most_losses:
                self._give_up(flight, error, losses)
                return
            self.announcer.event(flight, "task-rejected", requeue=True)
            if self._put_back(flight, losses):
                return
        else:
            self.announcer.failed(flight, error)
        final = how is Settle.NONE or (exhausted and how is Settle.REQUEUE)
        self._settle(flight, Settle.ACK if final else how)

    def _put_back(self, flight: InFlight, losses: int) -> bool:
        """Give a delivery back whose message says how often its process died; ``False`` if that cannot be noted."""
        source = self.source
        if self.most_losses is None or not flight.owed or source is None:
            return False
        done: list[bool] = []
        self._guarded(lambda: done.append(source.put_back(flight.delivery, losses)))
        if done == [False] and self.announcer.send_again(flight, losses):
            self._settle(flight, Settle.ACK)
        flight.owed = flight.owed and done != [True]
        return not flight.owed

    def _discard(self, flight: InFlight, verdict: Discard) -> None:
        """Do not run a revoked or expired task; say so in the result store, the log and the events."""
        request_logger.info("Discarding revoked task: %s[%s]", flight.name, flight.id)
        self.flights.pop(flight.seq, None)
        self._count_out(flight)
        self.announcer.revoked(flight, terminated=False, signum=None, expired=verdict.expired)
        self._settle(flight, Settle.ACK)

    def refuse_unknown(self, delivery: Delivery, name: str, task_id: str) -> None:
        """A message of a task that nobody here knows: say so, keep it, tell the caller."""
        self.announcer.unknown(delivery, name, task_id, self._kept_at(delivery))
        self._bury(delivery, f"unregistered task {name!r}")

    def bury(self, delivery: Delivery, reason: str) -> None:
        """A message that cannot be used: one log entry, and it is kept for an operator."""
        self.announcer.unusable(delivery, reason, self._kept_at(delivery))
        self._bury(delivery, reason)

    def _kept_at(self, delivery: Delivery) -> str:
        if getattr(self.source, "keeps_dead", True):
            return f"{delivery.queue}.dead"
        return f"the dead-letter exchange of {delivery.queue}, if it has one"

    def _bury(self, delivery: Delivery, reason: str) -> None:
        self._let_go(delivery.tag)
        source = self.source
        if source is not None:
            self._guarded(lambda: source.bury(delivery, reason))

    # --- out -------------------------------------------------------------------------

    def revoke(self, task_ids: Collection[str], signum: int | None = None) -> list[str]:
        """Act on revoked ids: discard what has not begun, and with *signum* end what runs."""
        found: list[str] = []
        recalled = False
        for flight in [*self.flights.values()]:
            if flight.id not in task_ids:
                continue
            found.append(flight.id)
            if flight.phase is Phase.WAITING and flight not in self.waiting and not recalled:
                recalled = True
                self._take_back()
                # What could not be taken back runs or is about to, whether it was told yet or not.
                for seq, (pid, at) in self.pool.begun().items():
                    self._began(Began(seq, pid, at))
            if signum is None or flight.phase is Phase.HELD or flight in self.waiting:
                continue
            flight.terminating = signum
            if flight.phase is Phase.BEGUN:
                self.pool.kill(flight.seq, signum)
        self._hand_over()
        return found

    def _take_back(self) -> None:
        """Put the jobs that no process has begun back into the line."""
        for seq in sorted(self.pool.recall(), reverse=True):
            flight = self.flights.get(seq)
            if flight is not None:
                self.waiting.appendleft(flight)

    def stop_taking(self) -> None:
        """Take nothing more, and give back to the broker what no process has begun."""
        if self.quiet:
            return
        self.quiet = True
        source = self.source
        if source is not None and not self._guarded(source.quiet):
            consumer_logger.warning("The connection to the broker is gone: %r", self.broken)
            self.detach()
        # What was taken out of the socket has not been begun; what is still out there has, or is about to be.
        back = {*self.pool.recall(), *(flight.seq for flight in self.waiting)}
        self.waiting.clear()
        for flight in [*self.flights.values()]:
            if flight.phase is Phase.HELD or flight.seq in back:
                self._give_back(flight)
        self._guarded(self.flush)

    def _give_back(self, flight: InFlight) -> None:
        self._forget(flight)
        self._settle(flight, Settle.REQUEUE)

    def flush(self) -> None:
        """Send what is buffered."""
        if self.source is not None:
            self.source.flush()

    def give_back_late(self) -> int:
        """Cold shutdown: give back what runs and is not acknowledged yet; returns how many."""
        given = 0
        for flight in [*self.flights.values()]:
            if flight.owed:
                given += 1
            self._give_back(flight)
        self._guarded(self.flush)
        return given

    @property
    def running(self) -> int:
        """How many tasks processes have begun, or may have."""
        return sum(1 for flight in self.flights.values() if flight.phase is not Phase.HELD)
