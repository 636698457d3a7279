"""The process pool: starts children, hands them jobs, reads their reports, buries and replaces them.

Used by ``concurrency.prefork``, through which the worker's loop calls it.  All work is done in
:meth:`ProcessPool.serve`, which the loop calls when :meth:`ProcessPool.fileno` is readable or a timer is due;
nothing here waits for a child without a bound.  It does not know what a job means.

Three facts decide what became of a job: its report, its child's slot, and whether its packet can still be
taken back from the feed.  A job that had begun in a child that died is lost, and told so; one that had not
begun is handed over again, unless reading it is what children die of.
"""

from __future__ import annotations

import gc
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector
from typing import TYPE_CHECKING, Any

from billiard.common import human_status
from billiard.pool import EX_OK, EX_RECYCLE

from celery_clone import signals
from celery_clone.message.frames import TELL_BEGIN, Began, Job, Lost, Overtime, Report, Unfit
from celery_clone.utils.log import get_logger

from .child import Closable, Plan
from .desk import Desk, Passage
from .jobs import open_feed
from .limits import Limits, Timetable, resolve
from .members import Gone, Member

if TYPE_CHECKING:
    from celery_clone.concurrency.protocols import Runner

__all__ = ("ProcessPool",)

logger = get_logger("celery.pool")

JOBS_PER_CHILD = 2
"""How many jobs may wait for each child, unless ``depth`` says otherwise."""

START_TIMEOUT = 4.0
"""Seconds a child may take to set itself up, unless ``worker_proc_alive_timeout`` says otherwise."""

LOOK_AFTER_EVERY = 1.0
"""Seconds between looks for what no descriptor tells."""

GONE_SILENT = 1.0
"""A child that closed its report socket is dying; one that lives on for so many seconds is killed."""

SECOND_LOOKS = (0.02, 0.2, 1.0)
"""When to look again for a job that nobody admits to have: seconds after the death of a child."""

DEADLY = 2
"""A job whose message kills children is given out again so many times, then it is unfit."""

SHORT_OF_RESOURCES = 0.05
LEAVE_GRACE = 10.0
TERM_GRACE = 3.0
KILL_GRACE = 5.0

YOUNG = 1.0
"""A child that dies violently within so many seconds, without having taken a job, failed to start."""

START_DELAYS = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds to wait before children are started again, by the number of failed starts in a row."""

MOST_PATIENCE = 16
"""How much longer than ``start_timeout`` a child may take at most, after failed starts: each doubles it."""

HOPELESS = 5
"""After so many failed starts in a row a pool that is being stopped gives up what nobody has begun."""

START_FAILED = (
    "A pool process could not be started: %s. %d time(s) in a row; trying again in %g s. Look above for the "
    "error of its start-up: a failing worker_process_init receiver or import, a lack of memory, a limit on "
    "processes."
)
STANDS_STILL = (
    "%r (pid:%r) was stopped by a signal while jobs wait longer than their time limit: it is killed and replaced. "
    "It ran none of them."
)
NOT_READY = (
    "Timed out waiting for UP message from %r: it was not ready after %g s and is killed. "
    "A forked one has told on standard error where it stood. Raise worker_proc_alive_timeout if its start-up "
    "takes longer."
)


class ProcessPool:
    """A number of children that run jobs, kept at that number.

    *processes* is how many.  *depth* is how many jobs may wait for a child (``None``: two for each);
    *limits* are the (soft, hard) seconds of jobs that have none of their own; *start_timeout* the seconds
    a child may take to set itself up; *start_method* ``fork`` or ``spawn``.  *inherited* gives what a
    forked child has to close besides the pool's own descriptors.  *shared* insists on one kind of feed.
    """

    def __init__(
        self,
        processes: int,
        plan: Plan | None = None,
        *,
        limits: Limits = (None, None),
        depth: int | None = None,
        start_timeout: float | None = None,
        start_method: str = "fork",
        inherited: Callable[[], Iterable[Closable]] | None = None,
        shared: bool | None = None,
    ) -> None:
        if processes < 0:
            raise ValueError(f"A pool cannot have {processes} processes; give a number from 0 up.")
        self.size = processes
        self.plan = plan or Plan()
        self.limits = limits
        self.depth = depth
        self.start_timeout = start_timeout
        self.start_method = start_method
        self._inherited = inherited
        self._shared = shared
        self._desk: Desk
        self._selector: DefaultSelector
        self._members: dict[int, Member] = {}
        self._outbox: list[Report] = []
        self._timetable = Timetable()
        self._lock = threading.RLock()
        self._runner: Runner | None = None
        self._tell: Callable[[Sequence[Report]], None] | None = None
        self._next_key = 0
        self._start_failures = 0
        self._refill_at = 0.0
        self._started = self._stopping = self._refills = self._watches_writer = False
        self._silent_losses = False
        self._hub: Any = None
        self._hub_timer: tuple[float, Any] | None = None

    # -- start, watch, serve

    def start(self, runner: Runner | None, tell: Callable[[Sequence[Report]], None]) -> None:
        """Start the children; jobs may be submitted at once.  ``OSError`` if one could not be started."""
        if self._started:
            raise RuntimeError("This pool has been started already; stop it first.")
        self._runner, self._tell = runner, tell
        self._desk = Desk(open_feed(shared=self._shared))
        self._selector = DefaultSelector()
        self._started, self._stopping, self._refills, self._watches_writer = True, False, True, False
        self._silent_losses = False
        self._start_failures, self._refill_at = 0, 0.0
        # A collection writes into every object it looks at, and what parent or child writes into they no
        # longer share.  What is alive now lives as long as the pool, so neither looks.
        gc.collect()
        gc.freeze()
        try:
            for _ in range(self.size):
                self._spawn()
        except BaseException:
            self.stop(deadline=0.0)
            raise
        self._later(LOOK_AFTER_EVERY, self._look_after)

    def fileno(self) -> int:
        """Readable when :meth:`serve` has something to do (besides timers)."""
        return self._selector.fileno()

    def watch(self, hub: Any) -> None:
        """Have *hub* call :meth:`serve`.  Legal again, as after the hub was reset."""
        self.unwatch(self._hub)
        self._hub = hub
        hub.add_reader(self.fileno(), self.serve)
        self._arm()

    def unwatch(self, hub: Any) -> None:
        """Take the registration with *hub* back."""
        if self._hub_timer is not None:
            self._hub_timer[1].cancel()
            self._hub_timer = None
        if hub is not None and self._started and self.fileno() in hub.readers:
            hub.remove(self.fileno())
        self._hub = None

    def serve(self, timeout: float = 0.0) -> None:
        """Read reports, bury the dead, run timers, then tell.  Waits at most *timeout* seconds for those."""
        if not self._started:
            return
        if timeout:
            due = self._next_due()
            timeout = timeout if due is None else max(0.0, min(timeout, due - time.monotonic()))
        ready = self._selector.select(timeout)
        with self._lock:
            for key, _ in ready:
                if key.data is not None and key.data.key in self._members:
                    self._read(key.data)
            self._run_due()
            if self._desk.waits:
                self._pump()
            self._arm()
        self._deliver()

    def _deliver(self) -> None:
        with self._lock:
            reports, self._outbox = self._outbox, []
        if reports and self._tell is not None:
            self._tell(reports)

    def _deliver_soon(self) -> None:
        """Reports came up outside :meth:`serve`; the caller of the moment must not be told them."""
        if self._hub is not None:
            self._hub.call_soon(self._deliver)

    # -- time

    def _later(self, delay: float, callback: Callable[[], None]) -> None:
        self._timetable.add(time.monotonic() + delay, callback)
        self._arm()

    def _next_due(self) -> float | None:
        due = self._timetable.next_at()
        for member in self._members.values():
            at = member.clock.next_at()
            if at is not None and (due is None or at < due):
                due = at
        return due

    def _arm(self) -> None:
        """Have the hub call when the next thing is due."""
        if self._hub is None:
            return
        due, armed = self._next_due(), self._hub_timer
        if due is None or (armed is not None and armed[0] <= due):
            return
        if armed is not None:
            armed[1].cancel()
        self._hub_timer = (due, self._hub.call_at(due, self._on_hub_timer))

    def _on_hub_timer(self) -> None:
        self._hub_timer = None
        self.serve()

    def _run_due(self) -> None:
        now = time.monotonic()
        for callback in self._timetable.pop_due(now):
            callback()
        for member in list(self._members.values()):
            due = member.clock.due(now)
            if due is not None:
                self._on_limit(member, due.seq, due.soft, due.limit)

    def _look_after(self) -> None:
        """What no descriptor tells: deaths seen late, limits of a child that could not say that it began."""
        self._bury_the_dead()
        for member in self._members.values():
            seq, began_at = member.slot.claim()
            order = self._desk.orders.get(seq)
            if order is not None and began_at is not None and any(order.limits) and member.clock.seq != seq:
                member.clock.start(seq, began_at, order.limits)
            if member.slot.leave:
                self._desk.feed.poke(member.key)
        self._replace_what_stands_still()
        self._note_recovery()
        self._refill()
        self._later(LOOK_AFTER_EVERY, self._look_after)

    def _replace_what_stands_still(self) -> None:
        """A stopped child that runs nothing has no limit; the jobs that wait for it, or for its report, have one."""
        now = time.monotonic()
        late = any(order.limits[1] and now - order.since > order.limits[1] for order in self._desk.orders.values())
        if late:
            for member in list(self._members.values()):
                claim = member.slot.claim()
                runs = claim.began_at is not None and claim.seq in self._desk.orders and member.runs(claim.seq)
                if not runs and member.stands_still():
                    logger.error(STANDS_STILL, member.name, member.pid)
                    member.expected = True
                    member.signal(signal.SIGKILL)

    # -- jobs

    def room(self) -> int:
        """How many jobs may be handed over now: the depth without those that wait already."""
        depth = JOBS_PER_CHILD * self.size if self.depth is None else self.depth
        with self._lock:
            if not self._started or not self._desk.orders:
                return depth
            taken = {seq for member in self._members.values() for seq in member.slot.seen()}
            return max(0, depth - sum(1 for seq in self._desk.orders if seq not in taken))

    def submit(self, jobs: Sequence[Job], limits: Sequence[Limits] | None = None) -> None:
        """Hand *jobs* over; *limits* are (soft, hard) seconds from the begin of each."""
        with self._lock:
            if not self._started or self._stopping:
                raise RuntimeError("The pool takes no jobs: it was not started, or it is being stopped.")
            for number, job in enumerate(jobs):
                own = self.limits if limits is None else resolve(limits[number], self.limits)
                if any(own) and not job.flags & TELL_BEGIN:
                    job = job._replace(flags=job.flags | TELL_BEGIN)
                self._desk.add(job, own)
            self._pump()

    def _pump(self) -> None:
        passage = self._desk.pump()
        if passage is Passage.SHORT:
            self._later(SHORT_OF_RESOURCES, self._pump)
        self._watch_writer(passage is Passage.FULL)
        if self._desk.refused:
            self._outbox.extend(self._desk.refused)
            self._desk.refused.clear()
            self._deliver_soon()

    def _watch_writer(self, wanted: bool) -> None:
        descriptor = self._desk.feed.writable_descriptor()
        if wanted == self._watches_writer or descriptor < 0:
            return
        if wanted:
            self._selector.register(descriptor, EVENT_WRITE, None)
        else:
            self._selector.unregister(descriptor)
        self._watches_writer = wanted

    def recall(self) -> list[int]:
        """Take back every job that has not begun; their numbers.  Calls (numbers below zero) stay."""
        with self._lock:
            if not self._started:
                return []
            recalled = self._desk.recall()
            self._pump()
            return recalled

    def begun(self) -> dict[int, tuple[int, float]]:
        """The jobs running now: number to (pid, monotonic time of begin)."""
        running: dict[int, tuple[int, float]] = {}
        with self._lock:
            for member in self._members.values():
                seq, began_at = member.slot.claim()
                if began_at is not None and seq in self._desk.orders and seq not in member.slot.held():
                    running[seq] = (member.pid, began_at)
        return running

    @property
    def unreported(self) -> int:
        """How many jobs were handed over and have no final report yet."""
        return len(self._desk.orders) if self._started else 0

    # -- reports

    def _read(self, member: Member) -> None:
        try:
            reports = member.read()
        except Gone:
            self._on_silence(member)
            return
        for report in reports:
            self._note(member, report)

    def _note(self, member: Member, report: Report) -> None:
        orders = self._desk.orders
        if isinstance(report, Began):
            order = orders.get(report.seq)
            if order is not None:
                if any(order.limits):
                    member.clock.start(report.seq, report.at, order.limits)
                self._outbox.append(report)
            return
        member.clock.stop(report.seq)
        self._desk.feed.freed(member.key)
        if orders.pop(report.seq, None) is not None:
            member.done += 1
            self._outbox.append(report)

    # -- limits and signals

    def _on_limit(self, member: Member, seq: int, soft: bool, limit: float) -> None:
        if soft:
            if seq in self._desk.orders and member.runs(seq):
                member.slot.target = seq
                self._outbox.append(Overtime(seq, True, limit))
                member.signal(signal.SIGUSR1)
        elif self._hold_still(member, seq):
            self._outbox.append(Overtime(seq, False, limit))
            member.signal(signal.SIGKILL)

    def _hold_still(self, member: Member, seq: int) -> bool:
        """Stop the child and look whether it really runs *seq*: a signal for one job must not hit the next.

        When the answer is true the child is left standing still, to be signalled.
        """
        if seq not in self._desk.orders or not member.runs(seq):
            return False
        member.halt()
        self._read(member)
        if member.key not in self._members:
            return False
        if seq in self._desk.orders and member.runs(seq):
            member.doomed, member.expected = seq, True
            return True
        member.signal(signal.SIGCONT)
        self._deliver_soon()
        return False

    def kill(self, seq: int, signum: int) -> bool:
        """Signal the child that runs *seq*.  ``False``: no child does."""
        with self._lock:
            for member in list(self._members.values()):
                if self._hold_still(member, seq):
                    self._aim(member, signum)
                    member.signal(signum)
                    if signum not in (signal.SIGKILL, signal.SIGSTOP):
                        member.signal(signal.SIGCONT)
                    return True
        return False

    def kill_child(self, pid: int, signum: int) -> bool:
        """Signal the child with that *pid*, whatever it does.  ``False``: there is none."""
        with self._lock:
            for member in self._members.values():
                if member.pid == pid:
                    member.expected = True
                    self._aim(member, signum)
                    member.signal(signum)
                    return True
        return False

    def _aim(self, member: Member, signum: int) -> None:
        """The signal of the soft limit can be sent by hand: it is for the job that runs now."""
        if signum == signal.SIGUSR1:
            member.slot.target = member.slot.claim().seq
            member.expected, member.doomed = False, None

    # -- children

    @property
    def pids(self) -> list[int]:
        """The children, oldest first."""
        return [member.pid for member in list(self._members.values())]

    def resize(self, change: int) -> None:
        """Start *change* more children, or have that many leave as soon as they are idle."""
        with self._lock:
            change = max(change, -self.size)
            self.size += change
            if self._started and not self._stopping:
                if change < 0:
                    self._desk.add_leaves(-change)
                    self._pump()
                self._refill()

    def restart(self) -> None:
        """Replace every child by a new one, each when its job has ended."""
        with self._lock:
            for member in self._members.values():
                member.slot.leave = True
            for member in self._members.values():
                self._desk.feed.poke(member.key)

    def is_up(self) -> bool:
        """Did every child so far get through its start-up?"""
        with self._lock:
            self._bury_the_dead()
            self._note_recovery()
            return self._start_failures == 0

    def _note_recovery(self) -> None:
        if self._members and all(member.slot.ready for member in self._members.values()):
            self._start_failures = 0

    def _refill(self) -> None:
        while self._refills and len(self._members) < self.size and time.monotonic() >= self._refill_at:
            try:
                self._spawn()
            except OSError as exc:
                self._on_start_failure(str(exc))

    def _spawn(self) -> None:
        signals.worker_before_create_process.send(sender=self)
        taken = {member.index for member in self._members.values()}
        index = next(number for number in range(len(taken) + 1) if number not in taken)
        self._next_key += 1
        member = Member(self._next_key, index, inherited_slot=self.start_method == "fork")
        # A machine too busy for a start in time is none the less busy for starting again and again.
        patience = (self.start_timeout or 0.0) * min(2**self._start_failures, MOST_PATIENCE)
        try:
            jobs = self._desk.feed.open(member.key)
            left_behind = partial(self._left_behind, member)
            member.start(self.start_method, self.plan, self._runner, jobs, left_behind, patience)
        except BaseException:
            self._desk.feed.drop(member.key)
            member.close()
            raise
        self._desk.feed.forked(member.key)
        self._members[member.key] = member
        self._selector.register(member.reports, EVENT_READ, member)
        if patience:
            self._later(patience, partial(self._check_started, member, patience))

    def _left_behind(self, newcomer: Member) -> Iterator[Closable]:
        """What a forked child closes: the parent's ends, and the ways to its siblings."""
        yield self._selector
        yield newcomer.reports
        yield from self._desk.parent_ends()
        for sibling in self._members.values():
            yield from sibling.parent_ends()
        if self._inherited is not None:
            yield from self._inherited()

    def _check_started(self, member: Member, patience: float) -> None:
        if member.key in self._members and not member.slot.ready:
            logger.error(NOT_READY, member.name, patience)
            member.signal(signal.SIGKILL)

    def _on_start_failure(self, status: str) -> None:
        now = time.monotonic()
        if now < self._refill_at:
            return  # of the same round: its siblings met the same trouble
        self._start_failures += 1
        delay = START_DELAYS[min(self._start_failures, len(START_DELAYS)) - 1]
        self._refill_at = now + delay
        logger.error(START_FAILED, status, self._start_failures, delay)
        self._later(delay, self._refill)

    # -- deaths

    def _on_silence(self, member: Member) -> None:
        """The report socket has reached its end: the child is dead, or will be in a moment."""
        if not member.silent:
            member.silent = True
            self._selector.unregister(member.reports)
            self._await_end(member, 0.0005, time.monotonic() + GONE_SILENT)

    def _await_end(self, member: Member, delay: float, deadline: float) -> None:
        if member.key not in self._members:
            return
        dead, code = member.exit_status()
        if dead:
            self._bury(member, code)
            return
        if time.monotonic() >= deadline:
            member.signal(signal.SIGKILL)
        self._later(delay, partial(self._await_end, member, min(0.05, delay * 2), deadline))

    def _bury_the_dead(self) -> None:
        for member in list(self._members.values()):
            dead, code = member.exit_status()
            if dead:
                self._bury(member, code)

    def _bury(self, member: Member, code: int | None) -> None:
        """Settle the affairs of a dead child and replace it."""
        if self._members.pop(member.key, None) is None:
            return
        if not member.silent:
            member.silent = True
            self._selector.unregister(member.reports)
        try:
            for report in member.read(everything=True):
                self._note(member, report)
        except Gone:
            pass  # it had nothing more to say
        clean = code in (EX_OK, EX_RECYCLE)
        claim, ready = member.slot.claim(), member.slot.ready
        lost = member.slot.held()
        if claim.began_at is not None or claim.seq == member.doomed:
            lost.append(claim.seq)
        lost = [seq for seq in lost if self._lose(seq, member.pid, code)]
        taken = self._desk.orders.keys() & {claim.seq, self._desk.feed.drop(member.key)}
        for seq in taken:
            if self._desk.orders[seq].deaths < DEADLY:
                self._desk.put_back(seq)
            else:
                self._give_up(seq, code)
        useful = clean or lost or taken or member.done or time.monotonic() - member.born > YOUNG
        fruitless = not ready or not useful
        member.close()
        status = f"Process {member.name!r} pid:{member.pid!r} exited with {human_status(code)!r}"
        if not clean and not member.expected and not fruitless:
            logger.error(status)
        if not clean:
            self._account(member.pid, code)
        if not fruitless:
            self._start_failures = 0
        elif self._refills and not member.expected:
            self._on_start_failure(status)
        self._refill()
        self._pump()

    def _give_up(self, seq: int, code: int | None) -> None:
        """A job that children die of before its run begins: given out again it would kill for ever."""
        del self._desk.orders[seq]
        if not self._silent_losses or seq < 0:
            detail = f"{DEADLY + 1} processes died reading it, the last one with {human_status(code)!r}."
            self._outbox.append(Unfit(seq, "crashed", detail))

    def _lose(self, seq: int, pid: int, code: int | None) -> bool:
        if self._desk.orders.pop(seq, None) is None:
            return False
        if not self._silent_losses or seq < 0:
            self._outbox.append(Lost(seq, pid, code))
        return True

    def _account(self, pid: int, code: int | None) -> None:
        """After a violent death: does somebody have every job that was handed over?"""
        missing = self._missing() if self._desk.orders else None
        if missing:
            for delay in SECOND_LOOKS:
                last = delay == SECOND_LOOKS[-1]
                self._later(delay, partial(self._look_again, missing, pid, code, last))

    def _missing(self) -> set[int]:
        return self._desk.missing(seq for member in self._members.values() for seq in member.slot.seen())

    def _look_again(self, missing: set[int], pid: int, code: int | None, last: bool) -> None:
        missing &= self._desk.orders.keys()
        if not missing:
            return
        for member in list(self._members.values()):
            self._read(member)
        missing &= self._missing()
        self._pump()
        if last:
            for seq in missing:
                self._lose(seq, pid, code)

    # -- stop

    def kill_all(self, grace: float) -> None:
        """End at once, with *grace* seconds between TERM and KILL.  The jobs that die have no report."""
        self._silent_losses = True
        self.stop(deadline=0.0, term_grace=grace)

    def stop(self, *, deadline: float | None = None, term_grace: float = TERM_GRACE) -> None:
        """End.  Jobs that have not begun are taken back as by :meth:`recall`; those that have are waited for.

        Plain calls are waited for too.  With *deadline* both have so many seconds; then their children get
        TERM, and KILL when that does not help.
        """
        if not self._started:
            return
        until = None if deadline is None else time.monotonic() + deadline
        with self._lock:
            self._stopping = True
            self._desk.recall()
            self._pump()
        while self.unreported and (until is None or time.monotonic() < until):
            if not self._members and self._start_failures >= HOPELESS:
                break
            self.serve(0.5 if until is None else min(0.5, max(0.001, until - time.monotonic())))
        if not self._is_open():
            return  # somebody who was told of a report stopped the pool
        with self._lock:
            self._refills = False
            self._watch_writer(False)
            self._desk.finish()
        if not self.unreported:
            self._serve_till_empty(LEAVE_GRACE if until is None else max(1.0, until - time.monotonic()))
        for signum, grace in ((signal.SIGTERM, term_grace), (signal.SIGKILL, KILL_GRACE)):
            for member in list(self._members.values()):
                member.expected = True
                member.signal(signum)
                member.signal(signal.SIGCONT)  # one that stands still would not hear TERM
            self._serve_till_empty(grace)
        self._release()

    def _is_open(self) -> bool:
        return self._started

    def _serve_till_empty(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._members and time.monotonic() < until:
            self.serve(0.1)

    def _release(self) -> None:
        with self._lock:
            if not self._started:
                return
            self.unwatch(self._hub)
            self._started = False
            gc.unfreeze()
            self._timetable.clear()
            for member in self._members.values():  # not even KILL ended them: the kernel holds them
                member.close()
            self._members.clear()
            self._selector.close()
            self._desk.close()
        self._deliver()

    # -- facts

    def info(self) -> dict[str, Any]:
        """Numbers for ``inspect stats``: children, and how jobs were spread over them."""
        done = [member.done for member in list(self._members.values())]
        total = sum(done)
        return {
            "processes": self.pids,
            "max-tasks-per-child": self.plan.max_tasks or "N/A",
            "timeouts": (self.limits[0] or 0, self.limits[1] or 0),
            "writes": {
                "total": total,
                "avg": f"{1 / len(done) if total else 0:.2f}",
                "all": ", ".join(f"{count / total if total else 0:.2f}" for count in done),
                "raw": ", ".join(map(str, done)),
                "strategy": "fair",
                "inqueues": {"total": len(done), "active": len(self.begun())},
            },
        }
