"""When a message is acknowledged: every row of the table."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from celery_clone import states
from celery_clone.execution.acks import (
    AckRule,
    Settle,
    settle_on_begin,
    settle_on_end,
    settle_on_loss,
    settle_on_timeout,
)
from celery_clone.execution.outcome import Outcome

EARLY = AckRule(late=False, ack_on_failure=False, ack_on_timeout=False, requeue_on_loss=True)
LATE = AckRule(late=True)


def options(**given):
    names = ("acks_late", "acks_on_failure", "acks_on_timeout", "acks_on_failure_or_timeout", "reject_on_worker_lost")
    return SimpleNamespace(**{**dict.fromkeys(names), **given})


def test_an_early_task_is_acknowledged_when_it_begins_and_never_again():
    assert settle_on_begin(EARLY) is Settle.ACK
    for state in (states.SUCCESS, states.FAILURE, states.REJECTED, states.RETRY):
        assert settle_on_end(EARLY, Outcome(state, requeue=True)) is Settle.NONE
    assert settle_on_timeout(EARLY) is Settle.NONE
    assert settle_on_loss(EARLY) is Settle.NONE


def test_a_late_task_is_not_acknowledged_when_it_begins():
    assert settle_on_begin(LATE) is Settle.NONE


@pytest.mark.parametrize(
    ("rule", "outcome", "expected"),
    [
        pytest.param(LATE, Outcome(states.SUCCESS), Settle.ACK, id="success"),
        pytest.param(LATE, Outcome(states.RETRY), Settle.ACK, id="retry"),
        pytest.param(LATE, Outcome(states.IGNORED), Settle.ACK, id="ignored"),
        pytest.param(LATE, Outcome(states.FAILURE), Settle.ACK, id="failure"),
        pytest.param(AckRule(True, ack_on_failure=False), Outcome(states.FAILURE), Settle.DROP, id="kept-failure"),
        pytest.param(LATE, Outcome(states.REJECTED), Settle.DROP, id="rejected"),
        pytest.param(LATE, Outcome(states.REJECTED, requeue=True), Settle.REQUEUE, id="rejected-requeue"),
    ],
)
def test_a_late_task_is_settled_by_how_it_ended(rule, outcome, expected):
    assert settle_on_end(rule, outcome) is expected


@pytest.mark.parametrize(("acks", "expected"), [(True, Settle.ACK), (False, Settle.REQUEUE)])
def test_a_late_task_over_its_hard_limit_follows_ack_on_timeout(acks, expected):
    assert settle_on_timeout(AckRule(late=True, ack_on_timeout=acks)) is expected


@pytest.mark.parametrize(
    ("requeue", "acks", "expected"),
    [
        (True, True, Settle.REQUEUE),
        (True, False, Settle.REQUEUE),
        (False, True, Settle.ACK),
        (False, False, Settle.DROP),
    ],
)
def test_a_late_task_whose_process_died_is_requeued_only_when_it_asks_for_that(requeue, acks, expected):
    assert settle_on_loss(AckRule(late=True, ack_on_failure=acks, requeue_on_loss=requeue)) is expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param({}, AckRule(), id="nothing-set"),
        pytest.param({"acks_late": True, "reject_on_worker_lost": True}, AckRule(True, True, True, True), id="late"),
        pytest.param({"acks_on_failure_or_timeout": False}, AckRule(False, False, False), id="the-older-option"),
        pytest.param(
            {"acks_on_failure_or_timeout": False, "acks_on_timeout": True},
            AckRule(False, False, True),
            id="a-newer-option-wins",
        ),
    ],
)
def test_the_rule_is_read_from_the_options_of_a_task(given, expected):
    assert AckRule.of(options(**given)) == expected
