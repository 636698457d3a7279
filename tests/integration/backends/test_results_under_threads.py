"""Results in programs of many threads, which fork, and in programs that never ask for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from celery_clone.backends.redis.waiting import OVER
from tests.support.wait import wait_until
from tests.support.worker import WorkerProcess, clean_environment

FOLDER = Path(__file__).parent
POOL = 4
"""``broker_pool_limit`` in the program."""

BESIDE_THE_POOL = 3
"""The connections that declare queues, that tell of results, and that ask for the channels here."""


@pytest.fixture
def environment(redis_url: str) -> dict[str, str]:
    return clean_environment({"THREADS_URL": redis_url, "PYTHONPATH": f"{FOLDER.parents[2]}{os.pathsep}{FOLDER}"})


def run(environment: dict[str, str], action: str, count: int) -> dict[str, Any]:
    """Run ``threads_program.py``; what it found."""
    done = subprocess.run(
        [sys.executable, "threads_program.py", action, str(count)],
        cwd=FOLDER,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_threads_call_and_wait_while_garbage_is_collected_and_so_do_those_of_a_fork(
    environment: dict[str, str], redis_url: str, start_worker: Callable[..., WorkerProcess]
) -> None:
    start_worker("threads_program", "-c", "2", environment=environment)

    found = run(environment, "threads", 40)

    for process in ("parent", "child"):
        seen = found[process]
        assert seen["errors"] == []
        assert seen["pending"] == seen["waited_for"] == 0
        # What came last is unsubscribed from with the next wait; it does not grow with what was waited for.
        assert seen["channels"] < OVER + (OVER if process == "child" else 0)
        assert seen["sockets"] <= POOL + BESIDE_THE_POOL
    assert found["again"] == 3
    with redis.Redis.from_url(redis_url) as server:
        wait_until(lambda: server.pubsub_channels("celery-task-meta-*") == [], 5, "the end of the subscriptions")


def test_calls_whose_results_nobody_reads_leave_nothing_in_the_client(environment: dict[str, str]) -> None:
    found = run(environment, "unread", 20_000)

    before, after = found["before"], found["after"]
    assert after["channels"] == 0
    assert after["sockets"] == before["sockets"]
    assert after["objects"] - before["objects"] < 500
    assert after["bytes"] - before["bytes"] < 4_000_000
