"""How fast one producer publishes, one call after the other."""

from __future__ import annotations

from benchmarks.stage import Side, Stage


def on_redis(side: Side, stage: Stage) -> dict[str, float]:
    """``delay()`` on Redis."""
    return stage.client(side, stage.on_redis(), "publish", stage.tasks)


def on_rabbit(side: Side, stage: Stage) -> dict[str, float]:
    """``delay()`` on RabbitMQ, each side with its defaults (ours waits for the broker's confirmation)."""
    return stage.client(side, stage.on_rabbit(), "publish", stage.tasks)


def on_sqlite(side: Side, stage: Stage) -> dict[str, float]:
    """``delay()`` on the embedded broker."""
    return stage.client(side, stage.on_sqlite(), "publish", stage.tasks)
