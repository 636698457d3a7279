"""Results in Redis: what is subscribed, what a lost connection costs, and what is left behind."""

from __future__ import annotations

import gc
import itertools
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from celery_clone import Celery, states
from celery_clone.backends.redis import RedisBackend
from celery_clone.backends.redis.parts import BUSY_S, CLAIM_S
from celery_clone.backends.redis.waiting import OVER
from celery_clone.exceptions import ChordError, TimeoutError
from celery_clone.execution.context import Context
from celery_clone.utils.ids import uuid
from tests.support.redis import RedisServer
from tests.support.wait import wait_until


@pytest.fixture
def make_app(redis_url: str) -> Iterator[Callable[..., Celery]]:
    made: list[Celery] = []

    def make(url: str = redis_url, **conf: Any) -> Celery:
        app = Celery("tests", broker="memory://", backend=url, set_as_current=False)
        app.conf.update(conf)
        app.task(name="sum")(sum)
        assert isinstance(app.backend, RedisBackend)
        made.append(app)
        return app

    yield make
    for app in made:
        app.backend.close()
        app.close()


@pytest.fixture
def server(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def channels(server: redis.Redis, *ids: str) -> list[str]:
    """The tasks whose results somebody is subscribed to."""
    known = {channel.decode() for channel in server.pubsub_channels()}
    return [task_id for task_id in ids if f"celery-task-meta-{task_id}" in known]


def waiting(result: Any, **how: Any) -> tuple[threading.Thread, list[Any]]:
    """A thread that waits for a result, and where it puts it."""
    got: list[Any] = []

    def wait() -> None:
        try:
            got.append(result.get(**{"timeout": 30, **how}))
        except Exception as error:
            got.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread, got


# --- subscriptions -----------------------------------------------------------------


def asked(server: redis.Redis) -> int:
    """How often somebody asked for results so far."""
    return int(server.info("commandstats").get("cmdstat_mget", {}).get("calls", 0))


def test_results_that_are_read_in_order_are_asked_for_together(
    make_app: Callable[..., Celery], server: redis.Redis
) -> None:
    app = make_app()
    results = [app.send_task("sum") for _ in range(300)]
    for number, result in enumerate(results[:200]):
        if number == 7:
            continue
        app.backend.store_result(result.id, number, states.SUCCESS)
    app.backend.mark_as_failure(results[7].id, ValueError("seven"))
    before = asked(server)

    assert [result.get(timeout=10, propagate=False) for result in results[:7]] == [*range(7)]
    with pytest.raises(ValueError, match="seven"):
        results[7].get(timeout=10)
    assert [result.get(timeout=10) for result in results[8:200]] == [*range(8, 200)]
    assert asked(server) - before < 12

    # What is not there yet was read ahead, too: it is waited for as long as anybody likes.
    with pytest.raises(TimeoutError):
        results[200].get(timeout=0.05)
    assert results[201].state == states.PENDING
    thread, got = waiting(results[201])
    wait_until(lambda: channels(server, results[201].id))
    app.backend.store_result(results[201].id, "late", states.SUCCESS)
    thread.join(10)
    assert got == ["late"]


def test_a_result_that_was_read_ahead_and_dropped_is_not_subscribed_to_for_long(
    make_app: Callable[..., Celery], server: redis.Redis
) -> None:
    app = make_app()
    results = [app.send_task("sum") for _ in range(8)]
    app.backend.store_result(results[0].id, 0, states.SUCCESS)
    app.backend.store_result(results[1].id, 1, states.SUCCESS)
    assert results[0].get(timeout=10) == 0
    with pytest.raises(TimeoutError):
        results[2].get(timeout=0)
    dropped = [result.id for result in results[3:]]
    del results
    gc.collect()

    for _ in range(2 * OVER):
        with pytest.raises(TimeoutError):
            app.AsyncResult(uuid()).get(timeout=0)
    wait_until(lambda: not channels(server, *dropped))


def test_sending_a_task_subscribes_to_nothing_and_connects_to_nothing(
    make_app: Callable[..., Celery], server: redis.Redis
) -> None:
    app = make_app()

    results = [app.send_task("sum", ([1],)) for _ in range(5)]

    assert channels(server, *(result.id for result in results)) == []
    assert app.backend.result_consumer._connection is None
    assert len(app.backend._pending_results) == 0


def test_a_wait_subscribes_and_few_subscriptions_stay_when_it_is_over(
    make_app: Callable[..., Celery], server: redis.Redis
) -> None:
    app, ids = make_app(), [uuid() for _ in range(3 * OVER)]
    thread, got = waiting(app.AsyncResult(ids[0]))
    wait_until(lambda: channels(server, ids[0]), 5, "a subscription")

    for task_id in ids:
        app.backend.mark_as_done(task_id, 1)
    thread.join()
    assert got == [1]
    for task_id in ids:
        assert app.AsyncResult(task_id).get(timeout=5) == 1

    assert len(app.backend._pending_results) == 0
    assert app.backend.result_consumer.subscribed_to == {}
    wait_until(lambda: len(channels(server, *ids)) < OVER, 5, "the end of the subscriptions")


def test_waits_that_were_given_up_are_unsubscribed_with_the_next_one(
    make_app: Callable[..., Celery], server: redis.Redis
) -> None:
    app, task_id = make_app(), uuid()

    with pytest.raises(TimeoutError):
        app.AsyncResult(task_id).get(timeout=0.1)
    with pytest.raises(TimeoutError):
        app.ResultSet([app.AsyncResult(task_id), app.AsyncResult("other")]).get(timeout=0.1)
    assert len(app.backend._pending_results) == 0
    with pytest.raises(TimeoutError):
        app.AsyncResult("last").get(timeout=0.1)

    wait_until(lambda: not channels(server, task_id, "other"), 5, "the end of the subscriptions")


def test_all_threads_of_a_process_wait_over_one_connection(
    make_app: Callable[..., Celery], server: redis.Redis
) -> None:
    app = make_app()
    ids = [uuid() for _ in range(10)]
    threads = [waiting(app.AsyncResult(task_id))[0] for task_id in ids]
    wait_until(lambda: len(channels(server, *ids)) == 10, 5, "all subscriptions")

    database = server.connection_pool.connection_kwargs["db"]
    clients = [client for client in server.client_list() if int(client["db"]) == database]

    assert len([client for client in clients if int(client["sub"])]) == 1
    for task_id in ids:
        app.backend.mark_as_done(task_id, 1)
    for thread in threads:
        thread.join()


def test_a_listener_is_told_by_whoever_waits_for_another_result(make_app: Callable[..., Celery]) -> None:
    app = make_app()
    got: list[Any] = []
    listened, other = app.AsyncResult(uuid()), app.AsyncResult(uuid())
    listened.then(lambda result: got.append(result.get()))
    app.backend.mark_as_done(listened.id, "heard")
    app.backend.mark_as_done(other.id, 1)

    other.get(timeout=5)

    wait_until(lambda: got or app.AsyncResult(uuid()).ready(), 5, "the listener")
    assert got == ["heard"]


def test_a_callback_may_wait_for_another_result(make_app: Callable[..., Celery]) -> None:
    app = make_app()
    first, second = app.AsyncResult(uuid()), app.AsyncResult(uuid())
    got: list[Any] = []
    first.then(lambda result: got.append(second.get(timeout=10)))
    later = threading.Timer(0.2, app.backend.mark_as_done, (second.id, "inner"))
    later.start()
    app.backend.mark_as_done(first.id, 1)

    assert app.AsyncResult(first.id).get(timeout=10) == 1

    wait_until(lambda: got, 5, "the callback")
    assert got == ["inner"]
    later.join()


def test_states_on_the_way_are_told_to_who_asked_for_them(make_app: Callable[..., Celery], server: redis.Redis) -> None:
    app, task_id = make_app(), uuid()
    told: list[Any] = []
    thread, got = waiting(app.AsyncResult(task_id), on_message=told.append)
    wait_until(lambda: channels(server, task_id), 5, "a subscription")
    other, _ = waiting(app.AsyncResult("other"))
    wait_until(lambda: channels(server, "other"), 5, "the other subscription")

    app.backend.store_result(task_id, {"done": 1}, "PROGRESS")
    app.backend.mark_as_done("other", 2)
    app.backend.mark_as_done(task_id, 1)

    thread.join()
    other.join()
    assert [(meta["task_id"], meta["status"]) for meta in told] == [
        (task_id, "PROGRESS"),
        (task_id, states.SUCCESS),
    ]


def test_an_abandoned_listener_does_not_stay_subscribed(make_app: Callable[..., Celery], server: redis.Redis) -> None:
    app, task_id = make_app(), uuid()
    members = app.ResultSet([app.AsyncResult(task_id)])
    members.then(lambda result: None)
    wait_until(lambda: channels(server, task_id), 5, "a subscription")

    del members
    with pytest.raises(TimeoutError):
        app.AsyncResult("something else").get(timeout=0.1)

    wait_until(lambda: not channels(server, task_id), 5, "the end of the subscription")


# --- connections that break ------------------------------------------------------------


def test_a_result_stored_while_the_connection_was_away_is_found(
    own_redis_server: RedisServer, make_app: Callable[..., Celery]
) -> None:
    app, task_id = make_app(own_redis_server.url()), uuid()
    worker = make_app(own_redis_server.url())
    thread, got = waiting(app.AsyncResult(task_id))
    wait_until(lambda: app.backend.result_consumer._connection, 5, "a connection")

    own_redis_server.kill()
    own_redis_server.start()
    worker.backend.mark_as_done(task_id, "came back")

    thread.join(30)
    assert got == ["came back"]


def test_a_wait_ends_in_time_although_redis_is_away(
    own_redis_server: RedisServer, make_app: Callable[..., Celery]
) -> None:
    app = make_app(own_redis_server.url())
    own_redis_server.kill()
    began = time.monotonic()

    with pytest.raises(TimeoutError):
        app.AsyncResult(uuid()).get(timeout=1)

    assert time.monotonic() - began < 5


def test_waiting_for_redis_ends_with_what_to_do(own_redis_server: RedisServer, make_app: Callable[..., Celery]) -> None:
    policy = {"retry_policy": {"max_retries": 2, "interval_start": 0, "interval_step": 0.01, "interval_max": 0.01}}
    app = make_app(own_redis_server.url(), result_backend_transport_options=policy)
    own_redis_server.kill()

    with pytest.raises(RuntimeError, match="Retry limit exceeded"):
        app.AsyncResult(uuid()).get(timeout=20)


def test_a_store_that_went_away_gets_the_result_when_it_is_back(
    own_redis_server: RedisServer, make_app: Callable[..., Celery], caplog: pytest.LogCaptureFixture
) -> None:
    app, task_id = make_app(own_redis_server.url()), uuid()
    app.backend.mark_as_done("before", 1)
    own_redis_server.kill()
    storing = threading.Thread(target=app.backend.mark_as_done, args=(task_id, "stored in the end"))
    storing.start()
    wait_until(lambda: "Connection to Redis lost" in caplog.text, 10, "a first attempt in vain")

    own_redis_server.start()

    storing.join()
    assert app.AsyncResult(task_id).get(timeout=5) == "stored in the end"


def test_deferred_results_survive_a_failed_flush_and_are_named(
    own_redis_server: RedisServer, make_app: Callable[..., Celery], caplog: pytest.LogCaptureFixture
) -> None:
    policy = {"retry_policy": {"max_retries": 1, "interval_start": 0, "interval_step": 0.01, "interval_max": 0.01}}
    app = make_app(own_redis_server.url(), result_backend_transport_options=policy)
    writer = app.backend.defer_results()
    app.backend.mark_as_done("t1", 1, request=Context(id="t1"))
    app.backend.mark_as_failure("t2", KeyError("k"), request=Context(id="t2"))
    own_redis_server.kill()

    with pytest.raises(redis.ConnectionError):
        writer.flush()

    assert writer.pending == 2
    told = [record.getMessage() for record in caplog.records if "could not be stored" in record.getMessage()]
    assert len(told) == 2
    assert "t1 (SUCCESS)" in told[0]
    assert "t2 (FAILURE)" in told[1]
    own_redis_server.start()
    writer.flush()
    assert app.AsyncResult("t1").get(timeout=5) == 1
    assert app.AsyncResult("t2").failed()


def test_deferred_results_are_tried_again_as_the_settings_say(
    own_redis_server: RedisServer, make_app: Callable[..., Celery], caplog: pytest.LogCaptureFixture
) -> None:
    policy = {"retry_policy": {"max_retries": 1, "interval_start": 0, "interval_step": 0.01, "interval_max": 0.01}}
    app = make_app(own_redis_server.url(), result_backend_transport_options=policy, result_backend_always_retry=True)
    writer = app.backend.defer_results()
    app.backend.mark_as_done("t1", 1, request=Context(id="t1"))
    own_redis_server.kill()
    flushing = threading.Thread(target=writer.flush)
    flushing.start()
    wait_until(lambda: "Retrying" in caplog.text, 10, "a first attempt in vain")

    own_redis_server.start()

    flushing.join()
    assert app.AsyncResult("t1").get(timeout=5) == 1


def test_scripts_that_the_server_forgot_are_sent_again(make_app: Callable[..., Celery], server: redis.Redis) -> None:
    app = make_app()
    app.backend.mark_as_done("t1", 1)
    server.script_flush()

    app.backend.mark_as_done("t2", 2)

    assert app.AsyncResult("t2").get(timeout=5) == 2


def test_a_silent_connection_is_noticed(
    redis_server: RedisServer,
    redis_url: str,
    proxy_to: Callable[[int], Any],
    make_app: Callable[..., Celery],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("celery_clone.backends.redis.waiting.PING_EVERY_S", 0.3)
    proxy = proxy_to(redis_server.port)
    database = redis_url.rpartition("/")[2]
    app, worker, task_id = make_app(f"redis://127.0.0.1:{proxy.port}/{database}"), make_app(), uuid()
    thread, got = waiting(app.AsyncResult(task_id))
    wait_until(lambda: app.backend.result_consumer._connection, 5, "a connection")

    proxy.hold()
    worker.backend.mark_as_done(task_id, "not heard of")
    first = app.backend.result_consumer._connection
    wait_until(lambda: app.backend.result_consumer._connection is not first, 15, "a new connection")
    proxy.release()

    thread.join(30)
    assert got == ["not heard of"]


def test_connections_that_the_server_closed_while_they_were_idle_are_made_again(
    make_app: Callable[..., Celery], server: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app()
    app.backend.mark_as_done("t1", 1)
    assert app.AsyncResult("t1").get(timeout=5) == 1
    database = server.connection_pool.connection_kwargs["db"]
    for client in server.client_list():
        if int(client["db"]) == database and client["cmd"] != "client|list":
            server.client_kill(client["addr"])
    app.backend.mark_as_done("t2", 2)

    assert app.AsyncResult("t2").get(timeout=5) == 2


def test_one_place_in_the_pool_is_enough_to_wait_and_to_read(make_app: Callable[..., Celery]) -> None:
    app, task_id = make_app(redis_max_connections=1), uuid()
    later = threading.Timer(0.1, app.backend.mark_as_done, (task_id, 1))
    later.start()

    assert app.AsyncResult(task_id).get(timeout=10) == 1
    later.join()


# --- what is kept for how long ------------------------------------------------------------


def test_results_expire_as_the_settings_say(make_app: Callable[..., Celery], server: redis.Redis) -> None:
    app = make_app(result_expires=100, result_failure_expires=1000)

    app.backend.mark_as_done("good", 1)
    app.backend.mark_as_failure("bad", KeyError())

    assert 90 < server.ttl("celery-task-meta-good") <= 100
    assert 990 < server.ttl("celery-task-meta-bad") <= 1000


@pytest.mark.parametrize("never", [0, None])
def test_results_may_stay_for_ever(never: int | None, make_app: Callable[..., Celery], server: redis.Redis) -> None:
    app = make_app(result_expires=never)

    app.backend.mark_as_done("t", 1)

    assert server.ttl("celery-task-meta-t") == -1


def test_a_later_state_does_not_take_back_a_success_that_another_client_wrote_in_its_own_order(
    make_app: Callable[..., Celery], server: redis.Redis
) -> None:
    app = make_app()
    server.set("celery-task-meta-t", json.dumps({"result": 1, "task_id": "t", "status": "SUCCESS"}))

    app.backend.mark_as_failure("t", KeyError())

    assert app.AsyncResult("t").get(timeout=5) == 1


def test_a_stored_success_that_is_deferred_twice_is_stored_once(
    make_app: Callable[..., Celery], server: redis.Redis
) -> None:
    app = make_app()
    writer = app.backend.defer_results()

    app.backend.mark_as_done("t", "first", request=Context(id="t"))
    app.backend.mark_as_failure("t", KeyError(), request=Context(id="t"))
    writer.flush()

    assert app.AsyncResult("t").get(timeout=5) == "first"


# --- chords ---------------------------------------------------------------------------------


def request_of(app: Celery, at: int, body: Any, **more: Any) -> Context:
    return Context({"id": f"m{at}", "group": "g", "group_index": at, "chord": dict(body), **more})


def sent(app: Celery) -> list[Any]:
    with app.connection_for_read() as connection:
        queue = connection.SimpleQueue("celery", no_ack=True)
        found = []
        while True:
            try:
                message = queue.get(block=False)
            except queue.Empty:
                queue.close()
                return found
            found.append((message.headers["id"], message.payload[0]))


@pytest.fixture
def body(make_app: Callable[..., Celery]) -> Any:
    app = make_app()
    signature = app.signature("sum", app=app)
    signature.freeze("body")
    return signature


def test_a_chord_leaves_no_bookkeeping(make_app: Callable[..., Celery], body: Any, server: redis.Redis) -> None:
    app = make_app(result_expires=0)
    app.backend.set_chord_size("g", 2)
    for at in range(2):
        app.backend.mark_as_done(f"m{at}", at, request=request_of(app, at, body))

    left = {key.decode() for key in server.keys("celery-taskset*")}

    assert left == {"celery-taskset-meta-g.c"}
    assert server.get("celery-taskset-meta-g.c") == b"done"
    assert server.ttl("celery-taskset-meta-g.c") > 0


def test_what_the_members_of_a_failed_chord_left_stays_and_counts_for_no_chord_that_begins_anew(
    make_app: Callable[..., Celery], body: Any, server: redis.Redis
) -> None:
    app = make_app()

    def run(first: Any) -> None:
        app.backend.set_chord_size("g", 3)
        for at, value in enumerate((first, 7)):
            app.backend.mark_as_done(f"m{at}", value, request=request_of(app, at, body))

    run(3)
    app.backend.mark_as_failure("m2", ValueError("x"), request=request_of(app, 2, body))
    left = [app.backend.decode(part) for part in server.zrange("celery-taskset-meta-g.j", 0, -1)]
    assert [(state, value) for _, _, state, value in left[:2]] == [("SUCCESS", 3), ("SUCCESS", 7)]
    assert left[2][2] == "FAILURE"
    assert server.ttl("celery-taskset-meta-g.j") > 0
    assert sent(app) == []

    run(4)
    assert sent(app) == []
    app.backend.mark_as_done("m2", 9, request=request_of(app, 2, body))
    assert sent(app) == [("body", [[4, 7, 9]])]
    assert not server.exists("celery-taskset-meta-g.j")


def test_a_member_whose_worker_died_before_it_sent_the_body_sends_it_when_it_comes_again(
    make_app: Callable[..., Celery], body: Any, server: redis.Redis
) -> None:
    app = make_app()
    app.backend.set_chord_size("g", 1)
    # What such a worker leaves: the member is counted and the claim is taken.
    app.backend._send_chord_body = lambda *args: (_ for _ in ()).throw(SystemExit)
    app.backend._call_after = None
    with pytest.raises(SystemExit):
        app.backend.mark_as_done("m0", 5, request=request_of(app, 0, body))
    server.delete("celery-taskset-meta-g.c")
    again = make_app()
    again.backend.set_chord_size("g", 1)

    again.backend.mark_as_done("m0", 5, request=request_of(again, 0, body))

    assert sent(again) == [("body", [[5]])]


def test_members_that_wait_to_be_stored_are_counted_together(
    make_app: Callable[..., Celery], body: Any, server: redis.Redis
) -> None:
    app = make_app()
    app.backend.set_chord_size("g", 40)
    writer = app.backend.defer_results()
    for at in range(40):
        app.backend.mark_as_done(f"m{at}", at, request=request_of(app, at, body))
    assert writer.pending == 40
    assert sent(app) == []
    before = server.info("stats")["total_reads_processed"]

    writer.flush()

    # A few reads of the server for all members, one for the end of the chord, and those of this question.
    assert server.info("stats")["total_reads_processed"] - before < 12
    assert sent(app) == [("body", [[*range(40)]])]
    assert app.AsyncResult("m39").get(timeout=5) == 39


def test_a_body_is_sent_once_although_the_answer_to_the_last_count_was_lost(
    make_app: Callable[..., Celery], body: Any
) -> None:
    app = make_app(result_backend_transport_options={"retry_policy": {"max_retries": 0}})
    app.backend.set_chord_size("g", 2)
    writer = app.backend.defer_results()
    for at in range(2):
        app.backend.mark_as_done(f"m{at}", at, request=request_of(app, at, body))
    call, calls = app.backend._call, itertools.count(1)

    def interrupted(commands: Any) -> Any:
        answers = call(commands)
        # The count is lost the first time, the word that the body was sent the second.
        if next(calls) in (1, 3):
            raise redis.ConnectionError("lost behind the answer")
        return answers

    app.backend._call = interrupted
    for _ in range(2):
        with pytest.raises(redis.ConnectionError):
            writer.flush()
    writer.flush()

    assert writer.pending == 0
    assert sent(app) == [("body", [[0, 1]])]


def test_the_parent_of_a_body_is_the_member_that_ended_last_although_it_was_counted_later(
    make_app: Callable[..., Celery], body: Any
) -> None:
    app = make_app()
    app.task(name="member")(lambda: None)
    app.finalize()
    app.backend.set_chord_size("g", 2)
    writer = app.backend.defer_results()
    for at in range(2):
        request = request_of(app, at, body, task="member", root_id="root", called_directly=False)
        app.backend.mark_as_done(f"m{at}", at, request=request)
    headers: list[Any] = []
    app.amqp.publisher.publish = lambda message, *_: headers.append(message.headers)

    writer.flush()

    assert [(each["parent_id"], each["root_id"]) for each in headers] == [("m1", "root")]


def test_the_claim_of_another_member_is_respected(
    make_app: Callable[..., Celery], body: Any, server: redis.Redis
) -> None:
    app = make_app()
    app.backend.set_chord_size("g", 1)
    server.set("celery-taskset-meta-g.c", "somebody else")

    app.backend.mark_as_done("m0", 5, request=request_of(app, 0, body))

    assert sent(app) == []


def test_the_claim_of_a_run_of_the_same_member_that_seems_to_have_died_is_taken_up(
    make_app: Callable[..., Celery], body: Any, server: redis.Redis
) -> None:
    app = make_app()
    app.backend.set_chord_size("g", 1)
    server.set("celery-taskset-meta-g.c", "m0:0 another run", ex=CLAIM_S - BUSY_S)

    app.backend.mark_as_done("m0", 5, request=request_of(app, 0, body))

    assert sent(app) == [("body", [[5]])]


def test_another_run_of_the_member_that_is_sending_the_body_is_waited_for(
    make_app: Callable[..., Celery], body: Any, server: redis.Redis
) -> None:
    app = make_app()
    app.backend.set_chord_size("g", 1)
    server.set("celery-taskset-meta-g.c", "m0:0 another run", ex=CLAIM_S)
    later = threading.Timer(0.2, server.set, ("celery-taskset-meta-g.c", "done"))
    later.start()

    app.backend.mark_as_done("m0", 5, request=request_of(app, 0, body))

    assert sent(app) == []
    later.join()


def test_the_first_end_of_a_member_wins(make_app: Callable[..., Celery], body: Any) -> None:
    app = make_app()
    app.backend.set_chord_size("g", 2)

    app.backend.mark_as_done("m0", "first", request=request_of(app, 0, body))
    app.backend.mark_as_done("m0", "second", request=request_of(app, 0, body))
    app.backend.mark_as_failure("m0", KeyError(), request=request_of(app, 0, body))
    app.backend.mark_as_done("m1", "other", request=request_of(app, 1, body))

    assert sent(app) == [("body", [["first", "other"]])]


def test_a_member_added_while_the_chord_runs_is_waited_for(make_app: Callable[..., Celery], body: Any) -> None:
    app = make_app()
    app.backend.set_chord_size("g", 1)
    app.backend.add_to_chord("g", app.AsyncResult("added"))

    app.backend.mark_as_done("m0", 1, request=request_of(app, 0, body))
    assert sent(app) == []
    app.backend.mark_as_done("added", 2, request=request_of(app, 0, body, id="added"))

    [(task_id, (values,))] = sent(app)
    assert task_id == "body"
    assert sorted(values) == [1, 2]


def test_members_may_end_before_the_size_is_known(make_app: Callable[..., Celery], body: Any) -> None:
    app = make_app()
    app.backend.mark_as_done("m0", 1, request=request_of(app, 0, body))

    app.backend.set_chord_size("g", 2)
    app.backend.mark_as_done("m1", 2, request=request_of(app, 1, body))

    assert sent(app) == [("body", [[1, 2]])]


def test_a_member_that_keeps_no_result_counts(make_app: Callable[..., Celery], body: Any, server: redis.Redis) -> None:
    app = make_app()
    app.backend.set_chord_size("g", 1)

    app.backend.mark_as_done("m0", 5, request=request_of(app, 0, body, ignore_result=True))

    assert sent(app) == [("body", [[5]])]
    assert server.get("celery-task-meta-m0") is None


@pytest.mark.parametrize("serializer", ["pickle", "msgpack", "yaml"])
def test_chords_count_in_every_serializer(serializer: str, make_app: Callable[..., Celery], body: Any) -> None:
    app = make_app(result_serializer=serializer, result_accept_content=[serializer])
    app.backend.set_chord_size("g", 2)
    app.backend.mark_as_failure("m0", KeyError(), call_errbacks=False)

    for at in (0, 1, 1):
        app.backend.mark_as_done(f"m{at}", at, request=request_of(app, at, body))

    assert sent(app) == [("body", [[0, 1]])]
    assert app.AsyncResult("m0").get(timeout=5) == 0


def test_a_chord_inside_a_chord_that_fails_is_counted_by_the_outer_one(make_app: Callable[..., Celery]) -> None:
    app = make_app()
    outer = app.signature("sum", app=app)
    outer.freeze("outer")
    inner = app.signature("sum", app=app)
    inner.freeze("inner", group_id="outer-group", group_index=0, chord=outer)
    app.backend.set_chord_size("outer-group", 1)
    app.backend.set_chord_size("g", 1)

    app.backend.mark_as_failure("m0", ValueError("x"), request=request_of(app, 0, inner))

    with pytest.raises(ChordError):
        app.AsyncResult("inner").get(timeout=5)
    with pytest.raises(ChordError, match="Dependency inner raised"):
        app.AsyncResult("outer").get(timeout=5)


def test_values_may_be_kept_in_the_order_of_their_ends(make_app: Callable[..., Celery], body: Any) -> None:
    app = make_app(result_backend_transport_options={"result_chord_ordered": False})
    app.backend.set_chord_size("g", 2)

    for at in (1, 0):
        app.backend.mark_as_done(f"m{at}", at, request=request_of(app, at, body))

    assert sent(app) == [("body", [[1, 0]])]


def test_a_store_that_overrides_what_celery_lets_it_override_sees_every_member(
    redis_url: str, body: Any, make_app: Callable[..., Celery]
) -> None:
    seen: list[str] = []

    class Own(RedisBackend):
        def _store_result(self, task_id: str, *args: Any, **kwargs: Any) -> Any:
            seen.append(f"store {task_id}")
            return super()._store_result(task_id, *args, **kwargs)

        def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:
            seen.append(f"count {request.id}")
            super().on_chord_part_return(request, state, result, **kwargs)

    app = make_app()
    backend = Own(app=app, url=redis_url)
    try:
        backend.set_chord_size("g", 1)
        backend.mark_as_done("m0", 1, request=request_of(app, 0, body))
    finally:
        backend.close()

    assert seen == ["store m0", "count m0"]
    assert sent(app) == [("body", [[1]])]


# --- processes ------------------------------------------------------------------------------


def test_a_forked_child_leaves_the_connection_of_its_parent_alone(
    make_app: Callable[..., Celery], server: redis.Redis
) -> None:
    app, task_id = make_app(), uuid()
    thread, got = waiting(app.AsyncResult(task_id))
    wait_until(lambda: channels(server, task_id), 5, "a subscription")
    connection = app.backend.result_consumer._connection

    child = os.fork()
    if child == 0:
        status = 1
        try:
            app.backend.mark_as_done("in-child", 1)
            status = 0 if app.AsyncResult("in-child").get(timeout=10) == 1 else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    app.backend.mark_as_done(task_id, "parent")

    thread.join()
    assert got == ["parent"]
    assert app.backend.result_consumer._connection is connection


def test_behind_a_socket_file(redis_server: RedisServer, tmp_path: Path, make_app: Callable[..., Celery]) -> None:
    path = tmp_path / "redis.sock"
    with RedisServer(options=("--unixsocket", str(path))):
        app, task_id = make_app(f"redis+socket://{path}?virtual_host=3"), uuid()
        later = threading.Timer(0.1, app.backend.mark_as_done, (task_id, 1))
        later.start()

        assert app.AsyncResult(task_id).get(timeout=10) == 1

        later.join()
        assert app.backend.connparams["db"] == 3
        app.backend.close()


def test_with_user_and_password(
    redis_server: RedisServer, server: redis.Redis, make_app: Callable[..., Celery]
) -> None:
    server.acl_setuser("shop", enabled=True, passwords=["+s3cret"], commands=["+@all"], keys=["*"], channels=["*"])
    app = make_app(f"redis://shop:s3cret@127.0.0.1:{redis_server.port}/1")

    app.backend.mark_as_done("with-password", 1)

    assert app.AsyncResult("with-password").get(timeout=5) == 1
    assert "s3cret" not in app.backend.as_uri()
    assert "s3cret" in app.backend.as_uri(include_password=True)
    app.backend.forget("with-password")


def test_logging_of_a_failing_chord_is_one_error(
    make_app: Callable[..., Celery], body: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app()
    app.backend.set_chord_size("g", 1)

    with caplog.at_level(logging.ERROR):
        app.backend.mark_as_failure("m0", ValueError("x"), request=request_of(app, 0, body))

    assert [record.getMessage() for record in caplog.records] == [
        "Chord 'g' raised: ChordError(\"Dependency m0 raised ValueError('x')\")"
    ]


# --- order -------------------------------------------------------------------------


def test_a_failure_is_stored_before_an_errback_can_look_it_up(
    make_app: Callable[..., Celery], server: redis.Redis
) -> None:
    app, task_id, seen = make_app(), uuid(), []

    @app.task(name="look")
    def look(request: Any, exc: BaseException, traceback: Any) -> None:
        seen.append(json.loads(server.get(f"celery-task-meta-{request.id}") or "{}").get("status"))

    writer = app.backend.defer_results()
    request = Context({"id": task_id, "errbacks": [look.s()], "task": "sum"})
    app.backend.mark_as_failure(task_id, ValueError("no"), request=request)

    assert seen == [states.FAILURE]
    assert not writer.pending
