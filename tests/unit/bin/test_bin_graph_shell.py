"""Drawings, and the prompt."""

from __future__ import annotations

import sys

import pytest
from click.testing import CliRunner

import celery_clone.bin.shell as prompt
from celery_clone import Celery, _state, canvas
from celery_clone.bin.base import CLIContext
from celery_clone.bin.graph import abbreviated, graph
from celery_clone.bin.shell import Shell, shell


@pytest.fixture
def app(monkeypatch):
    monkeypatch.setattr(_state, "_task_join_will_block", False)
    app = Celery("drawn", broker="amqp://user:word@host//", set_as_current=False)

    @app.task(name="drawn.add", shared=False)
    def add(x, y):
        return x + y

    return app


@pytest.fixture
def run(app):
    def run(command, *words, **kwargs):
        context = CLIContext(app, no_color=True, workdir=None)
        return CliRunner().invoke(command, words, obj=context, **kwargs)

    return run


def edges(text):
    """The arrows of a drawing, as (from, to)."""
    arrows = [line.split('"') for line in text.splitlines() if " -> " in line]
    return {(arrow[1], arrow[3]) for arrow in arrows}


# -- the cluster


def test_workers_are_drawn_between_broker_and_backend_with_their_processes(run):
    text = run(graph, "workers", "nodes:w1,w2", "threads:2,1", "backend:redis://:word@store").output
    assert edges(text) == {
        ("w1", "amqp://user:**@host:5672//"),
        ("w1", "redis://:********@store"),
        ("w2", "amqp://user:**@host:5672//"),
        ("w2", "redis://:********@store"),
        ("thr-1", "w1"),
        ("thr-2", "w1"),
        ("thr-3", "w2"),
    }
    assert "word" not in text
    assert text.startswith("digraph dependencies {")
    assert text.rstrip().endswith("}")


def test_addresses_and_names_can_be_left_out(run):
    text = run(graph, "workers", "nodes:w1,w2", "backend:redis://x", "generic", "enumerate").output
    assert edges(text) == {
        ("Worker₁", "Broker (amqp://)"),
        ("Worker₁", "Backend (redis://)"),
        ("Worker₂", "Broker (amqp://)"),
        ("Worker₂", "Backend (redis://)"),
    }


def test_running_workers_are_asked_without_names(run, app):
    class Workers:
        def inspect(self):
            return self

        def stats(self):
            return {"w1@h": {"pool": {"max-concurrency": 2}}}

    app.control = Workers()
    assert edges(run(graph, "workers", "broker:memory://").output) == {
        ("w1@h", "memory://"),
        ("thr-1", "w1@h"),
        ("thr-2", "w1@h"),
    }


def test_a_broker_that_is_away_ends_with_69(run, app):
    class Workers:
        def inspect(self):
            raise OSError("down")

    app.control = Workers()
    given = run(graph, "workers")
    assert given.exit_code == 69
    assert "Unable to run the `graph workers` command. Reason: down" in given.output


@pytest.mark.parametrize(
    ("most", "numbered", "expected"),
    [
        (0, False, ["a", "b", "c", "d", "e"]),
        (5, False, ["a", "b", "c", "d", "e"]),
        (4, False, ["a", "b", "W⎨…₂⎬", "e"]),
        (4, True, ["Worker₁", "Worker₂", "W⎨…₂⎬", "Worker₅"]),
        (1, False, ["W⎨…₅⎬"]),
    ],
)
def test_of_many_some_are_left_out_with_a_mark(most, numbered, expected):
    assert abbreviated(["a", "b", "c", "d", "e"], "Worker", most, numbered) == expected


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("workers", "node:w1"), "There is no word 'node'. Did you mean 'nodes'?"),
        (("workers", "nodes:w1", "threads:many"), "threads: takes numbers"),
        (("workers", "nodes:w1", "wmax:many"), "wmax: takes a number, not 'many'"),
        (("bootsteps", "beat"), "There is no blueprint 'beat'"),
    ],
)
def test_wrong_words_end_with_2(run, words, text):
    given = run(graph, *words)
    assert given.exit_code == 2
    assert text in given.output


# -- the steps


@pytest.mark.parametrize(
    ("words", "there", "absent"),
    [
        ((), ["⧉Consumer", "⧉event loop", "Pool", "Tasks"], []),
        (("worker",), ["⧉Consumer", "Pool"], ["⧉event loop", "Tasks"]),
        (("consumer",), ["⧉event loop", "Tasks"], ["⧉Consumer", "Pool"]),
    ],
    ids=["both", "the worker's", "the consumer's"],
)
def test_the_steps_are_drawn(run, app, words, there, absent):
    app.conf.broker_url = "memory://"
    given = run(graph, "bootsteps", *words)
    assert given.exit_code == 0, given.output
    assert all(f'    "{name}" [' in given.output for name in there)
    assert not any(f'    "{name}" [' in given.output for name in absent)


# -- the prompt


@pytest.fixture
def symbols(monkeypatch):
    """What a prompt is given; ``bpython`` is not installed."""
    given = {}
    monkeypatch.setattr(sys, "path", [*sys.path])
    shells = {
        "ipython": Shell(lambda symbols: given.update(symbols, shell="ipython"), "json"),
        "bpython": Shell(lambda symbols: given.update(symbols, shell="bpython"), "nosuchmodule"),
        "python": Shell(lambda symbols: given.update(symbols, shell="python")),
    }
    monkeypatch.setattr(prompt, "SHELLS", shells)
    return given


def test_the_app_its_tasks_and_the_canvas_are_at_hand(app, run, symbols):
    assert run(shell).exit_code == 0
    assert symbols["app"] is symbols["celery"] is app
    assert symbols["add"].name == "drawn.add"
    assert symbols["chord"] is canvas.chord
    assert symbols["Task"].__name__ == "Task"
    assert "backend_cleanup" not in symbols


def test_tasks_can_be_left_out(run, symbols):
    run(shell, "-T")
    assert "add" not in symbols
    assert "group" in symbols


@pytest.mark.parametrize(
    ("words", "shown"), [((), "ipython"), (("-I",), "ipython"), (("--python",), "python")], ids=str
)
def test_the_best_prompt_is_used_unless_another_is_asked_for(run, symbols, words, shown):
    run(shell, *words)
    assert symbols["shell"] == shown


def test_pythons_own_prompt_is_used_where_there_is_no_other(run, symbols, monkeypatch):
    monkeypatch.setitem(prompt.SHELLS, "ipython", Shell(symbols.update, "nosuchmodule"))
    run(shell)
    assert symbols["shell"] == "python"


@pytest.mark.parametrize(("word", "name"), [("-B", "bpython"), ("--gevent", "gevent"), ("--eventlet", "eventlet")])
def test_what_is_not_installed_ends_with_2(run, symbols, monkeypatch, word, name):
    for module in ("gevent", "gevent.monkey", "eventlet"):
        monkeypatch.setitem(sys.modules, module, None)
    given = run(shell, word)
    assert given.exit_code == 2
    assert f"--{name} needs the package {name}" in given.output
    assert not symbols


def test_pythons_own_prompt_reads_lines(run, symbols, monkeypatch):
    monkeypatch.setitem(prompt.SHELLS, "python", Shell(prompt._python))
    given = run(shell, "--python", input="print(app.main * 2)\n")
    assert "drawndrawn" in given.output
