"""``Signal``: tell whoever wants to know that something happened.

The signals themselves are declared in ``signals`` and in ``app.base``; receivers are the users'.
It may not know what is announced, and a failing receiver may not stop who announces.

The list of receivers is replaced, never changed, so sending takes no lock: a child forked while
another thread connects can go on sending.
"""

from __future__ import annotations

import logging
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import wraps
from itertools import chain, repeat
from typing import Any

from celery_clone.exceptions import CDeprecationWarning
from celery_clone.local import PromiseProxy, Proxy
from celery_clone.utils.functional import fun_accepts_kwargs

__all__ = ("Signal",)

logger = logging.getLogger("celery.utils.dispatch.signal")

Receiver = Callable[..., Any]
#: Who is connected to whom: the identity of the receiver and that of the sender.
Key = tuple[Hashable, Hashable]
#: A key and the receiver, or a weak reference to it.
Connection = tuple[Key, Any]


def _identity(target: Any) -> Hashable:
    """What tells one receiver or sender from another: object identity, but equality for texts.

    Task and node names are senders that are made anew each time.  Bound methods are made anew too:
    their function and their object count.
    """
    if isinstance(target, Proxy):
        target = target._get_current_object()
    if isinstance(target, (bytes, str)):
        return target
    function = getattr(target, "__func__", None)
    if function is not None:
        return id(getattr(target, "__self__", None)), id(function)
    return id(target)


_ANYBODY = _identity(None)


def _key_of(receiver: Any, sender: Any, dispatch_uid: Hashable | None) -> Key:
    # A receiver that is retried is a wrapper; it bears the identity of the function in it.
    uid = dispatch_uid or getattr(receiver, "_dispatch_uid", None) or _identity(receiver)
    return uid, _identity(sender)


def _weakly(receiver: Receiver) -> Any:
    """Return a weak reference to *receiver*; to the object, if it is a bound method."""
    bound = getattr(receiver, "__self__", None) is not None and hasattr(receiver, "__func__")
    try:
        return weakref.WeakMethod(receiver) if bound else weakref.ref(receiver)
    except TypeError:
        raise TypeError(
            f"Signal receiver {receiver!r} cannot be referenced weakly: connect it with weak=False."
        ) from None


def _alive(held: Any) -> Receiver | None:
    return held() if isinstance(held, weakref.ReferenceType) else held


def _connected(receivers: Iterable[Connection], sender: Any) -> list[Any]:
    """Return the receivers (or the references to them) that hear of what *sender* sends."""
    wanted = _ANYBODY
    found = []
    for (_, origin), held in receivers:
        if origin != _ANYBODY:
            # Asked for only here: most receivers are for all senders.
            if wanted is _ANYBODY:
                wanted = _identity(sender)
            if origin != wanted:
                continue
        found.append(held)
    return found


def _pauses() -> Iterator[float]:
    """Seconds between two tries of a receiver that is retried: growing, then steady."""
    return chain(range(2, 30, 2), repeat(30))


class Signal:
    """Something that happens, and who wants to be told.

    *providing_args* names the arguments that come with it, for documentation.  *use_caching*
    remembers for each sender who is to be told: worth it with many receivers and few senders.
    *name* is for people.
    """

    #: Who is connected: ``(key, receiver or weak reference)``.  Empty (false) if nobody is.
    receivers: Sequence[Connection] = ()

    #: What waits between two tries of a receiver (seconds).
    _sleep: Callable[[float], None] = staticmethod(time.sleep)

    #: More senders than this are not remembered.
    _CACHE_LIMIT = 1024

    def __init__(
        self,
        providing_args: Iterable[str] | None = None,
        use_caching: bool = False,
        name: str | None = None,
    ) -> None:
        self.receivers = []
        self.providing_args = set(providing_args or ())
        # Re-entrant: the last reference to a receiver may vanish here, and what dies may disconnect.
        self.lock = threading.RLock()
        self.use_caching = use_caching
        self.name = name
        self.sender_receivers_cache: dict[Hashable, list[Any]] = {}

    # -- connecting

    def connect(self, *args: Any, **kwargs: Any) -> Any:
        """Have ``receiver(signal=..., sender=..., **arguments)`` called when this happens.

        To be called as ``connect(receiver, sender=None, weak=True, dispatch_uid=None,
        retry=False)``, or as a decorator, with or without those options.

        *sender*: only tell of what this object sends; ``None``: of everything.  *weak*: forget the
        receiver when nobody else holds it.  *dispatch_uid*: connect only one receiver of this
        identity.  *retry*: call the receiver again, after ever longer pauses, until it does not
        raise; it is then held strongly.

        A receiver that is connected already stays connected once.  Returns the receiver (what
        wraps it, with *retry*).  Raises ``ValueError`` if it takes no keyword arguments.
        """
        if args and callable(args[0]):
            return self._connect(args[0], *args[1:], **kwargs)

        def decorate(receiver: Receiver) -> Receiver:
            return self._connect(receiver, *args, **kwargs)

        return decorate

    def _connect(
        self,
        receiver: Receiver,
        sender: Any = None,
        weak: bool = True,
        dispatch_uid: Hashable | None = None,
        retry: bool = False,
    ) -> Receiver:
        if not callable(receiver):
            raise TypeError(f"Signal receivers must be callable: {receiver!r} is not.")
        if not fun_accepts_kwargs(receiver):
            raise ValueError(
                "Signal receiver must accept keyword arguments. "
                f"Add **kwargs to the parameters of {receiver!r}."
            )
        if retry:
            receiver = self._retried(receiver, dispatch_uid or _identity(receiver))
            weak = False
        # type() sees the proxy; isinstance() would ask for the task behind it, too early.
        if issubclass(type(sender), PromiseProxy):
            sender.__then__(self._add_for_promise, receiver, sender, weak, dispatch_uid)
        else:
            self._add(receiver, sender, weak, dispatch_uid)
        return receiver

    def _add_for_promise(
        self,
        receiver: Receiver,
        sender: PromiseProxy,
        weak: bool,
        dispatch_uid: Hashable | None,
    ) -> None:
        self._add(receiver, sender._get_current_object(), weak, dispatch_uid)

    def _add(self, receiver: Receiver, sender: Any, weak: bool, dispatch_uid: Hashable | None) -> None:
        connection = _key_of(receiver, sender, dispatch_uid), _weakly(receiver) if weak else receiver
        with self.lock:
            # The dead go first: the identity of one may be that of the newcomer.
            living = [each for each in self.receivers if _alive(each[1]) is not None]
            if all(key != connection[0] for key, _ in living):
                living.append(connection)
            self._replace(living)

    def _retried(self, receiver: Receiver, uid: Hashable) -> Receiver:
        @wraps(receiver, updated=())
        def until_it_succeeds(*args: Any, **kwargs: Any) -> Any:
            for pause in _pauses():
                try:
                    return receiver(*args, **kwargs)
                except Exception as error:  # noqa: BLE001 (the receiver is the user's code)
                    logger.error(  # noqa: TRY400 (one line for each try is enough)
                        "Could not process signal receiver %s: %r. Retrying in %.2f seconds...",
                        receiver,
                        error,
                        pause,
                    )
                    self._sleep(pause)
            raise AssertionError("the pauses never end")

        until_it_succeeds._dispatch_uid = uid  # type: ignore[attr-defined]
        return until_it_succeeds

    def disconnect(
        self,
        receiver: Receiver | None = None,
        sender: Any = None,
        weak: bool | None = None,
        dispatch_uid: Hashable | None = None,
    ) -> bool:
        """Undo :meth:`connect`, called with the same receiver or *dispatch_uid*, and *sender*.

        Tells whether there was something to undo.  *weak* means nothing here.
        """
        if weak is not None:
            warnings.warn("Passing `weak` to disconnect has no effect.", CDeprecationWarning, stacklevel=2)
        unwanted = _key_of(receiver, sender, dispatch_uid)
        with self.lock:
            living = [each for each in self.receivers if _alive(each[1]) is not None]
            kept = [each for each in living if each[0] != unwanted]
            self._replace(kept)
        return len(kept) < len(living)

    def has_listeners(self, sender: Any = None) -> bool:
        """Would anybody be told of what *sender* sends?"""
        return bool(self.receivers) and bool(self._listeners(sender))

    # -- sending

    def send(self, sender: Any, **named: Any) -> list[tuple[Receiver, Any]]:
        """Tell the receivers; return each with what it returned.

        What a receiver raises is logged and stands in the place of its answer.
        """
        responses: list[tuple[Receiver, Any]] = []
        if not self.receivers:
            return responses
        for receiver in self._listeners(sender):
            response: Any
            try:
                response = receiver(signal=self, sender=sender, **named)
            except Exception as error:
                logger.exception("Signal handler %r raised: %r", receiver, error)
                response = error
            responses.append((receiver, response))
        return responses

    send_robust = send

    def _listeners(self, sender: Any) -> list[Receiver]:
        held = self._remembered(sender) if self.use_caching else _connected(self.receivers, sender)
        living = [receiver for receiver in map(_alive, held) if receiver is not None]
        if len(living) < len(held):
            self._bury()
        return living

    def _remembered(self, sender: Any) -> list[Any]:
        wanted = _identity(sender)
        held = self.sender_receivers_cache.get(wanted)
        if held is None:
            receivers = self.receivers
            held = _connected(receivers, sender)
            with self.lock:
                if len(self.sender_receivers_cache) >= self._CACHE_LIMIT:
                    self.sender_receivers_cache.clear()
                if receivers is self.receivers:  # else they changed meanwhile
                    self.sender_receivers_cache[wanted] = held
        return held

    def _bury(self) -> None:
        with self.lock:
            self._replace([each for each in self.receivers if _alive(each[1]) is not None])

    def _replace(self, receivers: Sequence[Connection]) -> None:
        self.receivers = receivers
        self.sender_receivers_cache.clear()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.name} providing_args={self.providing_args!r}>"
