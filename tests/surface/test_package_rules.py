"""Rules of the house that no linter knows."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "celery_clone"
MODULES = sorted(PACKAGE.rglob("*.py"))

# A class name means one thing in the whole package. These stand twice, because others look for them there.
PUBLIC_TWICE = {
    "Beat": "the beat program, and the worker's step that embeds it",
    "Consumer": "the consumer of a worker, and the worker's step that owns it",
    "Control": "app.control, and the consumer's step that listens to it",
    "Events": "app.events, and the consumer's step that sends them",
    "Heart": "the heartbeat, and the consumer's step that owns it",
    "Held": "what remote control shows of a waiting task, and what a source holds under a lease",
    "Kind": "of a packet to a child, and of a signature: neither leaves its module",
    "Phase": "of a task on its way, and of a worker on its way out",
    "Pool": "the Protocol, and the worker's step that owns the pool",
    "QoS": "kombu calls it so in every transport",
    "Returned": "a plain call that ended, and a message that RabbitMQ gave back",
    "ResultConsumer": "every backend that is told of results calls it so",
    "State": "what a monitor knows of the cluster, and how far a migration is",
    "Service": "beat's public class, and the Protocol of what is started and stopped",
    "Task": "the task, and what a monitor knows of a call",
    "TaskPool": "every pool module's public class is called so",
    "Worker": "the worker program, and what a monitor knows of a worker",
    "Timer": "the timer, and the worker's step that owns it",
}

# Modules that only pass names on: they exist because others import from these addresses.
FACADES = {"backends/base.py", "concurrency/asynpool.py"}


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_says_what_it_is(path: Path) -> None:
    text = ast.get_docstring(parsed(path))
    assert text, f"{name_of(path)} has no docstring"
    assert text.split("\n\n")[0].rstrip().endswith((".", ":")), f"{name_of(path)}: the first line is no sentence"


def test_a_class_name_stands_for_one_class() -> None:
    where: dict[str, list[str]] = defaultdict(list)
    for path in MODULES:
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                where[node.name].append(name_of(path))
    twice = {name: paths for name, paths in where.items() if len(paths) > 1 and name not in PUBLIC_TWICE}
    assert not twice, "give one of each another name (private ones begin with an underscore)"
    assert set(PUBLIC_TWICE) <= {name for name, paths in where.items() if len(paths) > 1}, "no longer double"


def test_only_the_known_facades_pass_names_on() -> None:
    def passes_on(path: Path) -> bool:
        body = parsed(path).body[1:]
        imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
        defines = [
            node
            for node in ast.walk(parsed(path))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        ]
        return len(imports) > 1 and not defines and len(body) <= len(imports) + 1

    found = {name_of(path) for path in MODULES if path.name != "__init__.py" and passes_on(path)}
    assert found <= FACADES


def test_nothing_with_a_lifetime_is_a_cached_property() -> None:
    """A connection, a pool or a thread has an owner with start and stop; a cached property has neither."""
    begins = {"connect", "open", "start"}
    found = []
    for path in MODULES:
        for node in ast.walk(parsed(path)):
            if not isinstance(node, ast.FunctionDef):
                continue
            names = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
            if "cached_property" not in names:
                continue
            calls = {
                call.func.attr
                for call in ast.walk(node)
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
            }
            if calls & begins:
                found.append(f"{name_of(path)}:{node.lineno} {node.name} calls {calls & begins}")
    assert not found
