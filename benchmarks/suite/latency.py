"""How long ``delay().get()`` takes with an idle worker."""

from __future__ import annotations

from benchmarks.stage import Place, Side, Stage


def on_redis(side: Side, stage: Stage) -> dict[str, float]:
    """Broker and results on Redis."""
    return latency(side, stage, stage.on_redis())


def on_rabbit(side: Side, stage: Stage) -> dict[str, float]:
    """Broker RabbitMQ, results as messages (``rpc://``)."""
    return latency(side, stage, stage.on_rabbit("rpc://"))


def on_rabbit_with_redis(side: Side, stage: Stage) -> dict[str, float]:
    """Broker RabbitMQ, results on Redis."""
    return latency(side, stage, stage.on_rabbit("redis"))


def on_sqlite(side: Side, stage: Stage) -> dict[str, float]:
    """Broker and results in one file."""
    return latency(side, stage, stage.on_sqlite())


def latency(side: Side, stage: Stage, place: Place) -> dict[str, float]:
    """Median and 99th percentile of single calls, one after the other."""
    with stage.worker(side, place) as worker:
        worker.wait_until_ready(30)
        return stage.client(side, place, "latency", 500)
