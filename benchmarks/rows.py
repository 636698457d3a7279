"""The table: which figure of which benchmark stands in which row, and the floor it has to reach.

Read by ``report``. A floor compares our median with Celery's of the same run, or with a plain number.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Kind(enum.Enum):
    """How a floor is meant."""

    TIMES_AT_LEAST = ">= {:g} x Celery"
    TIMES_AT_MOST = "<= {:.3g} x Celery"
    AT_MOST = "<= {:g}"


@dataclass(frozen=True)
class Floor:
    """What our median has to reach."""

    kind: Kind
    value: float

    def __str__(self) -> str:
        return self.kind.value.format(self.value)

    def reached(self, ours: float, theirs: float | None) -> bool | None:
        """Whether *ours* reaches the floor; None when there is nothing to compare with."""
        if self.kind is Kind.AT_MOST:
            return ours <= self.value
        if not theirs:
            return None
        if self.kind is Kind.TIMES_AT_LEAST:
            return ours / theirs >= self.value
        return ours / theirs <= self.value


@dataclass(frozen=True)
class Row:
    """One figure. *against* names the benchmark whose Celery figure is compared, if it is another one."""

    label: str
    benchmark: str
    metric: str
    unit: str
    floor: Floor | None = None
    against: str | None = None


def at_least(times: float) -> Floor:
    return Floor(Kind.TIMES_AT_LEAST, times)


def at_most_times(times: float) -> Floor:
    return Floor(Kind.TIMES_AT_MOST, times)


def at_most(value: float) -> Floor:
    return Floor(Kind.AT_MOST, value)


ROWS = (
    Row("drain, Redis", "drain-redis", "per_second", "tasks/s", at_least(8)),
    Row("  worker CPU a task", "drain-redis", "cpu_ms", "ms"),
    Row("  with events (-E)", "drain-events", "per_second", "tasks/s"),
    Row("    worker CPU a task", "drain-events", "cpu_ms", "ms"),
    Row("  with late acknowledgement", "drain-late-acks", "per_second", "tasks/s"),
    Row("    worker CPU a task", "drain-late-acks", "cpu_ms", "ms"),
    Row("  with soft and hard time limits", "drain-time-limits", "per_second", "tasks/s"),
    Row("    worker CPU a task", "drain-time-limits", "cpu_ms", "ms"),
    Row("  with a rate limit that holds nobody up", "drain-rate-limit", "per_second", "tasks/s"),
    Row("    worker CPU a task", "drain-rate-limit", "cpu_ms", "ms"),
    Row("drain, RabbitMQ, results on Redis", "drain-rabbit", "per_second", "tasks/s", at_least(4)),
    Row("  worker CPU a task", "drain-rabbit", "cpu_ms", "ms"),
    Row("drain, RabbitMQ, no results", "drain-rabbit-no-results", "per_second", "tasks/s"),
    Row("  worker CPU a task", "drain-rabbit-no-results", "cpu_ms", "ms"),
    # 3,000/s where Celery on Redis does 450/s.
    Row("drain, embedded SQLite", "drain-sqlite", "per_second", "tasks/s", at_least(3000 / 450), "drain-redis"),
    Row("  worker CPU a task", "drain-sqlite", "cpu_ms", "ms", None, "drain-redis"),
    Row("drain, Redis, 10 threads", "drain-threads-redis", "per_second", "tasks/s", at_least(5)),
    Row("  worker CPU a task", "drain-threads-redis", "cpu_ms", "ms"),
    Row("drain, Redis, 100 greenlets", "drain-gevent-redis", "per_second", "tasks/s", at_least(5)),
    Row("  worker CPU a task", "drain-gevent-redis", "cpu_ms", "ms"),
    Row("drain, Redis, 100 coroutines", "drain-asyncio-redis", "per_second", "tasks/s", None, "drain-threads-redis"),
    Row("  worker CPU a task", "drain-asyncio-redis", "cpu_ms", "ms", None, "drain-threads-redis"),
    Row("1,000 coroutines of 1 s, Redis", "sleepers-redis", "seconds", "s", at_most(3)),
    Row("1,000 coroutines of 1 s, embedded SQLite", "sleepers-sqlite", "seconds", "s", at_most(3)),
    Row("publish one by one, Redis", "publish-redis", "per_second", "calls/s", at_least(4)),
    Row("  producer CPU a call", "publish-redis", "cpu_ms", "ms"),
    Row("publish one by one, RabbitMQ", "publish-rabbit", "per_second", "calls/s"),
    Row("  producer CPU a call", "publish-rabbit", "cpu_ms", "ms"),
    Row(
        "publish one by one, embedded SQLite",
        "publish-sqlite",
        "per_second",
        "calls/s",
        None,
        "publish-redis",
    ),
    Row("delay().get() p50, Redis", "latency-redis", "p50_ms", "ms", at_most_times(1 / 3)),
    Row("  p99", "latency-redis", "p99_ms", "ms"),
    Row("delay().get() p50, RabbitMQ, rpc", "latency-rabbit", "p50_ms", "ms", at_most_times(1 / 3)),
    Row("  p99", "latency-rabbit", "p99_ms", "ms"),
    Row("delay().get() p50, RabbitMQ, results on Redis", "latency-rabbit-redis", "p50_ms", "ms"),
    Row("  p99", "latency-rabbit-redis", "p99_ms", "ms"),
    Row("delay().get() p50, embedded SQLite", "latency-sqlite", "p50_ms", "ms", at_most(3), "latency-redis"),
    Row("  p99", "latency-sqlite", "p99_ms", "ms", None, "latency-redis"),
    Row("2,000 delay(), then all results, Redis", "results-redis", "per_second", "tasks/s", at_least(6)),
    Row("import and Celery()", "imports", "ms", "ms", at_most(80)),
    Row("worker ready, Redis", "worker-redis", "ready_s", "s", at_most(0.5)),
    Row("worker ready, embedded SQLite", "worker-sqlite", "ready_s", "s", at_most(0.5), "worker-redis"),
    Row("memory of a -c 2 worker (PSS of the tree), Redis", "worker-redis", "pss_mb", "MB", at_most_times(0.6)),
    Row("  embedded SQLite", "worker-sqlite", "pss_mb", "MB", at_most_times(0.6), "worker-redis"),
    Row("idle worker, Redis", "worker-redis", "idle_percent", "% of a core"),
    Row(
        "idle worker, embedded SQLite",
        "worker-sqlite",
        "idle_percent",
        "% of a core",
        at_most(1),
        "worker-redis",
    ),
    Row("group of 2,500, publish to last result", "canvas-group", "per_second", "tasks/s", at_least(10)),
    Row("publish a group of 10,000", "canvas-publish", "per_second", "tasks/s", at_least(15)),
    Row("  producer CPU a member", "canvas-publish", "cpu_ms", "ms"),
    Row("chord of 1,000 with body", "canvas-chord", "per_second", "tasks/s", at_least(10)),
    Row("chain of 100", "canvas-chain", "per_second", "steps/s", at_least(4)),
    Row("build and write a chord of 10,000", "canvas-build", "ms", "ms", at_most_times(1 / 5)),
    Row("  of 20,000: times as long", "canvas-build", "doubled", "x", at_most(2.6)),
)
