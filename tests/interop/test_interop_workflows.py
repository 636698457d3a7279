"""Groups, chains and chords whose members are run by real Celery and by us, mixed, whoever sends them."""

from __future__ import annotations

import itertools

import pytest

from tests.support.two_sides import SIDES, Raised, lines_of, other

QUEUES = list(itertools.islice(itertools.cycle(SIDES), 12))


def mixed(task: str = "add", count: int = 6, first: int = 0) -> str:
    """Text of *count* members that run on either side by turns."""
    return f"[{task}.s(number, 1).set(queue=queues[number + {first}]) for number in range({count})]"


def on(task: str, queue: str) -> str:
    """Text of a member that runs on one side."""
    return f"{task}.set(queue={queue!r})"


@pytest.fixture
def client(link, sender):
    """A producer of either side, on each pair of broker and store."""
    found = link.clients[sender]
    found.keep("queues", "names", names=QUEUES)
    return found


@pytest.fixture
def counting(counting_link, sender):
    """The same where chords are counted."""
    found = counting_link.clients[sender]
    found.keep("queues", "names", names=QUEUES)
    return found


def test_the_members_of_a_group_run_on_both_sides(client):
    client.keep("members", f"group({mixed('where')}).delay()".replace("number, 1", "1"))
    assert client("members.get(timeout=20)") == QUEUES[:6]
    assert client("[members.ready(), members.successful(), members.completed_count()]") == [True, True, 6]


def test_a_chain_passes_from_side_to_side(client):
    steps = " | ".join(f"add.s({number}).set(queue={queue!r})" for number, queue in enumerate(QUEUES[:6], 1))
    client.keep("last", f"({steps}).apply_async((100,))")
    assert client("last.get(timeout=20)") == 121
    assert client("last.parent.parent.get(timeout=20)") == 110


def test_a_chain_that_fails_says_so_at_its_end(counting):
    steps = f"{on('add.s(1)', 'real')} | {on('fail.si()', 'ours')} | {on('add.s(1)', 'real')}"
    counting.keep("last", f"({steps}).apply_async((1,))")
    with pytest.raises(Raised) as failed:
        counting("last.get(timeout=20)")
    assert failed.value.kind == "shop.OutOfStock"


@pytest.mark.parametrize("body", SIDES)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_body_of_a_chord_gets_what_both_sides_made(counting, body, count):
    counting.keep("last", f"chord({mixed(count=count)})({on('total.s(plus=1000)', body)})")
    assert counting("last.get(timeout=20)") == sum(range(count)) + count + 1000


@pytest.mark.parametrize("last", SIDES)
def test_a_chord_fires_wherever_its_last_member_ran(counting, tmp_path, last):
    begun, until = tmp_path / "begun", tmp_path / "until"
    header = f"[{on('hold.si(begun, until)', last)}] + {mixed(count=4)} + [{on('add.si(1, 1)', other(last))}]"
    counting.keep("members", header, begun=str(begun), until=str(until))
    counting.keep("last", f"chord(members)({on('echo.s()', other(last))})")
    lines_of(begun, 1)
    counting("[result.get(timeout=20) for result in last.parent.results[1:]]")
    until.touch()
    # The worker's name, as in one of the links both sides go by the same name of the package.
    assert counting("last.get(timeout=20)") == [[[last, 1, 2, 3, 4, 2]], {}]


@pytest.mark.parametrize("failing", SIDES)
def test_a_chord_fails_with_its_member_and_calls_its_errback_once(counting, tmp_path, failing):
    notes = tmp_path / "notes"
    header = f"[{on('add.si(1, 1)', other(failing))}, {on('fail.si()', failing)}, {on('add.si(1, 1)', failing)}]"
    body = f"{on('total.s()', other(failing))}.on_error(errback_old.s(path).set(queue={failing!r}))"
    counting.keep("last", f"chord({header})({body})", path=str(notes))
    with pytest.raises(Raised) as failed:
        counting("last.get(timeout=20)")
    assert failed.value.kind == "shop.OutOfStock"  # the parent's error, which is the header's, comes first
    error = counting("described(last.get(timeout=20, propagate=False))")
    assert error["kind"] == "celery.exceptions.ChordError"
    assert "raised OutOfStock()" in error["text"]
    assert lines_of(notes, 1) == [counting("last.id")]


@pytest.mark.parametrize("side", SIDES)
def test_shapes_within_shapes_run_on_both_sides(counting, side):
    far = other(side)
    group_of_chains = (
        f"group({on('add.s(1, 1)', side)} | {on('add.s(1)', far)}, {on('add.s(2, 2)', far)} | {on('add.s(2)', side)})"
    )
    shapes = {
        f"({on('add.s(1, 1)', side)} | group({on('add.s(1)', far)}, {on('add.s(2)', side)}) | {on('total.s()', far)})": 7,
        f"chord({group_of_chains}, {on('total.s()', side)})": 9,
        f"chord([chord([{on('add.s(1, 1)', side)}, {on('add.s(2, 2)', far)}], {on('total.s()', far)}), "
        f"{on('add.s(5, 5)', side)}], {on('total.s()', side)})": 16,
        f"({on('add.s(1, 1)', far)} | chord([{on('add.s(1)', side)}, {on('add.s(2)', far)}], {on('total.s()', side)})"
        f" | {on('add.s(100)', far)})": 107,
        f"(group({on('add.s(1, 1)', side)}, {on('add.s(2, 2)', far)}) | {on('total.s()', side)} | {on('add.s(1)', far)})": 7,
        f"({on('add.s(1, 1)', side)} | group({on('add.s(1)', far)}, group({on('add.s(2)', side)}, {on('add.s(3)', far)}))"
        f" | {on('total.s()', side)})": 12,
        f"chord([{on('spread.si([1, 2], far)', side)}, {on('add.si(1, 1)', far)}], {on('identity.s()', side)})": [
            [2, 3],
            2,
        ],
        f"chord([{on('more.si(far)', side)}, {on('add.si(1, 1)', far)}], {on('echo.s()', far)})": None,
    }
    for shape, expected in shapes.items():
        found = counting(f"({shape}).apply_async().get(timeout=20)", far=far)
        if expected is None:
            assert sorted(found[0][0]) == [1, 2, 100], shape
        else:
            assert found == expected, shape


def test_a_task_replaces_itself_by_members_of_the_other_side(counting):
    for side in SIDES:
        shape = f"({on('spread.s(far)', side)} | {on('total.s()', side)})"
        assert counting(f"{shape}.apply_async(([1, 2, 3],)).get(timeout=20)", far=other(side)) == 9


def test_maps_and_chunks_run_on_both_sides(client):
    for side in SIDES:
        assert client(f"{on('add.starmap([(1, 1), (2, 2)])', side)}.delay().get(timeout=20)") == [2, 4]
        assert client(f"{on('identity.map([1, 2])', side)}.delay().get(timeout=20)") == [1, 2]
        chunks = f"add.chunks(zip(range(4), range(4)), 2).group().set(queue={side!r})"
        assert client(f"{chunks}.apply_async().get(timeout=20)") == [[0, 2], [4, 6]]


def test_a_group_is_saved_by_one_side_and_restored_by_the_other(counting_link, sender):
    here, there = counting_link.clients[sender], counting_link.clients[other(sender)]
    here.keep("queues", "names", names=QUEUES)
    here.keep("saved", f"group({mixed(count=4)}).apply_async()")
    here("saved.save()")
    there.keep("restored", "results.GroupResult.restore(group_id, app=app)", group_id=here("saved.id"))
    assert there("restored.get(timeout=20)") == [1, 2, 3, 4]
    assert there("[result.id for result in restored.results]") == here("[result.id for result in saved.results]")


def test_a_result_is_read_by_the_side_that_did_not_ask(counting_link, sender):
    here, there = counting_link.clients[sender], counting_link.clients[other(sender)]
    for side in SIDES:
        here.keep("asked", "add.apply_async((1, 1), queue=side)", side=side)
        assert there("app.AsyncResult(task_id).get(timeout=20)", task_id=here("asked.id")) == 2
        here.keep("asked", "fail.apply_async(('ValueError', 'v'), queue=side)", side=side)
        with pytest.raises(Raised) as failed:
            there("app.AsyncResult(task_id).get(timeout=20)", task_id=here("asked.id"))
        assert (failed.value.kind, failed.value.text) == ("builtins.ValueError", "v")


def test_the_children_of_a_task_are_known_on_both_sides(counting_link, sender):
    here, there = counting_link.clients[sender], counting_link.clients[other(sender)]
    for side in SIDES:
        chain = f"{on('add.s(1, 1)', side)} | {on('add.s(1)', other(side))}"
        here.keep("last", f"({chain}).apply_async()")
        assert here("last.get(timeout=20)") == 3
        first, last = here("last.parent.id"), here("last.id")
        # The next step of a chain is sent before the value of the one before it is stored.
        assert there("app.AsyncResult(first).get(timeout=20)", first=first) == 2
        assert there("[child.id for child in app.AsyncResult(first).children]", first=first) == [last]
