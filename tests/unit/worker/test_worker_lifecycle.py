"""Which process signal moves a worker to which phase."""

from __future__ import annotations

import pytest

from celery_clone.worker.lifecycle import AFTER, Nudge, Phase, after


@pytest.mark.parametrize(
    ("nudges", "phase"),
    [
        ([Nudge.TERM], Phase.WARM),
        ([Nudge.TERM, Nudge.TERM], Phase.WARM),
        ([Nudge.INT], Phase.WARM),
        ([Nudge.INT, Nudge.INT], Phase.SOFT),
        ([Nudge.INT, Nudge.INT, Nudge.INT], Phase.COLD),
        ([Nudge.INT, Nudge.INT, Nudge.INT, Nudge.INT], Phase.DEAD),
        ([Nudge.QUIT], Phase.SOFT),
        ([Nudge.QUIT, Nudge.TIMEOUT], Phase.COLD),
        ([Nudge.QUIT, Nudge.TIMEOUT, Nudge.QUIT], Phase.DEAD),
    ],
    ids=lambda value: "-".join(each.name for each in value) if isinstance(value, list) else value.name,
)
def test_nudges_lead_to_a_phase(nudges, phase):
    current = Phase.RUNNING
    for nudge in nudges:
        current = after(current, nudge)
    assert current is phase


def test_no_nudge_leads_back():
    order = list(Phase)
    for (phase, _), following in AFTER.items():
        assert order.index(following) > order.index(phase)


def test_the_dead_stay_dead():
    assert {after(Phase.DEAD, nudge) for nudge in Nudge} == {Phase.DEAD}
