"""What an import of the package loads: a producer pays for what it uses."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SNIPPET = """
import json, sys
before = set(sys.modules)
{code}
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def loaded_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", SNIPPET.format(code=code)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def ours(modules: set[str]) -> set[str]:
    return {name for name in modules if name.partition(".")[0] == "celery_clone"}


def test_the_front_door_loads_nothing_behind_it() -> None:
    assert ours(loaded_by("import celery_clone")) <= {"celery_clone", "celery_clone._version"}


def test_the_front_door_loads_no_library() -> None:
    loaded = {name.partition(".")[0] for name in loaded_by("import celery_clone")}
    assert loaded <= {*sys.stdlib_module_names, "celery_clone"}


@pytest.mark.parametrize(
    "never",
    [
        "celery_clone.apps",
        "celery_clone.beat",
        "celery_clone.bin",
        "celery_clone.concurrency",
        "celery_clone.contrib",
        "celery_clone.events",
        "celery_clone.worker",
        "amqp",
        "click",
        "redis",
        "sqlalchemy",
        "sqlite3",
    ],
)
def test_an_application_loads_nothing_of(never: str) -> None:
    loaded = loaded_by("import celery_clone; celery_clone.Celery('shop')")
    assert not {name for name in loaded if name == never or name.startswith(never + ".")}


def test_the_state_of_a_worker_is_read_without_loading_the_worker() -> None:
    loaded = loaded_by("import celery_clone.worker.state")
    assert not loaded & {"celery_clone.worker.worker", "celery_clone.worker.consumer", "celery_clone.bin"}
