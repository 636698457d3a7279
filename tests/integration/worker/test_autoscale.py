"""A worker whose pool grows with the work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.brokers import load_project
from tests.support.wait import wait_until

PROJECT = """
import os, time
from pathlib import Path
from celery_clone import Celery

app = Celery("scaled", broker=os.environ["BROKER"], backend=os.environ["BROKER"], set_as_current=False)

@app.task
def wait_for(path):
    Path(f"{path}-{os.getpid()}").touch()
    while not Path(path).exists():
        time.sleep(0.01)
    return os.getpid()
"""


def test_there_are_as_many_processes_as_tasks_and_the_bounds_can_be_changed(
    start_worker: Callable[..., Any], sqlite_url: str, tmp_path: Path
) -> None:
    path = tmp_path / "scaled.py"
    path.write_text(PROJECT)
    module = load_project(path, {"BROKER": sqlite_url})
    worker = start_worker("scaled", "--autoscale=3,1", "-n", "scaled@here", environment={"BROKER": sqlite_url})
    control = module.app.control
    assert len(worker.children()) == 1

    results = [module.wait_for.delay(str(tmp_path / "go")) for _ in range(3)]
    wait_until(lambda: len([*tmp_path.glob("go-*")]) == 3, 20, "three processes at work")
    (tmp_path / "go").touch()
    assert len({result.get(timeout=20) for result in results}) == 3

    [answer] = control.autoscale(2, 1, destination=["scaled@here"], reply=True, timeout=5)
    assert [*answer.values()] == [{"ok": "autoscale now max=2 min=1"}]
    wait_until(lambda: len(worker.children()) == 2, 10, "two processes")
    [stats] = control.inspect(["scaled@here"], timeout=5).stats().values()
    assert stats["autoscaler"] == {"max": 2, "min": 1, "current": 2, "qty": 0}
    module.app.close()
