"""How fast workflows are built, published and run, on Redis.

The sizes are for ``BENCH_TASKS`` as it comes; other values change them in proportion.
"""

from __future__ import annotations

from benchmarks.stage import Side, Stage


def group(side: Side, stage: Stage) -> dict[str, float]:
    """A group of 2,500, from publishing to the last result."""
    return with_worker(side, stage, "group", 2500)


def chord(side: Side, stage: Stage) -> dict[str, float]:
    """A chord of 1,000 with a body."""
    return with_worker(side, stage, "chord", 1000)


def chain(side: Side, stage: Stage) -> dict[str, float]:
    """Chains of 100 steps."""
    return with_worker(side, stage, "chain", 100)


def publish(side: Side, stage: Stage) -> dict[str, float]:
    """Publishing a group of 10,000, with no worker about."""
    return stage.client(side, stage.on_redis(), "group_publish", stage.scaled(10_000))


def build(side: Side, stage: Stage) -> dict[str, float]:
    """Building, freezing and writing a chord of 10,000, and of 20,000; neither is sent."""
    return stage.client(side, stage.on_redis(), "build", stage.scaled(10_000))


def with_worker(side: Side, stage: Stage, action: str, size: int) -> dict[str, float]:
    """Run one action of ``project/workflows.py`` against a worker that is ready."""
    place = stage.on_redis()
    with stage.worker(side, place) as worker:
        worker.wait_until_ready(30)
        return stage.client(side, place, action, stage.scaled(size))
