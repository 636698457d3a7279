"""What celery_clone makes of the cases in ``data/cases.txt`` is what Celery 5.7 was recorded to make."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

DATA = Path(__file__).with_name("data")


def _load_record() -> ModuleType:
    specification = importlib.util.spec_from_file_location("record", DATA / "record.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


record = _load_record()

ORDER = "Celery turns the members of a group in a group around"
PARENTS = "Celery leaves the steps of the body out of the parents"
LAZY = "how far a generator was read shows in the repr"
MEMBERS = "members that are dictionaries become signatures at once"
ERRBACK = "Celery links an errback to chords in the header too, which calls it twice"
TRAIL = "Celery sends add_to_parent along in the body"

#: Where it differs on purpose, and why.  What holds instead is said by the tests beside this file.
DIFFERENT = {
    "group(add.s(1, 1), group(add.s(2, 2), add.s(3, 3)))": ORDER,
    "chord([group(add.s(1, 1), add.s(2, 2)), add.s(3, 3)], xsum.s())": ORDER,
    "chain(group(add.s(1, 1), add.s(2, 2)), xsum.s(), add.s(3))": PARENTS,
    "chain(group(add.s(1, 1), add.s(2, 2)), xsum.s(), add.s(3), add.s(4))": PARENTS,
    "chord([add.s(1, 1), add.s(2, 2)], chain(xsum.s(), add.s(3)))": PARENTS,
    "chord([add.s(1, 1), add.s(2, 2)], chain(xsum.s(), group(add.s(3), add.s(4))))": PARENTS,
    "chord([add.s(1, 1)], chord([xsum.s(), xsum.s()], xsum.s()))": PARENTS,
    "chord([add.s(1, 1)], chain(xsum.s(), add.s(1))).apply_async(link=tell.s(), link_error=tell.s(1))": PARENTS,
    "chord([add.s(1, 1), chord([add.s(2, 2), add.s(3, 3)], xsum.s())], xsum.s())": TRAIL,
    "(lambda sig: (sig.link_error(tell.s(1)), sig)[1])"
    "(chord([add.s(1, 1), chord([add.s(2, 2)], xsum.s())], xsum.s()))": ERRBACK,
    "add.chunks([(1, 2), (3, 4), (5, 6)], 2).group()": LAZY,
    "group(add.s(i, i) for i in range(3))": LAZY,
    'group([add.s(1, 1).set(queue="a"), {"task": "proj.tasks.add", "args": [1, 1], "kwargs": {}, '
    '"options": {}, "subtask_type": None, "immutable": False}])': MEMBERS,
}
DIFFERENT_SECTION = {ORDER: ("freeze", "send"), LAZY: ("shape",), MEMBERS: ("shape",), ERRBACK: ("shape",)}


def _recorded() -> list[tuple[str, str, Any]]:
    lines = (DATA / "recorded.jsonl").read_text().splitlines()
    return [tuple(json.loads(line)) for line in lines]


def _is_different(section: str, source: str) -> bool:
    reason = DIFFERENT.get(source)
    return reason is not None and section in DIFFERENT_SECTION.get(reason, ("send", "call"))


@pytest.mark.parametrize(
    ("section", "source", "expected"),
    [pytest.param(*case, id=f"{case[0]}: {case[1]}") for case in _recorded() if not _is_different(*case[:2])],
)
def test_it_is_what_celery_makes(section: str, source: str, expected: Any) -> None:
    assert json.loads(json.dumps(record.observe("celery_clone", section, source))) == expected


@pytest.mark.parametrize(
    ("section", "source", "expected"),
    [pytest.param(*case, id=f"{case[0]}: {case[1]}") for case in _recorded() if _is_different(*case[:2])],
)
def test_the_list_of_differences_is_true(section: str, source: str, expected: Any) -> None:
    assert json.loads(json.dumps(record.observe("celery_clone", section, source))) != expected


def test_every_case_is_recorded() -> None:
    known = {(section, source) for section, source, _ in _recorded()}
    assert known == {(section, source) for section, sources in record.cases().items() for source in sources}
