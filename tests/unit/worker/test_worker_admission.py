"""Whether a delivery runs, waits or is discarded."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from celery_clone.exceptions import InvalidTaskError
from celery_clone.worker.admission import Discard, Hold, Run, admit, epoch

NOW = 1_800_000_000.0
LATER = datetime.fromtimestamp(NOW + 60, timezone.utc)
BEFORE = datetime.fromtimestamp(NOW - 60, timezone.utc)


def verdict(headers=None, *, plain=False, revoked=(), stamps=None):
    def read():
        assert headers is not None, "a plain message must not be decoded"
        return headers

    return admit("id", plain, read, NOW, revoked, stamps or {})


def test_a_plain_message_runs_without_being_decoded():
    assert verdict(plain=True) == Run()


def test_a_revoked_message_is_discarded_without_being_decoded():
    assert verdict(plain=True, revoked={"id"}) == Discard(expired=False)


def test_a_message_with_a_revoked_stamp_is_discarded_even_if_plain():
    headers = {"stamps": {"tenant": ["blue"]}}
    assert verdict(headers, plain=True, stamps={"tenant": "blue"}) == Discard(expired=False)
    assert verdict(headers, plain=True, stamps={"tenant": ["red"]}) == Run()


def test_a_message_due_later_is_held_until_then():
    assert verdict({"eta": LATER.isoformat()}) == Hold(NOW + 60)


def test_a_message_that_was_due_runs():
    assert verdict({"eta": BEFORE.isoformat()}) == Run()


def test_an_expired_message_is_discarded_even_if_it_is_not_due():
    headers = {"eta": LATER.isoformat(), "expires": BEFORE.isoformat()}
    assert verdict(headers) == Discard(expired=True)


def test_a_time_without_an_offset_is_utc():
    assert epoch("2027-01-15T10:00:00", "eta") == datetime(2027, 1, 15, 10, tzinfo=timezone.utc).timestamp()


@pytest.mark.parametrize("field", ["eta", "expires"])
def test_a_time_that_cannot_be_read_names_the_field_and_the_value(field):
    with pytest.raises(InvalidTaskError, match=f"invalid {field} value 'soon'"):
        verdict({field: "soon"})
