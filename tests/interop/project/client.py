"""A producer: evaluates what a test asks for, in a process of its own, with real Celery or with us.

Started by ``tests.support.two_sides`` with the number of an open socket; each line on it is a request, each line
back its answer, both JSON.
"""

from __future__ import annotations

import datetime
import decimal
import importlib
import json
import logging
import socket
import sys
import traceback
import uuid
import zoneinfo

import kombu
import shop

LIBRARIES = (datetime, decimal, json, kombu, logging, uuid, zoneinfo)


def part(name):
    """A module of the side's package."""
    return importlib.import_module(f"{shop.PACKAGE}.{name}")


def plain(value):
    """What of a value can be compared on the other side of a process boundary."""
    return json.loads(json.dumps(value, default=repr))


def described(exc):
    kind = type(exc)
    module = kind.__module__
    if module.split(".")[0] == "celery_clone":
        module = module.replace("celery_clone", "celery", 1)
    return {
        "kind": f"{module}.{kind.__qualname__}",
        "arguments": plain(exc.args),
        "text": str(exc),
        "trace": "".join(traceback.format_exception(exc)),
    }


def answer(request, namespace):
    namespace.update(request["names"])
    try:
        value = eval(request["expression"], namespace)
        if request["keep"]:
            namespace[request["keep"]] = value
            value = None
        return {"value": plain(value)}
    except BaseException as exc:
        return {"raised": described(exc)}


def main():
    namespace = {
        name: getattr(shop.celery, name)
        for name in ("chain", "chord", "chunks", "group", "signature", "states", "xmap", "xstarmap")
    }
    namespace.update({name: value for name, value in vars(shop).items() if not name.startswith("_")})
    namespace.update({library.__name__: library for library in LIBRARIES}, described=described, part=part)
    with socket.socket(fileno=int(sys.argv[1])) as line, line.makefile("rw", encoding="utf-8") as talk:
        print(json.dumps({"value": "ready"}), file=talk, flush=True)
        for request in talk:
            print(json.dumps(answer(json.loads(request), namespace)), file=talk, flush=True)


main()
