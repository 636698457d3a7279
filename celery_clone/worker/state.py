"""What the worker of this process knows of its tasks: the one truth, outside any connection.

Written by ``worker.dispatch`` and ``worker.request``, read by remote control, monitors and
extensions, which also set the stop flags.  It decides nothing and talks to nobody.

Tasks on the fast path are :class:`InFlight` records in :data:`flights`; a ``Request`` is made of one
when somebody asks for it.  Requests made by extensions are in the sets of Celery's names.
"""

from __future__ import annotations

import os
import pickle
import platform
import shelve
import weakref
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

from celery_clone._version import SOFTWARE_IDENT, __version__
from celery_clone.app.trace import SUCCESSFUL_EXPIRES, SUCCESSFUL_MAX
from celery_clone.app.trace import successful_requests as _successful
from celery_clone.exceptions import WorkerShutdown, WorkerTerminate
from celery_clone.utils.collections import LimitedSet
from celery_clone.utils.functional import maybe_list

if TYPE_CHECKING:
    from celery_clone.message.delivery import Delivery

    successful_requests: LimitedSet

__all__ = (
    "SOFTWARE_INFO",
    "SUCCESSFUL_EXPIRES",
    "SUCCESSFUL_MAX",
    "InFlight",
    "Persistent",
    "Phase",
    "active_requests",
    "flights",
    "maybe_shutdown",
    "requests",
    "reserved_requests",
    "revoked",
    "scheduled_requests",
    "successful_requests",
    "task_accepted",
    "task_ready",
    "task_reserved",
    "task_scheduled",
    "total_count",
)

SOFTWARE_INFO = {"sw_ident": SOFTWARE_IDENT, "sw_ver": __version__, "sw_sys": platform.system()}
"""How the worker introduces itself in events."""


def number_from(name: str, default: float) -> float:
    """A number from the environment.

    Raises:
        ValueError: the variable does not hold a number.
    """
    text = os.environ.get(name)
    if not text:
        return default
    try:
        return float(text)
    except ValueError as exc:
        raise ValueError(
            f"Invalid value for {name}: expected a number, got {text!r}. Correct or unset it."
        ) from exc


REVOKES_MAX = int(number_from("CELERY_WORKER_REVOKES_MAX", 50000))
REVOKE_EXPIRES = float(number_from("CELERY_WORKER_REVOKE_EXPIRES", 10800))

#: Request by task id, for requests made by extensions.
requests: dict[str, Any] = {}
reserved_requests: weakref.WeakSet[Any] = weakref.WeakSet()
active_requests: weakref.WeakSet[Any] = weakref.WeakSet()
scheduled_requests: weakref.WeakSet[Any] = weakref.WeakSet()

#: How many tasks were accepted, by name and in all.
total_count: Counter[str] = Counter()
all_total_count = [0]

#: Ids of tasks that have succeeded and are not yet in ``successful_requests``, where they are sorted in by time.
succeeded: deque[str] = deque(maxlen=SUCCESSFUL_MAX)

#: Ids of revoked tasks, and stamps of them.
revoked = LimitedSet(maxlen=REVOKES_MAX, expires=REVOKE_EXPIRES)
revoked_stamps: dict[str, Any] = {}

#: An exit code or ``True``: the loop shall end (warm), or at once (cold).  ``None`` and ``False``: go on.
should_stop: Any = None
should_terminate: Any = None


class Phase(Enum):
    """How far a task has come."""

    HELD = "held"
    """Waits for its time or for its rate limit."""
    WAITING = "waiting"
    """May run; no process has begun it."""
    BEGUN = "begun"
    """A process runs it."""


class InFlight:
    """One delivery that the worker is responsible for.

    ``plan`` is that of the task (``worker.dispatch.TaskPlan``), ``owed`` tells whether the delivery
    still waits to be settled, ``due`` the epoch time it is held for.
    """

    __slots__ = (
        "__weakref__",
        "_make_request",
        "_request",
        "began_at",
        "delivery",
        "due",
        "expires",
        "id",
        "limits",
        "name",
        "owed",
        "phase",
        "pid",
        "plan",
        "received_at",
        "seq",
        "terminating",
    )

    def __init__(
        self,
        seq: int,
        delivery: Delivery,
        plan: Any,
        name: str,
        task_id: str,
        make_request: Callable[[InFlight], Any],
    ) -> None:
        self.seq = seq
        self.delivery = delivery
        self.plan = plan
        self.name = name
        self.id = task_id
        self.phase = Phase.WAITING
        self.owed = True
        self.pid: int | None = None
        self.began_at: float | None = None
        self.received_at = 0.0
        self.due: float | None = None
        #: Epoch seconds after which it must not begin.
        self.expires: float | None = None
        self.limits: tuple[float | None, float | None] = (None, None)
        #: Signal number when somebody asked to end the run: its death is then no accident.
        self.terminating: int | None = None
        self._request: Any = None
        self._make_request = make_request

    @property
    def request(self) -> Any:
        """The public view of this task, made when it is first asked for."""
        if self._request is None:
            self._request = self._make_request(self)
        return self._request


#: What the dispatcher is responsible for, by number.
flights: dict[int, InFlight] = {}


def merge_revoked(task_ids: Iterable[str]) -> None:
    """Add the ids that another worker knows as revoked."""
    if task_ids:
        revoked.update(list(task_ids))


def __getattr__(name: str) -> Any:
    """``successful_requests``: ids of the tasks that have succeeded lately.

    They are sorted in when somebody asks: hardly anybody does, and the sorting costs more than all else at the end
    of a short task.
    """
    if name != "successful_requests":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    while succeeded:
        _successful.add(succeeded.popleft())
    return _successful


def merge_revoked_stamps(stamps: Mapping[str, Any]) -> None:
    """Add stamps that are revoked, each with its values."""
    for name, values in stamps.items():
        known = revoked_stamps.setdefault(name, [])
        known += [value for value in maybe_list(values) or () if value not in known]


def reset_state() -> None:
    """Forget everything; for embedders that start a second worker."""
    for each in (requests, reserved_requests, active_requests, scheduled_requests, flights, total_count):
        each.clear()
    succeeded.clear()
    _successful.clear()
    revoked.clear()
    revoked_stamps.clear()
    all_total_count[:] = [0]


def maybe_shutdown() -> None:
    """Raise if somebody set a stop flag.

    Raises:
        WorkerTerminate: ``should_terminate`` is set.
        WorkerShutdown: ``should_stop`` is set.
    """
    if should_terminate is not None and should_terminate is not False:
        raise WorkerTerminate(should_terminate)
    if should_stop is not None and should_stop is not False:
        raise WorkerShutdown(should_stop)


def task_reserved(request: Any) -> None:
    """A request was made and waits to run."""
    requests[request.id] = request
    reserved_requests.add(request)
    scheduled_requests.discard(request)


def task_scheduled(request: Any) -> None:
    """A request waits for its time."""
    if request in reserved_requests or request in active_requests:
        return
    requests[request.id] = request
    scheduled_requests.add(request)


def count_accepted(name: str) -> None:
    """Count one task that a process has begun."""
    total_count[name] += 1
    all_total_count[0] += 1


def task_accepted(request: Any) -> None:
    """A process has begun a request."""
    requests[request.id] = request
    active_requests.add(request)
    count_accepted(request.name)


def handed_over() -> list[Any]:
    """The requests of extensions that the pool runs, or will run whatever happens to the worker."""
    given = (each for each in reserved_requests if getattr(each, "_apply_result", None) is not None)
    return [*{*active_requests, *given}]


def task_ready(request: Any, successful: bool = False) -> None:
    """A request has ended."""
    if successful:
        succeeded.append(request.id)
    requests.pop(request.id, None)
    active_requests.discard(request)
    reserved_requests.discard(request)
    scheduled_requests.discard(request)


class Persistent:
    """Keeps the revoked ids and the clock in a file over restarts (``--statedb``).

    Arguments:
        state: this module, or something with its ``revoked``.
        filename: path of the shelve file.
        clock: the app's logical clock.
    """

    storage: Any = shelve
    protocol = 4
    _is_open = False

    def __init__(self, state: Any, filename: str, clock: Any = None) -> None:
        self.state = state
        self.filename = filename
        self.clock = clock
        self._db: Any = None
        self.merge()

    def compress(self, data: bytes, /, level: int = -1, wbits: int = 15) -> bytes:
        """As :func:`zlib.compress`."""
        return zlib.compress(data, level)

    def decompress(self, data: bytes, /, wbits: int = 15, bufsize: int = 16384) -> bytes:
        """As :func:`zlib.decompress`."""
        return zlib.decompress(data, wbits, bufsize)

    def open(self) -> Any:
        """Open the file."""
        return self.storage.open(self.filename, protocol=self.protocol, writeback=True)

    @property
    def db(self) -> Any:
        """The open file."""
        if self._db is None:
            self._db = self.open()
            self._is_open = True
        return self._db

    def merge(self) -> None:
        """Read what the file knows into the state."""
        db = self.db
        packed = db.get("zrevoked")
        if packed:
            self.state.revoked.update(pickle.loads(self.decompress(packed)))
        elif db.get("revoked"):
            self.state.revoked.update(db["revoked"])
        if self.clock:
            db["clock"] = self.clock.adjust(db.get("clock") or 0)

    def sync(self) -> None:
        """Write the state into the file."""
        self.state.revoked.purge()
        self.db.update(
            {
                "__proto__": 3,
                "zrevoked": self.compress(pickle.dumps(self.state.revoked, protocol=self.protocol)),
                "clock": self.clock.forward() if self.clock else 0,
            }
        )
        self.db.sync()

    def close(self) -> None:
        """Close the file.  Legal twice."""
        if self._is_open:
            self._db.close()
            self._db, self._is_open = None, False

    def save(self) -> None:
        """Write and close."""
        self.sync()
        self.close()
