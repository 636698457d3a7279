"""The way of jobs from the parent to its children: packets, the shared socket, and a pair each without it.

The parent (``procpool.parent``) owns a feed and puts packets into it; each child (``procpool.child``) takes
them out through an :class:`Intake`.  The kernel gives every packet of the shared socket to exactly one
reader, so the child that is idle takes the next job and nothing waits behind a long one.  What the parent
reads back itself (:meth:`SharedFeed.take_back`) no child has begun.
It knows nothing of tasks, and never blocks the parent.
"""

from __future__ import annotations

import array
import enum
import mmap
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any, Protocol

from celery_clone.message.frames import Job, decode_job, encode_job

from .slots import NOBODY, memory_file

__all__ = ("INLINE_BYTES", "Feed", "Intake", "Kind", "Packet", "PairedFeed", "SharedFeed", "open_feed")


def has_shared_sockets() -> bool:
    """Can several processes share one socket that keeps packets apart?"""
    if not hasattr(socket, "SOCK_SEQPACKET"):
        return False
    try:
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError:
        return False
    one.close()
    other.close()
    return True


SHARES_SOCKETS = has_shared_sockets()

INLINE_BYTES = 32 * 1024 if SHARES_SOCKETS else 4 * 1024
"""A longer job travels as the descriptor of a file in memory.  Streams get less, so that no packet is cut."""

HEAD = struct.Struct("=qBBxxI")  # number, kind, flags, length of the payload
NUMBER_BYTES = 8
REST_OF_HEAD = struct.Struct("=BBxxI")
ROOM_FOR_ONE_DESCRIPTOR = socket.CMSG_SPACE(array.array("i").itemsize)
RECEIVE_FLAGS = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
SEND_FLAGS = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)
BUFFER_BYTES = 1 << 20


class Kind(enum.IntEnum):
    """What a packet is."""

    JOB = 1
    FILE = 2
    """A job whose bytes are in the file that travels with the packet."""
    LEAVE = 3
    """The child that takes it leaves."""
    POKE = 4
    """The child that takes it looks whether it is asked to leave."""
    END = 5
    """Never sent: there will be no more packets."""


class Packet:
    """One packet ready to be sent.  Close it after use: it may own a descriptor."""

    __slots__ = ("_file", "_head", "_payload", "seq")

    def __init__(self, seq: int, kind: Kind, flags: int = 0, payload: bytes = b"") -> None:
        self.seq = seq
        self._file = -1
        if len(payload) > INLINE_BYTES:
            self._head, self._payload = HEAD.pack(seq, Kind.FILE, flags, len(payload)), b""
            self._file = memory_file("celery-job")
            try:
                write_all(self._file, payload)
            except BaseException:
                self.close()
                raise
        else:
            self._head, self._payload = HEAD.pack(seq, kind, flags, len(payload)), payload

    @classmethod
    def of(cls, job: Job) -> Packet:
        """The packet that carries *job*.  Raises what pickling raises."""
        return cls(job.seq, Kind.JOB, job.flags, encode_job(job))

    @classmethod
    def order(cls, kind: Kind) -> Packet:
        """A packet that is not a job."""
        return cls(NOBODY, kind)

    def send(self, sock: socket.socket) -> bool:
        """Send without waiting; ``False`` when there is no room now."""
        ancillary: list[tuple[int, int, Any]] = []
        if self._file >= 0:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [self._file]))]
        try:
            sock.sendmsg((self._head, self._payload), ancillary, SEND_FLAGS)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Give the descriptor back.  Legal twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def write_all(descriptor: int, data: bytes) -> None:
    """Write *data* from the start of the file."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def received_descriptor(ancillary: Sequence[tuple[int, int, bytes]]) -> int:
    """The descriptor that came with a packet, or -1."""
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            return array.array("i", data)[0]
    return -1


class Intake:
    """Where one reader takes packets.  *claim* is 8 bytes that the number of each packet is received into."""

    __slots__ = ("_body", "_descriptor", "_length", "_sock", "_views", "flags")

    def __init__(self, sock: socket.socket, claim: memoryview | bytearray) -> None:
        self._sock = sock
        self._body = memoryview(bytearray(HEAD.size - NUMBER_BYTES + INLINE_BYTES))
        self._views = (claim, self._body)
        self._length = 0
        self._descriptor = -1
        self.flags = 0
        """The flags of the job taken last."""

    def take(self, *, wait: bool) -> Kind | None:
        """Take the next packet; ``None`` when there is none and *wait* is false.

        A signal handler may raise out of the wait.
        """
        flags = RECEIVE_FLAGS if wait else RECEIVE_FLAGS | socket.MSG_DONTWAIT
        try:
            count, ancillary, _, _ = self._sock.recvmsg_into(self._views, ROOM_FOR_ONE_DESCRIPTOR, flags)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return Kind.END
        if ancillary:
            self._descriptor = received_descriptor(ancillary)
        if count < HEAD.size:
            count = self._receive_rest(count, HEAD.size)
            if count < HEAD.size:
                return Kind.END
        kind, self.flags, self._length = REST_OF_HEAD.unpack_from(self._body)
        if kind == Kind.JOB:
            wanted = HEAD.size + self._length
            if count < wanted and self._receive_rest(count, wanted) < wanted:
                return Kind.END
        return Kind(kind)

    def _receive_rest(self, have: int, wanted: int) -> int:
        """A stream may give a packet in pieces: receive until *wanted* bytes are there.  Returns how many are."""
        while 0 < have < wanted:
            claim, body = memoryview(self._views[0])[have:], self._body[max(0, have - NUMBER_BYTES) :]
            try:
                count = self._sock.recvmsg_into((claim, body))[0]
            except ConnectionResetError:
                break
            if not count:
                break
            have += count
        return have

    def job(self) -> Job:
        """The job taken last."""
        descriptor = self._descriptor
        if descriptor < 0:
            start = HEAD.size - NUMBER_BYTES
            return decode_job(self._body[start : start + self._length])
        try:
            with (
                mmap.mmap(descriptor, self._length, access=mmap.ACCESS_READ) as file,
                memoryview(file) as data,
            ):
                return decode_job(data)
        finally:
            self.discard()

    def discard(self) -> None:
        """Let go of a file that came with a packet and was not read."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Feed(Protocol):
    """How packets reach the children.  *child* is any key the parent chooses."""

    def open(self, child: int) -> socket.socket:
        """The socket that a new child reads from."""

    def forked(self, child: int) -> None:
        """The child has its socket: let go of what only it needs."""

    def put(self, packet: Packet) -> bool:
        """Send *packet*; ``False`` when there is no room now.  ``OSError``: the system refuses."""

    def freed(self, child: int) -> None:
        """The child has reported the job it was given."""

    def take_back(self) -> list[int | Kind]:
        """Take out what no child has begun: numbers of jobs, and orders."""

    def given(self) -> set[int]:
        """Jobs that are on their way to one child and cannot be taken back."""

    def poke(self, child: int) -> None:
        """Have the child look, when it is idle, whether it is asked to leave."""

    def writable_descriptor(self) -> int:
        """The descriptor to watch when :meth:`put` found no room, or -1 when only a report makes room."""

    def drop(self, child: int) -> int | None:
        """The child is gone.  Returns the job that was on its way to it, if there is one."""

    def finish(self) -> None:
        """There will be no more packets: children leave when they have taken what is there."""

    def parent_ends(self) -> list[socket.socket]:
        """What a child must close."""

    def close(self) -> None:
        """Give all sockets back.  Legal twice."""


class SharedFeed:
    """One socket for all children.  The parent keeps the reading end too, to take packets back."""

    def __init__(self) -> None:
        self._writer, self._reader = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._writer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)

    def open(self, child: int) -> socket.socket:
        return self._reader

    def forked(self, child: int) -> None:
        """All children share one socket."""

    def put(self, packet: Packet) -> bool:
        return packet.send(self._writer)

    def freed(self, child: int) -> None:
        """Whoever is idle takes the next packet."""

    def take_back(self) -> list[int | Kind]:
        number = bytearray(NUMBER_BYTES)
        intake = Intake(self._reader, number)
        taken: list[int | Kind] = []
        while True:
            kind = intake.take(wait=False)
            if kind is None or kind is Kind.END:
                return taken
            intake.discard()
            taken.append(kind if kind in (Kind.LEAVE, Kind.POKE) else struct.unpack("=q", number)[0])

    def given(self) -> set[int]:
        return set()

    def poke(self, child: int) -> None:
        Packet.order(Kind.POKE).send(self._writer)  # a full socket wakes the child without it

    def writable_descriptor(self) -> int:
        return self._writer.fileno()

    def drop(self, child: int) -> int | None:
        return None

    def finish(self) -> None:
        self._writer.close()

    def parent_ends(self) -> list[socket.socket]:
        return [self._writer]

    def close(self) -> None:
        self._writer.close()
        self._reader.close()


class _Pair:
    __slots__ = ("busy", "reader", "seq", "writer")

    def __init__(self) -> None:
        self.writer, self.reader = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.writer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * INLINE_BYTES)
        self.busy = False
        self.seq: int | None = None


class PairedFeed:
    """A pair of sockets for each child, which gets one packet at a time.  For systems without SEQPACKET."""

    def __init__(self) -> None:
        self._pairs: dict[int, _Pair] = {}

    def open(self, child: int) -> socket.socket:
        pair = self._pairs[child] = _Pair()
        return pair.reader

    def forked(self, child: int) -> None:
        self._pairs[child].reader.close()

    def put(self, packet: Packet) -> bool:
        for pair in self._pairs.values():
            if pair.busy:
                continue
            pair.busy = True
            try:
                if packet.send(pair.writer):
                    pair.seq = packet.seq
                    return True
            except (BrokenPipeError, ConnectionResetError):
                pass  # this child is dead and will be buried; it stays busy till then
        return False

    def freed(self, child: int) -> None:
        pair = self._pairs.get(child)
        if pair is not None and pair.writer.fileno() >= 0:
            pair.busy = False
            pair.seq = None

    def take_back(self) -> list[int | Kind]:
        return []

    def given(self) -> set[int]:
        return {pair.seq for pair in self._pairs.values() if pair.seq is not None}

    def poke(self, child: int) -> None:
        pair = self._pairs[child]
        if not pair.busy:
            pair.busy = True
            pair.writer.close()

    def writable_descriptor(self) -> int:
        return -1

    def drop(self, child: int) -> int | None:
        pair = self._pairs.pop(child, None)
        if pair is None:
            return None
        pair.writer.close()
        pair.reader.close()
        return pair.seq

    def finish(self) -> None:
        for pair in self._pairs.values():
            pair.writer.close()

    def parent_ends(self) -> list[socket.socket]:
        return [pair.writer for pair in self._pairs.values()]

    def close(self) -> None:
        for child in list(self._pairs):
            self.drop(child)


def open_feed(*, shared: bool | None = None) -> Feed:
    """The feed for this system; *shared* insists on one kind."""
    return SharedFeed() if (SHARES_SOCKETS if shared is None else shared) else PairedFeed()
