"""What makes an object a task or a signature, for ``isinstance``.

``app.task.Task`` registers as the one, ``canvas.signature.Signature`` as the other; third parties
test for them.  Declares only.
"""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

__all__ = ("CallableSignature", "CallableTask")

Class = TypeVar("Class", bound=type)


class _Duck(metaclass=ABCMeta):  # noqa: B024 (its subclasses have the abstract methods)
    """A base class of every class that defines the attributes it requires."""

    __required_attributes__: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def __subclasshook__(cls, candidate: type) -> Any:
        # A subclass that does not say what it requires is an ordinary class.
        required = cls.__dict__.get("__required_attributes__")
        if not required:
            return NotImplemented
        defined = {name for each in candidate.__mro__ for name in each.__dict__}
        return True if required <= defined else NotImplemented

    @classmethod
    def register(cls, other: Class) -> Class:
        """Count the class *other* in, whatever it defines.  Returns it, to be used as a decorator."""
        type(cls).register(cls, other)
        return other


class CallableTask(_Duck, Callable):  # type: ignore[misc, type-arg]
    """What a task does."""

    __required_attributes__ = frozenset({"delay", "apply_async", "apply"})

    @abstractmethod
    def delay(self, *args: Any, **kwargs: Any) -> Any:
        """Send a call with these arguments."""

    @abstractmethod
    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        """Send a call, with options."""

    @abstractmethod
    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """Run it here."""


class CallableSignature(CallableTask):
    """What a signature does: a call that was not made yet."""

    __required_attributes__ = frozenset({"clone", "freeze", "set", "link", "link_error", "__or__"})

    @property
    @abstractmethod
    def name(self) -> Any:
        """Name of the task."""

    @property
    @abstractmethod
    def type(self) -> Any:
        """The task itself."""

    @property
    @abstractmethod
    def app(self) -> Any:
        """The app it belongs to."""

    @property
    @abstractmethod
    def id(self) -> Any:
        """Id of the call, once it is frozen."""

    @property
    @abstractmethod
    def task(self) -> Any:
        """Name of the task, as it is stored."""

    @property
    @abstractmethod
    def args(self) -> Any:
        """Positional arguments given so far."""

    @property
    @abstractmethod
    def kwargs(self) -> Any:
        """Keyword arguments given so far."""

    @property
    @abstractmethod
    def options(self) -> Any:
        """Options of the sending."""

    @property
    @abstractmethod
    def subtask_type(self) -> Any:
        """Kind of signature; ``None`` for a plain one."""

    @property
    @abstractmethod
    def chord_size(self) -> Any:
        """How many completions a chord whose header it is waits for."""

    @property
    @abstractmethod
    def immutable(self) -> Any:
        """Does it take no further arguments?"""

    @abstractmethod
    def clone(self, args: Any = None, kwargs: Any = None) -> Any:
        """Return a copy with further arguments."""

    @abstractmethod
    def freeze(
        self,
        id: Any = None,
        group_id: Any = None,
        chord: Any = None,
        root_id: Any = None,
        group_index: Any = None,
    ) -> Any:
        """Give it an id; return the result it will have."""

    @abstractmethod
    def set(self, immutable: Any = None, **options: Any) -> Any:
        """Set options."""

    @abstractmethod
    def link(self, callback: Any) -> Any:
        """Have *callback* called with its result."""

    @abstractmethod
    def link_error(self, errback: Any) -> Any:
        """Have *errback* called if it fails."""

    @abstractmethod
    def __or__(self, other: Any) -> Any:
        """Chain it with *other*."""

    @abstractmethod
    def __invert__(self) -> Any:
        """Send it and wait for the result."""
