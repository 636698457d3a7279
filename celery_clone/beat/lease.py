"""The lease of a schedule: of several beats the one that holds it sends, the others wait.

Made by ``beat.service``, which takes and renews it, and asked by ``beat.scheduler`` for the producer of each run:
that one sends only while the broker says that the lease is still held, and writes down in the same step that
the entry ran.  So a beat that was frozen, or cut off, for longer than its lease sends nothing, and the next one
knows what was sent to the last entry.  See ``docs/internals/decisions/0007-one-beat-at-a-time.md``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from kombu import Queue
from kombu.exceptions import OperationalError
from kombu.pools import producers

from celery_clone.beat.entries import BeatLazyFunc
from celery_clone.message.outgoing import TaskMessage
from celery_clone.transport import open_lease_store
from celery_clone.transport.beat_lease import BOOK_S, DueRun, LeaseStore, Verdict
from celery_clone.transport.protocols import Destination, SendOptions
from celery_clone.utils.ids import uuid
from celery_clone.utils.imports import qualname
from celery_clone.utils.log import get_logger
from celery_clone.utils.time import maybe_make_aware

__all__ = ("FencedProducer", "Lease", "RunRefused", "open_lease")

logger = get_logger("celery.beat")

EXPIRES_S = 10.0
"""How long a lease lasts that is not renewed, where ``beat_lease_expires`` does not say."""

RENEWALS = 4
"""How often a lease is renewed in the time it lasts."""

POLL_S = 1.0
"""How often a beat that waits asks for the lease, at the least."""

MACHINE = ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid")

OWNER = re.compile(r"pid (\d+) on ([^\s)]+)")


class RunRefused(Exception):
    """A run was not sent, because this beat may not: another one has the lease, or has sent it.

    Arguments:
        record: of the run that another beat has sent; empty if the lease was lost.
    """

    def __init__(self, text: str, record: str = "") -> None:
        super().__init__(text)
        self.record = record


class Lease:
    """The right to send for a schedule, for some seconds at a time.

    Arguments:
        store: where it is kept.
        name: what tells it from leases of other schedules.
        book: where it is written down when entries ran.
        node: node name of this beat.
        expires_s: how long it lasts without renewal.
        sends: is the store the broker itself, so that it can write down a run and send it in one step?
    """

    def __init__(
        self, store: LeaseStore, name: str, book: str, node: str, expires_s: float = EXPIRES_S, sends: bool = True
    ) -> None:
        self.store = store
        self.name = name
        self.book = book
        self.owner = f"{node} (pid {os.getpid()} on {this_machine() or 'unknown'}) {uuid()}"
        self.expires_s = expires_s
        self.sends = sends
        #: The URL of the store, for people.
        self.where = "the broker"
        self.held = False
        self.holder = ""
        self._asked_at = 0.0
        self._unreachable = False

    @property
    def poll_s(self) -> float:
        """How long a beat that waits may sleep, in seconds."""
        return min(POLL_S, self.expires_s / RENEWALS)

    def take(self) -> bool:
        """Take or renew it, if it is free or ours; ``False``: :attr:`holder` has it.

        Raises:
            OperationalError: the store cannot be reached.
        """
        self._asked_at = time.monotonic()
        self.holder = self.store.take(self.name, self.owner, self.expires_s)
        if self.holder != self.owner and is_gone(self.holder):
            self.holder = self.store.take(self.name, self.owner, self.expires_s, dead=self.holder)
        self.held = self.holder == self.owner
        return self.held

    def keep(self) -> bool:
        """Renew it if it is time to; ``False``: it is another's.

        While the store cannot be reached it counts as held: whoever sends will be told.
        """
        if self.held and time.monotonic() - self._asked_at < self.expires_s / RENEWALS:
            return True
        try:
            held = self.take()
        except OperationalError as exc:
            if not self._unreachable:
                logger.error("beat: The lease of the schedule cannot be renewed, trying again: %s", exc)  # noqa: TRY400
            self._unreachable = True
            return True
        self._unreachable = False
        return held

    def let_go(self) -> None:
        """Let the next beat have it at once.  Legal early and twice."""
        if self.held:
            self.held = False
            try:
                self.store.let_go(self.name, self.owner)
            except OperationalError as exc:
                logger.debug("beat: The lease could not be given up, it expires by itself: %s", exc)
        self.store.close()

    # -- when entries ran

    def adopt(self, entries: Mapping[Any, Any]) -> None:
        """Tell entries of what other beats sent, and write down those that are new.

        Raises:
            OperationalError: the store cannot be reached.
        """
        records = self.store.runs(self.book)
        new: dict[str, str] = {}
        for entry in [*entries.values()]:
            key = entry_key(entry)
            record = records.get(key)
            if record is None:
                new[key] = self._record(entry)
            elif not entry.total_run_count or parse(record)[0] > epoch(entry.last_run_at):
                remember(entry, record)
        oldest = time.time() - BOOK_S
        self.store.note(self.book, new, [key for key, record in records.items() if parse(record)[0] < oldest])

    def run_of(self, entry: Any, following: Any, record: str | None = None) -> DueRun:
        """The run after which *entry* is *following*; *record* if it was tried before."""
        return DueRun(
            self.name,
            self.owner,
            self.book,
            entry_key(entry),
            epoch(entry.last_run_at),
            record or self._record(following),
        )

    def _record(self, entry: Any) -> str:
        return f"{epoch(entry.last_run_at):.6f} {entry.total_run_count} {self.owner}"


class FencedProducer:
    """A kombu producer whose first message is one run of an entry: sent only if this beat may.

    What follows it (an event, say) goes through the *producer*.
    """

    def __init__(self, producer: Any, lease: Lease, run: DueRun) -> None:
        self.producer = producer
        self.lease = lease
        self.run = run
        self._sent = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.producer, name)

    def publish(
        self,
        body: Any,
        routing_key: str | None = None,
        delivery_mode: Any = None,
        mandatory: bool = False,
        immediate: bool = False,
        priority: int = 0,
        content_type: str | None = None,
        content_encoding: str | None = None,
        serializer: str | None = None,
        headers: dict[str, Any] | None = None,
        compression: str | None = None,
        exchange: Any = None,
        retry: bool = False,
        retry_policy: Mapping[str, Any] | None = None,
        declare: Any = (),
        **properties: Any,
    ) -> Any:
        """As :meth:`kombu.Producer.publish`.

        Raises:
            RunRefused: another beat holds the lease, or has sent this run.
            OperationalError: the broker, or the store of the lease, cannot be reached.
        """
        particular = {
            "mandatory": mandatory,
            "immediate": immediate,
            "content_type": content_type,
            "content_encoding": content_encoding,
            "delivery_mode": delivery_mode,
            "priority": priority,
        }
        particular = {name: value for name, value in particular.items() if value}
        properties = {**particular, **properties}
        declared = tuple(declare or ())
        if not self._sent:
            message = TaskMessage(headers or {}, properties, body, None)
            to = Destination(exchange or "", routing_key or "", declared, exchange_type(exchange, declared))
            how = SendOptions(serializer, compression, retry, retry_policy or {})
            if self._claimed(message, to, how):
                return None
        return self.producer.publish(
            body,
            routing_key=routing_key,
            serializer=serializer,
            headers=headers,
            compression=compression,
            exchange=exchange,
            retry=retry,
            retry_policy=retry_policy,
            declare=[*declared],
            **properties,
        )

    def _claimed(self, message: TaskMessage, to: Destination, how: SendOptions) -> bool:
        """Write the run down; was its message sent with it?"""
        lease, run = self.lease, self.run
        answer = lease.store.publish(message, to, how, run) if lease.sends else None
        in_one_step = answer is not None
        if answer is None:
            answer = lease.store.claim(run)
        if answer.verdict is Verdict.LOST:
            lease.held = False
            raise RunRefused("the lease of the schedule was lost")
        if answer.verdict is Verdict.ELSEWHERE:
            raise RunRefused(f"another beat has sent it: {answer.record}", answer.record)
        self._sent = True
        return in_one_step


def open_lease(app: Any, scheduler_cls: Any, node: str) -> Lease | None:
    """The lease of the app's schedule; ``None`` if it is switched off, or nothing is there to keep it."""
    conf = app.conf
    if not conf.get("beat_lease", True):
        return None
    url = conf.get("beat_lease_url")
    pool = producers[app.connection_for_write(url)] if url else app.amqp.producer_pool
    store = open_lease_store(pool)
    if store is None:
        if url:
            logger.error("beat: beat_lease_url is neither Redis nor SQLite, so another beat is not noticed.")
        return None
    name, book = schedule_names(app, scheduler_cls)
    lease = Lease(store, name, book, node, float(conf.get("beat_lease_expires", EXPIRES_S)), sends=not url)
    lease.where = pool.connections.connection.as_uri()
    return lease


def schedule_names(app: Any, scheduler_cls: Any) -> tuple[str, str]:
    """The names of the lease and of the book: the same for beats that have the same to send.

    The lease is that of an app, a default queue, a class of schedulers and the entries in the settings, so that
    beats which do not send the same do not wait for each other.  The book is the app's: an entry that two
    schedules share, in the middle of a deployment, is sent once.
    """
    conf = app.conf
    given = conf.get("beat_lease_name")
    if given:
        return f"celery.beat.{given}", f"celery.beat.{given}.runs"
    main = f"celery.beat.{app.main or 'celery'}"
    # What is no entry is refused by the scheduler.
    described = {str(name): entry for name, entry in conf.beat_schedule.items() if not isinstance(entry, str)}
    entries = {name: contents({**dict(entry)}) for name, entry in described.items()}
    cls = scheduler_cls if isinstance(scheduler_cls, str) else qualname(scheduler_cls)
    return f"{main}.{digest([conf.task_default_queue, cls, entries])}", f"{main}.{conf.task_default_queue}.runs"


def contents(entry: Mapping[str, Any]) -> list[Any]:
    """What an entry sends."""
    return [
        entry.get("task"),
        [*(entry.get("args") or ())],
        dict(entry.get("kwargs") or {}),
        dict(entry.get("options") or {}),
    ]


def entry_key(entry: Any) -> str:
    """What tells an entry from others in the book: its name, and what it sends."""
    return f"{entry.name} {digest(contents({name: getattr(entry, name, None) for name in SENT}))}"


SENT = ("task", "args", "kwargs", "options")


def digest(value: Any) -> str:
    """A short text that is the same for equal values, in all processes."""
    # What is no JSON is told by its kind: the address in a repr would be another in each process.
    known = json.dumps(value, sort_keys=True, default=lambda other: lasting_name(other))
    return hashlib.sha1(known.encode(), usedforsecurity=False).hexdigest()[:12]


def lasting_name(value: Any) -> str:
    """What a value that is no JSON is called in every process."""
    if isinstance(value, BeatLazyFunc):
        return f"{qualname(value._func)} {value._func_params!r}"
    if isinstance(value, (datetime, timedelta, Queue)):
        return repr(value)
    return qualname(value)


def exchange_type(exchange: Any, declared: tuple[Any, ...]) -> str | None:
    """The type of the exchange, as far as what is declared with a message tells it."""
    for entity in declared:
        of_entity = getattr(entity, "exchange", None)
        if of_entity is not None and of_entity.name == exchange:
            return str(of_entity.type)
    return None


# -- records


def parse(record: str) -> tuple[float, int]:
    """Epoch time and number of runs of a record."""
    at, count, _ = record.split(" ", 2)
    return float(at), int(count)


def epoch(moment: datetime) -> float:
    """The epoch time of a moment."""
    return maybe_make_aware(moment).timestamp()


def remember(entry: Any, record: str) -> None:
    """Have an entry know when it ran."""
    at, count = parse(record)
    now = entry.default_now()
    if now.tzinfo is None:
        entry.last_run_at = now - timedelta(seconds=epoch(now) - at)
    else:
        entry.last_run_at = datetime.fromtimestamp(at, now.tzinfo)
    entry.total_run_count = count


# -- who is there


def this_machine() -> str:
    """What tells this system, since it was started, from others that number their processes themselves."""
    try:
        with open(MACHINE[0]) as file:
            return f"{file.read().strip()}/{os.stat(MACHINE[1]).st_ino}"
    except OSError:
        return ""


def is_gone(owner: str) -> bool:
    """Was the owner of a lease a process of this machine, which has ended?"""
    found = OWNER.search(owner)
    if found is None or found[2] != this_machine():
        return False
    try:
        with open(f"/proc/{found[1]}/stat") as file:
            state = file.read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    except OSError:
        return False
    # A process that ended stays in the list until its parent has looked.
    return state in "ZX"
