"""The producer's side of the benchmarks of workflows; ``client.py`` runs these as actions.

Each takes the module ``bench_app`` of the side that is measured, and a size.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from kombu.serialization import dumps

TIMEOUT_S = 300
CHAINS = 4
BUILDS = 3


def canvas() -> Any:
    """``group``, ``chain`` and ``chord`` of the side that is measured."""
    return importlib.import_module(os.environ["BENCH_PACKAGE"])


def warm_up(bench: ModuleType) -> None:
    """Open the connections of client and worker, and fork what is forked."""
    for _ in range(20):
        bench.add.delay(1, 1).get(timeout=30)


def group(bench: ModuleType, count: int) -> dict[str, float]:
    """From the first member of a group that is published to the last result that is read."""
    warm_up(bench)
    add = bench.add
    began = time.perf_counter()
    answers = canvas().group(add.s(number, 1) for number in range(count))().get(timeout=TIMEOUT_S)
    took = time.perf_counter() - began
    assert answers == [number + 1 for number in range(count)]
    return {"per_second": count / took}


def group_publish(bench: ModuleType, count: int) -> dict[str, float]:
    """Build and send a group; nobody runs it."""
    add = bench.add
    add.delay(1, 1)
    began, before = time.perf_counter(), os.times()
    canvas().group(add.s(number, 1) for number in range(count))()
    took, after = time.perf_counter() - began, os.times()
    cpu_s = after.user + after.system - before.user - before.system
    return {"per_second": count / took, "cpu_ms": cpu_s * 1000 / count}


def chord(bench: ModuleType, count: int) -> dict[str, float]:
    """From the building of a chord to the result of its body; counted by the members of the header."""
    warm_up(bench)
    add = bench.add
    began = time.perf_counter()
    answer = canvas().chord([add.s(number, 1) for number in range(count)], bench.total.s())().get(timeout=TIMEOUT_S)
    took = time.perf_counter() - began
    assert answer == sum(range(count)) + count
    return {"per_second": count / took}


def chain(bench: ModuleType, count: int) -> dict[str, float]:
    """A few chains one after the other, from building to the last result: steps a second."""
    warm_up(bench)
    add = bench.add
    began = time.perf_counter()
    for _ in range(CHAINS):
        steps = canvas().chain(add.s(0, 1), *(add.s(1) for _ in range(count - 1)))
        assert steps().get(timeout=TIMEOUT_S) == count
    return {"per_second": count * CHAINS / (time.perf_counter() - began)}


def build(bench: ModuleType, count: int) -> dict[str, float]:
    """Build a chord, give its tasks their ids and write it as JSON; of twice the size, how many times as long.

    The best of a few, in turn.
    """
    small = large = float("inf")
    build_once(bench, count // 10)
    for _ in range(BUILDS):
        small = min(small, build_once(bench, count))
        large = min(large, build_once(bench, 2 * count))
    return {"ms": small * 1000, "doubled": large / small}


def build_once(bench: ModuleType, count: int) -> float:
    """Seconds for a chord of this size."""
    add = bench.add
    began = time.perf_counter()
    made = canvas().chord([add.s(number, 1) for number in range(count)], bench.total.s())
    made.freeze()
    dumps(made, serializer="json")
    return time.perf_counter() - began


ACTIONS: dict[str, Callable[[ModuleType, int], dict[str, float]]] = {
    action.__name__: action for action in (group, group_publish, chord, chain, build)
}
