"""The plan of the house is checked in full, but for the places that are still empty."""

from __future__ import annotations

import configparser
import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "check_layers.py"

PLAN = """
[importlinter]
root_package = celery_clone

[importlinter:contract:house]
type = layers
containers = celery_clone
layers =
    nobody_lives_here
    utils | nor_here
    states
exhaustive = true

[importlinter:contract:empty]
type = layers
containers = celery_clone.nobody_lives_here
layers =
    one

[importlinter:contract:forbidden]
type = forbidden
source_modules =
    celery_clone.states
    celery_clone.nor_here
forbidden_modules = redis
"""


def reduced(plan: str) -> tuple[configparser.ConfigParser, list[str]]:
    spec = importlib.util.spec_from_file_location("check_layers", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text, missing = module.reduced(plan)
    parser = configparser.ConfigParser()
    parser.read_string(text)
    return parser, missing


def test_a_place_nobody_has_moved_into_is_left_out_and_named() -> None:
    parser, missing = reduced(PLAN)
    house = parser["importlinter:contract:house"]
    assert house["layers"].split("\n") == ["", "utils", "states"]
    assert house["exhaustive"] == "true"
    assert missing == ["celery_clone.nobody_lives_here", "celery_clone.nor_here"]


def test_a_contract_about_an_empty_place_is_left_out() -> None:
    parser, _ = reduced(PLAN)
    assert "importlinter:contract:empty" not in parser


def test_what_exists_stays_under_its_contract() -> None:
    parser, _ = reduced(PLAN)
    forbidden = parser["importlinter:contract:forbidden"]
    assert forbidden["source_modules"].split() == ["celery_clone.states"]
    assert forbidden["forbidden_modules"] == "redis"
