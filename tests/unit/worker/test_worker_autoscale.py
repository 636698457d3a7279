"""How many processes a pool that scales itself has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from celery_clone.exceptions import ImproperlyConfigured
from celery_clone.worker import state
from celery_clone.worker.autoscale import Autoscaler, seconds_of
from celery_clone.worker.state import Phase


class SizedPool:
    """A pool that is nothing but a size."""

    num_processes = 1

    def resize(self, change: int) -> None:
        self.num_processes += change


@pytest.fixture(autouse=True)
def clean_state() -> Any:
    state.reset_state()
    yield
    state.reset_state()


def at_hand(count: int, phase: Phase = Phase.WAITING) -> None:
    """So many tasks are there."""
    state.flights.clear()
    state.flights.update({number: SimpleNamespace(phase=phase) for number in range(count)})


def scaler(most: int = 5, least: int = 0, **how: Any) -> Autoscaler:
    return Autoscaler(SizedPool(), most, least, **how)


@pytest.mark.parametrize(("tasks", "processes"), [(0, 1), (1, 1), (3, 3), (5, 5), (50, 5)])
def test_the_pool_grows_to_the_tasks_at_hand_within_its_bounds(tasks: int, processes: int) -> None:
    asked = scaler()
    at_hand(tasks)

    asked.maybe_scale()

    assert asked.processes == processes


def test_tasks_that_wait_for_their_time_need_no_process() -> None:
    asked = scaler()
    at_hand(5, Phase.HELD)

    assert not asked.maybe_scale()
    assert (asked.qty, asked.processes) == (0, 1)


def test_the_pool_shrinks_when_it_has_not_grown_for_some_time() -> None:
    patient, hasty = scaler(least=2), scaler(least=2, keepalive=0)
    for asked in (patient, hasty):
        at_hand(5)
        assert asked.maybe_scale()
        at_hand(0)
        asked.maybe_scale()

    assert (patient.processes, hasty.processes) == (5, 2)


def test_new_bounds_hold_at_once_and_wrong_ones_are_refused() -> None:
    asked = scaler()
    at_hand(5)
    asked.maybe_scale()

    assert asked.update(max=3) == (3, 0)
    assert asked.processes == 3
    assert asked.update(max=9, min=7) == (9, 7)
    assert asked.processes == 7
    for wrong in ({"min": 10}, {"min": -1}, {"max": 0, "min": 0}):
        with pytest.raises(ValueError, match="autoscale needs"):
            asked.update(**wrong)
    assert asked.info() == {"max": 9, "min": 7, "current": 7, "qty": 5}


def test_how_long_a_pool_keeps_its_size_comes_from_the_environment(monkeypatch):
    monkeypatch.delenv("AUTOSCALE_KEEPALIVE", raising=False)
    assert seconds_of("AUTOSCALE_KEEPALIVE", 30) == 30
    monkeypatch.setenv("AUTOSCALE_KEEPALIVE", "1.5")
    assert seconds_of("AUTOSCALE_KEEPALIVE", 30) == 1.5
    monkeypatch.setenv("AUTOSCALE_KEEPALIVE", "long")
    with pytest.raises(ImproperlyConfigured, match="AUTOSCALE_KEEPALIVE is 'long'"):
        seconds_of("AUTOSCALE_KEEPALIVE", 30)
