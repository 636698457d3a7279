"""Compare celery_clone with real Celery 5.7.0: ``make bench`` or ``python -m benchmarks``.

Every benchmark runs the two sides in turn, round after round, so that a machine that slows down slows both.
``BENCH_ROUNDS`` (3) and ``BENCH_TASKS`` (4000 tasks in a queue that is drained, workflows in proportion) say
how much, ``BENCH_ONLY`` which benchmarks (names or beginnings of names, with commas), ``BENCH_SIDES`` which
sides, ``BENCH_RESULTS`` another file for the figures. The exit status is 0 unless a run breaks: whether the
floors are reached is said in the table.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import report
from benchmarks.stage import USUAL_TASKS, Side, Stage
from benchmarks.suite import canvas, drain, footprint, latency, publish, results, sleepers
from tests.support.celery_env import celery_python
from tests.support.servers import Unavailable

Benchmark = Callable[[Side, Stage], dict[str, float]]

BENCHMARKS: dict[str, Benchmark] = {
    "imports": footprint.imports,
    "worker-redis": footprint.worker_on_redis,
    "worker-sqlite": footprint.worker_on_sqlite,
    "publish-redis": publish.on_redis,
    "publish-rabbit": publish.on_rabbit,
    "publish-sqlite": publish.on_sqlite,
    "latency-redis": latency.on_redis,
    "latency-rabbit": latency.on_rabbit,
    "latency-rabbit-redis": latency.on_rabbit_with_redis,
    "latency-sqlite": latency.on_sqlite,
    "results-redis": results.on_redis,
    "drain-redis": drain.on_redis,
    "drain-events": drain.with_events,
    "drain-late-acks": drain.with_late_acks,
    "drain-time-limits": drain.with_time_limits,
    "drain-rate-limit": drain.with_rate_limit,
    "drain-threads-redis": drain.on_redis_with_threads,
    "drain-gevent-redis": drain.on_redis_with_gevent,
    "drain-asyncio-redis": drain.on_redis_with_asyncio,
    "drain-rabbit": drain.on_rabbit,
    "drain-rabbit-no-results": drain.on_rabbit_without_results,
    "drain-sqlite": drain.on_sqlite,
    "sleepers-redis": sleepers.on_redis,
    "sleepers-sqlite": sleepers.on_sqlite,
    "canvas-group": canvas.group,
    "canvas-publish": canvas.publish,
    "canvas-chord": canvas.chord,
    "canvas-chain": canvas.chain,
    "canvas-build": canvas.build,
}
# Celery's own SQLite transport (through SQLAlchemy) is experimental and no match: ours stands beside Redis.
# Nor does Celery run ``async def`` tasks.
OURS_ONLY = {name for name in BENCHMARKS if name.endswith("-sqlite") or name.startswith(("sleepers", "drain-asyncio"))}

RESULTS = Path(__file__).parent / "results" / "latest.json"


def chosen(names: str) -> dict[str, Benchmark]:
    """The benchmarks whose names begin with one of *names*; all of them when there is none."""
    wanted = tuple(name.strip() for name in names.split(",") if name.strip())
    found = {name: run for name, run in BENCHMARKS.items() if not wanted or name.startswith(wanted)}
    if not found:
        raise SystemExit(f"BENCH_ONLY={names} names none of: {', '.join(BENCHMARKS)}")
    return found


def main() -> int:
    """Run what the environment asks for; the exit status."""
    rounds, tasks = int(os.environ.get("BENCH_ROUNDS", "3")), int(os.environ.get("BENCH_TASKS", str(USUAL_TASKS)))
    try:
        sides = [
            Side(report.CELERY, celery_python(), "celery"),
            Side(report.OURS, Path(sys.executable), "celery_clone"),
        ]
    except Unavailable as missing:
        report.say(str(missing))
        return 1
    asked = os.environ.get("BENCH_SIDES", f"{report.CELERY},{report.OURS}").split(",")
    sides = [side for side in sides if side.name in asked]
    facts = {
        "machine": report.machine(),
        "rounds": rounds,
        "tasks": tasks,
        "versions": {side.name: report.versions(side) for side in sides},
    }
    samples: list[report.Sample] = []
    broken: list[str] = []
    with Stage(tasks) as stage:
        for name, run in chosen(os.environ.get("BENCH_ONLY", "")).items():
            for number in range(1, rounds + 1):
                for side in sides:
                    if name in OURS_ONLY and side.name != report.OURS:
                        continue
                    try:
                        measured = run(side, stage)
                    except (RuntimeError, AssertionError, OSError, subprocess.SubprocessError) as error:
                        broken.append(f"{name} {number}/{rounds} {side.name}")
                        report.say(f"{broken[-1]} BROKE: {error}")
                        continue
                    samples.append(report.Sample(name, side.name, number, measured))
                    figures = ", ".join(f"{metric} {value:.4g}" for metric, value in measured.items())
                    report.say(f"{name} {number}/{rounds} {side.name}: {figures}")
    records = report.compare(samples)
    path = Path(os.environ.get("BENCH_RESULTS", RESULTS))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(
            {**facts, "broken": broken, "rows": records, "samples": [dataclasses.asdict(sample) for sample in samples]},
            indent=1,
        )
        + "\n"
    )
    print(report.table(records))
    print(f"\n{rounds} rounds, medians; all figures in {os.path.relpath(path)}")
    if broken:
        print("Broken runs, not in the table: " + "; ".join(broken))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
