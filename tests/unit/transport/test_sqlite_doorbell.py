"""Doorbells: what is left of them, and who removes it."""

from __future__ import annotations

import gc
import os
import tempfile
from pathlib import Path

import pytest

from celery_clone.transport.sqlite.doorbell import (
    BEING_MADE_S,
    FILE_LINK,
    FOLDER_SUFFIX,
    Doorbell,
    Sign,
    listen,
    ring,
    sign_of_life,
)


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch):
    """The system's temporary folder, as this test sees it."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@pytest.fixture
def file(temporary: Path) -> Path:
    file = temporary / "a.db"
    file.touch()
    return file


@pytest.fixture
def far_file(temporary: Path) -> Path:
    """A file with a path too long for a socket beside it."""
    file = temporary / ("x" * 100) / "a.db"
    file.parent.mkdir()
    file.touch()
    return file


def open_bell(file: Path) -> Doorbell:
    bell = listen(str(file), 0o600)
    assert bell is not None
    return bell


def folders(temporary: Path) -> list[Path]:
    return sorted(temporary.glob("celery-bells-*"))


def leave_dead(file: Path) -> Path:
    """What a killed process leaves in the temporary folder: the socket, and nobody behind it."""
    bell = open_bell(file)
    bell.forget()
    folder = Path(bell.address).parent
    long_ago = os.stat(folder).st_mtime - 2 * BEING_MADE_S
    os.utime(folder, (long_ago, long_ago))
    return folder


def test_a_ring_is_heard_until_the_bell_is_closed(file: Path) -> None:
    bell = open_bell(file)

    assert ring([bell.address]) == []
    assert bell.wait(1.0)

    bell.close()
    bell.close()
    assert ring([bell.address]) == [bell.address]
    assert os.listdir(f"{file}{FOLDER_SUFFIX}") == []


def test_nothing_is_left_of_a_bell_that_nobody_closed(file: Path, far_file: Path, temporary: Path) -> None:
    addresses = [open_bell(file).address, open_bell(far_file).address]
    gc.collect()  # an unclosed socket would be a warning, and that an error

    assert not any(os.path.exists(address) for address in addresses)
    assert folders(temporary) == []


def test_a_bell_of_another_process_stays_where_it_is(file: Path) -> None:
    bell = open_bell(file)
    address = bell.address

    bell.forget()  # as a forked child does
    del bell
    gc.collect()

    assert sign_of_life(address) is Sign.DEAD


def test_what_a_killed_process_left_goes_with_the_next_bell_once_its_file_is_gone(
    far_file: Path, temporary: Path
) -> None:
    dead = leave_dead(far_file)
    other = far_file.with_name("b.db")

    bell = open_bell(other)
    assert dead in folders(temporary), "while the file is there, its users remove their dead"

    far_file.unlink()
    again = open_bell(other)
    assert dead not in folders(temporary)
    assert sign_of_life(bell.address) is Sign.ALIVE, "the living stay, whether their file is there or not"
    bell.close()
    again.close()


def test_a_folder_that_is_just_being_filled_stays(far_file: Path, temporary: Path) -> None:
    new = temporary / "celery-bells-new"
    new.mkdir()

    open_bell(far_file).close()
    assert folders(temporary) == [new]


def test_where_no_socket_can_be_made_nothing_is_left(
    far_file: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(far_file.parent))

    assert listen(str(far_file), 0o600) is None
    assert folders(far_file.parent) == []


def test_the_folder_of_one_bell_says_whose_it_is(far_file: Path, temporary: Path) -> None:
    bell = open_bell(far_file)

    [folder] = folders(temporary)
    assert os.path.samefile(folder / FILE_LINK, far_file)
    bell.close()
