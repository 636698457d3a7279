"""The nearest known name for an unknown one."""

from __future__ import annotations

import pytest

from celery_clone.utils.suggest import closest, hint


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ("broker_urll", "broker_url"),
        ("BROKER_URL", "broker_url"),
        ("task_ack_late", "task_acks_late"),
        ("colour_of_the_sky", None),
        ("", None),
    ],
)
def test_the_nearest_name_is_found_if_it_is_near(asked, near):
    assert closest(asked, ["broker_url", "task_acks_late", "result_backend"]) == near


def test_known_names_may_be_any_iterable_and_none():
    assert closest("adm", iter({"add": 1})) == "add"
    assert closest("add", []) is None


def test_the_name_comes_in_the_spelling_it_is_known_by():
    assert closest("celery", ["Celery", "CELERY"]) == "Celery"


def test_a_hint_ends_a_sentence_or_is_nothing():
    assert hint("celry", ["celery"]) == " Did you mean 'celery'?"
    assert hint("xyz", ["celery"]) == ""
