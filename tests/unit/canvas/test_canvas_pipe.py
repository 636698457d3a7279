"""``a | b``: every pair of kinds has one rewrite, and ``chain(...)`` means the same."""

from __future__ import annotations

import json
from functools import reduce
from operator import or_
from types import SimpleNamespace
from typing import Any

import pytest

from celery_clone import Celery
from celery_clone.canvas import _chain, chain, chord, group
from celery_clone.canvas.pipe import TABLE, Kind, kind_of

RIGHT_KINDS = {Kind.TASK, Kind.GROUP, Kind.NOTHING, Kind.CHORD, Kind.CHAIN, Kind.EMPTY_CHAIN}


def samples(tasks: SimpleNamespace) -> dict[Kind, Any]:
    add, xsum = tasks.add, tasks.xsum
    pair = group(add.s(1), add.s(2))
    return {
        Kind.TASK: add.s(1),
        Kind.GROUP: pair,
        Kind.NOTHING: group([]),
        Kind.CHORD: chord([add.s(1), add.s(2)], xsum.s()),
        Kind.CHAIN: _chain(add.s(1), add.s(2)),
        Kind.CHAIN_ENDING_IN_GROUP: _chain(add.s(1), pair),
        Kind.CHAIN_ENDING_IN_CHORD: _chain(add.s(1), chord([add.s(2)], xsum.s())),
        Kind.EMPTY_CHAIN: chain(),
    }


def test_the_table_has_a_row_for_every_pair() -> None:
    assert set(TABLE) == set(Kind)
    assert all(set(row) == RIGHT_KINDS for row in TABLE.values())


def test_each_sample_is_of_its_kind(tasks: SimpleNamespace) -> None:
    assert {kind: kind_of(sig) for kind, sig in samples(tasks).items()} == {kind: kind for kind in Kind}


@pytest.mark.parametrize("left", Kind)
@pytest.mark.parametrize("right", Kind)
def test_every_pair_gives_a_signature_that_can_be_stored(tasks: SimpleNamespace, left: Kind, right: Kind) -> None:
    made = samples(tasks)[left] | samples(tasks)[right]

    assert set(json.loads(json.dumps(made))) >= {"task", "args", "kwargs", "options"}


@pytest.mark.parametrize("left", Kind)
@pytest.mark.parametrize("right", Kind)
def test_the_operands_stay_as_they_were(tasks: SimpleNamespace, left: Kind, right: Kind) -> None:
    first, second = samples(tasks)[left], samples(tasks)[right]
    before = json.dumps([first, second])

    first | second

    assert json.dumps([first, second]) == before


def test_changing_the_steps_of_a_prolonged_chain_leaves_the_first_one_alone(tasks: SimpleNamespace) -> None:
    line = tasks.add.s(1) | tasks.add.s(2)
    made = line | tasks.add.s(3)
    made.tasks[0].set(queue="q")

    assert line.tasks[0].options == {}


def steps(sig: Any) -> list[str]:
    return [kind_of(task).name for task in sig.tasks]


def test_a_group_that_something_follows_becomes_a_chord(tasks: SimpleNamespace) -> None:
    pair = group(tasks.add.s(1, 1), tasks.add.s(2, 2))

    assert kind_of(pair | tasks.xsum.s()) is Kind.CHORD
    assert steps(tasks.add.s(1, 1) | pair | tasks.xsum.s()) == ["TASK", "CHORD"]
    assert steps(chain(tasks.add.s(1, 1), pair, tasks.xsum.s())) == ["TASK", "CHORD"]
    assert kind_of((pair | pair).body) is Kind.GROUP
    assert kind_of((pair | pair | tasks.xsum.s()).body) is Kind.CHORD


def test_what_follows_a_chord_goes_into_its_body(tasks: SimpleNamespace) -> None:
    made = chord([tasks.add.s(1, 1)], tasks.xsum.s()) | tasks.add.s(1) | tasks.add.s(2)

    assert kind_of(made) is Kind.CHORD and steps(made.body) == ["TASK", "TASK", "TASK"]


def test_a_chord_without_a_body_gets_what_follows_as_body(tasks: SimpleNamespace) -> None:
    assert (chord([tasks.add.s(1, 1)]) | tasks.xsum.s()).body == tasks.xsum.s()


def test_a_group_of_one_is_that_one(tasks: SimpleNamespace) -> None:
    assert steps(tasks.add.s(1, 1) | group(tasks.add.s(2))) == ["TASK", "TASK"]


def test_a_group_of_one_hands_its_options_down(tasks: SimpleNamespace) -> None:
    made = tasks.add.s(1, 1) | group(tasks.add.s(2), queue="q")

    assert made.tasks[1].options == {"queue": "q"}


def test_a_group_of_none_and_a_chain_of_none_change_nothing(tasks: SimpleNamespace) -> None:
    line = tasks.add.s(1, 1) | tasks.add.s(2)
    pair = group(tasks.add.s(1), tasks.add.s(2))

    assert (line | group([])) is line
    assert (line | chain()) is line
    assert (pair | group([])) is pair
    assert (pair | chain()) is pair
    assert (chain() | pair) is pair


def test_chains_are_spliced(tasks: SimpleNamespace) -> None:
    line = tasks.add.s(1) | tasks.add.s(2)

    assert [task.args for task in (line | line).tasks] == [(1,), (2,), (1,), (2,)]
    assert [task.args for task in (tasks.add.s(0) | line).tasks] == [(0,), (1,), (2,)]


def test_callbacks_of_a_chain_stay_with_its_steps_when_it_is_prolonged(tasks: SimpleNamespace) -> None:
    line = chain(tasks.add.s(1), tasks.add.s(2))
    line.link(tasks.tell.s("ok"))
    line.link_error(tasks.tell.s("bad"))
    made = line | tasks.add.s(3)

    assert [sorted(task.options) for task in made.tasks] == [["link_error"], ["link", "link_error"], []]


def test_options_of_a_chain_are_kept_when_it_is_prolonged(tasks: SimpleNamespace) -> None:
    line = chain(tasks.add.s(1), tasks.add.s(2)).set(queue="q", task_id="of the last step")

    assert (line | tasks.add.s(3)).options == {"queue": "q"}


def test_in_place_or_means_the_same(tasks: SimpleNamespace) -> None:
    sig = tasks.add.s(1, 1)
    sig |= tasks.add.s(2)

    assert sig == tasks.add.s(1, 1) | tasks.add.s(2)


def test_a_subclass_of_chain_stays_one(tasks: SimpleNamespace) -> None:
    class Line(chain):
        pass

    made = Line(tasks.add.s(1, 1), tasks.add.s(2))

    assert type(made) is Line and len(made.tasks) == 2
    assert type(made | tasks.add.s(3)) is Line
    assert len((made | tasks.add.s(3)).tasks) == 3


def test_chain_means_what_the_pipe_means(tasks: SimpleNamespace) -> None:
    add, xsum = tasks.add, tasks.xsum
    parts = [add.s(1, 1), group(add.s(2), add.s(3)), xsum.s(), add.s(4), group(add.s(5), add.s(6))]

    for length in range(2, len(parts) + 1):
        assert json.dumps(chain(*parts[:length])) == json.dumps(reduce(or_, parts[:length]))


def test_a_chain_is_built_in_linear_time(tasks: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = 0
    make_copy = type(tasks.add.s()).clone

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal copies
        copies += 1
        return make_copy(self, *args, **kwargs)

    monkeypatch.setattr(type(tasks.add.s()), "clone", counting)
    made = chain(tasks.add.s(number) for number in range(500))

    assert len(made.tasks) == 500 and copies <= 2 * 500


def test_a_chain_may_be_thousands_of_steps_long(app: Celery, tasks: SimpleNamespace) -> None:
    made = chain(tasks.add.s(number) for number in range(5000))

    assert made.freeze().id == made.tasks[-1].id
    assert len(json.loads(json.dumps(made))["kwargs"]["tasks"]) == 5000


def test_chain_reads_dictionaries_and_refuses_the_rest(tasks: SimpleNamespace) -> None:
    assert chain(dict(tasks.add.s(1, 1)), tasks.add.s(2)) == chain(tasks.add.s(1, 1), tasks.add.s(2))
    with pytest.raises(TypeError, match=r"chain\(\) takes signatures"):
        chain(tasks.add.s(1, 1), tasks.add)


def test_what_follows_a_group_of_none_at_the_end_follows_what_was_before_it(tasks: SimpleNamespace) -> None:
    pair = group(tasks.add.s(1, 1), tasks.add.s(2, 2))

    assert steps(tasks.add.s(1, 1) | group([]) | tasks.add.s(2)) == ["TASK", "TASK"]
    made = pair | tasks.xsum.s() | group([]) | tasks.add.s(2)
    assert steps(made) == ["CHORD"] and steps(made.tasks[0].body) == ["TASK", "TASK"]


def test_members_that_do_nothing_do_not_count(tasks: SimpleNamespace) -> None:
    assert steps(tasks.add.s(1, 1) | group(tasks.add.s(2), chain(), group([]))) == ["TASK", "TASK"]
    assert (chain(tasks.add.s(1, 1), tasks.add.s(2)) | group(chain())).tasks[1:] == [tasks.add.s(2)]
