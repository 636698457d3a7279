"""What becomes of workflows when their messages are run: the examples of the guide, errors, callbacks."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from celery_clone import Celery
from celery_clone.canvas import StampingVisitor, chain, chord, group


@pytest.fixture(scope="module")
def tasks(queued_app: Celery) -> SimpleNamespace:
    told: list[Any] = []

    @queued_app.task(shared=False)
    def add(x: Any, y: Any) -> Any:
        return x + y

    @queued_app.task(shared=False)
    def mul(x: Any, y: Any) -> Any:
        return x * y

    @queued_app.task(shared=False)
    def xsum(numbers: Any) -> Any:
        return sum(numbers)

    @queued_app.task(shared=False)
    def tell(*args: Any) -> Any:
        told.append(args)
        return args

    @queued_app.task(shared=False)
    def fail(*args: Any) -> None:
        raise ValueError("as told")

    @queued_app.task(shared=False)
    def on_error(request: Any, exc: Any, traceback: Any) -> None:
        told.append(("error", request.id, type(exc).__name__))

    @queued_app.task(shared=False, bind=True)
    def replaced(self: Any, x: Any) -> Any:
        raise self.replace(chain(add.s(x, 1), group(add.s(10), add.s(20))))

    @queued_app.task(shared=False, bind=True)
    def sending(self: Any, count: int) -> int:
        group(add.s(number, number) for number in range(count))()
        return count

    return SimpleNamespace(
        add=add,
        mul=mul,
        xsum=xsum,
        tell=tell,
        fail=fail,
        on_error=on_error,
        replaced=replaced,
        sending=sending,
        told=told,
    )


@pytest.fixture(autouse=True)
def nothing_told(tasks: SimpleNamespace) -> Iterator[None]:
    tasks.told.clear()
    yield


# -- the examples of the guide


def test_a_chain_passes_values_on_and_results_lead_back(run_queue: Any, tasks: SimpleNamespace) -> None:
    result = chain(tasks.add.s(2, 2), tasks.add.s(4), tasks.mul.s(8))()
    run_queue()

    assert result.get(timeout=0.1) == 64
    assert result.parent.get(timeout=0.1) == 8
    assert result.parent.parent.get(timeout=0.1) == 4


def test_a_partial_chain_is_completed_when_it_is_called(run_queue: Any, tasks: SimpleNamespace) -> None:
    result = (tasks.add.s(4) | tasks.mul.s(8))(16)
    run_queue()

    assert result.get(timeout=0.1) == 160


def test_immutable_steps_take_no_value(run_queue: Any, tasks: SimpleNamespace) -> None:
    result = (tasks.add.si(2, 2) | tasks.add.si(4, 4) | tasks.add.si(8, 8))()
    run_queue()

    assert [result.get(timeout=0.1), result.parent.get(), result.parent.parent.get()] == [16, 8, 4]


def test_a_group_gives_a_list(run_queue: Any, tasks: SimpleNamespace) -> None:
    result = group(tasks.add.s(number, number) for number in range(10))()
    run_queue()

    assert result.get(timeout=0.1) == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert result.ready() and result.successful() and result.completed_count() == 10


def test_a_chord_calls_its_body_with_the_list(run_queue: Any, tasks: SimpleNamespace) -> None:
    result = chord((tasks.add.s(number, number) for number in range(10)), tasks.xsum.s())()
    run_queue()

    assert result.get(timeout=0.1) == 90
    assert len(result.parent.get()) == 10


def test_a_group_in_a_chain_fans_out(run_queue: Any, tasks: SimpleNamespace) -> None:
    workflow = tasks.add.s() | group(tasks.tell.s("left"), tasks.tell.s("right"))
    result = workflow.delay(x=1, y=2)
    run_queue()

    assert result.get(timeout=0.1) == [[3, "left"], [3, "right"]]


def test_a_group_upgraded_to_a_chord_in_a_chain(run_queue: Any, tasks: SimpleNamespace) -> None:
    result = (
        group(tasks.add.s(number, number) for number in range(10))
        | tasks.xsum.s()
        | tasks.add.s(1)
        | group(tasks.add.s(1), tasks.add.s(2))
        | tasks.xsum.s()
    )()
    run_queue()

    assert result.get(timeout=0.1) == 185


def test_maps_and_chunks(run_queue: Any, tasks: SimpleNamespace) -> None:
    results = [
        tasks.xsum.map([list(range(10)), list(range(100))]).apply_async(),
        tasks.add.starmap(zip(range(3), range(3), strict=True)).apply_async(),
        tasks.add.chunks(zip(range(5), range(5), strict=True), 2)(),
        (tasks.add.chunks(zip(range(4), range(4), strict=True), 2) | tasks.tell.s()).apply_async(),
    ]
    run_queue()

    assert [result.get(timeout=0.1) for result in results] == [
        [45, 4950],
        [0, 2, 4],
        [[0, 2], [4, 6], [8]],
        [[[0, 2], [4, 6]]],
    ]


def test_callbacks_get_the_value_and_errbacks_the_error(run_queue: Any, tasks: SimpleNamespace) -> None:
    tasks.add.apply_async((2, 2), link=[tasks.tell.s("one"), tasks.tell.s("two")])
    failed = tasks.fail.s().on_error(tasks.on_error.s()).apply_async()
    run_queue()

    assert sorted(tasks.told, key=str) == [("error", failed.id, "ValueError"), (4, "one"), (4, "two")]


def test_what_a_task_has_sent_is_collected(run_queue: Any, tasks: SimpleNamespace) -> None:
    result = tasks.sending.delay(3)
    run_queue()

    values = [value for each, value in result.collect(timeout=0.1) if not each.children]
    assert sorted(values) == [0, 2, 4]


def test_stamps_reach_every_message_of_a_workflow(
    run_queue: Any, tasks: SimpleNamespace, sent: list[SimpleNamespace]
) -> None:
    class Monitoring(StampingVisitor):
        def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
            return {"monitoring_id": "m", "stamped_headers": ["monitoring_id"]}

    workflow = chain(tasks.add.s(1, 1), group(tasks.add.s(1), tasks.add.s(2)), tasks.xsum.s(), tasks.add.s(1))
    workflow.stamp(Monitoring())
    workflow()
    run_queue()

    assert len(sent) == 5
    assert all(call.headers["stamps"] == {"monitoring_id": "m"} for call in sent)


# -- replacing


@pytest.mark.parametrize("place", ["alone", "in a chain", "in a header"])
def test_a_task_is_replaced_by_a_chain_that_ends_in_a_group(run_queue: Any, tasks: SimpleNamespace, place: str) -> None:
    made = {
        "alone": tasks.replaced.s(0),
        "in a chain": chain(tasks.add.s(0, 0), tasks.replaced.s(), tasks.tell.s("end")),
        "in a header": chord([tasks.replaced.s(0), tasks.add.s(1, 1)], tasks.tell.s("end")),
    }[place]
    result = made.apply_async()
    run_queue()

    assert (
        result.get(timeout=0.1)
        == {
            "alone": [11, 21],
            "in a chain": [[11, 21], "end"],
            "in a header": [[[11, 21], 2], "end"],
        }[place]
    )


# -- errors


def error_of(result: Any) -> str:
    with pytest.raises(ValueError, match="as told") as caught:
        result.get(timeout=0.1)
    return str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "fail.s()",
        "chain(fail.s(), add.s(1))",
        "chain(add.s(1, 1), fail.s(), add.s(1))",
        "chain(add.s(1, 1), add.s(1), fail.s())",
        "group(add.s(1, 1), fail.s())",
        "chain(fail.s(), group(add.s(1), add.s(2)))",
        "chain(add.s(1, 1), fail.s(), group(add.s(1), add.s(2)))",
        "chain(chain(group(add.s(1, 1), fail.s()), add.s(1)), add.s(1))",
        "chord([add.s(1, 1), fail.s()], xsum.s())",
        "chord([add.s(1, 1), add.s(2, 2)], fail.s())",
        "chord([add.s(1, 1), fail.s()], chain(xsum.s(), add.s(1)))",
        "chord([add.s(1, 1), fail.s()], group(xsum.s(), xsum.s()))",
        "chord([chain(fail.s(), add.s(1)), add.s(1, 1)], xsum.s())",
        "chord([chord([fail.s(), add.s(1, 1)], xsum.s()), add.s(1, 1)], xsum.s())",
        "chain(add.s(1, 1), chord([add.s(1), fail.s()], xsum.s()), add.s(1))",
        "group(chain(fail.s(), group(add.s(1), add.s(2))), add.s(1, 1))",
    ],
)
def test_the_original_error_reaches_the_caller(run_queue: Any, tasks: SimpleNamespace, source: str) -> None:
    made = eval(source, {**vars(tasks), "chain": chain, "group": group, "chord": chord})
    result = made.apply_async()
    run_queue()

    assert error_of(result) == "as told"


@pytest.mark.parametrize(
    ("source", "times"),
    [
        ("chain(add.s(1, 1), fail.s(), add.s(1))", 1),
        ("chain(fail.s(), group(add.s(1), add.s(2)), xsum.s())", 1),
        ("chain(add.s(1, 1), group(add.s(1), fail.s()), xsum.s())", 1),
        ("chord([add.s(1, 1), fail.s()], xsum.s())", 1),
        ("chord([add.s(1, 1), add.s(1, 1)], fail.s())", 1),
        ("chord([chord([fail.s()], xsum.s()), add.s(1, 1)], xsum.s())", 1),
        ("chord([chord([fail.s()], group(xsum.s(), xsum.s())), add.s(1, 1)], xsum.s())", 1),
        ("group(fail.s(), add.s(1, 1), fail.s())", 2),
    ],
)
def test_an_errback_is_called_once_for_each_failure(
    run_queue: Any, tasks: SimpleNamespace, source: str, times: int
) -> None:
    made = eval(source, {**vars(tasks), "chain": chain, "group": group, "chord": chord})
    made.link_error(tasks.on_error.s())
    made.apply_async()
    run_queue()

    assert len([call for call in tasks.told if call[0] == "error"]) == times
