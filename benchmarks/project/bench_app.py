"""The application both sides run, word for word the same; only the import name differs.

Imported by the worker (``-A bench_app``) and by ``client.py``. What it talks to comes from the environment.
"""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

package = os.environ["BENCH_PACKAGE"]
celery = importlib.import_module(package)
signals = importlib.import_module(f"{package}.signals")

app = celery.Celery("bench", broker=os.environ["BENCH_BROKER"], backend=os.environ.get("BENCH_BACKEND") or None)
app.conf.update(
    task_default_queue=os.environ["BENCH_QUEUE"],
    broker_connection_retry_on_startup=True,
    **json.loads(os.environ["BENCH_SETTINGS"]),
)

_marks = -1


def leave_mark() -> None:
    """Append one byte to the file everybody counts by."""
    global _marks
    if _marks < 0:
        _marks = os.open(os.environ["BENCH_MARKS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(_marks, b".")


@app.task(name="bench.mark")
def mark() -> None:
    """Do next to nothing."""
    leave_mark()


@app.task(name="bench.mark_async")
async def mark_async() -> None:
    """As mark, as a coroutine."""
    leave_mark()


@app.task(name="bench.sleep")
async def sleep(seconds: float) -> None:
    """Wait, and keep nobody else waiting."""
    # Not at the top: the workers whose memory is measured should carry what they need, and that is not it.
    await importlib.import_module("asyncio").sleep(seconds)


@app.task(name="bench.add")
def add(x: int, y: int) -> int:
    """A task with a result."""
    return x + y


@app.task(name="bench.total")
def total(values: list[int]) -> int:
    """The body of a chord."""
    return sum(values)


@signals.worker_ready.connect
def say_ready(**details: Any) -> None:
    """Tell the measuring process, whatever the log level."""
    Path(os.environ["BENCH_READY"]).touch()
