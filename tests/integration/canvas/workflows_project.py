"""The project whose workflows the tests beside it run: started as a worker, and imported by the tests.

What its tasks do is noted in one file for each workflow, in the folder ``NOTES``; tasks get the name of that
file as ``run``. A workflow is written as text; the names in it are those of :func:`names`.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from celery_clone import Celery, canvas

NOTES = Path(os.environ.get("NOTES", "."))

app = Celery(
    "workflows",
    broker=os.environ.get("BROKER", "memory://"),
    backend=os.environ.get("BACKEND", os.environ.get("BROKER", "cache+memory://")),
    set_as_current=False,
)
app.conf.update(json.loads(os.environ.get("SETTINGS", "{}")))


def note(run: str, *what: Any) -> None:
    """Write down what a task does."""
    with (NOTES / run).open("a") as file:
        file.write(json.dumps(what) + "\n")


def said(value: Any, tag: int) -> str:
    """What ``call`` gives: ``2(1(x))`` was called with what 1 said of x."""
    shown = f"[{','.join(map(str, value))}]" if isinstance(value, list) else value
    return f"{tag}({shown})"


@app.task(shared=False)
def call(value: Any, tag: int, run: str, bad: bool = False) -> str:
    note(run, "call", tag)
    if bad:
        raise ValueError(tag)
    return said(value, tag)


@app.task(shared=False)
def add(x: Any, y: Any = 0, run: str = "mapped") -> Any:
    note(run, "add", x, y)
    return x + y


@app.task(shared=False)
def total(numbers: Any, run: str) -> int:
    note(run, "total", numbers)

    def of(value: Any) -> int:
        return sum(map(of, value)) if isinstance(value, list) else value

    return of(numbers)


@app.task(shared=False)
def echo(*values: Any, run: str = "mapped") -> Any:
    note(run, "echo", *(value if len(str(value)) < 1000 else "much" for value in values))
    return values[0] if len(values) == 1 else list(values)


@app.task(shared=False)
def fail(*values: Any, run: str) -> None:
    note(run, "fail")
    raise ValueError("as told")


@app.task(shared=False, bind=True)
def replaced(self: Any, *values: Any, by: str, run: str) -> Any:
    """Replaces itself by a workflow, in whose text ``value`` is what it was called with."""
    note(run, "replaced")
    return self.replace(eval(by, {**names(run), "value": values[0] if values else None}))


@app.task(shared=False, bind=True)
def more(self: Any, value: Any, member: str, run: str, lazy: bool = False) -> Any:
    """Adds a member to the chord it is in."""
    made = self.add_to_chord(eval(member, names(run)), lazy=lazy)
    if lazy:
        made.delay()
    return value


@app.task(shared=False, bind=True)
def stamps(self: Any, *values: Any, tag: str, run: str) -> str:
    note(run, "stamps", tag, {name: self.request.stamps[name] for name in self.request.stamped_headers or ()})
    return tag


@app.task(shared=False, bind=True, max_retries=3)
def again(self: Any, *values: Any, tag: str, run: str) -> str:
    """Is tried twice."""
    note(run, "stamps", tag, {name: self.request.stamps[name] for name in self.request.stamped_headers or ()})
    if not self.request.retries:
        raise self.retry(countdown=0)
    return tag


@app.task(shared=False)
def failed(request: Any, exc: Any, traceback: Any, tag: str, run: str) -> None:
    """An error callback that is called in place."""
    note(run, "errback", tag, request.id, type(exc).__name__)


@app.task(shared=False)
def failed_id(task_id: str, tag: str, run: str) -> None:
    """An error callback that is sent as a task."""
    note(run, "errback", tag, task_id, None)


@app.task(shared=False)
def broken(request: Any, exc: Any, traceback: Any, tag: str, run: str) -> None:
    """An error callback that fails itself."""
    failed.run(request, exc, traceback, tag, run)
    raise KeyError("an error callback failed")


@app.task(shared=False, acks_late=True, reject_on_worker_lost=True)
def dies_once(value: Any, run: str) -> Any:
    """Takes its process along when it is first run."""
    note(run, "dies_once")
    if len((NOTES / run).read_text().splitlines()) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return value


@app.task(shared=False)
def dies(*values: Any, run: str) -> None:
    """Takes its process along."""
    note(run, "dies")
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(shared=False)
def hold(*values: Any, run: str) -> str:
    """Waits until the file ``<run>.go`` is there."""
    deadline = time.monotonic() + 30
    while not (NOTES / f"{run}.go").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return "held"


@app.task(shared=False, time_limit=0.5)
def slow(*values: Any, run: str) -> None:
    note(run, "slow")
    time.sleep(60)


@app.task(shared=False, ignore_result=True)
def quiet(*values: Any, run: str, bad: bool = False) -> None:
    note(run, "quiet")
    if bad:
        raise ValueError("as told")


TASKS = {
    task.name.rpartition(".")[2]: task
    for task in (call, add, total, echo, fail, replaced, more, stamps, again, failed, failed_id, broken)
} | {task.name.rpartition(".")[2]: task for task in (dies_once, dies, hold, slow, quiet)}


class Noted:
    """A task whose signatures tell it where to note what it does."""

    def __init__(self, task: Any, run: str) -> None:
        self.task, self.run, self.name = task, run, task.name

    def s(self, *args: Any, **kwargs: Any) -> Any:
        return self.task.s(*args, run=self.run, **kwargs)

    def si(self, *args: Any, **kwargs: Any) -> Any:
        return self.task.si(*args, run=self.run, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)


class Visitor(canvas.StampingVisitor):
    """Says of each call what it is."""

    def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
        return {"call": 1}

    def on_callback(self, callback: Any, **headers: Any) -> dict[str, Any]:
        return {"callback": 1}

    def on_errback(self, errback: Any, **headers: Any) -> dict[str, Any]:
        return {"errback": 1}

    def on_group_start(self, group: Any, **headers: Any) -> dict[str, Any]:
        return {"in_group": 1}

    def on_chain_start(self, chain: Any, **headers: Any) -> dict[str, Any]:
        return {"in_chain": 1}

    def on_chord_body(self, sig: Any, **headers: Any) -> dict[str, Any]:
        return {"body": 1}


def stamped(sig: Any, visitor: Any = None, **headers: Any) -> Any:
    """*sig* with stamps."""
    sig.stamp(visitor, **headers)
    return sig


def reread(sig: Any) -> Any:
    """*sig* after it was written as JSON and read back."""
    return canvas.signature(json.loads(json.dumps(sig)), app=app)


def with_errback(sig: Any, errback: Any) -> Any:
    """*sig* with an error callback."""
    sig.link_error(errback)
    return sig


def unhurried(run: str, members: int) -> Iterator[Any]:
    """Members each of which is made when those before the last one have run."""
    for number in range(members):
        until = time.monotonic() + 10
        while number > 1 and len((NOTES / run).read_text().splitlines() if (NOTES / run).exists() else ()) < number - 1:
            assert time.monotonic() < until, f"member {number - 2} did not run before the generator had ended"
            time.sleep(0.005)
        yield TASKS["echo"].s(number, run=run)


def names(run: str) -> Mapping[str, Any]:
    """What the text of a workflow may use."""
    return {
        **{name: getattr(canvas, name) for name in ("chain", "chord", "group", "signature")},
        **{name: Noted(task, run) for name, task in TASKS.items()},
        **{"app": app, "run": run, "Visitor": Visitor, "BIG": "x" * 20_000},
        **{each.__name__: each for each in (stamped, reread, with_errback)},
        "unhurried": lambda members: unhurried(run, members),
        "E": lambda tag="e": TASKS["failed"].s(tag=tag, run=run),
        "O": lambda tag="o": TASKS["failed_id"].s(tag=tag, run=run),
        "BROKEN": lambda tag="broken": TASKS["broken"].s(tag=tag, run=run),
    }
