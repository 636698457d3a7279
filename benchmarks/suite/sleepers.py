"""How long many tasks take that only wait: each an ``async def`` that sleeps for a second, on one process."""

from __future__ import annotations

from benchmarks.stage import Place, Side, Stage


def on_redis(side: Side, stage: Stage) -> dict[str, float]:
    """Broker and results on Redis."""
    return sleep(side, stage, stage.on_redis())


def on_sqlite(side: Side, stage: Stage) -> dict[str, float]:
    """Broker and results in one file."""
    return sleep(side, stage, stage.on_sqlite())


def sleep(side: Side, stage: Stage, place: Place) -> dict[str, float]:
    """Seconds from the first call to the last result."""
    count = stage.scaled(1000)
    with stage.worker(side, place, ("-P", "asyncio", "-c", str(count))):
        return stage.client(side, place, "sleepers", count)
