"""What this machine has and how busy it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from celery_clone.utils import sysinfo
from celery_clone.utils.sysinfo import (
    available_cpu_count,
    cgroup_cpu_quota,
    cpu_budget,
    df,
    is_auto_concurrency,
    load_average,
)


@pytest.fixture
def cgroups(monkeypatch, tmp_path):
    """Control groups made of files: ``cgroups(own, {path: text})``."""

    def make(own: str | None, files: dict[str, str]) -> None:
        root, proc = tmp_path / "cgroup", tmp_path / "self"
        if own is not None:
            proc.write_text(own)
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.setattr(sysinfo, "CGROUP_ROOT", str(root))
        monkeypatch.setattr(sysinfo, "PROC_SELF_CGROUP", str(proc))

    return make


@pytest.mark.parametrize(
    ("value", "is_auto"), [("auto", True), (" AUTO ", True), ("4", False), (4, False), (None, False)]
)
def test_the_word_that_leaves_the_choice_to_us(value, is_auto):
    assert is_auto_concurrency(value) is is_auto


def test_the_tightest_limit_on_the_way_up_counts(cgroups):
    cgroups(
        "0::/a/b\n",
        {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "150000 100000\n", "cpu.max": "max 100000\n"},
    )
    assert cgroup_cpu_quota() == 1.5


def test_no_limit_is_none(cgroups):
    cgroups("0::/\n", {"cpu.max": "max 100000\n"})
    assert cgroup_cpu_quota() is None


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
def test_version_one_is_read_too(cgroups, mount):
    cgroups(
        "4:cpu,cpuacct:/box\n3:memory:/box\nnonsense\n",
        {f"{mount}/box/cpu.cfs_quota_us": "200000\n", f"{mount}/box/cpu.cfs_period_us": "100000\n"},
    )
    assert cgroup_cpu_quota() == 2


def test_version_one_without_limit(cgroups):
    cgroups("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"})
    assert cgroup_cpu_quota() is None


def test_hidden_groups_are_looked_for_at_their_mount_point(cgroups):
    cgroups(None, {"cpu.max": "50000 100000\n"})
    assert cgroup_cpu_quota() == 0.5


def test_paths_out_of_the_tree_stay_in_it(cgroups):
    cgroups("0::/../../x\n", {"cpu.max": "100000 100000\n"})
    assert cgroup_cpu_quota() == 1


def test_a_limit_is_rounded_up_and_bounded_by_the_machine(cgroups, monkeypatch):
    monkeypatch.setattr(sysinfo, "available_cpu_count", lambda: 4)
    cgroups("0::/\n", {"cpu.max": "150000 100000\n"})
    assert cpu_budget() == (2, 4, 1.5)
    assert cpu_budget(use_cgroup_quota=False) == (4, 4, None)
    cgroups("0::/\n", {"cpu.max": "900000 100000\n"})
    assert cpu_budget().count == 4


def test_processors_this_process_may_use():
    assert 1 <= available_cpu_count() <= (os.cpu_count() or 2)


def test_the_load_has_three_numbers():
    assert len(load_average()) == 3


def test_the_disk_of_a_path(tmp_path: Path):
    disk = df(tmp_path)
    assert disk.total_blocks >= disk.available > 0
    assert 0 <= disk.capacity <= 101
