"""A worker that cannot start says why in one line and ends."""

from __future__ import annotations

from tests.support.wait import wait_until
from tests.support.worker import WorkerProcess

PROJECT = """
from celery_clone import Celery

app = Celery("project", broker="memory://", backend="nosuch://host", set_as_current=False)
"""


def test_an_unknown_result_backend_is_named_without_a_traceback(tmp_path):
    (tmp_path / "project.py").write_text(PROJECT)
    worker = WorkerProcess("project", ["-c", "1"], folder=tmp_path).spawn()
    try:
        wait_until(lambda: worker.exit_code is not None, 15, worker.log)
        assert worker.exit_code == 1
        assert "Unknown result backend: 'nosuch'" in worker.log()
        assert "Traceback" not in worker.log()
        assert worker.tree() == []
    finally:
        worker.close()
