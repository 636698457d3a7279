"""What the embedded broker decides without a file: routes, times to live, dead sessions, queue traits."""

from __future__ import annotations

import logging

import pytest

from celery_clone.transport.sqlite.channel import read_expiration, read_traits
from celery_clone.transport.sqlite.connection import read_seconds
from celery_clone.transport.sqlite.database import DatabaseUnavailable
from celery_clone.transport.sqlite.session import Witness
from celery_clone.transport.sqlite.tables import Other, QueueTraits, earliest, topic_matches


@pytest.mark.parametrize(
    ("pattern", "key", "takes"),
    [
        ("task.sent", "task.sent", True),
        ("task.sent", "task.received", False),
        ("task.*", "task.sent", True),
        ("task.*", "task", False),
        ("task.*", "task.sent.late", False),
        ("*.sent", "task.sent", True),
        ("#", "anything.at.all", True),
        ("#", "", True),
        ("task.#", "task", True),
        ("task.#", "task.sent.late", True),
        ("#.late", "late", True),
        ("#.late", "task.sent.late", True),
        ("a.#.z", "a.z", True),
        ("a.#.z", "a.b.c.z", True),
        ("a.#.z", "a.b.c", False),
        ("a.#.#.z", "a.z", True),
        ("a.b", "axb", False),
    ],
)
def test_topic_patterns_mean_what_they_mean_in_amqp(pattern: str, key: str, takes: bool) -> None:
    assert topic_matches(pattern, key) is takes


def test_the_shortest_time_to_live_counts() -> None:
    assert earliest(100.0, None, 5.0, 3.0) == 103.0
    assert earliest(100.0, None, None) is None


def test_queue_arguments_in_milliseconds_become_traits_in_seconds() -> None:
    arguments = {"x-expires": 10000, "x-message-ttl": 500, "x-max-length": 7, "x-max-priority": 20}

    assert read_traits("q", True, arguments) == QueueTraits(True, 10.0, 0.5, 7, 9)


def test_arguments_the_broker_cannot_honour_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read_traits("q", False, {"x-dead-letter-exchange": "dlx"})

    assert "x-dead-letter-exchange" in caplog.text


@pytest.mark.parametrize(("text", "seconds"), [("1500", 1.5), (None, None), ("", None)])
def test_expiration_is_read_as_milliseconds(text: str | None, seconds: float | None) -> None:
    assert read_expiration(text) == seconds


def test_options_are_seconds_above_zero() -> None:
    assert read_seconds({"lease": "30"}, "lease", 10.0) == 30.0
    assert read_seconds({}, "lease", 10.0) == 10.0
    with pytest.raises(DatabaseUnavailable, match="'lease' is 'soon'"):
        read_seconds({"lease": "soon"}, "lease", 10.0)


class TestWitness:
    """Sessions without a doorbell are judged by their silence alone."""

    def test_a_session_that_keeps_changing_lives(self) -> None:
        witness = Witness(visibility_timeout_s=3600)

        assert [witness.dead([Other(1, None, 10.0, beats)], beats * 9.0) for beats in range(5)] == [[]] * 5

    def test_a_session_silent_for_its_lease_is_dead(self) -> None:
        witness = Witness(visibility_timeout_s=3600)
        silent = Other(1, None, 10.0, 4)

        assert witness.dead([silent], 1000.0) == []
        assert witness.dead([silent], 1009.9) == []
        assert witness.dead([silent], 1010.0) == [silent]

    def test_only_what_was_seen_counts_so_a_first_look_buries_nobody(self) -> None:
        assert Witness(visibility_timeout_s=3600).dead([Other(1, None, 0.1, 0)], 1e9) == []

    def test_the_visibility_timeout_ends_the_patience_with_everybody(self) -> None:
        witness = Witness(visibility_timeout_s=60)
        silent = Other(1, None, 3600.0, 4)
        witness.dead([silent], 0.0)

        assert witness.dead([silent], 60.0) == [silent]

    def test_time_in_which_nobody_could_write_is_no_silence(self) -> None:
        witness = Witness(visibility_timeout_s=3600, longest_step_s=5.0)
        silent = Other(1, None, 10.0, 4)
        witness.dead([silent], 1000.0)

        assert witness.dead([silent], 1100.0) == []
        assert witness.dead([silent], 1104.9) == []
        assert witness.dead([silent], 1105.0) == [silent]

    def test_after_an_outage_the_others_have_as_long_as_they_may_need(self) -> None:
        witness = Witness(visibility_timeout_s=60)
        silent = Other(1, None, 10.0, 4)
        witness.dead([silent], 1000.0)
        witness.pardon(1030.0)

        assert witness.dead([silent], 1012.0) == []
        assert witness.dead([silent], 1029.9) == []
        assert witness.dead([silent], 1030.0) == [silent]
