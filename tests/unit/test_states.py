"""Names, order and sets of task states."""

from __future__ import annotations

import pytest

from celery_clone import states


def test_success_wins_over_every_other_state():
    for name in states.ALL_STATES - {states.SUCCESS}:
        assert states.state(states.SUCCESS) > states.state(name)
        assert states.precedence(states.SUCCESS) < states.precedence(name)


def test_a_custom_state_is_weaker_than_success_and_failure_and_stronger_than_the_others():
    custom = states.state("PROGRESS")
    assert custom < states.SUCCESS
    assert custom < states.FAILURE
    assert custom > states.REVOKED
    assert custom > states.STARTED
    assert custom >= states.state("ANOTHER")
    assert custom <= states.state("ANOTHER")


def test_a_state_is_equal_to_its_name_and_hashes_like_it():
    assert states.state("SUCCESS") == "SUCCESS"
    assert states.state("SUCCESS") in states.READY_STATES


@pytest.mark.parametrize("name", sorted(states.ALL_STATES))
def test_every_state_is_either_ready_or_not(name):
    assert (name in states.READY_STATES) != (name in states.UNREADY_STATES)


def test_retry_has_an_exception_but_does_not_propagate_it():
    assert states.RETRY in states.EXCEPTION_STATES
    assert states.RETRY not in states.PROPAGATE_STATES


def test_star_import_gives_all_names():
    namespace: dict[str, object] = {}
    exec("from celery_clone.states import *", namespace)
    assert set(states.__all__) <= set(namespace)
