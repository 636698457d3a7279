"""Outcomes as values that cross a process boundary."""

from __future__ import annotations

import marshal

import pytest

from celery_clone import states
from celery_clone.execution.outcome import ErrorInfo, Outcome

ERROR = ErrorInfo("ValueError", "builtins", "ValueError('x')", "Traceback ...", b"pickled")


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(states.SUCCESS, "4", 0.25),
        Outcome(states.FAILURE, "ValueError('x')", 0.1, ERROR),
        Outcome(states.REJECTED, requeue=True),
    ],
)
def test_an_outcome_survives_the_pipe(outcome):
    assert Outcome.unpack(marshal.loads(marshal.dumps(outcome.pack()))) == outcome


def test_retry_is_not_the_end_but_ignored_is():
    assert not Outcome(states.RETRY).ready
    assert Outcome(states.IGNORED).ready
    assert Outcome(states.FAILURE).ready
