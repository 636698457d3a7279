"""Jobs on their way through the feeds, with both ends in this process."""

from __future__ import annotations

import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_clone.concurrency.procpool.desk import Desk, Passage
from celery_clone.concurrency.procpool.jobs import INLINE_BYTES, Intake, Kind, Packet, PairedFeed, SharedFeed
from celery_clone.message.frames import MAY_WAIT, Job


def number(claim: bytearray) -> int:
    return int(struct.unpack("=q", claim)[0])


@pytest.fixture(params=[SharedFeed, PairedFeed])
def feed(request):
    feed = request.param()
    yield feed
    feed.close()


@pytest.fixture
def desk(feed):
    desk = Desk(feed)
    yield desk
    desk.close()


@given(st.lists(st.tuples(st.integers(0, 3 * INLINE_BYTES), st.integers(0, 7)), max_size=8))
@settings(deadline=None, max_examples=30)
def test_packets_come_out_as_they_went_in(jobs):
    feed = SharedFeed()
    claim = bytearray(8)
    intake = Intake(feed.open(1), claim)
    try:
        for seq, (size, flags) in enumerate(jobs):
            sent = Job(seq, "t", raw=b"x" * size, flags=flags)
            packet = Packet.of(sent)
            assert feed.put(packet)
            packet.close()
            assert intake.take(wait=False) in (Kind.JOB, Kind.FILE)
            assert number(claim) == seq
            assert intake.flags == flags
            assert intake.job() == sent
        assert intake.take(wait=False) is None
    finally:
        feed.close()


def test_a_stream_may_give_a_packet_in_pieces():
    feed = PairedFeed()
    claim = bytearray(8)
    intake = Intake(feed.open(1), claim)
    packet = Packet.of(Job(7, "t", raw=b"x" * 1000, flags=MAY_WAIT))
    whole = packet._head + packet._payload
    writer = feed._pairs[1].writer
    intake._sock.settimeout(5)

    class Pieces:
        """Gives five bytes at a time, whatever is asked for."""

        def recvmsg_into(self, views, *args):
            received = intake_sock.recv(5)
            room = b"".join(bytes(view) for view in views)
            data = received + room[len(received) :]
            for view in views:
                view[:], data = data[: len(view)], data[len(view) :]
            return len(received), [], 0, None

    intake_sock = intake._sock
    intake._sock = Pieces()
    writer.sendall(whole)
    assert intake.take(wait=True) is Kind.JOB
    assert number(claim) == 7
    assert intake.job().raw == b"x" * 1000
    feed.close()


def test_the_end_of_the_feed_is_told_after_its_last_packet():
    feed = SharedFeed()
    intake = Intake(feed.open(1), bytearray(8))
    feed.put(Packet.of(Job(1, "t")))
    feed.finish()
    assert intake.take(wait=True) is Kind.JOB
    assert intake.take(wait=True) is Kind.END
    feed.close()


def test_the_desk_keeps_what_the_feed_has_no_room_for(desk, feed):
    feed.open(1)
    for seq in range(2000):
        desk.add(Job(seq, "t", raw=b"x" * 20_000), (None, None))
    assert desk.pump() is Passage.FULL
    assert desk.waits
    assert len(desk.orders) == 2000


def test_what_is_recalled_is_forgotten_and_calls_stay():
    feed = SharedFeed()
    desk = Desk(feed)
    for seq in (0, 1, -2, 3):
        desk.add(Job(seq, "t"), (None, None))
    desk.add_leaves(1)
    desk.pump()
    desk.add(Job(4, "t"), (None, None))
    assert desk.recall() == [0, 1, 3, 4]
    assert [*desk.orders] == [-2]
    desk.pump()
    claim = bytearray(8)
    intake = Intake(feed.open(1), claim)
    assert (intake.take(wait=False), number(claim)) == (Kind.JOB, -2)
    assert intake.take(wait=False) is Kind.LEAVE
    desk.close()


def test_files_of_large_jobs_are_given_back():
    feed = SharedFeed()
    desk = Desk(feed)
    before = len(os.listdir("/proc/self/fd"))
    for seq in range(5):
        desk.add(Job(seq, "t", raw=b"x" * 100_000), (None, None))
    desk.pump()
    assert len(os.listdir("/proc/self/fd")) == before
    assert desk.recall() == [*range(5)]
    assert len(os.listdir("/proc/self/fd")) == before
    desk.close()


def test_missing_is_what_nobody_has():
    feed = SharedFeed()
    desk = Desk(feed)
    for seq in range(4):
        desk.add(Job(seq, "t"), (None, None))
    desk.pump()
    intake = Intake(feed.open(1), bytearray(8))
    intake.take(wait=False)
    intake.take(wait=False)
    assert desk.missing([0]) == {1}
    desk.pump()
    assert desk.missing([0, 1]) == set()
    desk.close()


def test_a_job_that_was_put_back_is_the_next_one():
    feed = SharedFeed()
    desk = Desk(feed)
    for seq in range(3):
        desk.add(Job(seq, "t"), (None, None))
    desk.pump()
    claim = bytearray(8)
    intake = Intake(feed.open(1), claim)
    intake.take(wait=False)
    desk.take_back()
    desk.put_back(0)
    desk.put_back(77)
    desk.pump()
    taken = []
    while intake.take(wait=False):
        taken.append(number(claim))
    assert taken == [0, 1, 2]
    desk.finish()
    desk.put_back(0)
    assert desk.orders == {1: desk.orders[1], 2: desk.orders[2]}
    desk.close()


def test_a_pair_is_given_one_job_at_a_time():
    feed = PairedFeed()
    for child in (1, 2):
        feed.open(child)
    assert feed.put(Packet.of(Job(10, "t")))
    assert feed.put(Packet.of(Job(11, "t")))
    assert not feed.put(Packet.of(Job(12, "t")))
    assert feed.given() == {10, 11}
    feed.freed(1)
    assert feed.put(Packet.of(Job(12, "t")))
    assert feed.drop(1) == 12
    assert feed.drop(1) is None
    assert feed.given() == {11}
    feed.close()
