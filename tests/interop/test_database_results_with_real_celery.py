"""One SQL database as the result store of real Celery and of us: the same rows, read and written by both."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.redis import RedisServer
from tests.support.two_sides import SIDES, Client, Link, Raised, open_link, other


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the database."""
    return tmp_path_factory.mktemp("database") / "results.db"


@pytest.fixture(scope="module")
def link(
    pythons: Mapping[str, Path | str],
    redis_server: RedisServer,
    file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Link]:
    """Messages in Redis, results with all that is known of a task in a database."""
    broker, backend = redis_server.new_database_url(), f"db+sqlite:///{file}"
    settings = json.dumps({"result_extended": True, "result_chord_retry_interval": 0.2})
    folder = tmp_path_factory.mktemp("database-link")
    with open_link(pythons, broker, backend, folder, SETTINGS=settings) as link:
        yield link


@pytest.fixture
def client(link: Link, sender: str) -> Client:
    """A producer of either side."""
    return link.clients[sender]


def row_of(file: Path, task_id: str) -> dict[str, Any]:
    """What is stored of a task."""
    with closing(sqlite3.connect(file)) as connection:
        connection.row_factory = sqlite3.Row
        return dict(connection.execute("SELECT * FROM celery_taskmeta WHERE task_id = ?", (task_id,)).fetchone())


def test_what_one_side_ran_the_other_reads(client: Client, sender: str) -> None:
    client.keep("call", f"add.apply_async((1,), {{'y': 2}}, queue={other(sender)!r})")

    assert client("call.get(timeout=20)") == 3
    assert client("[call.name, call.args, call.kwargs, call.retries, call.queue]") == [
        "shop.add",
        [1],
        {"y": 2},
        0,
        other(sender),
    ]
    assert client("call.worker").startswith(other(sender))


def test_an_error_crosses_with_its_type(client: Client, sender: str) -> None:
    with pytest.raises(Raised) as raised:
        client(f"fail.apply_async(queue={other(sender)!r}).get(timeout=20)")

    assert raised.value.kind == "shop.OutOfStock"


def test_a_group_saved_by_one_side_is_restored_by_the_other(link: Link, client: Client, sender: str) -> None:
    client.keep("members", "group(add.s(number, 1) for number in range(3)).delay()")
    client("members.save()")

    restored = "results.GroupResult.restore(id, app=app).get(timeout=20)"
    assert link.clients[other(sender)](restored, id=client("members.id")) == [1, 2, 3]


def test_a_chord_whose_members_run_on_both_sides_completes(client: Client, sender: str) -> None:
    queues = [*SIDES, *SIDES]
    members = "[add.s(number, 1).set(queue=queue) for number, queue in enumerate(queues)]"

    chord = f"chord({members})(total.s().set(queue={other(sender)!r}))"

    assert client(f"{chord}.get(timeout=20)", queues=queues) == 10


def test_a_chord_with_a_failed_member_ends_with_its_error(client: Client, sender: str) -> None:
    header = f"[add.s(1, 1), fail.si().set(queue={other(sender)!r})]"

    with pytest.raises(Raised) as raised:
        client(f"chord({header})(total.s()).get(timeout=20, follow_parents=False)")

    assert raised.value.kind == "celery.exceptions.ChordError"


STORING = {
    "a value": "app.backend.mark_as_done(id, {'a': [1, None, 'ü']}, request=Context(id=id, args=[1], kwargs={'b': 2}))",
    "an error": "app.backend.mark_as_failure(id, ValueError('x', 3), 'Traceback', request=Context(id=id, task='t'))",
    "a state": "app.backend.store_result(id, {'done': 1}, 'PROGRESS')",
    "with children": "app.backend.mark_as_done(id, 1, request=Context(id=id, children=[app.AsyncResult('child')]))",
    "with stamps": "app.backend.mark_as_done(id, 1, request=Context(id=id, stamped_headers=['k'], stamps={'k': 'v'}))",
    "a large one": "app.backend.mark_as_done(id, 'x' * 100_000)",
}


@pytest.mark.parametrize("storing", STORING.values(), ids=STORING.keys())
def test_both_store_the_same_row(storing: str, link: Link, file: Path) -> None:
    rows = []
    for side in SIDES:
        task_id = f"{side} {storing[:200]}"[:100]
        link.clients[side](storing, id=task_id)
        row = row_of(file, task_id)
        assert (row.pop("date_done") is None) is (row["status"] == "PROGRESS")
        del row["id"], row["task_id"]
        rows.append(row)

    assert rows[0] == rows[1]
