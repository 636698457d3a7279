"""Record what Celery 5.7 makes of each case, as lines of JSON on standard output.

Run by hand with an interpreter that has Celery: ``python record.py > recorded.jsonl``.  The tests beside
it (``test_canvas_as_recorded_from_celery.py``) run the same cases with celery_clone; :func:`observe` is
what both look at.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

IDENTIFIER = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

#: Headers that tell where a call belongs.  The others are the protocol's and tested there.
HEADERS = ("id", "root_id", "parent_id", "group", "group_index")


class Numbered:
    """Names ids by the order in which they appear."""

    def __init__(self):
        self.names = {}

    def __call__(self, value):
        text = json.dumps(value, default=str)
        return json.loads(IDENTIFIER.sub(self._name, text))

    def _name(self, match):
        return self.names.setdefault(match.group(), f"id{len(self.names) + 1}")


def make_world(package):
    """An app of *package* with a few tasks, and the names that cases are written in."""
    celery = importlib.import_module(package)
    canvas = importlib.import_module(f"{package}.canvas")
    signals = importlib.import_module(f"{package}.signals")
    app = celery.Celery("proj", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.task_protocol = 2

    @app.task(shared=False, name="proj.tasks.add")
    def add(x, y):
        return x + y

    @app.task(shared=False, name="proj.tasks.xsum")
    def xsum(numbers):
        return sum(numbers)

    @app.task(shared=False, name="proj.tasks.tell")
    def tell(*args):
        return None

    world = {name: getattr(canvas, name) for name in canvas.__all__}
    world.update(app=app, add=add, xsum=xsum, tell=tell, json=json)
    world["reread"] = lambda sig: canvas.signature(json.loads(json.dumps(sig)), app=app)

    class Visitor(canvas.StampingVisitor):
        def on_signature(self, sig, **headers):
            return {"at": sig.task, "kind": "signature"}

        def on_callback(self, callback, **headers):
            return {"role": "callback"}

        def on_errback(self, errback, **headers):
            return {"role": "errback"}

        def on_group_start(self, group, **headers):
            return {"in_group": len(group.tasks)}

        def on_chain_start(self, chain, **headers):
            return {"in_chain": True}

        def on_chord_body(self, sig, **headers):
            return {"is_body": True}

    class Plain(canvas.StampingVisitor):
        def on_signature(self, sig, **headers):
            return {"stamp": "s", "header": 1, "stamped_headers": ["stamp"]}

    world.update(Visitor=Visitor, Plain=Plain)
    return app, signals, world


def flat_result(result):
    """A result and its parents as plain data."""
    if result is None:
        return None
    shown = {"id": str(result.id), "parent": flat_result(result.parent)}
    if type(result).__name__ == "GroupResult":
        shown["results"] = [flat_result(each) for each in result.results]
    return shown


def in_order(value):
    """Stamps come in no order, and an id that is null is as good as none."""
    if isinstance(value, dict):
        return {
            key: sorted(each) if key == "stamped_headers" and each else in_order(each)
            for key, each in value.items()
            if each is not None or key not in ("root_id", "parent_id")
        }
    if isinstance(value, (list, tuple)):
        return [in_order(each) for each in value]
    return value


def observe(package, section, source):
    """What *package* makes of one case: of its kind, dictionary and repr, of its ids, or of its messages."""
    app, signals, world = make_world(package)
    names = Numbered()
    made = eval(source, world)
    if section == "shape":
        kind = made.get("subtask_type") or "task"
        # Lists and tuples are written alike: which of them members are kept in is nobody's business.
        written = re.sub(r"0x[0-9a-f]+", "0x", repr(made)).translate(str.maketrans("[]", "()"))
        return {"kind": kind, "dict": in_order(names(made)), "repr": written.replace(",)", ")")}
    if section == "freeze":
        result = made.freeze()
        return {"result": names(flat_result(result)), "dict": in_order(names(made))}

    sent = []

    def remember(sender, body, headers, **_):
        args, kwargs, embed = body
        sent.append(
            names(
                {
                    "task": sender,
                    "args": args,
                    "kwargs": kwargs,
                    "embed": embed,
                    "headers": {key: headers.get(key) for key in HEADERS},
                    "stamps": headers.get("stamps"),
                    "delayed": bool(headers.get("eta")),
                }
            )
        )

    signals.before_task_publish.connect(remember, weak=False)
    try:
        result = made.apply_async() if section == "send" else made
        tree = names(flat_result(result))
    finally:
        signals.before_task_publish.disconnect(remember)
    return {"sent": in_order(sent), "result": tree}


def cases():
    """The cases by section: lines of ``cases.txt`` under ``[section]`` headings."""
    found, section = {}, None
    for line in Path(__file__).with_name("cases.txt").read_text().splitlines():
        line = line.strip()
        if line.startswith("[") and line.endswith("]") and " " not in line:
            section = found.setdefault(line[1:-1], [])
        elif line and not line.startswith("#"):
            section.append(line)
    return found


if __name__ == "__main__":
    recorded = {}
    for section, sources in cases().items():
        for source in sources:
            try:
                seen = observe("celery", section, source)
            except Exception as error:
                seen = {"error": type(error).__name__, "text": str(error)}
            recorded.setdefault(section, {})[source] = seen
    # One case a line, so that a change of one is seen as one.
    for section in sorted(recorded):
        for source, seen in sorted(recorded[section].items()):
            sys.stdout.write(json.dumps([section, source, seen], sort_keys=True) + "\n")
