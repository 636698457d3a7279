"""``--concurrency auto`` inside a real control group with a quota of processor time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.worker import clean_environment

GROUPS = Path("/sys/fs/cgroup")
CONTROLLERS = GROUPS / "cgroup.controllers"
PERIOD = 100_000
JOIN_AND_RUN = 'echo $$ > "$1/cgroup.procs" && shift && exec "$@"'
BUDGET = "from celery_clone.utils.sysinfo import cpu_budget; print(*cpu_budget())"


@pytest.fixture
def limited(request: pytest.FixtureRequest) -> Iterator[Callable[[int], Path]]:
    """``limited(150_000)``: a control group that may use so many microseconds of processor time in each 100,000."""
    unified = CONTROLLERS.exists()
    folder = (GROUPS if unified else GROUPS / "cpu") / f"celery-tests-{os.getpid()}"
    try:
        if unified and "cpu" not in (GROUPS / "cgroup.subtree_control").read_text().split():
            pytest.skip("the controller of processor time is not handed on to new control groups here")
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"control groups cannot be made here: {error}")

    def limited(quota: int) -> Path:
        if unified:
            (folder / "cpu.max").write_text(f"{quota} {PERIOD}")
        else:
            (folder / "cpu.cfs_period_us").write_text(str(PERIOD))
            (folder / "cpu.cfs_quota_us").write_text(str(quota))
        return folder

    yield limited
    folder.rmdir()


@pytest.mark.parametrize(("quota", "processors"), [(50_000, 0.5), (150_000, 1.5)])
def test_the_quota_of_the_group_bounds_what_a_worker_takes(
    limited: Callable[[int], Path], quota: int, processors: float
) -> None:
    ended = subprocess.run(
        ["sh", "-c", JOIN_AND_RUN, "sh", str(limited(quota)), sys.executable, "-c", BUDGET],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    count, available, told = ended.stdout.split()
    assert float(told) == processors
    assert int(count) == min(int(available), round(processors + 0.5))
