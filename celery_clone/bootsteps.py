"""Parts that are started in a written order and stopped in reverse.

Called by the worker and its consumer, whose parts are steps, and by everybody
who adds steps of their own (``app.steps["worker"]``, ``app.steps["consumer"]``).
A blueprint owns the order and the state; a step owns what it started.
This module may not speak to a broker and knows no step by itself.

Order is a list: ``Blueprint.default_steps`` in the order it is written, foreign
steps inserted right after the last of the steps they require, or before the
step marked ``last``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from threading import Event
from typing import Any, ClassVar, Protocol

from celery_clone.exceptions import ImproperlyConfigured
from celery_clone.utils.graph import DependencyGraph, GraphFormatter
from celery_clone.utils.imports import instantiate, qualname, symbol_by_name
from celery_clone.utils.log import get_logger

__all__ = ("Blueprint", "ConsumerStep", "Service", "StartStopStep", "Step", "boot_order")

# States of a blueprint; ``None`` until it was started.
RUN = 0x1
CLOSE = 0x2
TERMINATE = 0x3

#: Package whose steps a requirement written for Celery means.
ROOT = __name__.partition(".")[0]

logger = get_logger("celery.bootsteps")


class Service(Protocol):
    """What a blueprint asks of a step.

    ``stop`` before ``start`` and ``stop`` after ``stop`` must do nothing.
    """

    def start(self, parent: Any) -> Any:
        """Begin to work for ``parent``."""

    def stop(self, parent: Any) -> Any:
        """End the work and give everything back."""

    def close(self, parent: Any) -> Any:
        """Take no new work; called before any step is stopped."""

    def terminate(self, parent: Any) -> Any:
        """Like ``stop``, but without waiting."""


# -- order -----------------------------------------------------------------


def resolve_step(step: str | type[Step]) -> type[Step]:
    """Return a step class given by itself or as ``"module:name"``.

    Celery's own module names mean the modules of this package.
    """
    if isinstance(step, str) and step.startswith("celery."):
        step = f"{ROOT}{step.removeprefix('celery')}"
    return symbol_by_name(step)  # type: ignore[no-any-return]


def required_steps(step: type[Step]) -> list[type[Step]]:
    """Return the steps that must start before ``step``."""
    return [resolve_step(required) for required in step.requires]


def boot_order(literal: Iterable[type[Step]], foreign: Iterable[type[Step]] = ()) -> list[type[Step]]:
    """Return the steps in the order in which they start.

    ``literal`` keeps its order; each step of ``foreign`` goes right after the
    last of the steps it requires, after those inserted there before it; without
    requirements it goes to the end.  Required steps that are in neither list
    are added.  The step marked ``last`` ends the order.
    Raises :exc:`~celery_clone.exceptions.ImproperlyConfigured` if steps require
    each other in a circle.
    """
    order: list[type[Step]] = []
    own = list(literal)
    anchors: dict[type[Step], type[Step] | None] = {}

    def place(step: type[Step], waiting: tuple[type[Step], ...]) -> None:
        if step in order:
            return
        if step in waiting:
            circle = " -> ".join(other.name for other in (*waiting, step))
            raise ImproperlyConfigured(f"Steps require each other: {circle}. Remove one of the requirements.")
        requirements = required_steps(step)
        for required in requirements:
            place(required, (*waiting, step))
        if step in own or not requirements:
            order.append(step)
            return
        anchor = max(requirements, key=order.index)
        anchors[step] = anchor
        position = order.index(anchor) + 1
        while position < len(order) and _hangs_on(order[position], anchor, anchors):
            position += 1
        order.insert(position, step)

    for step in (*own, *foreign):
        place(step, ())
    return sorted(order, key=lambda step: step.last)


def _hangs_on(step: type[Step], anchor: type[Step], anchors: dict[type[Step], type[Step] | None]) -> bool:
    """Tell whether ``step`` was inserted because of ``anchor``, directly or through others."""
    current: type[Step] | None = step
    while current is not None:
        current = anchors.get(current)
        if current is anchor:
            return True
    return False


def _in_given_order(steps: Iterable[str | type[Step]]) -> list[type[Step]]:
    """Return step classes, each once; a set, which has no order, is sorted by name."""
    classes = [resolve_step(step) for step in steps]
    if isinstance(steps, (set, frozenset)):
        classes.sort(key=lambda step: step.name)
    return list(dict.fromkeys(classes))


# -- drawing ---------------------------------------------------------------


class StepFormatter(GraphFormatter):
    """Shows the steps of a blueprint as a graph."""

    blueprint_prefix = "⧉"
    conditional_prefix = "∘"
    blueprint_scheme = {"shape": "parallelogram", "color": "slategray4", "fillcolor": "slategray3"}

    def label(self, obj: Any) -> Any:
        """Return the short name of a step, marked if it is conditional or the last."""
        if not obj:
            return obj
        prefix = self.blueprint_prefix if obj.last else self.conditional_prefix if obj.conditional else ""
        return f"{prefix}{obj.label or _short_name(obj)}"

    def node(self, obj: Any, **attrs: Any) -> bytes:
        """Return the line of a step; the last one is drawn as another blueprint."""
        return self.draw_node(obj, self.blueprint_scheme if obj.last else self.node_scheme, attrs)

    def edge(self, a: Any, b: Any, **attrs: Any) -> bytes:
        """Return the line of a requirement."""
        if a.last:
            attrs.update(arrowhead="none", color="darkseagreen3")
        return self.draw_edge(a, b, self.edge_scheme, attrs)


def _short_name(named: Any) -> str:
    return str(named.name).rsplit(".", 1)[-1]


# -- steps -----------------------------------------------------------------


class StepType(type):
    """Gives each step class its name and shows it by that name."""

    name: str
    requires: Any
    last: bool

    def __new__(mcs, name: str, bases: tuple[type, ...], attrs: dict[str, Any]) -> StepType:
        module = attrs.get("__module__")
        if not attrs.get("name"):
            attrs["name"] = f"{module}.{name}" if module else name
        return super().__new__(mcs, name, bases, attrs)

    def __str__(cls) -> str:
        return cls.name

    def __repr__(cls) -> str:
        return f"step:{cls.name}{{{cls.requires!r}}}"


class Step(metaclass=StepType):
    """A part that is made together with its parent.

    ``__init__`` gets the parent and all options of the parent; it may read them
    and set the parent's attributes.
    """

    #: Unique name; module and class name unless given.
    name: ClassVar[Any] = None

    #: Short name for logs and drawings.
    label: str | None = None

    #: Set if it depends on options whether the step is used; shown in drawings.
    conditional: bool = False

    #: Steps of the same blueprint that must start before, as classes or ``"module:name"``.
    requires: Sequence[str | type[Step]] | Any = ()

    #: Set for the one step of a blueprint that starts after all others.
    last: bool = False

    #: What :meth:`include_if` answers by default.
    enabled: bool = True

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        """Prepare for ``parent``; nothing may be opened here."""

    def include_if(self, parent: Any) -> bool:
        """Return whether ``parent`` needs this step."""
        return self.enabled

    def instantiate(self, name: Any, *args: Any, **kwargs: Any) -> Any:
        """Return an object made by a class given by itself or by name."""
        return instantiate(name, *args, **kwargs)

    def include(self, parent: Any) -> bool:
        """Create the step if ``parent`` needs it; return whether it does."""
        return self._should_include(parent)[0]

    def _should_include(self, parent: Any) -> tuple[bool, Any]:
        """Return whether the step is used and, if so, what it created."""
        if not self.include_if(parent):
            return False, None
        return True, self.create(parent)

    def create(self, parent: Any) -> Any:
        """Return the object that does the work, if there is one."""

    def info(self, obj: Any) -> Any:
        """Return what statistics shall show of this step, as a mapping."""

    @property
    def alias(self) -> str:
        """Short name."""
        return self.label or _short_name(self)

    def __repr__(self) -> str:
        return f"<step: {self.alias}>"


class StartStopStep(Step):
    """A step that is started and stopped with its parent.

    Unless the methods are overridden they start and stop the object that
    :meth:`create` returned.
    """

    #: What :meth:`create` returned.
    obj: Any = None

    def start(self, parent: Any) -> Any:
        """Start the object."""
        if self.obj:
            return self.obj.start()

    def stop(self, parent: Any) -> Any:
        """Stop the object."""
        if self.obj:
            return self.obj.stop()

    def close(self, parent: Any) -> Any:
        """Take no new work; called before any step is stopped."""

    def terminate(self, parent: Any) -> Any:
        """Stop the object without waiting, if it can."""
        if self.obj:
            return getattr(self.obj, "terminate", self.obj.stop)()

    def include(self, parent: Any) -> bool:
        """Create the object if it is needed and join the parent's list of steps."""
        needed, self.obj = self._should_include(parent)
        if needed:
            parent.steps.append(self)
        return needed


class ConsumerStep(StartStopStep):
    """A step of the consumer that reads queues of its own."""

    requires = (f"{ROOT}.worker.consumer:Connection",)

    #: The consumers in use.
    consumers: Any = None

    def get_consumers(self, channel: Any) -> Any:
        """Return consumers on ``channel``; each subclass says which."""
        raise NotImplementedError("missing get_consumers: return a list of kombu consumers.")

    def start(self, c: Any) -> None:
        """Open a channel and begin to read."""
        self.consumers = self.get_consumers(c.connection.channel())
        for consumer in self.consumers or ():
            consumer.consume()

    def stop(self, c: Any) -> None:
        """Stop reading and close the channels."""
        self._close(c, cancel_consumers=True)

    def shutdown(self, c: Any) -> None:
        """Close the channels; the broker forgets the consumers by itself."""
        self._close(c, cancel_consumers=False)

    def _close(self, c: Any, cancel_consumers: bool = True) -> None:
        consumers, self.consumers = self.consumers or (), None
        # The connection may be what failed: then there is nobody to tell.
        lost = (
            *getattr(c.connection, "connection_errors", ()),
            *getattr(c.connection, "channel_errors", ()),
        )
        channels = []
        for consumer in consumers:
            if cancel_consumers:
                with suppress(*lost):
                    consumer.cancel()
            if consumer.channel and consumer.channel not in channels:
                channels.append(consumer.channel)
        for channel in channels:
            with suppress(*lost):
                channel.close()


# -- the blueprint ---------------------------------------------------------


class Blueprint:
    """The steps of one parent, their order and their state.

    ``steps`` are foreign steps, ``name`` shows in logs.  ``on_start`` is called
    before the first step starts, ``on_close`` before any is closed,
    ``on_stopped`` when all have stopped.  The parent has a list ``steps``, which
    the steps that are used join in order.
    """

    GraphFormatter = StepFormatter

    name: Any = None
    state: int | None = None

    #: How many steps were started, the one that is starting included.
    started = 0

    #: The steps every such parent has, in the order in which they start.
    default_steps: Iterable[str | type[Step]] = set()

    state_to_name = {0: "initializing", RUN: "running", CLOSE: "closing", TERMINATE: "terminating"}

    def __init__(
        self,
        steps: Iterable[str | type[Step]] | None = None,
        name: str | None = None,
        on_start: Any = None,
        on_close: Any = None,
        on_stopped: Any = None,
    ) -> None:
        self.name = name or self.name or qualname(type(self))
        self.foreign_steps = _in_given_order(steps or ())
        self.types = {*self.foreign_steps, *self.default_steps}
        self.on_start = on_start
        self.on_close = on_close
        self.on_stopped = on_stopped
        self.shutdown_complete = Event()
        self.steps: dict[str, Any] = {}
        self.order: list[Step] = []

    # .. making

    def apply(self, parent: Any, **kwargs: Any) -> Blueprint:
        """Make all steps in order, then let each decide whether ``parent`` needs it.

        The keyword arguments are handed to every step.
        """
        self.steps = self.claim_steps()
        for step_class in boot_order(_in_given_order(self.default_steps), self.foreign_steps):
            step = step_class(parent, **kwargs)
            self.steps[step.name] = step
            self.order.append(step)
        self._debug("Boot order: {%s}", ", ".join(step.alias for step in self.order))
        for step in self.order:
            step.include(parent)
        return self

    def claim_steps(self) -> dict[str, Any]:
        """Return the step classes by name, those that are only required not included."""
        return dict(self.load_step(step) for step in self.types)

    def load_step(self, step: str | type[Step]) -> tuple[str, type[Step]]:
        """Return name and class of a step."""
        step_class = resolve_step(step)
        return step_class.name, step_class

    # .. running

    def start(self, parent: Any) -> None:
        """Start the steps of ``parent`` one after the other."""
        self.state = RUN
        if self.on_start:
            self.on_start()
        for number, step in enumerate((step for step in parent.steps if step is not None), 1):
            self._debug("Starting %s", step.alias)
            self.started = number
            step.start(parent)
            logger.debug("^-- substep ok")

    def close(self, parent: Any) -> None:
        """Tell the steps that were started to take no new work."""
        if self.on_close:
            self.on_close()
        self._tell(self._begun(parent), parent, "close", "closing", propagate=False)

    def _begun(self, parent: Any) -> list[Any]:
        """Return the steps that were started, the one that is starting included."""
        return [step for step in parent.steps if step is not None][: self.started]

    def restart(
        self, parent: Any, method: str = "stop", description: str = "restarting", propagate: bool = False
    ) -> None:
        """Stop the steps in reverse, so that they can be started again."""
        self.send_all(parent, method, description, propagate=propagate)

    def send_all(
        self,
        parent: Any,
        method: str,
        description: str | None = None,
        reverse: bool = True,
        propagate: bool = True,
        args: Sequence[Any] = (),
    ) -> None:
        """Call a method of every step that has it.

        With ``propagate`` an error ends the round; else it is logged, so that
        one step cannot keep the others from stopping.
        """
        self._tell(reversed(parent.steps) if reverse else parent.steps, parent, method, description, propagate, args)

    def _tell(
        self,
        steps: Iterable[Any],
        parent: Any,
        method: str,
        description: str | None,
        propagate: bool,
        args: Sequence[Any] = (),
    ) -> None:
        description = description or method.replace("_", " ")
        for step in steps:
            call = getattr(step, method, None) if step else None
            if call is None:
                continue
            self._debug("%s %s...", description.capitalize(), step.alias)
            try:
                call(parent, *args)
            except Exception as error:
                if propagate:
                    raise
                # The error stands in the line itself: people search for it.
                logger.exception("Error on %s %s: %r", description, step.alias, error)

    def stop(self, parent: Any, close: bool = True, terminate: bool = False) -> None:
        """Close, then stop in reverse what was started; legal early and twice.

        ``terminate`` asks the steps not to wait, ``close=False`` leaves out the
        closing round.
        """
        if self.state in (CLOSE, TERMINATE):
            return
        if self.state == RUN and self.started:
            if close:
                try:
                    self.close(parent)
                except Exception:
                    logger.exception("Error on closing %s; its steps are stopped all the same", self.alias)
            self.state = CLOSE
            method, description = ("terminate", "terminating") if terminate else ("stop", "stopping")
            self._tell(reversed(self._begun(parent)), parent, method, description, propagate=False)
            if self.on_stopped:
                self.on_stopped()
        self.state = TERMINATE
        self.shutdown_complete.set()

    def join(self, timeout: float | None = None) -> None:
        """Wait until everything has stopped, ``timeout`` seconds at most.

        A greenlet that is killed meanwhile has nothing left to wait for.
        """
        greenlet = sys.modules.get("greenlet")
        with suppress(*(() if greenlet is None else (greenlet.GreenletExit,))):
            self.shutdown_complete.wait(timeout=timeout)

    # .. telling

    def human_state(self) -> str:
        """Return the state as a word."""
        return self.state_to_name[self.state or 0]

    def info(self, parent: Any) -> dict[str, Any]:
        """Return what the steps of ``parent`` tell for statistics."""
        merged: dict[str, Any] = {}
        for step in parent.steps:
            merged.update(step.info(parent) or {})
        return merged

    @cached_property
    def graph(self) -> DependencyGraph:
        """Which step requires which, for drawing; the last one requires all."""
        classes = [type(step) for step in self.order]
        last = next((step for step in classes if step.last), None)
        graph = DependencyGraph(
            ((step, required_steps(step)) for step in classes), formatter=self.GraphFormatter(root=last)
        )
        if last is not None:
            for step in classes:
                if step is not last and step not in graph[last]:
                    graph.add_edge(last, step)
        return graph

    def connect_with(self, other: Blueprint) -> None:
        """Add the graph of a blueprint whose parent the last step of this one starts."""
        self.graph.connect(other.graph)
        self.graph.add_edge(type(other.order[0]), type(self.order[-1]))

    def __getitem__(self, name: str) -> Any:
        return self.steps[name]

    @property
    def alias(self) -> str:
        """Short name."""
        return _short_name(self)

    def _debug(self, message: str, *args: Any) -> None:
        logger.debug(f"| {self.alias}: {message}", *args)
