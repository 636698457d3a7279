"""One project, run by real Celery or by us: ``PACKAGE`` names the side.

Started as ``celery -A shop worker`` and used by ``client.py``. Both sides see the same tasks under the same
names, so that a message or a result of one means the same to the other.
"""

from __future__ import annotations

import importlib
import json
import os
import time
from datetime import datetime, timezone
from pathlib import Path

PACKAGE = os.environ["PACKAGE"]
if os.environ.get("ALIAS"):
    importlib.import_module("celery_clone.alias")
celery = importlib.import_module(PACKAGE)
exceptions = importlib.import_module(f"{PACKAGE}.exceptions")
canvas = importlib.import_module(f"{PACKAGE}.canvas")
results = importlib.import_module(f"{PACKAGE}.result")
logs = importlib.import_module(f"{PACKAGE}.utils.log")
Context = importlib.import_module(f"{PACKAGE}.app.task").Context

NOON = datetime(2030, 1, 2, 12, 0, 0, 250000, tzinfo=timezone.utc)


SEEN = [
    *("id", "args", "kwargs", "root_id", "parent_id", "correlation_id", "reply_to", "retries", "is_eager", "group"),
    *("group_index", "timelimit", "eta", "expires", "argsrepr", "kwargsrepr", "origin", "ignore_result", "shadow"),
    *("stamps", "stamped_headers", "headers", "lang", "task", "callbacks", "errbacks", "chain", "chord", "utc"),
    *("replaced_task_nesting", "properties", "delivery_info", "called_directly"),
]


class Shop(celery.Celery):
    """An app; with ``FROZEN`` set its clock stands still, so that two sides write the same times."""

    if os.environ.get("FROZEN"):

        def now(self):
            return NOON


class OutOfStock(Exception):
    """An error of the project's own."""


def open_shop(**settings):
    """The app with its tasks, in a namespace of their own."""
    app = Shop("shop", broker=os.environ["BROKER"], backend=os.environ["BACKEND"], set_as_current=True)
    app.conf.update(
        {
            "accept_content": ["json", "pickle", "yaml", "msgpack"],
            "broker_connection_retry_on_startup": True,
            **json.loads(os.environ.get("SETTINGS", "{}")),
            **settings,
        }
    )

    @app.task(name="shop.add")
    def add(x, y=10):
        return x + y

    @app.task(name="shop.total")
    def total(numbers, plus=0):
        return sum(numbers) + plus

    @app.task(name="shop.echo")
    def echo(*args, **kwargs):
        return [list(args), kwargs]

    @app.task(name="shop.identity")
    def identity(value):
        return value

    @app.task(name="shop.kinds")
    def kinds(*values):
        return [f"{type(value).__name__} {value}" for value in values]

    @app.task(name="shop.fail")
    def fail(kind="OutOfStock", *args):
        errors = {"OutOfStock": OutOfStock, "ValueError": ValueError, "KeyError": KeyError}
        raise (errors.get(kind) or getattr(exceptions, kind))(*args)

    @app.task(name="shop.nested_failure")
    def nested_failure():
        try:
            raise KeyError("inner")
        except KeyError as exc:
            raise OutOfStock("outer", 3) from exc

    @app.task(name="shop.flaky", bind=True, max_retries=3)
    def flaky(self, fails, countdown=0, **options):
        if self.request.retries < fails:
            raise self.retry(countdown=countdown, **options)
        return [self.request.retries, self.request.hostname.partition("@")[0]]

    @app.task(name="shop.automatic", bind=True, autoretry_for=(OutOfStock,), max_retries=2, default_retry_delay=0)
    def automatic(self, fails):
        if self.request.retries < fails:
            raise OutOfStock(self.request.retries)
        return self.request.retries

    @app.task(name="shop.seen", bind=True)
    def seen(self, *args, **kwargs):
        """What a task can know of its own call."""
        found = {name: getattr(self.request, name, "(no such attribute)") for name in SEEN}
        return json.loads(json.dumps(found, default=repr))

    @app.task(name="shop.where", bind=True)
    def where(self, *_):
        return self.request.hostname.partition("@")[0]

    @app.task(name="shop.when", bind=True)
    def when(self):
        return time.time()

    @app.task(name="shop.say", bind=True)
    def say(self, words):
        logs.get_task_logger("shop.say").info("%s of %s", words, self.request.id)

    @app.task(name="shop.quiet", ignore_result=True)
    def quiet(path):
        Path(path).write_text("done")

    @app.task(name="shop.ignored")
    def ignored():
        raise exceptions.Ignore()

    @app.task(name="shop.nap", soft_time_limit=0.2)
    def nap():
        time.sleep(60)

    @app.task(name="shop.hold", bind=True, acks_late=True)
    def hold(self, begun, until):
        """Say where it began, then wait for a file."""
        side = self.request.hostname.partition("@")[0]
        with Path(begun).open("a") as file:
            file.write(f"{os.getpid()} {side}\n")
        deadline = time.monotonic() + 60
        while not Path(until).exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        return side

    @app.task(name="shop.note", acks_late=True)
    def note(path, text):
        with Path(path).open("a") as file:
            file.write(f"{text}\n")
        return text

    @app.task(name="shop.errback_new")
    def errback_new(request, exc, traceback, path):
        note.run(path, f"{request.id} {type(exc).__name__} {exc}")

    @app.task(name="shop.errback_old")
    def errback_old(task_id, path):
        note.run(path, task_id)

    @app.task(name="shop.spread", bind=True)
    def spread(self, numbers, queue):
        """Replaces itself by a group whose members run elsewhere."""
        raise self.replace(canvas.group(add.s(number, 1).set(queue=queue) for number in numbers))

    @app.task(name="shop.more", bind=True)
    def more(self, queue):
        """Adds to the chord it is in."""
        return self.add_to_chord(add.si(100, 0).set(queue=queue)) and 1

    return {name: value for name, value in locals().items() if name != "settings"}


globals().update(open_shop())
