"""The graph that is drawn."""

from __future__ import annotations

import io

import pytest

from celery_clone.utils.graph import CycleError, DependencyGraph, GraphFormatter

BREAKFAST = [("coffee", ["water", "beans"]), ("water", []), ("beans", ["mill"]), ("mill", [])]


def test_everything_comes_after_what_it_depends_on():
    assert DependencyGraph(BREAKFAST).topsort() == ["water", "mill", "beans", "coffee"]


def test_what_does_not_matter_keeps_its_order():
    assert DependencyGraph([(letter, []) for letter in "dbca"]).topsort() == list("dbca")


def test_a_circle_is_named():
    graph = DependencyGraph([("hen", ["egg"]), ("egg", ["hen"])])
    with pytest.raises(CycleError, match="hen -> egg -> hen"):
        graph.topsort()


def test_an_unknown_dependency_is_an_error():
    with pytest.raises(KeyError, match="sugar"):
        DependencyGraph([("coffee", ["sugar"])]).topsort()


def test_a_long_line_of_dependencies_needs_no_stack():
    graph = DependencyGraph([(number, [number + 1] if number < 5000 else []) for number in range(5001)])
    assert graph.topsort()[0] == 5000


def test_a_graph_is_a_collection_of_its_objects():
    graph = DependencyGraph(BREAKFAST)
    assert len(graph) == 4
    assert "water" in graph
    assert "tea" not in graph
    assert graph["beans"] == ["mill"]
    assert list(graph.edges()) == ["coffee", "beans"]
    assert dict(graph.items()) == dict(graph.iteritems()) == dict(BREAKFAST)
    assert graph.valency_of("coffee") == 3
    assert graph.valency_of("tea") == 0
    assert graph.format("tea") == "tea"


def test_graphs_can_be_joined():
    graph = DependencyGraph(BREAKFAST)
    graph.connect(DependencyGraph([("bread", [])]))
    graph.add_arc("table")
    graph.add_edge("table", "bread")
    assert graph.topsort()[-2:] == ["bread", "table"]


def test_a_graph_reads_as_a_tree():
    graph = DependencyGraph(BREAKFAST)
    assert graph.repr_node("coffee").splitlines() == [
        "coffee(3)",
        "     water(0)",
        "     beans(1)",
        "          mill(0)",
    ]
    assert repr(graph).startswith("coffee(3)\n")


def test_a_graph_is_drawn_once_for_each_object():
    out = io.StringIO()
    DependencyGraph(BREAKFAST, GraphFormatter(root="coffee", id="morning")).to_dot(out)
    lines = out.getvalue().splitlines()
    assert lines[0] == "digraph morning {"
    assert 'root="coffee"' in lines[1]
    assert lines[-1] == "}"
    assert sum('"beans" [' in line and "->" not in line for line in lines) == 1
    assert any('"coffee" -> "water"' in line for line in lines)
    assert any('"water" [' in line and "palegreen1" in line for line in lines)


def test_edges_take_a_scheme_of_their_own():
    text = GraphFormatter(type="graph", indent=1).draw_edge("a", "b", {"color": "red"}, {"style": "bold"})
    assert text.startswith(b'        "a" -- "b" [')
    assert b'color="red"' in text
    assert b'style="bold"' in text
