"""The producer's side of the benchmarks: ``python client.py ACTION COUNT`` prints its measurements as JSON.

Started by the suite with the interpreter of the side that is measured.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from types import ModuleType

import workflows


def publish(bench: ModuleType, count: int) -> dict[str, float]:
    """Send *count* calls one by one, after a few that open the connection."""
    mark = bench.mark
    for _ in range(20):
        mark.delay()
    began, before = time.perf_counter(), os.times()
    for _ in range(count):
        mark.delay()
    took, after = time.perf_counter() - began, os.times()
    cpu_s = after.user + after.system - before.user - before.system
    return {"per_second": count / took, "cpu_ms": cpu_s * 1000 / count}


def prefill(bench: ModuleType, count: int) -> dict[str, float]:
    """Send exactly *count* calls."""
    for _ in range(count):
        bench.mark.delay()
    return {}


def prefill_async(bench: ModuleType, count: int) -> dict[str, float]:
    """As prefill, of the task that is an ``async def``."""
    for _ in range(count):
        bench.mark_async.delay()
    return {}


def sleepers(bench: ModuleType, count: int) -> dict[str, float]:
    """Send *count* calls that sleep for a second, and collect every answer."""
    bench.sleep.delay(0).get(timeout=30)
    began = time.perf_counter()
    for result in [bench.sleep.delay(1) for _ in range(count)]:
        result.get(timeout=60)
    return {"seconds": time.perf_counter() - began}


def latency(bench: ModuleType, count: int) -> dict[str, float]:
    """Call and wait for the answer, *count* times, one after the other."""
    add = bench.add
    for _ in range(50):
        add.delay(1, 1).get(timeout=30)
    times = []
    for number in range(count):
        began = time.perf_counter()
        answer = add.delay(number, 1).get(timeout=30)
        times.append(time.perf_counter() - began)
        assert answer == number + 1
    times.sort()
    return {"p50_ms": times[count // 2] * 1000, "p99_ms": times[int(count * 0.99)] * 1000}


def results(bench: ModuleType, count: int) -> dict[str, float]:
    """Send *count* calls, then collect every answer."""
    add = bench.add
    for _ in range(20):
        add.delay(1, 1).get(timeout=30)
    began = time.perf_counter()
    pending = [add.delay(number, 1) for number in range(count)]
    answers = [result.get(timeout=60) for result in pending]
    took = time.perf_counter() - began
    assert answers == [number + 1 for number in range(count)]
    return {"per_second": count / took}


def imports() -> dict[str, float]:
    """Import the package and make an application."""
    name = os.environ["BENCH_PACKAGE"]
    began = time.perf_counter()
    importlib.import_module(name).Celery()
    return {"ms": (time.perf_counter() - began) * 1000}


ACTIONS: dict[str, Callable[[ModuleType, int], dict[str, float]]] = {
    **{action.__name__: action for action in (publish, prefill, prefill_async, sleepers, latency, results)},
    **workflows.ACTIONS,
}


def main(action: str, count: int) -> None:
    """Measure and print."""
    if action == "imports":
        measured = imports()
    else:
        measured = ACTIONS[action](importlib.import_module("bench_app"), count)
    print(json.dumps(measured), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
    # Both sides alike: what is measured ends here, not with the closing of connections.
    os._exit(0)
