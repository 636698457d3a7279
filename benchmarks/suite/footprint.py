"""What a worker costs before it has done anything: time to start, memory, idle processor time."""

from __future__ import annotations

import time

from benchmarks.stage import Place, Side, Stage
from tests.support.processes import cpu_seconds, pss_bytes

SETTLE_S = 1.5
IDLE_S = 5.0
IMPORTS = 5


def imports(side: Side, stage: Stage) -> dict[str, float]:
    """``import`` and ``Celery()``, the best of a few fresh interpreters with warm files."""
    place = stage.on_redis()
    return {"ms": min(stage.client(side, place, "imports", 1)["ms"] for _ in range(IMPORTS))}


def worker_on_redis(side: Side, stage: Stage) -> dict[str, float]:
    """A ``-c 2`` worker on Redis: seconds until ready, memory of its tree, idle processor time."""
    return footprint(side, stage, stage.on_redis())


def worker_on_sqlite(side: Side, stage: Stage) -> dict[str, float]:
    """The same on the embedded broker."""
    return footprint(side, stage, stage.on_sqlite())


def footprint(side: Side, stage: Stage, place: Place) -> dict[str, float]:
    """Start a worker, let it settle, look at it, leave it alone for a while, and look again."""
    began = time.perf_counter()
    with stage.worker(side, place) as worker:
        worker.wait_until_ready(30)
        ready_s = time.perf_counter() - began
        time.sleep(SETTLE_S)
        tree = worker.tree()
        memory_mb = pss_bytes(tree) / 1e6
        before_s, looked = cpu_seconds(tree), time.perf_counter()
        time.sleep(IDLE_S)
        idle_share = (cpu_seconds(worker.tree()) - before_s) / (time.perf_counter() - looked)
    return {"ready_s": ready_s, "pss_mb": memory_mb, "idle_percent": idle_share * 100, "processes": len(tree)}
