"""A broker that falls silent is noticed; a loop that did not listen concludes nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from celery_clone.worker.loops import LISTEN_S, Silence


def test_a_broker_that_says_nothing_for_three_quarters_of_an_interval_is_gone():
    connection = SimpleNamespace(heartbeat=60, bytes_recv=1)
    silence = Silence(connection)
    for second in range(0, 45, int(LISTEN_S)):
        silence.check(100.0 + second)
    connection.bytes_recv += 1
    for second in range(45, 95, int(LISTEN_S)):
        silence.check(100.0 + second)
    with pytest.raises(ConnectionAbortedError, match="Nothing came"):
        silence.check(195.0)


def test_a_loop_that_stood_still_has_not_listened():
    connection = SimpleNamespace(heartbeat=60, bytes_recv=1)
    silence = Silence(connection)
    assert not silence.check(100.0)
    assert not silence.check(400.0)  # a task ran; what the broker said meanwhile is not read yet
    assert silence.check(405.0)


def test_without_heartbeats_silence_means_nothing():
    silence = Silence(SimpleNamespace(heartbeat=0, bytes_recv=1))
    for second in range(0, 1000, int(LISTEN_S)):
        silence.check(float(second))
