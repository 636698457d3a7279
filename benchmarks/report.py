"""Medians, the readable table, and the JSON file.

Called by ``__main__`` with what was measured. It measures nothing itself.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from statistics import median
from typing import Any

from benchmarks.rows import ROWS
from benchmarks.stage import Side

CELERY = "celery"
OURS = "celery_clone"


@dataclass(frozen=True)
class Sample:
    """What one run of one benchmark of one side measured."""

    benchmark: str
    side: str
    round: int
    measured: dict[str, float]


def medians(samples: Sequence[Sample]) -> dict[str, dict[str, dict[str, float]]]:
    """benchmark -> side -> metric -> median over the rounds."""
    values: dict[str, dict[str, dict[str, list[float]]]] = {}
    for sample in samples:
        metrics = values.setdefault(sample.benchmark, {}).setdefault(sample.side, {})
        for metric, value in sample.measured.items():
            metrics.setdefault(metric, []).append(value)
    return {
        benchmark: {
            side: {metric: median(numbers) for metric, numbers in metrics.items()} for side, metrics in sides.items()
        }
        for benchmark, sides in values.items()
    }


def compare(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """One record per row of the table for which there is a figure."""
    found = medians(samples)
    records = []
    for row in ROWS:
        ours = found.get(row.benchmark, {}).get(OURS, {}).get(row.metric)
        theirs = found.get(row.against or row.benchmark, {}).get(CELERY, {}).get(row.metric)
        if ours is None and (theirs is None or row.against is not None):
            continue
        records.append(
            {
                "label": row.label,
                "benchmark": row.benchmark,
                "metric": row.metric,
                "unit": row.unit,
                "celery": theirs,
                "celery_from": row.against or row.benchmark,
                "celery_clone": ours,
                "times": ours / theirs if ours is not None and theirs else None,
                "floor": str(row.floor) if row.floor else None,
                "reached": row.floor.reached(ours, theirs) if row.floor and ours is not None else None,
            }
        )
    return records


def table(records: Sequence[dict[str, Any]]) -> str:
    """The records as text for a terminal."""
    lines = [("", "Celery 5.7.0", OURS, "times", "unit", "floor", "")]
    for record in records:
        verdict = {True: "reached", False: "NOT REACHED", None: ""}[record["reached"]]
        lines.append(
            (
                record["label"] + ("" if record["celery_from"] == record["benchmark"] else " *"),
                _number(record["celery"]),
                _number(record["celery_clone"]),
                _number(record["times"]),
                record["unit"],
                record["floor"] or "",
                verdict,
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = [
        "  ".join(
            cell.rjust(width) if 1 <= column <= 3 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    if any(record["celery_from"] != record["benchmark"] for record in records):
        text.append("* against Celery on Redis, since Celery has no embedded broker")
    return "\n".join(text)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 1 else f"{value:.2f}"


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg(),
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def versions(side: Side) -> dict[str, str]:
    """The libraries a side runs on."""
    code = (
        "from importlib.metadata import version, PackageNotFoundError\n"
        "for name in ('celery', 'celery-clone', 'kombu', 'amqp', 'redis', 'billiard', 'vine'):\n"
        "    try: print(name, version(name))\n"
        "    except PackageNotFoundError: pass\n"
    )
    done = subprocess.run(
        [side.python, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    return dict(line.split() for line in done.stdout.splitlines())


def say(text: str) -> None:
    """Progress, on standard error, so that the table alone is on standard output."""
    print(text, file=sys.stderr, flush=True)
