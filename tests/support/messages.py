"""Task messages as a broker keeps them, for tests that need no producer."""

from __future__ import annotations

import base64
from typing import Any

from kombu.utils.json import dumps


def kombu_text(
    headers: dict[str, Any], properties: dict[str, Any], body: str = "[[], {}, {}]", encoding: str = "base64"
) -> bytes:
    """A message as kombu's virtual channels write it: what users add keeps its place, the rest follows."""
    given_properties = dict(properties)
    given_properties["delivery_mode"] = 2
    given_properties.setdefault("delivery_info", {})
    given_properties.setdefault("priority", 0)
    given_properties.update(body_encoding=encoding, delivery_tag="real-tag")
    if isinstance(given_properties["delivery_info"], dict):
        given_properties["delivery_info"].update(exchange="", routing_key="celery")
    text = base64.b64encode(body.encode()).decode() if encoding == "base64" else body
    message = {
        "body": text,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": given_properties,
    }
    return dumps(message).encode()


def call_headers(task: str, task_id: str = "an-id", **changes: Any) -> dict[str, Any]:
    """Headers of a call that can be run, with *changes*; a change to ``...`` leaves the header out."""
    headers = {
        "lang": "py",
        "task": task,
        "id": task_id,
        "shadow": None,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": task_id,
        "parent_id": None,
        "argsrepr": "(1, 2)",
        "kwargsrepr": "{}",
        "origin": "a test",
        "ignore_result": False,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
        **changes,
    }
    return {name: value for name, value in headers.items() if value is not ...}
