"""Every signal is declared under its name with its arguments."""

from __future__ import annotations

import pytest

from celery_clone import signals
from celery_clone.utils.dispatch import Signal


@pytest.mark.parametrize("name", signals.__all__)
def test_a_signal_knows_its_name_and_has_no_receivers_of_its_own(name):
    signal = getattr(signals, name)
    assert isinstance(signal, Signal)
    assert signal.name == name
    assert not signal.receivers


def test_every_signal_is_public():
    declared = {name for name, value in vars(signals).items() if isinstance(value, Signal)}
    assert declared == set(signals.__all__)


def test_the_arguments_of_before_task_publish_are_those_it_is_sent_with():
    assert signals.before_task_publish.providing_args == {
        *("body", "exchange", "routing_key", "headers", "properties", "declare", "retry_policy")
    }
