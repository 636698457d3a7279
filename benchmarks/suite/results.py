"""How fast many results come back."""

from __future__ import annotations

from benchmarks.stage import Side, Stage

CALLS = 2000


def on_redis(side: Side, stage: Stage) -> dict[str, float]:
    """2,000 ``delay()``, then every result, on Redis."""
    place = stage.on_redis()
    with stage.worker(side, place) as worker:
        worker.wait_until_ready(30)
        return stage.client(side, place, "results", CALLS)
