"""Workflows in each other, sent by either side and run by both: values, errors, error callbacks, large bodies."""

from __future__ import annotations

import itertools

import pytest

from tests.support.two_sides import SIDES, Client, Raised, lines_of, other
from tests.support.wait import wait_until

#: Workflows in each other and what they give: ``{far}`` runs on the other side than ``{near}``.
CHORDS = {
    "chord([add.si(1, 1).{near}, add.si(2, 2).{far}], chord([total.s().{near}, total.s().{far}], total.s().{near}))": 12,
    "chord([add.si(1, 1).{far}], chord([total.s().{near}], total.s().{far} | add.s(1).{near}))": 3,
    "chord([add.si(1, 1).{near}, add.si(2, 2).{far}], group(total.s().{near}, identity.s().{far}))": [6, [2, 4]],
    "chord([chord([add.si(1, 1).{near}, add.si(2, 2).{far}], total.s().{far} | add.s(1).{near}), "
    "chain(add.si(5, 5).{far}, add.s(1).{near})], identity.s().{near})": [7, 11],
    "chord([chord([add.si(1, 1).{far}], group(total.s().{near}, identity.s().{far})), add.si(5, 5).{near}], "
    "identity.s().{far})": [[2, [2]], 10],
    "chord([chain(add.si(1, 1).{near}, group(add.s(1).{far}, add.s(2).{near})), add.si(1, 1).{far}], "
    "identity.s().{near})": [[3, 4], 2],
    "chain(add.si(1, 1).{near}, chord([add.s(1).{far}, add.s(2).{near}], total.s().{far}), "
    "chord([add.s(1).{near}, add.s(2).{far}], total.s().{near}), add.s(1).{far})": 18,
    "chain(group(add.si(1, 1).{near}, add.si(2, 2).{far}), group(total.s().{far}, total.s().{near}), total.s().{near})": 12,
    "group(chord([add.si(1, 1).{near}, add.si(2, 2).{far}], total.s().{far}), add.si(1, 1).{near})": [6, 2],
}

#: The same without chords, which results as messages do not know.
GROUPS = {
    "chain(add.si(1, 1).{near}, add.s(1).{far}, group(add.s(1).{near}, add.s(2).{far}))": [4, 5],
    "group(chain(add.si(1, 1).{near}, add.s(1).{far}), group(add.si(2, 2).{far}, add.si(3, 3).{near}))": [3, 4, 6],
    "chain(chain(add.si(1, 1).{far}, add.s(1).{near}), chain(add.s(1).{far}, add.s(1).{near}))": 5,
}

#: Workflows of which a task of ours fails, and how often their error callback is called.
FAILING = {
    "chain(add.si(1, 1).{real}, fail.si().{ours}, add.s(1).{real}, group(add.s(1).{ours}, add.s(2).{real}))": 1,
    "chord([chain(fail.si().{ours}, group(add.si(1, 1).{real}, add.si(1, 1).{ours})), add.si(1, 1).{ours}], "
    "total.s().{real})": 1,
    "chord([add.si(1, 1).{ours}, fail.si().{ours}], total.s().{real} | add.s(1).{ours})": 1,
    "chord([fail.si().{ours}], chord([total.s().{real}], total.s().{ours}))": 1,
    "chord([fail.si().{ours}], group(total.s().{real}, total.s().{ours}))": 2,
}


def text_of(text: str, side: str) -> str:
    """The text with its queues filled in."""
    queues = {"near": side, "far": other(side), "real": "real", "ours": "ours"}
    return text.format(**{name: f"set(queue={queue!r})" for name, queue in queues.items()})


@pytest.fixture
def client(link, sender) -> Client:
    """A producer of either side, on each pair of broker and store."""
    return link.clients[sender]


@pytest.fixture
def counting(counting_link, sender) -> Client:
    """The same where chords are counted."""
    return counting_link.clients[sender]


def sent_all(client: Client, texts: list[str]) -> list[str]:
    """Send workflows; the names by which *client* knows their results."""
    found = [f"shape{number}" for number in range(len(texts))]
    for name, text in zip(found, texts, strict=True):
        client.keep(name, f"({text}).apply_async()")
    return found


def test_groups_and_chains_run_on_both_sides(client):
    texts = [text_of(text, side) for text, side in itertools.product(GROUPS, SIDES)]
    values = [client(f"{name}.get(timeout=20)") for name in sent_all(client, texts)]

    assert dict(zip(texts, values, strict=True)) == {
        text_of(text, side): value for text, value in GROUPS.items() for side in SIDES
    }


def test_chords_in_chords_run_on_both_sides(counting):
    texts = [text_of(text, side) for text, side in itertools.product(CHORDS, SIDES)]
    values = [counting(f"{name}.get(timeout=20)") for name in sent_all(counting, texts)]

    assert dict(zip(texts, values, strict=True)) == {
        text_of(text, side): value for text, value in CHORDS.items() for side in SIDES
    }


def test_a_failing_task_of_ours_ends_whatever_was_sent_by_either_side(counting, tmp_path):
    texts, notes = [text_of(text, "ours") for text in FAILING], []
    for number, text in enumerate(texts):
        notes.append(tmp_path / f"notes{number}")
        errback = f"errback_old.s({str(notes[-1])!r}).set(queue='ours')"
        counting.keep(f"whole{number}", text)
        counting(f"whole{number}.link_error({errback}) and None")
        counting.keep(f"shape{number}", f"whole{number}.apply_async()")

    for number, (text, times) in enumerate(FAILING.items()):
        with pytest.raises(Raised) as failed:
            counting(f"shape{number}.get(timeout=20)")
        assert failed.value.kind in ("shop.OutOfStock", "celery.exceptions.ChordError"), text
        lines_of(notes[number], times)
        wait_until(lambda number=number: counting(f"shape{number}.ready()"), 10, f"an end of {text}")
    for path, times in zip(notes, FAILING.values(), strict=True):
        assert len(path.read_text().splitlines()) == times, path


@pytest.mark.parametrize("last", SIDES)
@pytest.mark.parametrize("body", ["identity.si('x' * 20000).set(queue='ours') | add.si(1, 2).set(queue='real')"])
def test_a_large_body_of_ours_is_sent_by_whichever_side_ends_the_header(counting_link, tmp_path, last, body):
    ours, begun, until = counting_link.clients["ours"], tmp_path / "begun", tmp_path / "until"
    ours.keep(
        "header",
        f"[hold.si(begun, until).set(queue={last!r}), add.si(1, 1).set(queue={other(last)!r})]",
        begun=str(begun),
        until=str(until),
    )
    ours.keep("last", f"chord(header)({body})")
    lines_of(begun, 1)
    ours("last.parent.parent.results[1].get(timeout=20)")
    until.touch()

    assert ours("last.get(timeout=20)") == 3
    assert len(ours("last.parent.get(timeout=20)")) == 20000


@pytest.mark.parametrize("failing", SIDES)
def test_a_large_body_of_ours_fails_with_its_header_on_either_side(counting_link, tmp_path, failing):
    ours, notes = counting_link.clients["ours"], tmp_path / "notes"
    body = f"identity.si('x' * 20000).set(queue='ours').on_error(errback_old.s({str(notes)!r}).set(queue='ours'))"
    ours.keep("last", f"chord([fail.si().set(queue={failing!r})], {body}).apply_async()")

    with pytest.raises(Raised) as failed:
        ours("last.get(timeout=20)")
    assert failed.value.kind == "shop.OutOfStock"
    wait_until(lambda: ours("last.state") == "FAILURE", 10, "the failure of the body")
    assert lines_of(notes, 1) == [ours("last.id")]


def test_stamps_go_through_both_sides(counting):
    for side in SIDES:
        steps = f"seen.si().set(queue={side!r}) | seen.si().set(queue={other(side)!r})"
        counting.keep("stamped", steps)
        counting("stamped.stamp(visitor=None, tenant='t') and None")
        counting.keep("last", "stamped.apply_async()")
        for found in ("last", "last.parent"):
            assert counting(f"{found}.get(timeout=20)")["stamps"] == {"tenant": "t"}
