"""What every result store promises, whatever keeps the results."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu.exceptions import KombuError

from celery_clone import Celery, group, states
from celery_clone.exceptions import ChordError, TimeoutError
from celery_clone.execution.context import Context
from celery_clone.utils.ids import uuid
from tests.support.wait import wait_until

DATABASES = ("database", "postgresql", "mariadb")
"""SQL databases: an SQLite file, and two servers."""
STORES = ("redis", "cache", "memcached", "filesystem", "sqlite", "rpc", *DATABASES)
KEEPERS = tuple(name for name in STORES if name != "rpc")
"""Stores that keep what they were given; rpc hands it to the caller and forgets."""
COUNTERS = ("redis", "cache", "memcached", "sqlite")
"""Stores that count the members of a chord themselves."""
SERVERS = {
    "redis": "redis_server",
    "rpc": "rabbitmq_server",
    "memcached": "memcached_server",
    "postgresql": "postgresql_server",
    "mariadb": "mariadb_server",
}
"""The fixture that gives the server of a store."""


class OutOfStock(Exception):
    """An error of a user, with arguments of its own."""


class Store:
    """One kind of store, and apps that use the same one: a worker's and a caller's."""

    def __init__(self, name: str, url: str, broker: str) -> None:
        self.name, self.url, self.broker = name, url, broker
        self._apps: list[Celery] = []

    def app(self, **conf: Any) -> Celery:
        app = Celery("tests", broker=self.broker, backend=self.url, set_as_current=False)
        app.conf.update({"task_default_queue": "tasks", "result_accept_content": ["json"], **conf})
        app.task(name="sum")(sum)
        self._apps.append(app)
        return app

    def close(self) -> None:
        for app in self._apps:
            app.backend.close()
            app.amqp.close() if hasattr(app.amqp, "close") else None
            app.close()


class Caller:
    """A caller of tasks and the worker that ends them, without the tasks between them."""

    def __init__(self, store: Store, **conf: Any) -> None:
        self.app, self.worker = store.app(**conf), store.app(**conf)
        self.backend, self.store = self.app.backend, self.worker.backend

    def call(self, task_id: str | None = None) -> Any:
        """Send a task, as far as the store is concerned."""
        task_id = task_id or uuid()
        self.backend.on_task_call(None, task_id)
        return self.app.AsyncResult(task_id)

    def request(self, result: Any, **more: Any) -> Context:
        """What the worker knows of a call."""
        return Context({"id": result.id, "correlation_id": result.id, "reply_to": self.app.thread_oid, **more})

    def succeed(self, result: Any, value: Any, **more: Any) -> None:
        self.store.mark_as_done(result.id, value, request=self.request(result, **more))

    def fail(self, result: Any, error: Exception, traceback: str = "", **more: Any) -> None:
        self.store.mark_as_failure(result.id, error, traceback, request=self.request(result, **more))


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> tuple[str, Any]:
    """The kind of store, and its server where it has one."""
    name = SERVERS.get(request.param)
    return request.param, request.getfixturevalue(name) if name else None


@pytest.fixture
def store(server: tuple[str, Any], tmp_path: Path) -> Iterator[Store]:
    """A store of this test's own."""
    kind, running = server
    host = running.new_virtual_host() if kind == "rpc" else ""
    urls = {
        "redis": lambda: running.new_database_url(),
        "cache": lambda: "cache+memory://",
        "memcached": lambda: running.url(),
        "filesystem": lambda: f"file://{tmp_path}",
        "sqlite": lambda: f"sqlite:///{tmp_path}/results.db",
        "database": lambda: f"db+sqlite:///{tmp_path}/results.db",
        "postgresql": lambda: f"db+{running.database_url()}",
        "mariadb": lambda: f"db+{running.database_url()}",
        "rpc": lambda: "rpc://",
    }
    opened = Store(kind, urls[kind](), running.url(host) if kind == "rpc" else "memory://")
    yield opened
    opened.close()
    if kind == "rpc":
        running.drop_virtual_host(host)


@pytest.fixture
def caller(store: Store) -> Caller:
    return Caller(store)


def each(*kinds: str) -> pytest.MarkDecorator:
    """Run the test with each of these stores."""
    marks = {"redis": [pytest.mark.redis], "rpc": [pytest.mark.rabbitmq]}
    params = [pytest.param(kind, marks=marks.get(kind, ())) for kind in kinds]
    return pytest.mark.parametrize("server", params, indirect=True, scope="session")


each_store, each_keeper, each_counter = each(*STORES), each(*KEEPERS), each(*COUNTERS)


# --- one result -----------------------------------------------------------------


@each_store
def test_a_result_comes_back_as_it_was_stored(caller: Caller) -> None:
    result = caller.call()

    caller.succeed(result, {"answer": [42, None, 1.5, "ü"]})

    assert result.get(timeout=5) == {"answer": [42, None, 1.5, "ü"]}
    assert result.successful()
    assert result.date_done is not None


@each_store
def test_an_error_comes_back_as_its_own_type_with_its_traceback(caller: Caller) -> None:
    result = caller.call()

    caller.fail(result, OutOfStock("apples", 3), "Traceback: there")

    with pytest.raises(OutOfStock) as raised:
        result.get(timeout=5)
    assert raised.value.args == ("apples", 3)
    assert result.state == states.FAILURE
    assert result.traceback == "Traceback: there"
    assert isinstance(result.result, OutOfStock)


@each_store
def test_a_task_nobody_has_heard_of_is_pending(caller: Caller) -> None:
    result = caller.call()

    assert result.state == states.PENDING
    assert result.result is None
    assert not result.ready()
    assert not result.exists()


@each_store
def test_a_state_of_the_task_itself_is_seen_with_what_it_tells(caller: Caller) -> None:
    result = caller.call()

    caller.store.store_result(result.id, {"done": 10}, "PROGRESS", request=caller.request(result))

    wait_until(lambda: result.state == "PROGRESS", 5, lambda: f"PROGRESS; it is {result.state}")
    assert result.info == {"done": 10}
    assert not result.ready()


@each_store
def test_a_retry_keeps_the_error_and_is_no_end(caller: Caller) -> None:
    result = caller.call()

    caller.store.mark_as_retry(result.id, OutOfStock("later"), request=caller.request(result))

    wait_until(lambda: result.state == states.RETRY, 5, "the state RETRY")
    assert isinstance(result.result, OutOfStock)


@each_store
def test_a_revoked_task_says_so_to_who_waits(caller: Caller) -> None:
    result = caller.call()

    caller.store.mark_as_revoked(result.id, "terminated", request=caller.request(result))

    with pytest.raises(Exception, match="terminated"):
        result.get(timeout=5)
    assert result.state == states.REVOKED


@each_keeper
def test_a_success_is_final(caller: Caller) -> None:
    result = caller.call()
    caller.succeed(result, "first")

    caller.fail(result, OutOfStock("the task was delivered twice"))
    caller.store.store_result(result.id, None, states.STARTED)

    assert caller.app.AsyncResult(result.id).get(timeout=5) == "first"


@each_keeper
def test_a_try_that_is_told_of_late_does_not_take_back_the_end_of_the_next_one(caller: Caller) -> None:
    result = caller.call()
    caller.fail(result, OutOfStock("the last try"))

    caller.store.mark_as_retry(result.id, OutOfStock("the try before"), request=caller.request(result))

    assert caller.app.AsyncResult(result.id).state == states.FAILURE
    with pytest.raises(OutOfStock, match="the last try"):
        caller.app.AsyncResult(result.id).get(timeout=5)


@each_keeper
def test_a_failure_gives_way_to_a_later_success(caller: Caller) -> None:
    result = caller.call()
    caller.fail(result, OutOfStock("once"))

    caller.succeed(result, "at last")

    assert caller.app.AsyncResult(result.id).get(timeout=5) == "at last"


@each_keeper
def test_a_forgotten_result_is_gone(caller: Caller) -> None:
    result = caller.call()
    caller.succeed(result, 1)
    assert result.exists()

    result.forget()

    assert not caller.app.AsyncResult(result.id).exists()
    assert caller.app.AsyncResult(result.id).state == states.PENDING


@each(*(name for name in STORES if name not in DATABASES))  # whose columns, Celery's, do not hold them
def test_group_and_parent_are_told_with_the_result(caller: Caller) -> None:
    result = caller.call()

    caller.succeed(result, 1, group="the group", parent_id="the parent")

    result.get(timeout=5)
    assert result._cache["group_id"] == "the group"
    assert result._cache["parent_id"] == "the parent"


@each_store
def test_the_calls_a_task_made_are_its_children(caller: Caller) -> None:
    result = caller.call()
    request = caller.request(result)
    request.children.append(caller.app.AsyncResult("child"))

    caller.store.mark_as_done(result.id, 1, request=request)

    result.get(timeout=5)
    assert result.children == [caller.app.AsyncResult("child")]


@each_store
def test_extended_results_tell_how_the_task_was_called(store: Store) -> None:
    caller = Caller(store, result_extended=True)
    result = caller.call()

    caller.succeed(
        result,
        1,
        task="shop.order",
        args=["apples"],
        kwargs={"count": 3},
        hostname="w@h",
        retries=2,
        delivery_info={"routing_key": "orders"},
        stamped_headers=["tenant"],
        stamps={"tenant": "acme", "other": 1},
    )

    result.get(timeout=5)
    assert (result.name, result.args, result.kwargs) == ("shop.order", ["apples"], {"count": 3})
    assert (result.worker, result.retries, result.queue) == ("w@h", 2, "orders")
    assert result._cache["stamped_headers"] == ["tenant"]
    assert result._cache["tenant"] == "acme"
    assert "other" not in result._cache


@pytest.mark.parametrize("serializer", ["pickle", "yaml", "msgpack"])
@each_store
def test_results_travel_in_every_serializer(serializer: str, store: Store) -> None:
    caller = Caller(store, result_serializer=serializer, result_accept_content=[serializer])
    good, bad = caller.call(), caller.call()

    caller.succeed(good, {"answer": [42]})
    caller.fail(bad, OutOfStock("apples"))

    assert good.get(timeout=5) == {"answer": [42]}
    assert isinstance(bad.get(timeout=5, propagate=False), OutOfStock)


@pytest.mark.parametrize("serializer", ["pickle", "msgpack"])
@each_keeper
def test_a_success_is_final_in_every_serializer(serializer: str, store: Store) -> None:
    caller = Caller(store, result_serializer=serializer, result_accept_content=[serializer])
    result = caller.call()
    caller.succeed(result, "first")

    caller.fail(result, OutOfStock("again"))

    assert caller.app.AsyncResult(result.id).get(timeout=5) == "first"


@each_store
def test_content_that_is_not_allowed_is_not_read(store: Store) -> None:
    caller = Caller(store)
    caller.store = store.app(result_serializer="pickle", result_accept_content=["pickle"]).backend
    result = caller.call()

    caller.succeed(result, "not read")

    # kombu's ContentDisallowed, or a DecodeError where the content is not labelled.
    with pytest.raises(KombuError):
        result.get(timeout=5)


# --- waiting ---------------------------------------------------------------------


@each_store
def test_who_waits_gets_the_result_when_it_is_stored(caller: Caller) -> None:
    result = caller.call()
    request = caller.request(result)
    later = threading.Timer(0.2, caller.store.mark_as_done, (result.id, "came"), {"request": request})
    later.start()

    assert result.get(timeout=10) == "came"
    later.join()


@each_store
def test_a_wait_ends_when_its_time_is_over(caller: Caller) -> None:
    result = caller.call()
    began = time.monotonic()

    with pytest.raises(TimeoutError):
        result.get(timeout=0.3)

    assert 0.2 < time.monotonic() - began < 3


@each_keeper
def test_a_wait_without_time_looks_once(caller: Caller) -> None:
    there, missing = caller.call(), caller.call()
    caller.succeed(there, 7)

    assert there.get(timeout=0) == 7
    with pytest.raises(TimeoutError):
        missing.get(timeout=0)


@each_store
def test_after_a_wait_that_was_given_up_the_result_can_still_be_had(caller: Caller) -> None:
    result = caller.call()
    with pytest.raises(TimeoutError):
        result.get(timeout=0.1)

    caller.succeed(result, "late")

    assert result.get(timeout=5) == "late"


@each_store
def test_each_of_many_threads_gets_its_own_result(caller: Caller) -> None:
    results = [caller.call() for _ in range(20)]
    requests = [caller.request(result) for result in results]
    got: dict[int, Any] = {}
    threads = [threading.Thread(target=lambda at=at: got.update({at: results[at].get(timeout=20)})) for at in range(20)]
    for thread in threads:
        thread.start()

    for at in reversed(range(20)):
        caller.store.mark_as_done(results[at].id, at, request=requests[at])

    for thread in threads:
        thread.join()
    assert got == {at: at for at in range(20)}


@each_store
def test_two_threads_that_wait_for_one_task_both_get_its_result(caller: Caller) -> None:
    result = caller.call()
    request = caller.request(result)
    got: list[Any] = []
    waiting = [
        threading.Thread(target=lambda: got.append(caller.app.AsyncResult(result.id).get(timeout=20))) for _ in range(2)
    ]
    for thread in waiting:
        thread.start()
    wait_until(lambda: all(thread.is_alive() for thread in waiting), 5, "both to wait")

    caller.store.mark_as_done(result.id, "both", request=request)

    for thread in waiting:
        thread.join()
    assert got == ["both", "both"]


@each_store
def test_while_it_waits_the_caller_is_called(caller: Caller) -> None:
    result = caller.call()
    calls: list[int] = []

    with pytest.raises(TimeoutError):
        # Stores that tell are listened to for a second at a time.
        result.get(timeout=1.2 if caller.backend.is_async else 0.1, on_interval=lambda: calls.append(1))

    assert calls


@each_store
def test_members_of_a_group_come_in_its_order(caller: Caller) -> None:
    results = [caller.call() for _ in range(30)]
    for at in reversed(range(15)):
        caller.succeed(results[at], at)
    rest = threading.Thread(
        target=lambda requests: [
            caller.store.mark_as_done(results[at].id, at, request=requests[at]) for at in reversed(range(15, 30))
        ],
        args=([caller.request(result) for result in results],),
    )
    rest.start()

    assert caller.app.ResultSet(results).get(timeout=20) == list(range(30))
    rest.join()


@each_store
def test_a_group_with_a_failed_member_raises_its_error(caller: Caller) -> None:
    results = [caller.call() for _ in range(3)]
    caller.succeed(results[0], 0)
    caller.fail(results[1], OutOfStock("one"))
    caller.succeed(results[2], 2)

    with pytest.raises(OutOfStock):
        caller.app.ResultSet(results).get(timeout=10)


@each_store
def test_a_group_that_does_not_end_times_out(caller: Caller) -> None:
    results = [caller.call() for _ in range(3)]
    caller.succeed(results[0], 0)

    with pytest.raises(TimeoutError):
        caller.app.ResultSet(results).get(timeout=0.3)


@each_store
def test_a_result_larger_than_any_buffer_arrives(caller: Caller) -> None:
    result = caller.call()
    request, large = caller.request(result), "x" * 3_000_000
    later = threading.Timer(0.1, caller.store.mark_as_done, (result.id, large), {"request": request})
    later.start()

    assert result.get(timeout=20) == large
    later.join()


@each("redis", "filesystem", "sqlite", "rpc", *DATABASES)
def test_a_forked_child_waits_for_results_of_its_own(caller: Caller) -> None:
    before = caller.call()
    caller.succeed(before, "before")
    assert before.get(timeout=5) == "before"

    child = os.fork()
    if child == 0:
        status = 1
        try:
            result = caller.call()
            caller.succeed(result, "child")
            status = 0 if result.get(timeout=10) == "child" else 2
        finally:
            os._exit(status)
    after = caller.call()
    caller.succeed(after, "after")

    assert after.get(timeout=10) == "after"
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- waiting in asyncio -------------------------------------------------------------


@each_store
def test_results_can_be_awaited(caller: Caller) -> None:
    there, later, failed = (caller.call() for _ in range(3))
    requests = {result.id: caller.request(result) for result in (there, later, failed)}
    caller.store.mark_as_done(there.id, "there", request=requests[there.id])

    async def main() -> list[Any]:
        both = asyncio.gather(there, later, failed, return_exceptions=True)
        await asyncio.sleep(0.05)
        caller.store.mark_as_done(later.id, "later", request=requests[later.id])
        caller.store.mark_as_failure(failed.id, OutOfStock("apples"), "", request=requests[failed.id])
        return await asyncio.wait_for(both, 10)

    values = asyncio.run(main())

    assert values[:2] == ["there", "later"]
    assert isinstance(values[2], OutOfStock)


@each_store
def test_members_of_a_group_are_had_as_they_end(caller: Caller) -> None:
    results = [caller.call() for _ in range(4)]
    requests = [caller.request(result) for result in results]
    members = caller.app.ResultSet(results)

    async def main() -> list[Any]:
        ended = []
        caller.store.mark_as_done(results[2].id, 2, request=requests[2])
        async for result in members:
            ended.append(results.index(result))
            if ended == [2]:
                for at in (0, 1, 3):
                    caller.store.mark_as_done(results[at].id, at, request=requests[at])
        assert await members == [0, 1, 2, 3]
        return ended

    ended = asyncio.run(asyncio.wait_for(main(), 20))

    assert ended[0] == 2
    assert sorted(ended) == [0, 1, 2, 3]


@each_store
def test_an_awaited_result_that_does_not_come_is_given_up(caller: Caller) -> None:
    result = caller.call()
    request = caller.request(result)

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(result, 0.1)
        caller.store.mark_as_done(result.id, "late", request=request)
        assert await asyncio.wait_for(result, 10) == "late"

    asyncio.run(main())


# --- groups ----------------------------------------------------------------------


@each_keeper
def test_a_saved_group_comes_back_with_its_members(caller: Caller) -> None:
    results = [caller.call() for _ in range(3)]
    saved = caller.app.GroupResult("g", results)

    saved.save()

    assert caller.app.GroupResult.restore("g") == saved
    saved.delete()
    assert caller.app.GroupResult.restore("g") is None


# --- chords ----------------------------------------------------------------------


class Chord:
    """A chord in flight: its members end as the test says."""

    def __init__(self, caller: Caller, size: int, *, nested: bool = False, body: Any = None) -> None:
        self.app, self.store = caller.worker, caller.store
        self.id = uuid()
        self.body = self.app.signature("sum", app=self.app) if body is None else body
        self.result = self.body.freeze(f"body-{self.id}")
        self.members = [self.app.AsyncResult(f"{self.id}-{at}") for at in range(size)]
        header: list[Any] = list(self.members)
        if nested:
            header = [self.app.GroupResult(uuid(), self.members[:2]), *self.members[2:]]
        self.store.apply_chord((self.id, header), self.body)
        self.store.set_chord_size(self.id, size)

    def request(self, at: int) -> Context:
        return Context({"id": self.members[at].id, "group": self.id, "group_index": at, "chord": dict(self.body)})

    def succeed(self, at: int, value: Any) -> None:
        self.store.mark_as_done(self.members[at].id, value, request=self.request(at))

    def fail(self, at: int, error: Exception) -> None:
        self.store.mark_as_failure(self.members[at].id, error, request=self.request(at))


def bodies_sent(app: Celery) -> list[Any]:
    """Arguments of the task messages that wait."""
    with app.connection_for_read() as connection:
        queue = connection.SimpleQueue("tasks", no_ack=True)
        found = []
        while True:
            try:
                message = queue.get(block=False)
            except queue.Empty:
                queue.close()
                return found
            found.append((message.headers["task"], message.payload[0]))


@each_counter
def test_the_body_is_sent_with_the_values_in_order_once_all_members_ended(caller: Caller) -> None:
    chord = Chord(caller, 3)

    chord.succeed(2, 30)
    chord.succeed(0, 10)
    assert bodies_sent(caller.app) == []
    chord.succeed(1, 20)

    assert bodies_sent(caller.app) == [("sum", [[10, 20, 30]])]


@each_counter
def test_a_member_that_was_delivered_twice_counts_once(caller: Caller) -> None:
    chord = Chord(caller, 2)

    chord.succeed(0, 1)
    chord.succeed(0, 1)
    assert bodies_sent(caller.app) == []
    chord.succeed(1, 2)
    chord.succeed(0, 1)
    chord.succeed(1, 2)

    assert bodies_sent(caller.app) == [("sum", [[1, 2]])]
    assert caller.app.AsyncResult(chord.result.id).state == states.PENDING


@each_counter
def test_the_body_fails_when_a_member_failed(caller: Caller) -> None:
    chord = Chord(caller, 2)

    chord.fail(0, OutOfStock("apples"))
    chord.succeed(1, 2)

    assert bodies_sent(caller.app) == []
    with pytest.raises(ChordError, match=f"Dependency {chord.members[0].id} raised OutOfStock"):
        caller.app.AsyncResult(chord.result.id).get(timeout=5)


@each_counter
def test_values_of_a_header_with_a_group_in_it_keep_their_structure(caller: Caller) -> None:
    chord = Chord(caller, 3, nested=True)

    for at, value in enumerate((1, 2, 3)):
        chord.succeed(at, value)

    assert bodies_sent(caller.app) == [("sum", [[[1, 2], 3]])]


@each_counter
def test_many_workers_that_end_members_at_once_send_one_body(caller: Caller) -> None:
    chord = Chord(caller, 12)
    threads = [threading.Thread(target=chord.succeed, args=(at, at)) for at in range(12)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert bodies_sent(caller.app) == [("sum", [list(range(12))])]


@each_counter
def test_errbacks_of_a_failed_chord_are_called_once(caller: Caller) -> None:
    body = caller.worker.signature("sum", app=caller.worker)
    body.link_error(caller.worker.signature("tell", app=caller.worker))
    chord = Chord(caller, 2, body=body)

    chord.fail(0, OutOfStock("apples"))
    chord.fail(1, OutOfStock("pears"))

    assert bodies_sent(caller.app) == [("tell", [chord.result.id])]


@each_counter
def test_the_members_of_a_body_that_is_a_group_all_fail(caller: Caller) -> None:
    app = caller.worker
    body = group(app.signature("sum", app=app), app.signature("sum", app=app), app=app)
    chord = Chord(caller, 1, body=body)

    chord.fail(0, OutOfStock("apples"))

    for member in chord.result.results:
        assert isinstance(caller.app.AsyncResult(member.id).get(timeout=5, propagate=False), OutOfStock)


@each_counter
def test_a_chord_works_when_results_never_expire(store: Store) -> None:
    forever = Caller(store, result_expires=0)
    chord = Chord(forever, 2)

    chord.succeed(1, 2)
    chord.succeed(0, 1)

    assert bodies_sent(forever.app) == [("sum", [[1, 2]])]


@each("rpc")
def test_rpc_says_that_it_cannot_do_chords(caller: Caller) -> None:
    with pytest.raises(NotImplementedError, match="does not support chords"):
        caller.backend.ensure_chords_allowed()


@each("filesystem", "postgresql")
def test_without_a_counter_a_task_is_sent_that_looks_at_the_header(caller: Caller) -> None:
    chord = Chord(caller, 2)

    assert [name for name, _ in bodies_sent(caller.app)] == ["celery.chord_unlock"]
    assert chord.members


# --- steps that will not run --------------------------------------------------------


@each_keeper
def test_steps_after_a_failed_one_fail_with_it(caller: Caller) -> None:
    result = caller.call()
    steps = [caller.app.signature("sum", app=caller.app) for _ in range(2)]
    for at, step in enumerate(steps):
        step.freeze(f"{result.id}-{at}")

    caller.fail(result, OutOfStock("apples"), chain=[dict(step) for step in reversed(steps)])

    for at in range(2):
        assert isinstance(caller.app.AsyncResult(f"{result.id}-{at}").get(timeout=5, propagate=False), OutOfStock)


# --- deferred results ------------------------------------------------------------------


@each("redis", "sqlite", "rpc", *DATABASES)
def test_deferred_results_are_stored_together(caller: Caller) -> None:
    writer = caller.store.defer_results()
    results = [caller.call() for _ in range(5)]
    for at, result in enumerate(results):
        caller.succeed(result, at)
    assert writer.pending
    assert not any(caller.app.AsyncResult(result.id).ready() for result in results)

    writer.flush()

    assert not writer.pending
    assert [result.get(timeout=5) for result in results] == [0, 1, 2, 3, 4]


@each("redis", "rpc")
def test_states_that_are_not_final_are_not_deferred(caller: Caller) -> None:
    writer = caller.store.defer_results()
    result = caller.call()

    caller.store.store_result(result.id, {"done": 1}, "PROGRESS", request=caller.request(result))

    assert not writer.pending
    wait_until(lambda: result.state == "PROGRESS", 5, "the state")


@each("redis")
def test_members_of_chords_are_counted_when_they_are_stored(caller: Caller) -> None:
    writer = caller.store.defer_results()
    chord = Chord(caller, 2)

    chord.succeed(0, 1)
    chord.succeed(1, 2)
    assert bodies_sent(caller.app) == []

    writer.flush()
    assert bodies_sent(caller.app) == [("sum", [[1, 2]])]


@each("redis", "sqlite", "database")
def test_a_process_that_waits_for_what_it_has_deferred_stores_it_first(caller: Caller) -> None:
    caller.store.defer_results()
    result = caller.call()
    caller.succeed(result, "own")

    assert caller.worker.AsyncResult(result.id).get(timeout=5) == "own"


@each("redis", "sqlite", "rpc")
def test_what_waited_when_a_process_forked_is_stored_by_the_parent_alone(caller: Caller) -> None:
    writer = caller.store.defer_results()
    result = caller.call()
    caller.succeed(result, "parent")

    child = os.fork()
    if child == 0:
        os._exit(1 if writer.pending else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    writer.flush()

    assert result.get(timeout=5) == "parent"
