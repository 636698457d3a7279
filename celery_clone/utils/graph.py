"""A small graph of dependencies, to be drawn.

Called by ``bootsteps`` and ``bin.graph`` only.  Nothing is decided with it: the
order in which things start is written down where they are listed.
It may not do I/O beyond writing to the file it is given.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import IO, Any

__all__ = ("DOT", "CycleError", "DependencyGraph", "GraphFormatter")


class DOT:
    """Pieces of the language of Graphviz."""

    HEAD = "\n{IN}{type} {id} {{\n{INp}graph [{attrs}]\n"
    ATTR = "{name}={value}"
    NODE = '{INp}"{0}" [{attrs}]'
    EDGE = '{INp}"{0}" {dir} "{1}" [{attrs}]'
    ATTRSEP = ", "
    DIRS = {"graph": "--", "digraph": "->"}
    TAIL = "{IN}}}"


class CycleError(Exception):
    """Things depend on each other in a circle, so none can come first."""


class DependencyGraph:
    """Objects and what each of them depends on.

    Made from pairs ``(object, what it depends on)``; objects must be hashable.
    """

    def __init__(
        self,
        it: Iterable[tuple[Any, Iterable[Any]]] | None = None,
        formatter: GraphFormatter | None = None,
    ) -> None:
        self.formatter = formatter or GraphFormatter()
        self.adjacent: dict[Any, list[Any]] = {}
        if it is not None:
            self.update(it)

    def add_arc(self, obj: Hashable) -> None:
        """Add an object."""
        self.adjacent.setdefault(obj, [])

    def add_edge(self, A: Hashable, B: Hashable) -> None:  # noqa: N803 - Celery's names
        """Say that ``A``, which must be known, depends on ``B``."""
        self[A].append(B)

    def connect(self, graph: DependencyGraph) -> None:
        """Add everything of another graph."""
        self.adjacent.update(graph.adjacent)

    def update(self, it: Iterable[tuple[Any, Iterable[Any]]]) -> None:
        """Add several objects with what they depend on."""
        pairs = list(it)
        for obj, _ in pairs:
            self.add_arc(obj)
        for obj, dependencies in pairs:
            for dependency in dependencies:
                self.add_edge(obj, dependency)

    def topsort(self) -> list[Any]:
        """Return the objects so that each comes after all it depends on.

        What does not matter stays in the order of addition.  Raises
        :exc:`CycleError` if there is no such order and :exc:`KeyError` for a
        dependency that was never added.
        """
        order: list[Any] = []
        done: set[Any] = set()
        for start in self:
            path: dict[Any, Iterator[Any]] = {} if start in done else {start: iter(self[start])}
            while path:
                current = next(reversed(path))
                dependency = next((other for other in path[current] if other not in done), None)
                if dependency is None:
                    del path[current]
                    done.add(current)
                    order.append(current)
                elif dependency in path:
                    circle = " -> ".join(map(str, [*path, dependency]))
                    raise CycleError(f"These depend on each other: {circle}. Remove one of the dependencies.")
                else:
                    path[dependency] = iter(self[dependency])
        return order

    def valency_of(self, obj: Any) -> int:
        """Return how many dependencies lie below an object, its own and theirs."""
        if obj not in self:
            return 0
        return len(self[obj]) + sum(map(self.valency_of, self[obj]))

    def edges(self) -> Iterator[Any]:
        """Yield the objects that depend on something."""
        return (obj for obj, dependencies in self.items() if dependencies)

    def to_dot(self, fh: IO[str], formatter: GraphFormatter | None = None) -> None:
        """Write the graph to ``fh`` in the language of Graphviz."""
        draw = formatter or self.formatter
        drawn: set[Any] = set()

        def write(line: bytes | str) -> None:
            print(line.decode() if isinstance(line, bytes) else line, file=fh)

        write(draw.head())
        for obj, dependencies in self.items():
            label = draw.label(obj)
            if label not in drawn:
                drawn.add(label)
                write(draw.node(obj) if dependencies else draw.terminal_node(obj))
            for dependency in dependencies:
                write(draw.edge(obj, dependency))
        write(draw.tail())

    def format(self, obj: Any) -> Any:
        """Return how the formatter shows an object in drawings."""
        return self.formatter.label(obj)

    def items(self) -> Iterable[tuple[Any, list[Any]]]:
        """Return the objects, each with the list of what it depends on."""
        return self.adjacent.items()

    iteritems = items

    def repr_node(self, obj: Any, level: int = 1, fmt: str = "{0}({1})") -> str:
        """Return an object and all below it as an indented text."""
        lines = [fmt.format(obj, self.valency_of(obj))]
        for other in self.adjacent.get(obj, ()):
            lines.append("     " * level + fmt.format(other, self.valency_of(other)))
            lines.extend(self.repr_node(other, level + 1, fmt).split("\n")[1:])
        return "\n".join(lines)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.adjacent)

    def __getitem__(self, node: Any) -> list[Any]:
        return self.adjacent[node]

    def __len__(self) -> int:
        return len(self.adjacent)

    def __contains__(self, obj: Any) -> bool:
        return obj in self.adjacent

    def __repr__(self) -> str:
        return "\n".join(self.repr_node(node) for node in self)


class GraphFormatter:
    """Says how a graph looks; subclasses change the schemes or :meth:`label`."""

    scheme: dict[str, Any] = {
        "shape": "box",
        "arrowhead": "vee",
        "style": "filled",
        "fontname": "HelveticaNeue",
    }
    edge_scheme: dict[str, Any] = {"color": "darkseagreen4", "arrowcolor": "black", "arrowsize": 0.7}
    node_scheme: dict[str, Any] = {"fillcolor": "palegreen3", "color": "palegreen4"}
    term_scheme: dict[str, Any] = {"fillcolor": "palegreen1", "color": "palegreen2"}
    graph_scheme: dict[str, Any] = {"bgcolor": "mintcream"}

    def __init__(
        self,
        root: Any = None,
        type: str | None = None,
        id: str | None = None,
        indent: int = 0,
        inw: str = "    ",
        **scheme: Any,
    ) -> None:
        self.id = id or "dependencies"
        self.root = root
        self.type = type or "digraph"
        self.direction = DOT.DIRS[self.type]
        self.IN = inw * (indent or 0)
        self.INp = self.IN + inw
        self.scheme = {**self.scheme, **scheme}
        self.graph_scheme = {**self.graph_scheme, "root": self.label(self.root)}

    def attr(self, name: str, value: Any) -> bytes:
        """Return one property of a node or an edge."""
        return self.FMT(DOT.ATTR, name=name, value=f'"{value}"')

    def attrs(self, d: dict[str, Any] | None, scheme: dict[str, Any] | None = None) -> str:
        """Return the properties ``d`` on top of those of ``scheme`` and of all."""
        merged = {**self.scheme, **(scheme or {}), **(d or {})}
        return DOT.ATTRSEP.join(self.attr(name, value).decode() for name, value in merged.items())

    def head(self, **attrs: Any) -> bytes:
        """Return the first lines of a drawing."""
        return self.FMT(DOT.HEAD.strip(), id=self.id, type=self.type, attrs=self.attrs(attrs, self.graph_scheme))

    def tail(self) -> bytes:
        """Return the last line of a drawing."""
        return self.FMT(DOT.TAIL)

    def label(self, obj: Any) -> Any:
        """Return what is written into the node of an object."""
        return obj

    def node(self, obj: Any, **attrs: Any) -> bytes:
        """Return the line of an object that depends on something."""
        return self.draw_node(obj, self.node_scheme, attrs)

    def terminal_node(self, obj: Any, **attrs: Any) -> bytes:
        """Return the line of an object that depends on nothing."""
        return self.draw_node(obj, self.term_scheme, attrs)

    def edge(self, a: Any, b: Any, **attrs: Any) -> bytes:
        """Return the line saying that ``a`` depends on ``b``."""
        return self.draw_edge(a, b, **attrs)

    def FMT(self, fmt: str, *args: Any, **kwargs: Any) -> bytes:  # noqa: N802 - Celery's name
        """Return a piece of :class:`DOT` filled in, with the indentation of this drawing."""
        return fmt.format(*args, **kwargs, IN=self.IN, INp=self.INp).encode("utf-8", "ignore")

    def draw_edge(
        self, a: Any, b: Any, scheme: dict[str, Any] | None = None, attrs: dict[str, Any] | None = None
    ) -> bytes:
        """Return the line of an edge; ``scheme`` replaces the one of edges."""
        return self.FMT(
            DOT.EDGE,
            self.label(a),
            self.label(b),
            dir=self.direction,
            attrs=self.attrs(attrs, scheme or self.edge_scheme),
        )

    def draw_node(self, obj: Any, scheme: dict[str, Any] | None = None, attrs: dict[str, Any] | None = None) -> bytes:
        """Return the line of a node."""
        return self.FMT(DOT.NODE, self.label(obj), attrs=self.attrs(attrs, scheme))
