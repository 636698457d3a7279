"""One SQLite file: its URL, its errors, its transactions."""

from __future__ import annotations

import gc
import os
import sqlite3
from pathlib import Path

import pytest
from kombu.exceptions import OperationalError

from celery_clone.transport.sqlite.database import Database, DatabaseUnavailable, Tables, locate, remedy_for

NOTES = Tables("notes", 1, "CREATE TABLE notes (text TEXT); CREATE INDEX notes_by_text ON notes (text)")


@pytest.fixture
def database(tmp_path: Path):
    database = Database(str(tmp_path / "notes.db"), NOTES, busy_timeout_s=0.01)
    yield database
    database.close()


def notes(database: Database) -> list[str]:
    return [row[0] for row in database.read(lambda db: db.execute("SELECT text FROM notes").fetchall())]


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite://", "celery.db"),
        ("sqlite:///", "celery.db"),
        ("sqlite:///jobs.db", "jobs.db"),
        ("sqlite:///data/jobs.db", "data/jobs.db"),
        ("sqlite:////var/lib/jobs.db", "/var/lib/jobs.db"),
        ("sqlite:///with%20space.db", "with space.db"),
        ("sqlite://localhost/jobs.db", "jobs.db"),
    ],
)
def test_a_url_names_a_file(url: str, path: str) -> None:
    assert locate(url).path == path


def test_options_may_stand_behind_the_path() -> None:
    options = locate("sqlite:///jobs.db?synchronous=FULL&lease=30").options

    assert options == {"synchronous": "FULL", "lease": "30"}


@pytest.mark.parametrize(
    ("url", "remedy"), [("sqlite://jobs.db", "sqlite:///jobs.db"), ("sqlite:///:memory:", "Name a file")]
)
def test_a_url_that_names_no_file_is_refused_with_the_right_spelling(url: str, remedy: str) -> None:
    with pytest.raises(DatabaseUnavailable, match=remedy):
        locate(url)


def test_errors_are_kombus_operational_error() -> None:
    assert issubclass(DatabaseUnavailable, OperationalError)


def test_a_transaction_is_kept_when_its_work_ends(database: Database) -> None:
    database.write(lambda db: db.execute("INSERT INTO notes VALUES ('kept')"))

    assert notes(database) == ["kept"]


def test_a_transaction_is_undone_when_its_work_raises(database: Database) -> None:
    def work(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO notes VALUES ('half')")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        database.write(work)

    assert notes(database) == []
    database.write(lambda db: db.execute("INSERT INTO notes VALUES ('whole')"))
    assert notes(database) == ["whole"]


def test_a_transaction_left_open_by_an_interruption_is_ended_by_the_next_work(database: Database) -> None:
    database.read(lambda db: db.execute("BEGIN IMMEDIATE"))

    database.write(lambda db: db.execute("INSERT INTO notes VALUES ('next')"))

    assert notes(database) == ["next"]


def test_a_file_locked_for_too_long_names_itself_and_the_remedy(database: Database) -> None:
    database.write(lambda db: None)
    other = sqlite3.connect(database.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(DatabaseUnavailable, match=r"notes\.db.*locked.*busy_timeout"):
        database.write(lambda db: None)

    other.close()
    database.write(lambda db: None)


def test_patience_may_be_shorter_than_the_databases_own(tmp_path: Path) -> None:
    database = Database(str(tmp_path / "notes.db"), NOTES, busy_timeout_s=3600)
    database.write(lambda db: None)
    other = sqlite3.connect(database.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(DatabaseUnavailable):
        database.write(lambda db: None, patience_s=0.01)

    other.close()
    database.close()


def test_readers_are_not_stopped_by_a_writer(database: Database) -> None:
    database.write(lambda db: db.execute("INSERT INTO notes VALUES ('old')"))
    other = sqlite3.connect(database.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    assert notes(database) == ["old"]

    other.close()


def test_a_wrong_statement_is_shown_as_it_is(database: Database) -> None:
    with pytest.raises(sqlite3.OperationalError, match="1 columns"):
        database.write(lambda db: db.execute("INSERT INTO notes VALUES (?, ?)", ("one",)))


def test_a_removed_file_is_made_again(database: Database) -> None:
    database.write(lambda db: db.execute("INSERT INTO notes VALUES ('gone')"))
    for suffix in ("", "-wal", "-shm"):
        os.unlink(database.path + suffix)

    database.write(lambda db: db.execute("INSERT INTO notes VALUES ('new')"))

    assert notes(database) == ["new"]


def test_two_owners_share_a_file(tmp_path: Path) -> None:
    first = Database(str(tmp_path / "shared.db"), NOTES)
    second = Database(str(tmp_path / "shared.db"), Tables("marks", 1, "CREATE TABLE marks (mark TEXT)"))
    first.write(lambda db: db.execute("INSERT INTO notes VALUES ('a')"))
    second.write(lambda db: db.execute("INSERT INTO marks VALUES ('b')"))

    assert notes(first) == ["a"]
    assert second.read(lambda db: db.execute("SELECT mark FROM marks").fetchall()) == [("b",)]
    first.close()
    second.close()


def test_a_layout_of_another_version_is_refused(database: Database) -> None:
    database.write(lambda db: None)
    newer = Database(database.path, NOTES._replace(version=2))

    with pytest.raises(DatabaseUnavailable, match="layout 1.*layout 2"):
        newer.read(lambda db: None)


def test_closing_is_legal_twice_and_work_opens_again(database: Database) -> None:
    database.write(lambda db: db.execute("INSERT INTO notes VALUES ('kept')"))
    database.close()
    database.close()

    assert notes(database) == ["kept"]


def test_an_unknown_level_of_durability_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="NORMAL, FULL, EXTRA"):
        Database(str(tmp_path / "notes.db"), NOTES, synchronous="OFF")


@pytest.mark.parametrize(
    ("make", "remedy"),
    [
        (lambda folder: folder / "missing" / "jobs.db", "create it"),
        (lambda folder: folder, "name a file in it"),
    ],
    ids=["no such folder", "a folder"],
)
def test_a_path_that_cannot_be_opened_tells_what_to_do(tmp_path: Path, make, remedy: str) -> None:
    path = make(tmp_path)

    with pytest.raises(DatabaseUnavailable, match=remedy) as caught:
        Database(str(path), NOTES).read(lambda db: None)

    assert str(path) in str(caught.value)


def test_a_file_that_is_no_database_tells_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear reader, " * 400)

    with pytest.raises(DatabaseUnavailable, match="no intact SQLite database"):
        Database(str(path), NOTES).read(lambda db: None)


def test_a_full_disk_asks_for_space() -> None:
    assert "disk space" in remedy_for(sqlite3.OperationalError("database or disk is full"), "/tmp/jobs.db")


def test_a_file_that_nobody_closed_is_let_go_of_with_its_last_user(tmp_path: Path) -> None:
    database = Database(str(tmp_path / "notes.db"), NOTES)
    database.write(lambda db: db.execute("INSERT INTO notes VALUES ('one')"))

    del database
    gc.collect()  # from Python 3.13 on an unclosed connection is a warning, and that an error

    assert os.listdir(tmp_path) == ["notes.db"]
