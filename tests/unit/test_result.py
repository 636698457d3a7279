"""Results: asking, waiting, listening, the tree, and what it costs.

The stores here are the smallest that a third party could write: one that is asked, one that tells.
"""

from __future__ import annotations

import copy
import gc
import os
import pickle
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any

import pytest

from celery_clone import states
from celery_clone.exceptions import (
    ChordError,
    ImproperlyConfigured,
    IncompleteStream,
    TaskRevokedError,
    TimeoutError,
)
from celery_clone.result import (
    AsyncResult,
    EagerResult,
    GroupResult,
    ResultSet,
    allow_join_result,
    assert_will_not_block,
    denied_join_result,
    result_from_tuple,
)


class AskedStore:
    """A result store that must be asked, and counts how often it is."""

    READY_STATES = states.READY_STATES
    is_async = False
    supports_native_join = True

    def __init__(self) -> None:
        self.metas: dict[str, dict[str, Any]] = {}
        self.groups: dict[str, Any] = {}
        self.pending: list[str] = []
        self.reads = 0

    def put(self, task_id: str, state: str = states.SUCCESS, result: Any = None, **more: Any) -> None:
        self.metas[task_id] = {"status": state, "result": result, **more}

    def get_task_meta(self, task_id: str) -> dict[str, Any]:
        self.reads += 1
        return self.metas.get(task_id) or {"status": states.PENDING, "result": None}

    def meta_from_decoded(self, meta: dict[str, Any]) -> dict[str, Any]:
        return meta

    def get_many(self, ids: Any, max_iterations: Any = None, **_: Any) -> Iterator[tuple[str, Any]]:
        self.reads += 1
        return iter([(each, self.metas[each]) for each in sorted(ids) if each in self.metas])

    def iter_native(self, group: Any, timeout: Any = None, on_interval: Any = None, **_: Any) -> Iterator[Any]:
        waiting = [result for result in group.results if result.id not in self.metas]
        if waiting and on_interval is not None:
            on_interval()
        if waiting:
            raise TimeoutError("not all are there")
        for result in reversed(group.results):
            yield result.id, result.children if isinstance(result, GroupResult) else self.metas[result.id]

    def wait_for_pending(
        self,
        result: Any,
        timeout: float | None = None,
        propagate: bool = True,
        callback: Any = None,
        on_interval: Any = None,
        **_: Any,
    ) -> Any:
        if result.state not in states.READY_STATES and on_interval is not None:
            on_interval()
        if result.state not in states.READY_STATES:
            raise TimeoutError("The operation timed out.")
        return result.maybe_throw(propagate=propagate, callback=callback)

    def add_pending_result(self, result: Any, weak: bool = False) -> None:
        self.pending.append(result.id)

    def remove_pending_result(self, result: Any) -> None:
        if result.id in self.pending:
            self.pending.remove(result.id)

    def forget(self, task_id: str) -> None:
        self.metas.pop(task_id, None)

    def task_result_exists(self, task_id: str) -> bool:
        return task_id in self.metas

    def is_cached(self, task_id: str) -> bool:
        return task_id in self.metas

    def save_group(self, group_id: str, result: Any) -> Any:
        self.groups[group_id] = result
        return result

    def restore_group(self, group_id: str) -> Any:
        return self.groups.get(group_id)

    def delete_group(self, group_id: str) -> None:
        del self.groups[group_id]


class TellingStore(AskedStore):
    """A result store that tells those who listen."""

    is_async = True

    def __init__(self) -> None:
        super().__init__()
        self.listening: dict[str, Any] = {}

    def add_pending_result(self, result: Any, weak: bool = False) -> None:
        super().add_pending_result(result, weak)
        self.listening[result.id] = weakref.ref(result) if weak else (lambda: result)

    def remove_pending_result(self, result: Any) -> None:
        super().remove_pending_result(result)
        self.listening.pop(result.id, None)

    def put(self, task_id: str, state: str = states.SUCCESS, result: Any = None, **more: Any) -> None:
        super().put(task_id, state, result, **more)
        listener = self.listening.get(task_id, lambda: None)()
        if listener is not None:
            listener._maybe_set_cache(self.metas[task_id])


class App:
    """What a result asks of its app."""

    current_worker_task = None

    def __init__(self, store: Any) -> None:
        self.backend = store
        self.revoked: list[Any] = []
        self.control = SimpleNamespace(
            revoke=lambda *args, **kwargs: self.revoked.append((args, kwargs)),
            revoke_by_stamped_headers=lambda *args, **kwargs: self.revoked.append((args, kwargs)),
        )
        self.conf = SimpleNamespace(task_remote_tracebacks=False)
        self.AsyncResult = type("AsyncResult", (AsyncResult,), {"app": self})
        self.GroupResult = type("GroupResult", (GroupResult,), {"app": self})
        self.ResultSet = type("ResultSet", (ResultSet,), {"app": self})


@pytest.fixture
def store() -> AskedStore:
    return AskedStore()


@pytest.fixture
def telling() -> TellingStore:
    return TellingStore()


@pytest.fixture
def app(store: AskedStore) -> App:
    return App(store)


@pytest.fixture
def telling_app(telling: TellingStore) -> App:
    return App(telling)


# -- what it costs


def test_making_a_result_asks_nothing_and_subscribes_to_nothing(app: App, store: AskedStore) -> None:
    result = app.AsyncResult("a")

    assert store.reads == 0 and store.pending == []
    assert result.id == "a" and result.backend is store and result.app is app and result.parent is None
    assert AsyncResult.backend is None and AsyncResult.id is None and AsyncResult.app is None


def test_making_a_result_takes_less_than_two_microseconds(app: App) -> None:
    def once() -> float:
        begin = time.perf_counter()
        for _ in range(2000):
            app.AsyncResult("a")
        return (time.perf_counter() - begin) / 2000

    assert min(once() for _ in range(20)) < 2e-6


def test_dropping_a_result_talks_to_nobody(telling_app: App, telling: TellingStore) -> None:
    telling_app.AsyncResult("a")
    gc.collect()

    assert telling.reads == 0 and telling.pending == []


def test_an_id_is_needed(app: App) -> None:
    with pytest.raises(ValueError, match="needs the id"):
        app.AsyncResult(None)


# -- state


def test_the_stored_meta_is_shown(app: App, store: AskedStore) -> None:
    store.put(
        "a",
        states.SUCCESS,
        7,
        name="t",
        args=[1],
        kwargs={"b": 2},
        worker="w",
        retries=3,
        queue="q",
        date_done="2026-01-02T03:04:05+00:00",
        children=[(("child", None), None)],
    )
    result = app.AsyncResult("a")

    assert (result.state, result.status, result.result, result.info) == ("SUCCESS", "SUCCESS", 7, 7)
    assert (result.name, result.args, result.kwargs) == ("t", [1], {"b": 2})
    assert (result.worker, result.retries, result.queue) == ("w", 3, "q")
    assert result.date_done == datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    assert result.children == ["child"] and isinstance(result.children[0], AsyncResult)
    assert result.ready() and result.successful() and not result.failed() and result.exists()


def test_an_end_is_remembered_and_anything_else_asked_again(app: App, store: AskedStore) -> None:
    result = app.AsyncResult("a")
    assert result.state == "PENDING" and not result.ready() and not result.exists()
    assert result.traceback is None and result.date_done is None
    store.put("a", states.FAILURE, KeyError("x"), traceback="tb")
    assert result.failed() and result.traceback == "tb"
    reads = store.reads
    assert result.failed() and store.reads == reads


def test_the_name_known_to_the_caller_is_shown_until_the_store_knows_it(app: App, store: AskedStore) -> None:
    assert app.AsyncResult("a", task_name="t").name == "t"


# -- waiting


def test_get_gives_the_value_or_raises_the_error(app: App, store: AskedStore) -> None:
    store.put("good", result=7)
    store.put("bad", states.FAILURE, KeyError("x"))
    store.put("odd", states.FAILURE, "no exception")
    seen: list[Any] = []

    assert app.AsyncResult("good").get(callback=lambda *args: seen.append(args)) == 7
    assert seen == [("good", 7)]
    with pytest.raises(KeyError, match="x"):
        app.AsyncResult("bad").get()
    assert isinstance(app.AsyncResult("bad").get(propagate=False), KeyError)
    with pytest.raises(Exception, match="no exception"):
        app.AsyncResult("odd").get()


def test_a_value_that_is_known_is_given_without_asking(app: App, store: AskedStore) -> None:
    store.put("a", result=7)
    result = app.AsyncResult("a")
    result.get()
    reads, seen = store.reads, []

    assert result.get(callback=lambda *args: seen.append(args)) == 7
    assert store.reads == reads and seen == [("a", 7)]


def test_nobody_listens_after_a_wait_however_it_ended(telling_app: App, telling: TellingStore) -> None:
    result = telling_app.AsyncResult("a")
    with pytest.raises(TimeoutError):
        result.get(timeout=0.1)
    assert telling.pending == [] and telling.listening == {}
    telling.put("a", result=1)
    assert result.get() == 1
    assert telling.pending == [] and telling.listening == {}


def test_a_wait_that_is_over_does_not_end_that_of_another_thread(telling_app: App, telling: TellingStore) -> None:
    result = telling_app.AsyncResult("a")
    second_waits, first_is_over, values = threading.Event(), threading.Event(), []
    wait_for_pending = telling.wait_for_pending

    def blocking(waited: Any, timeout: float | None = None, **kwargs: Any) -> Any:
        if timeout is None:
            second_waits.set()
            assert first_is_over.wait(10)
            telling.put("a", result=5)
        return wait_for_pending(waited, timeout=timeout, **kwargs)

    telling.wait_for_pending = blocking  # type: ignore[method-assign]
    other = threading.Thread(target=lambda: values.append(result.get()))
    other.start()
    assert second_waits.wait(10)
    with pytest.raises(TimeoutError):
        result.get(timeout=0.01)
    assert "a" in telling.listening
    first_is_over.set()
    other.join(10)

    assert values == [5] and telling.listening == {}


def test_a_lock_that_was_held_at_a_fork_does_not_hold_up_the_child(app: App, store: AskedStore) -> None:
    store.put("a", result=7)
    result = app.AsyncResult("a")
    with pytest.raises(TimeoutError):
        app.AsyncResult("other").get()
    waiters = result._join_waiters()
    waiters.lock.acquire()
    waiters.pid = os.getpid() + 1  # as it is seen by a forked child

    assert result.get() == 7


def test_an_ignored_result_gives_none_at_once(app: App, store: AskedStore) -> None:
    result = app.AsyncResult("a")
    assert not result.ignored
    result.ignored = True

    assert result.get() is None and store.reads == 0


def test_waiting_inside_a_task_is_refused_with_the_ways_out(app: App, store: AskedStore) -> None:
    store.put("a", result=7)
    with denied_join_result():
        with pytest.raises(RuntimeError, match=r"Never call result\.get\(\) within a task!.*chain\(first"):
            app.AsyncResult("a").get()
        with pytest.raises(RuntimeError, match="chord"):
            app.GroupResult("g", [app.AsyncResult("a")]).get()
        with pytest.raises(RuntimeError, match="disable_sync_subtasks=False"):
            EagerResult("a", 1, states.SUCCESS).get()
        assert app.AsyncResult("a").get(disable_sync_subtasks=False) == 7
        with allow_join_result():
            assert_will_not_block()
            assert app.AsyncResult("a").get() == 7
        with pytest.raises(RuntimeError):
            assert_will_not_block()
    assert_will_not_block()


# -- the steps before


def line(app: App, *ids: str) -> Any:
    result = None
    for each in ids:
        result = app.AsyncResult(each, parent=result)
    return result


def test_the_error_of_an_earlier_step_is_raised(app: App, store: AskedStore) -> None:
    store.put("first", states.FAILURE, KeyError("first"))
    last = line(app, "first", "second", "last")

    with pytest.raises(KeyError, match="first"):
        last.get()
    with pytest.raises(TimeoutError):
        last.get(follow_parents=False)
    with pytest.raises(TimeoutError):
        last.get(propagate=False)


def test_a_step_that_fails_during_the_wait_ends_it(app: App, store: AskedStore) -> None:
    looks: list[int] = []

    def fail_at_second_look() -> None:
        looks.append(1)

    last = line(app, "first", "last")
    wait_for_pending = store.wait_for_pending

    def failing_meanwhile(*args: Any, **kwargs: Any) -> Any:
        store.put("first", states.FAILURE, KeyError("meanwhile"))
        return wait_for_pending(*args, **kwargs)

    store.wait_for_pending = failing_meanwhile  # type: ignore[method-assign]
    with pytest.raises(KeyError, match="meanwhile"):
        last.get(on_interval=fail_at_second_look)
    assert looks == []


def test_on_interval_is_called_at_each_look(app: App, store: AskedStore) -> None:
    looks: list[int] = []
    for result in (app.AsyncResult("a"), line(app, "a", "b")):
        with pytest.raises(TimeoutError):
            result.get(on_interval=lambda: looks.append(1))

    assert looks == [1, 1]


def test_the_error_of_a_header_is_raised_rather_than_that_of_its_body(app: App, store: AskedStore) -> None:
    header = app.GroupResult("g", [app.AsyncResult("ok"), app.AsyncResult("bad")])
    body = app.AsyncResult("body", parent=header)
    wait_for_pending = store.wait_for_pending

    def all_fail_meanwhile(*args: Any, **kwargs: Any) -> Any:
        store.put("bad", states.FAILURE, KeyError("the cause"))
        store.put("body", states.FAILURE, ChordError("Dependency bad raised"))
        return wait_for_pending(*args, **kwargs)

    store.wait_for_pending = all_fail_meanwhile  # type: ignore[method-assign]
    with pytest.raises(KeyError, match="the cause"):
        body.get()


def test_a_group_whose_earlier_step_failed_does_not_wait_for_ever(app: App, store: AskedStore) -> None:
    store.put("first", states.FAILURE, KeyError("first"))
    group = app.GroupResult("g", [app.AsyncResult("a")], parent=app.AsyncResult("first"))

    for wait in (group.get, group.join, group.join_native):
        with pytest.raises(KeyError, match="first"):
            wait()
    with pytest.raises(TimeoutError):
        group.get(propagate=False)


def test_many_earlier_steps_are_read_at_once(app: App, store: AskedStore) -> None:
    last = line(app, *(f"step {number}" for number in range(50)))
    with pytest.raises(TimeoutError):
        last.get()

    assert store.reads < 10


# -- listening


def test_then_calls_back_when_the_task_has_ended(telling_app: App, telling: TellingStore) -> None:
    seen: list[Any] = []
    result = telling_app.AsyncResult("a")
    result.then(seen.append)
    assert seen == [] and telling.pending == ["a"]
    telling.put("a", states.STARTED)
    assert seen == []
    telling.put("a", result=7)
    assert seen == [result] and telling.pending == []
    telling.put("a", result=8)
    assert seen == [result] and result.result == 7


def test_then_calls_back_at_once_when_the_end_is_known(app: App, store: AskedStore) -> None:
    store.put("a", result=7)
    result, seen = app.AsyncResult("a"), []
    result.get()
    result.then(seen.append)

    assert seen == [result] and store.pending == []


def test_an_error_goes_to_those_who_listen_for_it(app: App, store: AskedStore) -> None:
    store.put("a", states.FAILURE, KeyError("x"))
    seen: list[Any] = []
    result = app.AsyncResult("a")
    result.on_ready.on_error = seen.append
    result.get()

    assert [type(error) for error in seen] == [KeyError]
    with pytest.raises(OSError, match="told"):
        app.AsyncResult("b").throw(OSError("told"))


def test_listeners_stay_after_a_wait_timed_out(telling_app: App, telling: TellingStore) -> None:
    seen: list[Any] = []
    result = telling_app.AsyncResult("a")
    result.then(seen.append)
    with pytest.raises(TimeoutError):
        result.get(timeout=0)
    telling.put("a", result=7)

    assert seen == [result]


def test_of_many_threads_that_see_the_end_one_calls_back(telling_app: App, telling: TellingStore) -> None:
    for number in range(50):
        result, seen = telling_app.AsyncResult(f"task {number}"), []
        result.then(seen.append)
        telling.metas[result.id] = {"status": states.SUCCESS, "result": number}
        begin = threading.Barrier(4)

        def look(result: Any = result, begin: Any = begin) -> None:
            begin.wait()
            result.ready()

        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == [result]


# -- the tree


def grow(app: App, store: AskedStore) -> Any:
    store.put("root", result=0, children=[(("left", None), None), (("g", None), [(("right", None), None)])])
    store.put("left", result=1)
    store.put("right", result=2, children=[])
    return app.AsyncResult("root")


def test_the_tree_is_walked_level_by_level(app: App, store: AskedStore) -> None:
    root = grow(app, store)

    walked = [(parent and parent.id, node.id) for parent, node in root.iterdeps()]
    assert walked == [(None, "root"), ("root", "left"), ("root", "g"), ("g", "right")]
    assert [(node.id, value) for node, value in root.collect()] == [
        ("root", 0),
        ("left", 1),
        ("g", [2]),
        ("right", 2),
    ]
    assert root.get_leaf() == 2
    assert "root" in root.graph and root.graph is root.graph


def test_a_tree_that_still_grows_is_not_walked_to_its_end_by_mistake(app: App, store: AskedStore) -> None:
    root = grow(app, store)
    del store.metas["right"]

    with pytest.raises(IncompleteStream, match="g has not ended.*intermediate=True"):
        list(root.iterdeps())
    assert len(list(root.iterdeps(intermediate=True))) == 3


def test_results_are_written_down_and_read_back(app: App) -> None:
    single = line(app, "a", "b")
    group = app.GroupResult("g", [single, app.AsyncResult("c")], parent=app.AsyncResult("p"))

    assert single.as_tuple() == (("b", (("a", None), None)), None)
    assert single.as_list() == ["b", "a"] and group.as_list() == ["g", "p"]
    for result in (single, group):
        read = result_from_tuple(result.as_tuple(), app)
        assert type(read) is type(result) and read == result and read.parent == result.parent
        assert result_from_tuple(result, app) is result
    assert result_from_tuple(["x", None], app).id == "x"


# -- ending


def test_forget_removes_what_is_stored_of_all_steps(app: App, store: AskedStore) -> None:
    store.put("a", result=1)
    store.put("b", result=2)
    last = line(app, "a", "b")
    assert last.get() == 2
    last.forget()

    assert store.metas == {} and last.state == "PENDING"
    store.put("b", result=3)
    assert last.get() == 3


def test_revoke_tells_the_workers(app: App) -> None:
    app.AsyncResult("a").revoke(terminate=True, signal="KILL", wait=True, timeout=1)
    app.AsyncResult("a").revoke_by_stamped_headers({"k": "v"})
    app.GroupResult("g", [app.AsyncResult("a"), app.AsyncResult("b")]).revoke()

    (one, how), (stamps, _), (many, _) = app.revoked
    assert one == ("a",) and stamps == ({"k": "v"},) and many == (["a", "b"],)
    assert how == {"connection": None, "terminate": True, "signal": "KILL", "reply": True, "timeout": 1}


# -- as a value


def test_results_with_one_id_are_equal(app: App) -> None:
    result = app.AsyncResult("a")

    assert result == app.AsyncResult("a") == "a" and result != app.AsyncResult("b") and result != 5
    assert {result: 1}[app.AsyncResult("a")] == 1
    assert str(result) == "a" and repr(result) == "<AsyncResult: a>" and result.task_id == "a"
    result.task_id = "b"
    assert result.id == "b"


def test_copies_and_pickles_carry_id_and_parent(app: App, store: AskedStore) -> None:
    result = AsyncResult("b", backend=store, app=app, parent=app.AsyncResult("a"))
    twin = copy.copy(result)

    assert twin == result and twin.backend is store and twin.parent == "a"
    assert result.__reduce__() == (AsyncResult, ("b", store, None, None, result.parent))
    eager = EagerResult("e", 1, states.SUCCESS)
    assert copy.copy(eager).get() == pickle.loads(pickle.dumps(eager)).get() == 1


# -- sets and groups


def some(app: App, *ids: str) -> Any:
    return app.GroupResult("g", [app.AsyncResult(each) for each in ids])


def test_a_group_gives_the_values_in_its_own_order(app: App, store: AskedStore) -> None:
    for value, each in enumerate("abc"):
        store.put(each, result=value)
    group, seen = some(app, "c", "a", "b"), []

    assert group.get() == group.join() == group.join_native() == [2, 0, 1]
    assert group.join(callback=lambda *args: seen.append(args)) == []
    assert group.join_native(callback=lambda *args: seen.append(args)) is None
    assert seen == [("c", 2), ("a", 0), ("b", 1), ("b", 1), ("a", 0), ("c", 2)]
    assert [result.id for result in group] == ["c", "a", "b"] and group[1].id == "a" and len(group) == 3


def test_a_result_that_is_there_twice_gives_its_value_twice(app: App, store: AskedStore) -> None:
    store.put("a", result=7)

    assert some(app, "a", "a").join_native() == [7, 7]


def test_a_group_in_a_group_gives_a_list_in_the_list(app: App, store: AskedStore) -> None:
    for value, each in enumerate("abc"):
        store.put(each, result=value)
    store.put("g", result="is not looked at")
    outer = app.GroupResult("outer", [app.AsyncResult("a"), some(app, "b", "c")])

    assert outer.join() == outer.join_native() == [0, [1, 2]]


def test_a_failed_member_is_raised_or_given(app: App, store: AskedStore) -> None:
    store.put("a", result=1)
    store.put("b", states.FAILURE, KeyError("x"))
    group = some(app, "a", "b")

    for wait in (group.join, group.join_native):
        with pytest.raises(KeyError):
            wait()
        good, bad = wait(propagate=False)
        assert good == 1 and isinstance(bad, KeyError)
    with pytest.raises(KeyError):
        group.maybe_throw()
    assert [result.id for result in group._failed_join_report()] == ["b"]


def test_the_time_to_wait_is_shared_by_all_members(app: App, store: AskedStore) -> None:
    asked: list[Any] = []
    store.wait_for_pending = lambda result, timeout=None, **_: asked.append(timeout)  # type: ignore[method-assign]
    some(app, "a", "b").join(timeout=0)
    some(app, "a", "b").join()
    some(app, "a").join(timeout=60)

    assert asked[:4] == [0, 0, None, None] and 59 < asked[4] <= 60


def test_a_store_that_is_asked_cannot_tell_of_messages(app: App) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"does not support on_message callback.*redis://"):
        some(app, "a").join(on_message=print)


def test_the_state_of_a_group_is_read_at_once(app: App, store: AskedStore) -> None:
    group = some(app, *(f"task {number}" for number in range(100)))
    store.put("task 1", result=1)
    store.put("task 2", states.FAILURE, KeyError("x"))

    for question, answer in (
        (group.ready, False),
        (group.waiting, True),
        (group.successful, False),
        (group.failed, True),
        (group.completed_count, 1),
    ):
        store.reads = 0
        assert question() == answer and store.reads <= 1
    for number in range(100):
        store.put(f"task {number}", result=number)
    group = some(app, *(f"task {number}" for number in range(100)))
    store.reads = 0
    assert group.ready() and group.successful() and not group.failed() and not group.waiting()
    assert group.completed_count() == 100 and store.reads == 1


def test_a_store_that_cannot_read_many_is_asked_for_each(app: App, store: AskedStore) -> None:
    store.supports_native_join = False
    store.put("a", result=1)

    assert not some(app, "a", "b").ready() and some(app, "a", "b").completed_count() == 1
    assert some(app, "a").get() == [1]


def test_results_of_two_stores_are_asked_each_of_its_own(app: App, store: AskedStore) -> None:
    other = AskedStore()
    for each in "abc":
        (other if each == "c" else store).put(each, result=each)
    mixed = app.GroupResult("g", [*some(app, "a", "b"), AsyncResult("c", backend=other, app=app)])

    assert mixed.ready() and mixed.completed_count() == 3


def test_a_member_that_a_group_does_not_have_is_refused_with_those_it_has(app: App) -> None:
    made = app.GroupResult("g", [app.AsyncResult("a"), app.AsyncResult("b")])

    assert (made[0].id, made[-1].id, made[1:]) == ("a", "b", made.results[1:])
    with pytest.raises(IndexError, match="GroupResult g has 2 members, so there is no 2: .* from 0 to 1"):
        made[2]
    with pytest.raises(IndexError, match="GroupResult e has 0 members, so there is no 0"):
        app.GroupResult("e", [])[0]


def test_an_empty_group_has_ended(app: App) -> None:
    empty = app.GroupResult("g", [])

    assert empty.ready() and empty.successful() and empty.get() == [] and empty.supports_native_join is None
    assert bool(empty) and not GroupResult(None, [])


def test_making_a_group_result_subscribes_to_nothing(telling_app: App, telling: TellingStore) -> None:
    group = some(telling_app, "a", "b")
    assert telling.pending == [] and telling.reads == 0
    assert not group.on_ready.ready
    assert sorted(telling.pending) == ["a", "b"]


def test_a_group_calls_back_when_all_members_have_ended(telling_app: App, telling: TellingStore) -> None:
    group, seen = some(telling_app, "a", "b"), []
    group.then(lambda ended: seen.append(ended.id))
    telling.put("a", result=1)
    assert seen == []
    telling.put("b", states.FAILURE, KeyError("x"))
    assert seen == ["g"]


def test_a_group_of_groups_calls_back_when_all_have_ended(telling_app: App, telling: TellingStore) -> None:
    inner = telling_app.GroupResult("inner", [telling_app.AsyncResult("a")])
    outer, seen = telling_app.GroupResult("outer", [inner, telling_app.AsyncResult("b")]), []
    outer.then(lambda ended: seen.append(ended.id))
    telling.put("b", result=1)
    assert seen == []
    telling.put("a", result=1)
    assert seen == ["outer"]


def test_members_that_nobody_else_holds_are_not_kept_alive(telling_app: App) -> None:
    group = some(telling_app, "a", "b")
    group.then(print)
    member = weakref.ref(group.results[0])
    del group
    gc.collect()

    assert member() is None


def test_a_store_that_takes_many_listeners_is_told_of_all_at_once(telling_app: App, telling: TellingStore) -> None:
    told: list[Any] = []
    telling.add_pending_results = lambda results, weak=False: told.append(  # type: ignore[attr-defined]
        ([result.id for result in results], weak)
    )
    some(telling_app, "a", "b").then(print)

    assert told == [(["a", "b"], True)]


def test_members_are_added_and_removed(app: App) -> None:
    members = ResultSet([app.AsyncResult("a")], app=app)
    members.add(app.AsyncResult("b"))
    members.add(app.AsyncResult("b"))
    members.update([app.AsyncResult("b"), app.AsyncResult("c")])
    assert [result.id for result in members] == ["a", "b", "c"]
    members.remove("a")
    members.discard("a")
    with pytest.raises(KeyError):
        members.remove("a")
    assert members == ResultSet([app.AsyncResult("b"), app.AsyncResult("c")])
    assert repr(members) == "<ResultSet: [b, c]>" and members != 5
    members.clear()
    assert len(members) == 0


def test_a_member_added_later_is_waited_for_too(telling_app: App, telling: TellingStore) -> None:
    members, seen = ResultSet([telling_app.AsyncResult("a")], app=telling_app), []
    members.then(lambda _: seen.append("first"))
    members.add(telling_app.AsyncResult("b"))
    telling.put("a", result=1)
    assert seen == []
    telling.put("b", result=1)
    assert seen == ["first"]
    members.add(telling_app.AsyncResult("c"))
    members.then(lambda _: seen.append("second"))
    assert seen == ["first"]
    telling.put("c", result=1)
    assert seen == ["first", "second"]


def test_a_barrier_that_is_handed_in_is_listened_to(app: App) -> None:
    from vine import barrier

    full, seen = barrier(), []
    members = ResultSet([app.AsyncResult("a")], app=app, ready_barrier=full)
    members.then(lambda ended: seen.append(len(ended)))
    full.finalize()

    assert seen == [1]


def test_groups_are_saved_restored_and_deleted(app: App, store: AskedStore) -> None:
    group = some(app, "a", "b")
    group.save()
    assert app.GroupResult.restore("g") is group
    assert GroupResult.restore("g", app=app) is group and GroupResult.restore("g", backend=store) is group
    group.delete()
    assert app.GroupResult.restore("g") is None


def test_a_group_is_its_id_members_and_parent(app: App) -> None:
    group = some(app, "a")

    assert group == some(app, "a") == "g" and group != some(app, "b") and hash(group) == hash("g")
    assert str(group) == "g" and repr(group) == "<GroupResult: g [a]>" and group.children is group.results
    assert group.__reduce__() == (app.GroupResult, ("g", group.results))
    with_parent = app.GroupResult("g", group.results, parent=app.AsyncResult("p"))
    assert group != with_parent


def test_forgetting_a_group_forgets_its_members(app: App, store: AskedStore) -> None:
    store.put("a", result=1)
    some(app, "a").forget()

    assert store.metas == {}


# -- here and now


@pytest.mark.parametrize(
    ("state", "value", "outcome"),
    [
        (states.SUCCESS, 7, lambda get: get() == 7),
        (states.RETRY, 7, lambda get: get() is None),
        (states.IGNORED, 7, lambda get: get() is None),
        (states.FAILURE, KeyError("x"), lambda get: isinstance(get(propagate=False), KeyError)),
    ],
)
def test_an_eager_result_ends_as_the_task_did(state: str, value: Any, outcome: Callable[[Any], bool]) -> None:
    result = EagerResult("a", value, state, traceback="tb", name="t")

    assert outcome(result.get) and result.ready() and result.state == result.status == state
    assert result.result is value and result.traceback == "tb" and result.name == "t"
    assert repr(result) == "<EagerResult: a>" and not result.supports_native_join and result.backend is None


def test_an_eager_result_raises_the_error_of_its_task() -> None:
    with pytest.raises(KeyError, match="x"):
        EagerResult("a", KeyError("x"), states.FAILURE).get()
    with pytest.raises(Exception, match="text"):
        EagerResult("a", "text", states.FAILURE).get()


def test_an_eager_result_calls_back_at_once() -> None:
    seen: list[Any] = []
    result = EagerResult("a", 7, states.SUCCESS)
    result.then(seen.append)

    assert seen == [result] and result.get(callback=lambda *args: seen.append(args), timeout=1) == 7
    assert seen[1:] == [("a", 7)]


def test_revoking_an_eager_result_replaces_its_value() -> None:
    result = EagerResult("a", 7, states.SUCCESS)
    result.revoke()

    assert result.state == states.REVOKED
    with pytest.raises(TaskRevokedError):
        result.get()
    result.forget()


def test_eager_and_stored_results_wait_together(app: App, store: AskedStore) -> None:
    store.supports_native_join = False
    store.put("a", result=1)
    together = app.GroupResult("g", [EagerResult("e", 0, states.SUCCESS), app.AsyncResult("a")])

    assert together.get() == [0, 1] and together.ready()


def test_frames_of_the_remote_side_are_shown_if_that_is_wanted(app: App, store: AskedStore) -> None:
    pytest.importorskip("tblib", reason="install celery_clone[tblib]")
    text = """Traceback (most recent call last):
  File "remote.py", line 12, in body
    raise KeyError("x")
KeyError: 'x'
"""
    store.put("a", states.FAILURE, KeyError("x"), traceback=text)
    app.conf.task_remote_tracebacks = True
    with pytest.raises(KeyError) as caught:
        app.AsyncResult("a").get()

    assert "remote.py" in str(caught.traceback[-1].frame.code.raw.co_filename)


def test_metas_are_given_as_an_iterator(app: App, store: AskedStore) -> None:
    store.put("a", result=1)

    assert [meta["result"] for meta in app.AsyncResult("a")._iter_meta()] == [1]
    assert [meta["result"] for meta in some(app, "a", "b")._iter_meta()] == [1]
