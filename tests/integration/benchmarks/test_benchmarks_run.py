"""``make bench`` measures both sides and writes what it found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.redis import RedisServer
from tests.support.worker import clean_environment

ROOT = Path(__file__).resolve().parents[3]


def test_a_short_run_measures_both_sides(redis_server: RedisServer, celery_python: Path, tmp_path: Path) -> None:
    results = tmp_path / "latest.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks"],
        cwd=ROOT,
        env=clean_environment(
            {
                "BENCH_ROUNDS": "1",
                "BENCH_TASKS": "100",
                "BENCH_ONLY": "drain-sqlite,canvas-group,canvas-publish",
                "BENCH_RESULTS": str(results),
                "REAL_CELERY_PYTHON": str(celery_python),
                "PATH": os.environ["PATH"],
            }
        ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=55,
    )
    assert done.returncode == 0, done.stderr
    assert "group of 2,500" in done.stdout
    found = json.loads(results.read_text())
    row = next(row for row in found["rows"] if row["benchmark"] == "canvas-group")
    assert row["celery"] > 0
    assert row["celery_clone"] > 0
    assert found["versions"]["celery"]["celery"] == "5.7.0"
    assert {sample["benchmark"] for sample in found["samples"]} == {
        "drain-sqlite",
        "canvas-group",
        "canvas-publish",
    }
