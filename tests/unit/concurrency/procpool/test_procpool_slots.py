"""The page that parent and child share."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_clone.concurrency.procpool.slots import HOLDS, NOBODY, Claim, Slot


@pytest.fixture
def slot():
    slot = Slot.create(inherited=True)
    yield slot
    slot.close()


def claim(slot: Slot, seq: int) -> None:
    slot.claim_bytes[:] = seq.to_bytes(8, "little" if os.sys.byteorder == "little" else "big", signed=True)


def test_a_fresh_slot_is_nobodys(slot):
    assert slot.claim() == Claim(NOBODY, None)
    assert slot.held() == []
    assert not slot.ready
    assert not slot.leave
    assert slot.target == NOBODY


def test_a_claimed_job_has_not_begun_until_the_child_says_so(slot):
    claim(slot, 5)
    assert slot.claim() == Claim(5, None)
    slot.begin(5, 2_500_000_000)
    assert slot.claim() == Claim(5, 2.5)
    claim(slot, 6)
    assert slot.claim() == Claim(6, None)


def test_a_half_written_begin_is_none(slot):
    claim(slot, 5)
    slot.begin(5, 1_000)
    slot._words[1] = 2_000
    assert slot.claim().began_at is None


@given(
    st.integers(-(2**62), 2**62),
    st.integers(0, 2**62),
    st.integers(-(2**62), 2**62),
    st.integers(0, 2**62),
)
def test_no_mixture_of_two_records_passes_for_one(seq, at, other_seq, other_at):
    slot = Slot.create(inherited=True)
    try:
        claim(slot, seq)
        slot.begin(seq, at)
        assert slot.claim() == Claim(seq, at / 1e9)
        claim(slot, other_seq)
        if other_seq != seq:
            assert slot.claim().began_at is None
        claim(slot, seq)
        slot._words[1] = other_at
        if other_at != at:
            assert slot.claim().began_at is None
    finally:
        slot.close()


def test_ended_jobs_are_held_until_their_reports_are_sent(slot):
    for seq in range(HOLDS):
        claim(slot, seq)
        slot.hold(seq)
    claim(slot, 99)
    assert slot.held() == [*range(HOLDS)]
    assert slot.seen() == [*range(HOLDS), 99]
    assert slot.target == NOBODY
    slot.release()
    assert slot.seen() == [99]


def test_what_the_parent_writes_leaves_the_childs_words_alone(slot):
    claim(slot, 3)
    slot.begin(3, 7)
    slot.target, slot.leave = 3, True
    assert slot.claim().seq == 3
    assert slot.claim().began_at is not None
    assert (slot.target, slot.leave) == (3, True)


def test_a_page_in_a_file_is_seen_by_who_maps_it_again():
    one = Slot.create(inherited=False)
    other = Slot(os.dup(one.descriptor))
    try:
        claim(one, 12)
        one.set_ready()
        assert other.claim().seq == 12
        assert other.ready
    finally:
        one.close()
        other.close()
        one.close()
