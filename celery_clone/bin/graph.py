"""``celery graph``: drawings of the steps of a worker, and of a cluster, in the language of Graphviz.

Called by ``bin.celery``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import click

from celery_clone.app.settings import sanitize_url
from celery_clone.utils.graph import DependencyGraph, GraphFormatter
from celery_clone.utils.suggest import hint

from .base import CeleryCommand, handle_preload_options, handle_remote_command_error

__all__ = ("bootsteps", "graph", "workers")

SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")

PARTS = ("worker", "consumer")

#: Most nodes, and most processes of a node, that are drawn before some are left out; 0 for all.
MOST_WORKERS = 4
MOST_THREADS = 3

WORDS = ("nodes", "threads", "backend", "broker", "wmax", "tmax", "generic", "enumerate")


@click.group()
@click.pass_context
@handle_preload_options
def graph(ctx: click.Context) -> None:
    """Draw graphs of steps and workers, for Graphviz.

    For instance: celery graph bootsteps | dot -Tpng -o steps.png
    """


@graph.command(cls=CeleryCommand, context_settings={"allow_extra_args": True})
@click.pass_context
def bootsteps(ctx: click.Context) -> None:
    """Draw the steps of a worker and which requires which: [worker] [consumer]."""
    wanted = {word.lower() for word in ctx.args} or {*PARTS}
    for word in sorted(wanted - {*PARTS}):
        raise click.UsageError(f"There is no blueprint {word!r}. Say worker, consumer or both.", ctx)
    program = ctx.obj.app.WorkController()
    own, inner = program.blueprint, program.consumer.blueprint
    drawn = own.graph if "worker" in wanted else inner.graph
    if wanted == {*PARTS}:
        drawn.connect(inner.graph)
        drawn.add_edge(type(inner.order[0]), type(own.order[-1]))
    drawn.to_dot(sys.stdout)


class _Node:
    """Something to be drawn."""

    scheme: Mapping[str, Any] = {}

    def __init__(self, label: str) -> None:
        self.label = label


class Broker(_Node):
    """Where tasks come from."""

    scheme = {"shape": "circle", "fillcolor": "cadetblue3", "color": "cadetblue4", "height": 1}


class _Backend(_Node):
    """Where results go to."""

    scheme = {"shape": "folder", "width": 2, "height": 1, "color": "black", "fillcolor": "peachpuff3"}


class _Worker(_Node):
    """A node of the cluster."""


class Thread(_Node):
    """One of the processes or threads of a node; many have the same caption."""

    scheme = {
        "fillcolor": "lightcyan4",
        "fontcolor": "yellow",
        "shape": "oval",
        "fontsize": 10,
        "width": 0.3,
        "color": "black",
    }

    def __init__(self, label: str, caption: str) -> None:
        super().__init__(label)
        self.scheme = {**self.scheme, "label": caption}


class Formatter(GraphFormatter):
    """Draws the nodes of a cluster."""

    def label(self, obj: Any) -> Any:
        """The unique name of a node in the drawing."""
        return obj.label if isinstance(obj, _Node) else obj

    def node(self, obj: Any, **attrs: Any) -> bytes:
        """The line of a worker or of one of its processes."""
        return self.draw_node(obj, {**self.node_scheme, **obj.scheme})

    def terminal_node(self, obj: Any, **attrs: Any) -> bytes:
        """The line of broker or backend, or of a worker without either."""
        return self.draw_node(obj, {**self.term_scheme, **obj.scheme})

    def edge(self, a: Any, b: Any, **attrs: Any) -> bytes:
        """The line between two nodes."""
        if isinstance(a, Thread):
            attrs.update(arrowhead="none", arrowtail="tee")
        return self.draw_edge(a, b, self.edge_scheme, attrs)


def read_words(words: Sequence[str]) -> dict[str, str]:
    """``name:value`` and ``name`` as a dictionary.

    Raises:
        click.UsageError: a name is unknown.
    """
    read = {}
    for word in words:
        name, _, value = word.partition(":")
        if name not in WORDS:
            raise click.UsageError(f"There is no word {name!r}.{hint(name, WORDS)} Known are {', '.join(WORDS)}.")
        read[name] = value
    return read


def abbreviated(labels: Sequence[str], name: str, most: int, numbered: bool) -> list[str]:
    """At most *most* labels, with a mark for those left out, and with the last one kept; 0 for all."""
    shown = [f"{name}{number}".translate(SUBSCRIPTS) for number in range(1, len(labels) + 1)]
    shown = shown if numbered else [*labels]
    if not most or len(shown) <= most:
        return shown
    left_out = str(len(shown) - most + 1).translate(SUBSCRIPTS)
    mark = f"{name[0]}⎨…{left_out}⎬"
    return [mark] if most == 1 else [*shown[: most - 2], mark, shown[-1]]


@graph.command(cls=CeleryCommand, context_settings={"allow_extra_args": True})
@click.pass_context
def workers(ctx: click.Context) -> None:
    """Draw the workers with their broker and backend.

    \b
    Words may follow, in any order:
    nodes:a,b threads:2,2  draw these workers; without them the running ones are asked
    broker:URL backend:URL other addresses than those of the application
    wmax:4 tmax:3          most workers and processes that are drawn; 0 for all
    generic enumerate      leave out addresses and names
    """
    words = read_words(ctx.args)
    app = ctx.obj.app
    counts = _given(words) if "nodes" in words else _asked(app)
    address = partial(_address, generic="generic" in words)
    try:
        broker = Broker(address("Broker", words.get("broker") or app.connection_for_read().as_uri()))
    except Exception as error:  # noqa: BLE001 always ends the command, with the right words
        handle_remote_command_error("graph workers", error)
    store = sanitize_url(words.get("backend", app.conf.result_backend))
    backend = _Backend(address("Backend", store)) if store else None
    draw(counts, broker, backend, words).to_dot(sys.stdout)


def _given(words: Mapping[str, str]) -> dict[str, int]:
    """Workers and their numbers of processes, from the command line."""
    names = words["nodes"].split(",")
    numbers = [number for number in words.get("threads", "").split(",") if number]
    try:
        return {name: int(numbers[at]) if at < len(numbers) else 0 for at, name in enumerate(names)}
    except ValueError as error:
        raise click.UsageError(f"threads: takes numbers, separated by commas: {error}") from error


def _asked(app: Any) -> dict[str, int]:
    """Workers and their numbers of processes, from themselves."""
    try:
        replies = app.control.inspect().stats() or {}
    except Exception as error:  # noqa: BLE001 always ends the command, with the right words
        handle_remote_command_error("graph workers", error)
    return {node: int(reply["pool"]["max-concurrency"]) for node, reply in replies.items()}


def _address(kind: str, url: str, generic: bool) -> str:
    return f"{kind} ({url.split('://')[0]}://)" if generic else url


def _number(words: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(words.get(name, default))
    except ValueError as error:
        raise click.UsageError(f"{name}: takes a number, not {words[name]!r}.") from error


def draw(
    counts: Mapping[str, int], broker: Broker, backend: _Backend | None, words: Mapping[str, str]
) -> DependencyGraph:
    """The graph of a cluster: *counts* maps each worker to its number of processes."""
    numbered = "enumerate" in words
    most_threads = _number(words, "tmax", MOST_THREADS)
    labels = abbreviated([*counts], "Worker", _number(words, "wmax", MOST_WORKERS), numbered)
    numbers = [*counts.values()]
    numbers = [*numbers[: len(labels) - 1], *numbers[-1:]]
    drawing = DependencyGraph(formatter=Formatter())
    stores = [node for node in (broker, backend) if node is not None]
    for node in stores:
        drawing.add_arc(node)
    serial = 0
    for label, number in zip(labels, numbers, strict=True):
        worker = _Worker(label)
        drawing.add_arc(worker)
        for node in stores:
            drawing.add_edge(worker, node)
        for caption in abbreviated([str(index) for index in range(number)], "P", most_threads, numbered):
            serial += 1
            thread = Thread(f"thr-{serial}", caption)
            drawing.add_arc(thread)
            drawing.add_edge(thread, worker)
    return drawing
