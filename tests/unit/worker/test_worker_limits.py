"""Rate limits as token buckets."""

from __future__ import annotations

import pytest

from celery_clone.worker.limits import RateBucket


def test_the_first_task_passes_and_the_next_waits_for_its_token():
    bucket = RateBucket(2.0)
    assert bucket.take(0.0)
    assert not bucket.take(0.0)
    assert bucket.wait(0.0) == pytest.approx(0.5)
    assert bucket.take(0.5)


def test_a_rest_does_not_save_more_than_the_capacity():
    bucket = RateBucket(10.0)
    assert bucket.take(0.0)
    assert bucket.take(1000.0)
    assert not bucket.take(1000.0)


def test_the_rate_holds_over_a_long_time():
    bucket = RateBucket(3.0)
    passed = sum(bucket.take(step / 100) for step in range(1000))
    assert passed == pytest.approx(30, abs=1)


@pytest.mark.parametrize(("limit", "per_second"), [("10/s", 10), ("60/m", 1), ("3600/h", 1), (5, 5)])
def test_a_limit_is_written_as_in_celery(limit, per_second):
    assert RateBucket.of(limit).per_second == per_second


@pytest.mark.parametrize("limit", [None, 0, "0/s"])
def test_no_limit_is_no_bucket(limit):
    assert RateBucket.of(limit) is None
