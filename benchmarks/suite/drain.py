"""How fast a worker empties a queue that was filled before it started.

The tasks append one byte each to a file. Producer and worker never run at the same time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from benchmarks.stage import Place, Side, Stage
from tests.support.celery_env import needs
from tests.support.processes import cpu_seconds
from tests.support.wait import wait_until

DRAIN_TIMEOUT_S = 300.0
LOOK_EVERY_S = 0.002


def on_redis(side: Side, stage: Stage) -> dict[str, float]:
    """Broker and results on Redis."""
    return drain(side, stage, stage.on_redis())


def on_rabbit(side: Side, stage: Stage) -> dict[str, float]:
    """Broker RabbitMQ, results on Redis: the usual pair."""
    return drain(side, stage, stage.on_rabbit("redis"))


def on_rabbit_without_results(side: Side, stage: Stage) -> dict[str, float]:
    """Broker RabbitMQ, results switched off: the broker alone."""
    return drain(side, stage, stage.on_rabbit("", task_ignore_result=True))


def with_events(side: Side, stage: Stage) -> dict[str, float]:
    """As on_redis, with an event for each change of state."""
    return drain(side, stage, stage.on_redis(), ("-c", "2", "-E"))


def with_late_acks(side: Side, stage: Stage) -> dict[str, float]:
    """As on_redis, acknowledged after the run."""
    return drain(side, stage, stage.on_redis(task_acks_late=True))


def with_time_limits(side: Side, stage: Stage) -> dict[str, float]:
    """As on_redis, with limits that no task comes near."""
    return drain(side, stage, stage.on_redis(task_time_limit=300, task_soft_time_limit=290))


def with_rate_limit(side: Side, stage: Stage) -> dict[str, float]:
    """As on_redis, with a rate that holds nobody up."""
    return drain(side, stage, stage.on_redis(task_annotations={"bench.mark": {"rate_limit": "1000000/s"}}))


def on_sqlite(side: Side, stage: Stage) -> dict[str, float]:
    """Broker and results in one file."""
    return drain(side, stage, stage.on_sqlite())


def on_redis_with_threads(side: Side, stage: Stage) -> dict[str, float]:
    """As on_redis, in the pool of threads."""
    return drain(side, stage, stage.on_redis(), ("-P", "threads", "-c", "10"))


def on_redis_with_gevent(side: Side, stage: Stage) -> dict[str, float]:
    """As on_redis, in the pool of greenlets."""
    needs(side.python, "gevent")
    return drain(side, stage, stage.on_redis(), ("-P", "gevent", "-c", "100"))


def on_redis_with_asyncio(side: Side, stage: Stage) -> dict[str, float]:
    """As on_redis, in the pool of asyncio; the task is an ``async def``."""
    return drain(side, stage, stage.on_redis(), ("-P", "asyncio", "-c", "100"), "prefill_async")


def drain(
    side: Side, stage: Stage, place: Place, options: Sequence[str] = ("-c", "2"), action: str = "prefill"
) -> dict[str, float]:
    """From the first byte to the last: tasks a second, and processor time of the worker and its children."""
    stage.client(side, place, action, stage.tasks)
    with stage.worker(side, place, options) as worker:

        def done() -> int:
            assert worker.exit_code is None, f"{side.name}: the worker ended:\n{worker.log()}"
            return place.marks.stat().st_size

        def describe() -> str:
            return f"{side.name} to run {stage.tasks} tasks; ran {done()}; log:\n{worker.log()[-3000:]}"

        at_first = wait_until(done, 60, describe, every=LOOK_EVERY_S)
        began, cpu_before_s = time.perf_counter(), cpu_seconds(worker.tree())
        wait_until(lambda: done() >= stage.tasks, DRAIN_TIMEOUT_S, describe, every=LOOK_EVERY_S)
        took_s, cpu_s = time.perf_counter() - began, cpu_seconds(worker.tree()) - cpu_before_s
        assert place.marks.stat().st_size == stage.tasks, f"{side.name} ran more tasks than were sent"
    counted = stage.tasks - at_first
    return {"per_second": counted / took_s, "cpu_ms": cpu_s * 1000 / counted}
