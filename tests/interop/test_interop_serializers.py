"""Messages and stored results in every serializer and compression, old messages, and what is not accepted."""

from __future__ import annotations

import json
import re

import pytest
import redis

from tests.support.two_sides import SIDES, Client, lines_of, other

SERIALIZERS = ["json", "pickle", "yaml", "msgpack"]
VALUE = {"text": "ü\U0001f40d", "numbers": [1, -2.5, 2**40], "nothing": None, "yes": True, "deep": {"er": [[], {}]}}


# -- messages


@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_a_message_is_read_whatever_it_is_written_in(way, serializer):
    way.client.keep(
        "sent",
        "[identity.apply_async((value,), queue=queue, serializer=serializer, compression=compression)"
        " for compression in (None, 'zlib', 'gzip', 'bzip2', 'lzma')]",
        queue=way.queue,
        value=VALUE,
        serializer=serializer,
    )
    assert way.client("[result.get(timeout=20) for result in sent]") == [VALUE] * 5


def test_a_pickled_message_brings_objects(way):
    value = "((1, 2), {1: 2})"
    found = way.client(f"kinds.apply_async({value}, queue=queue, serializer='pickle').get(timeout=20)", queue=way.queue)
    assert found == ["tuple (1, 2)", "dict {1: 2}"]


def test_a_workflow_travels_in_what_can_hold_it(counting_link, sender):
    client = counting_link.clients[sender]
    # YAML's safe writer knows no signatures. Pickles name modules: both sides must have one of the same name.
    for serializer in ["json", "msgpack", *(["pickle"] if counting_link.alias else [])]:
        members = ", ".join(f"add.s({number}, 1).set(queue={side!r})" for number, side in enumerate(SIDES * 2))
        shape = f"chord([{members}], total.s().set(queue='ours') | add.s(1).set(queue='real'))"
        found = client(f"({shape}).apply_async(serializer=serializer).get(timeout=20)", serializer=serializer)
        assert found == 11, serializer


@pytest.fixture(scope="module")
def old_client(pythons, redis_link):
    """A producer of real Celery that speaks protocol 1, as Celery 3 did."""
    settings = json.dumps({"task_protocol": 1})
    with Client(pythons["real"], "real", redis_link.broker, redis_link.backend, SETTINGS=settings) as client:
        client.wait_until_ready()
        yield client


@pytest.fixture(scope="module")
def old_amqp_client(pythons, rabbitmq_redis_link):
    """The same on RabbitMQ."""
    link, settings = rabbitmq_redis_link, json.dumps({"task_protocol": 1})
    with Client(pythons["real"], "real", link.broker, link.backend, SETTINGS=settings) as client:
        client.wait_until_ready()
        yield client


@pytest.fixture(params=["redis", "rabbitmq"])
def old(request, old_client, old_amqp_client):
    """Protocol 1 on either broker."""
    return {"redis": old_client, "rabbitmq": old_amqp_client}[request.param]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("add.apply_async((2,), {'y': 3}, queue=side)", 5),
        ("add.apply_async((2, 3), queue=side, countdown=0.2)", 5),
        ("add.apply_async((2, 3), queue=side, expires=60)", 5),
        ("add.apply_async((2, 3), queue=side, serializer='yaml', compression='zlib')", 5),
        ("add.apply_async((2, 3), queue=side, serializer='pickle')", 5),
        ("identity.apply_async((2,), queue=side, link=add.s(1).set(queue=side), time_limit=20)", 2),
    ],
)
def test_messages_of_protocol_1_are_read(old, side, call, expected):
    assert old(f"{call}.get(timeout=20)", side=side) == expected


@pytest.mark.parametrize("side", SIDES)
def test_retries_callbacks_and_errors_of_protocol_1_go_on(old, tmp_path, side):
    notes = tmp_path / "notes"
    assert old("flaky.apply_async((1,), queue=side).get(timeout=20)", side=side) == [1, side]
    old("add.apply_async((1, 1), queue=side, link=note.si(path, 'after').set(queue=side))", side=side, path=str(notes))
    assert lines_of(notes, 1) == ["after"]
    old(
        "fail.apply_async(queue=side, link_error=errback_old.s(path).set(queue=side))",
        side=side,
        path=str(tmp_path / "errors"),
    )
    assert len(lines_of(tmp_path / "errors", 1)) == 1


@pytest.mark.parametrize("side", SIDES)
def test_a_group_and_a_chord_of_protocol_1_end(old, side):
    members = "[add.s(1, 1).set(queue=side), add.s(2, 2).set(queue=side)]"
    assert old(f"group({members}).delay().get(timeout=20)", side=side) == [2, 4]
    assert old(f"chord({members})(total.s().set(queue=side)).get(timeout=20)", side=side) == 6


# -- stored results

REQUEST = (
    "Context(id=ID, task='shop.add', args=[1, {'a': 2}], kwargs={'k': 'ü'}, retries=2, group='the group', "
    "parent_id='the parent', hostname='worker@here', delivery_info={'routing_key': 'celery'}, "
    "children=[app.AsyncResult('a child')], stamped_headers=['stamp'], stamps={'stamp': 'value'})"
)


@pytest.fixture(scope="module")
def stores(pythons, redis_server):
    """``stores[side][serializer]``: producers that store results by hand, on one and the same database."""
    url = redis_server.new_database_url()
    clients = {side: Client(pythons[side], side, "memory://", url) for side in SIDES}
    for client in clients.values():
        client.wait_until_ready()
    yield clients, redis.Redis.from_url(url)
    for client in clients.values():
        client.close()


@pytest.mark.parametrize("writer", SIDES, ids=["written-by-real", "written-by-ours"])
@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_a_result_is_read_whatever_it_is_stored_in(stores, writer, serializer):
    clients, _ = stores
    write, read = clients[writer], clients[other(writer)]
    for client in clients.values():
        client.keep("shop_with", "open_shop(result_serializer=serializer)['app'].backend", serializer=serializer)
    write("shop_with.mark_as_done(task_id, value)", task_id=f"{writer}-{serializer}", value=VALUE)
    assert read("shop_with.get_result(task_id)", task_id=f"{writer}-{serializer}") == VALUE
    assert read("shop_with.get_state(task_id)", task_id=f"{writer}-{serializer}") == "SUCCESS"

    failed = f"{writer}-{serializer}-failed"
    write("shop_with.mark_as_failure(task_id, OutOfStock('apples', 3), 'a traceback')", task_id=failed)
    error = read("described(shop_with.get_result(task_id))", task_id=failed)
    assert (error["kind"], error["arguments"]) == ("shop.OutOfStock", ["apples", 3])
    assert read("shop_with.get_traceback(task_id)", task_id=failed) == "a traceback"


@pytest.mark.parametrize("extended", [False, True], ids=["plain", "extended"])
@pytest.mark.parametrize("serializer", ["json", "yaml"])
@pytest.mark.parametrize(
    "act",
    [
        "mark_as_done(ID, value)",
        "mark_as_done(ID, value, request=request)",
        "mark_as_failure(ID, OutOfStock('apples', 3), 'a traceback', request=request)",
        "mark_as_failure(ID, ValueError('ü', object()), 'a traceback')",
        "mark_as_failure(ID, exceptions.QueueNotFound('q'), 'a traceback')",
        "mark_as_retry(ID, exceptions.Retry('again', ValueError('v'), 3), 'a traceback', request=request)",
        "mark_as_revoked(ID, 'terminated', request=request)",
        "mark_as_started(ID, pid=1, hostname='here')",
        "store_result(ID, {'done': 1}, 'PROGRESS')",
        "save_group(ID, results.GroupResult(ID, [app.AsyncResult('one'), app.AsyncResult('two')]))",
    ],
)
def test_what_is_stored_is_the_same_byte_for_byte(stores, extended, serializer, act):
    clients, store = stores
    found = {}
    for side, client in clients.items():
        store.flushdb()
        client.keep("ID", "'c1f0d7d5-0000-4000-8000-000000000001'")
        client.keep(
            "backend",
            "open_shop(result_serializer=serializer, result_extended=extended)['app'].backend",
            serializer=serializer,
            extended=extended,
        )
        client.keep("request", REQUEST)
        client(f"backend.{act}", value=VALUE)
        keys = sorted(key.decode() for key in store.scan_iter())
        found[side] = {key: (comparable(store.get(key).decode()), minutes_to_live(store, key)) for key in keys}
    assert found["ours"] == found["real"]


def comparable(text: str) -> str:
    """Without what differs from one moment to the next."""
    text = re.sub(r"\d{4}-\d\d-\d\d[T ][\d:.]+(\+00:00)?", "<time>", text)
    # Celery's Retry has itself as its first argument, where ours has its message.
    text = text.replace("Retry(Retry(...), ValueError('v'), 3)", "again")
    return re.sub(r"0x[0-9a-f]+", "<address>", text)


def minutes_to_live(store: redis.Redis, key: str) -> int:
    return round(store.ttl(key) / 60)
