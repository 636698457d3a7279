"""Wake-up calls between the processes that share one SQLite file.

Used by the broker and by the result store beside it.  A process that waits owns a :class:`Doorbell`,
a datagram socket in a folder next to the file, and stores its address in the database; who commits
something others wait for rings them.  A ring carries no news, only "look again", and may be lost:
whoever waits also looks again by itself now and then.  It may not touch the database.
"""

from __future__ import annotations

import atexit
import enum
import errno
import glob
import os
import shutil
import socket
import stat
import tempfile
import time
import weakref
from collections.abc import Collection

from celery_clone.utils.ids import uuid

__all__ = ("Doorbell", "Sign", "listen", "remove", "ring", "sign_of_life")

LONGEST_ADDRESS_BYTES = 100
"""Kernels take 104 (macOS, BSD) to 108 bytes (Linux), the final zero included."""

FOLDER_SUFFIX = "-bells"
TEMPORARY_PREFIX = "celery-bells-"
FILE_LINK = "file"
"""In a folder of the system's temporary folder: a link that leads to the file, while that is there."""

BEING_MADE_S = 60.0
"""How long a folder is left alone that may just be filled."""

RING = b"\0"


class Sign(enum.Enum):
    """What an address tells of the process behind it."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"


class Doorbell:
    """The socket one process waits on.

    A forked child closes the copies it inherits, so that an address is alive exactly as long as the
    process that listens on it.  Nothing is left of a bell that nobody closed: it ends with the last reference
    to it, or with the program.
    """

    def __init__(self, sock: socket.socket, address: str) -> None:
        self._socket = sock
        self.address = address
        self.owner = os.getpid()
        self._end = weakref.finalize(self, end, sock, address, self.owner)
        # When the program ends, a thread may still wait here: then the address goes, and the socket stays.
        self._end.atexit = False
        LISTENING.add(self)

    def fileno(self) -> int:
        """The descriptor that becomes readable when somebody rings."""
        return self._socket.fileno()

    def drain(self) -> bool:
        """Forget the rings so far; was there one?  Never waits."""
        heard = False
        self._socket.setblocking(False)
        try:
            while self._socket.recv(16):
                heard = True
        except (BlockingIOError, InterruptedError):
            pass
        return heard

    def wait(self, timeout: float) -> bool:
        """Wait at most *timeout* seconds for a ring; was there one?"""
        if timeout > 0:
            self._socket.settimeout(timeout)
            try:
                self._socket.recv(16)
            except TimeoutError:
                return False
            self.drain()
            return True
        return self.drain()

    def is_in_place(self) -> bool:
        """Can others still find the socket?  Cleaners of temporary folders remove such files."""
        return os.path.exists(self.address)

    def close(self) -> None:
        """Stop listening and remove the socket.  Legal twice."""
        self._end()

    def forget(self) -> None:
        """In a forked child: close the copy, leave the parent's socket in its place."""
        self._end.detach()
        LISTENING.discard(self)
        self._socket.close()


def end(sock: socket.socket, address: str, owner: int) -> None:
    """Close a bell's socket, and remove it if this is the process *owner* that made it."""
    sock.close()
    if os.getpid() == owner:
        remove(address)


def listen(beside: str, mode: int) -> Doorbell | None:
    """Open a doorbell for the file *beside*, ringable by those who may write that file (*mode*).

    The socket lies in the folder ``<file>-bells``; where that path is too long for the kernel, in a
    private folder of the system's temporary folder.  ``None``: this platform or folder allows none,
    the caller has to look by itself more often.
    """
    if not hasattr(socket, "AF_UNIX"):
        return None
    name = f"{os.getpid():x}-{uuid()[:8]}"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    private = ""
    try:
        folder = beside + FOLDER_SUFFIX
        if len(os.fsencode(folder)) + len(name) < LONGEST_ADDRESS_BYTES:
            make_folder(folder, mode)
        else:
            sweep(tempfile.gettempdir())
            folder = private = tempfile.mkdtemp(prefix=TEMPORARY_PREFIX)
            os.symlink(beside, os.path.join(folder, FILE_LINK))
        address = os.path.join(folder, name)
        sock.bind(address)
        os.chmod(address, mode)
    except OSError:
        # No socket, no rings: slower, and correct all the same.
        sock.close()
        if private:
            shutil.rmtree(private, ignore_errors=True)
        return None
    return Doorbell(sock, address)


def make_folder(folder: str, mode: int) -> None:
    """Make the folder of the sockets, open to those who may read and write the file itself."""
    try:
        os.mkdir(folder)
    except FileExistsError:
        return
    # Who may write the file may enter, listen and ring.
    os.chmod(folder, 0o700 | (0o070 if mode & stat.S_IWGRP else 0) | (0o007 if mode & stat.S_IWOTH else 0))


def sweep(temporary: str) -> None:
    """Remove what killed processes left in the folder *temporary* for files that are gone by now.

    While a file is there, those who use it find its dead by what it says of them.
    """
    for folder in glob.glob(os.path.join(glob.escape(temporary), TEMPORARY_PREFIX + "*")):
        if os.path.exists(os.path.join(folder, FILE_LINK)):
            continue
        try:
            inside = [os.path.join(folder, name) for name in os.listdir(folder) if name != FILE_LINK]
            quiet_s = time.time() - os.stat(folder).st_mtime
        except OSError:
            continue  # another user's, or somebody was faster
        if quiet_s > BEING_MADE_S and all(sign_of_life(address) is Sign.DEAD for address in inside):
            shutil.rmtree(folder, ignore_errors=True)


def ring(addresses: Collection[str]) -> list[str]:
    """Ring at each address without waiting; the addresses where nobody listens any more."""
    if not addresses:
        return []
    silent: list[str] = []
    try:
        caller = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    except OSError:
        # Out of descriptors: what was committed is found by the next look.
        return silent
    with caller:
        caller.setblocking(False)
        for address in addresses:
            try:
                caller.sendto(RING, address)
            except (ConnectionRefusedError, FileNotFoundError):
                silent.append(address)
            except OSError:
                # Full: it was rung already and has not looked yet.  Not permitted: it will look by itself.
                continue
    return silent


def sign_of_life(address: str | None) -> Sign:
    """Does a process listen at *address*?"""
    if not address or not hasattr(socket, "AF_UNIX"):
        return Sign.UNKNOWN
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as caller:
        try:
            caller.connect(address)
        except OSError as error:
            return Sign.DEAD if error.errno == errno.ECONNREFUSED else Sign.UNKNOWN
    return Sign.ALIVE


def remove(address: str) -> None:
    """Remove a socket nobody listens on, and its folder if that was made for it alone."""
    try:
        os.unlink(address)
    except OSError:
        # Gone already, or somebody else's: either way there is nothing of ours left to remove.
        return
    folder = os.path.dirname(address)
    if os.path.basename(folder).startswith(TEMPORARY_PREFIX):
        shutil.rmtree(folder, ignore_errors=True)


LISTENING: weakref.WeakSet[Doorbell] = weakref.WeakSet()


def close_inherited() -> None:
    """In a forked child: the bells are the parent's."""
    for doorbell in list(LISTENING):
        doorbell.forget()


def remove_all() -> None:
    """The program ends, and nobody has closed these."""
    for doorbell in list(LISTENING):
        if doorbell.owner == os.getpid():
            remove(doorbell.address)


atexit.register(remove_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=close_inherited)
