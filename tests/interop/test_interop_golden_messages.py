"""What a call leaves on the broker is what real Celery leaves there: byte for byte on Redis, field for field on AMQP.

The clocks of both producers stand still; ids are compared by where they appear again, not by their value.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import amqp
import pytest
import redis

from tests.support.two_sides import SIDES, Client

ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
ORIGIN = re.compile(r"gen\d+@[^\"',\s]+")

CALLS = {
    # arguments
    "nothing": "echo.delay()",
    "arguments": "add.delay(2, 2)",
    "keywords": "add.apply_async(kwargs={'x': 1, 'y': {'z': [1, 2.5, None, True]}})",
    "both": "add.apply_async((1,), {'y': 'ü\\U0001f40d\"\\\\'})",
    "a list of arguments": "add.apply_async([1, 2])",
    "typed values": "identity.delay(decimal.Decimal('1.50'))",
    "dates": "echo.delay(NOON, NOON.date(), uuid.UUID(int=7), b'bytes')",
    "long arguments": "identity.delay('x' * 5000)",
    "many arguments": "echo.delay(*range(300), **{f'k{n}': [n] * n for n in range(40)})",
    "deep arguments": "identity.delay([[[[[[1]]]]]])",
    # times
    "countdown": "add.apply_async((2, 2), countdown=10)",
    "a countdown in fractions": "add.apply_async((2, 2), countdown=0.25)",
    "a countdown of nothing": "add.apply_async((2, 2), countdown=0)",
    "eta": "add.apply_async((2, 2), eta=NOON)",
    "an eta without a zone": "add.apply_async((2, 2), eta=NOON.replace(tzinfo=None))",
    "an eta elsewhere": "add.apply_async((2, 2), eta=NOON.astimezone(zoneinfo.ZoneInfo('Asia/Tokyo')))",
    "an eta in words": "add.apply_async((2, 2), eta='2031-01-01T00:00:00')",
    "expires": "add.apply_async((2, 2), expires=60)",
    "expires in fractions": "add.apply_async((2, 2), expires=1.5)",
    "expires at": "add.apply_async((2, 2), expires=NOON.replace(year=2031, month=1))",
    "expires in words": "add.apply_async((2, 2), expires='2030-01-03T00:00:00+00:00')",
    "countdown and expires": "add.apply_async((2, 2), countdown=5, expires=10)",
    # what travels along
    "id": "add.apply_async((2, 2), task_id='my id')",
    "shadow": "add.apply_async((2, 2), shadow='other.name')",
    "headers": "add.apply_async((2, 2), headers={'mine': [1, {'a': None}], 'text': 'ü'})",
    "headers that replace": "add.apply_async((2, 2), headers={'lang': 'xx', 'retries': 7})",
    "limits": "add.apply_async((2, 2), time_limit=30, soft_time_limit=20.5)",
    "retries": "add.apply_async((2, 2), retries=3)",
    "priority": "add.apply_async((2, 2), priority=6)",
    "a priority of nothing": "add.apply_async((2, 2), priority=0)",
    "ignore_result": "add.apply_async((2, 2), ignore_result=True)",
    "reply_to": "add.apply_async((2, 2), reply_to='somewhere')",
    "parents": "add.apply_async((2, 2), root_id='root', parent_id='parent')",
    "group": "add.apply_async((2, 2), group_id='group', group_index=2)",
    "reprs": "add.apply_async((2, 2), argsrepr='<a>', kwargsrepr='<k>')",
    "stamps": "add.apply_async((2, 2), stamped_headers=['mine'], mine=['value'])",
    "delivery_mode": "add.apply_async((2, 2), delivery_mode=1)",
    "properties": "add.apply_async((2, 2), message_id='m', app_id='a', user_id='guest', type='t')",
    "correlation_id": "add.apply_async((2, 2), correlation_id='mine')",
    "retry": "add.apply_async((2, 2), retry=False)",
    "retry_policy": "add.apply_async((2, 2), retry=True, retry_policy={'max_retries': 1})",
    "origin": "add.apply_async((2, 2), origin='me@here')",
    "add_to_parent": "add.apply_async((2, 2), add_to_parent=False)",
    # writing
    "json": "add.apply_async((2, 2), serializer='json')",
    "pickle": "add.apply_async((2, 2), serializer='pickle')",
    "yaml": "add.apply_async((2, 2), serializer='yaml')",
    "msgpack": "add.apply_async((2, 2), serializer='msgpack')",
    "zlib": "add.apply_async((2, 2), compression='zlib')",
    "bzip2": "add.apply_async((2, 2), compression='bzip2')",
    "yaml and zlib": "add.apply_async((2, 2), serializer='yaml', compression='zlib')",
    # where to
    "queue": "add.apply_async((2, 2), queue='other')",
    "routing_key": "add.apply_async((2, 2), routing_key='celery')",
    "exchange": "add.apply_async((2, 2), exchange='celery', routing_key='celery')",
    "exchange alone": "add.apply_async((2, 2), exchange='celery')",
    "queue object": "add.apply_async((2, 2), queue=kombu.Queue('own', kombu.Exchange('own'), routing_key='key'))",
    "topic": "add.apply_async((2, 2), queue=kombu.Queue('t', kombu.Exchange('t', type='topic'), routing_key='a.b'))",
    # who sends
    "send_task": "app.send_task('far.away', (1,), {'k': 2})",
    "send_task with options": "app.send_task('far.away', queue='other', countdown=3, priority=3, ignore_result=True)",
    "send_task to a queue": "app.send_task('far.away', queue='other')",
    "send_task of a known task": "app.send_task('shop.add', (1,), queue='other')",
    "send_task of a task with options": "app.send_task('shop.nap')",
    "signature": "add.s(1, y=2).set(priority=3, expires=60).delay()",
    "signature with arguments": "echo.s(1, y=2).apply_async((2,), {'y': 3}, countdown=2)",
    "immutable": "add.si(1, 2).apply_async((7,), countdown=2)",
    "task options": "open_shop()['app'].task(name='own', priority=4, serializer='yaml', time_limit=9, expires=60, "
    "ignore_result=True, compression='zlib', delivery_mode=1)(quiet.run).delay('path')",
    # callbacks
    "link": "add.apply_async((2, 2), link=add.s(1))",
    "links": "add.apply_async((2, 2), link=[add.s(1), add.si(1, 1).set(queue='other', countdown=2)])",
    "link_error": "add.apply_async((2, 2), link_error=errback_old.s('path'))",
    "links of a signature": "add.s(1).on_error(errback_new.s('p')).apply_async((1,), link=add.s(2))",
    # workflows
    "chain": "(add.s(1, 1) | add.s(2) | add.s(3)).apply_async()",
    "chain with options": "chain(add.s(1, 1), add.s(2)).apply_async(countdown=2, priority=3, shadow='s')",
    "chain with errback": "chain(add.s(1, 1), add.s(2)).on_error(errback_old.s('p')).apply_async()",
    "chain with arguments": "(add.s() | add.s(2)).apply_async((1, 2))",
    "group of three": "group(add.s(n, n) for n in range(3)).apply_async()",
    "group with options": "group([add.s(1), add.s(2).set(priority=3)]).apply_async((5,), countdown=2, queue='other')",
    "group in group": "group(add.s(1, 1), group(add.s(2, 2), add.s(3, 3))).apply_async()",
    "group of chains": "group(add.s(1, 1) | add.s(2), add.s(3, 3)).apply_async()",
    "chord": "chord([add.s(1, 1), add.s(2, 2)], total.s()).apply_async()",
    "chord called": "chord([add.s(1, 1), add.s(2, 2)])(total.s(plus=3))",
    "chord of one": "chord([add.s(1, 1)], total.s()).apply_async()",
    "chord of none": "chord([], total.s()).apply_async()",
    "chord with options": "chord([add.s(1), add.s(2)], total.s()).apply_async((4,), countdown=3, priority=3)",
    "chord with errback": "chord([add.s(1, 1), add.s(2, 2)], total.s().on_error(errback_old.s('p'))).apply_async()",
    "chord of chains": "chord([add.s(1, 1) | add.s(2), add.s(3, 3)], total.s()).apply_async()",
    "chord ending in a chain": "chord([add.s(3, 3), add.s(1, 1) | add.s(2)], total.s()).apply_async()",
    "chord of a group": "chord([add.s(3, 3), group(add.s(1, 1))], total.s()).apply_async()",
    "chord in chord": "chord([chord([add.s(1, 1), add.s(2, 2)], total.s()), add.s(3, 3)], total.s()).apply_async()",
    "group into task": "(group(add.s(1, 1), add.s(2, 2)) | total.s() | add.s(1)).apply_async()",
    "chain with group inside": "(add.s(1, 1) | group(add.s(1), add.s(2)) | total.s()).apply_async()",
    "chain ending in group": "(add.s(1, 1) | group(add.s(1), add.s(2))).apply_async()",
    "map": "add.map([1, 2]).delay()",
    "starmap": "add.starmap([(1, 1), (2, 2)]).apply_async(countdown=1)",
    "chunks": "add.chunks([(1, 1), (2, 2), (3, 3)], 2).apply_async()",
    "chunks as group": "add.chunks([(n, n) for n in range(5)], 2).group().apply_async()",
    "stamped": "stamped(add.s(1, 1).on_error(errback_old.s('p'))).apply_async()",
    "stamped chain": "stamped(add.s(1, 1) | add.s(2) | group(add.s(1), add.s(2))).apply_async()",
    "stamped chord": "stamped(chord([add.s(1, 1), add.s(2, 2)], total.s())).apply_async()",
    # settings
    "task_default_queue": "open_shop(task_default_queue='mine')['add'].delay(1)",
    "task_default_priority": "open_shop(task_default_priority=4)['add'].delay(1)",
    "task_default_delivery_mode": "open_shop(task_default_delivery_mode='transient')['add'].delay(1)",
    "task_serializer": "open_shop(task_serializer='msgpack')['add'].delay(1)",
    "task_compression": "open_shop(task_compression='gzip' and 'zlib')['add'].delay(1)",
    "task_routes": "open_shop(task_routes={'shop.*': {'queue': 'routed', 'priority': 5}})['add'].delay(1)",
    "task_routes by function": "open_shop(task_routes=[lambda name, args, kwargs, options, task=None, **kw: "
    "{'queue': 'by-function', 'headers': {'h': len(args)}}])['add'].delay(1)",
    "task_queues": "open_shop(task_queues=[kombu.Queue('q1', kombu.Exchange('x1'), routing_key='k1')], "
    "task_default_queue='q1', task_default_exchange='x1', task_default_routing_key='k1')['add'].delay(1)",
    "topic by setting": "open_shop(task_default_queue='tq', task_default_exchange='tx', "
    "task_default_exchange_type='topic', task_default_routing_key='a.b')['add'].delay(1)",
    "topic by route": "open_shop(task_default_queue='tq', task_default_exchange='tx', "
    "task_default_exchange_type='topic', task_default_routing_key='a.b', "
    "task_routes={'shop.add': {'routing_key': 'a.b'}})['add'].delay(1)",
    "timezone": "open_shop(timezone='Europe/Berlin')['add'].apply_async((1,), countdown=5, expires=10)",
    "no utc": "open_shop(enable_utc=False, timezone='Europe/Berlin')['add'].apply_async((1,), countdown=5)",
    "task_ignore_result": "open_shop(task_ignore_result=True)['add'].delay(1)",
    "task_inherit_parent_priority": "open_shop(task_inherit_parent_priority=True)['add'].delay(1)",
    "task_send_sent_event": "open_shop(task_send_sent_event=True)['add'].delay(1)",
    "task_repr_maxlevels": "open_shop(task_repr_maxlevels=1)['add'].delay([[[1]]])",
    "protocol 1": "open_shop(task_protocol=1)['add'].apply_async((1,), {'y': 2}, countdown=5, expires=9, "
    "link=add.s(1), time_limit=3)",
}
AMQP_ALONE = {
    "delayed by the broker": "open_shop(task_default_queue_type='quorum', task_default_queue='slow', "
    "task_default_exchange='slow', task_default_exchange_type='topic', task_default_routing_key='slow')['add']"
    ".apply_async((1,), countdown=5)",
    "delayed in a classic queue": "add.apply_async((1,), countdown=5)",
    "task_queue_max_priority": "open_shop(task_queue_max_priority=9, task_default_queue='urgent')['add'].delay(1)",
    "quorum": "open_shop(task_default_queue_type='quorum', task_default_queue='quorum')['add'].delay(1)",
}

KNOWN_DIFFERENCES = {
    # The members of a group in a group get the numbers 0, 1, ... a second time from Celery; ours go on counting.
    "group in group": (r'"group_index": \d|group_index: int \d', "group_index"),
    # Celery writes options that were not given.
    "chord in chord": (r', "add_to_parent": false, "root_id": null', ""),
    # Options are a dictionary, of which Celery writes these two in either order.
    **dict.fromkeys(
        ["stamped", "stamped chain", "stamped chord"],
        (r'"stamped_headers": \["mine"\], "mine": "value"', '"mine": "value", "stamped_headers": ["mine"]'),
    ),
}
"""Case to what is replaced before comparing, and by what. (A group of several in a chord's header is left out: Celery
turns the order of its members round, and with it that of their results; ours keeps it.)"""

STAMPED = (
    "lambda sig: (sig.stamp(visitor=type('Visitor', (part('canvas').StampingVisitor,), "
    "{'on_signature': lambda self, sig, **headers: {'mine': 'value', 'stamped_headers': ['mine']}})()), sig)[1]"
)


@pytest.fixture(scope="module")
def redis_producers(pythons, redis_server) -> Iterator[dict[str, tuple[Client, redis.Redis]]]:
    """A producer of each side with a database of its own."""
    producers = {}
    for side in SIDES:
        url = redis_server.new_database_url()
        producers[side] = Client(pythons[side], side, url, url, FROZEN="1"), redis.Redis.from_url(url)
    for client, _ in producers.values():
        client.keep("stamped", STAMPED)
    yield producers
    for client, store in producers.values():
        client.close()
        store.close()


@pytest.mark.parametrize("case", CALLS)
def test_on_redis_every_byte_is_celerys(redis_producers, case):
    call, found = CALLS[case], {}
    for side, (client, store) in redis_producers.items():
        client.keep("sent", call)
        found[side] = without_known_differences(case, taken(store))
    assert any("headers" in text for text in found["real"]), f"real Celery sent nothing at {call}"
    assert found["ours"] == found["real"]


def without_known_differences(case: str, texts: list[str]) -> list[str]:
    pattern, replacement = KNOWN_DIFFERENCES.get(case, ("(?!)", ""))
    return [re.sub(pattern, replacement, text) for text in texts]


def taken(store: redis.Redis) -> list[str]:
    """All messages and results of a database, which is emptied of them, with ids by order of appearance."""
    messages, values, bindings = [], [], []
    for key in sorted(store.scan_iter()):
        kind = store.type(key)
        if kind == b"list":
            messages += [f"{key.decode()}: {readable(text)}" for text in reversed(store.lrange(key, 0, -1))]
        elif kind == b"string":
            values.append(f"{key.decode()} = {store.get(key).decode()} for {round(store.ttl(key), -2)} s")
        elif key.startswith(b"_kombu.binding."):
            bindings.append(f"{key.decode()}: {sorted(store.smembers(key))}")
        if not key.startswith(b"_kombu"):
            store.delete(key)
    found = without_chance([*messages, *values, *bindings])
    return [*found[: len(messages)], *sorted(found[len(messages) :])]


def readable(text: bytes) -> str:
    """A message of kombu's, with its body decoded in place, so that ids in it can be found."""
    body = json.loads(text)["body"]
    return text.decode().replace(body, repr(base64.b64decode(body)))


def without_chance(texts: list[str]) -> list[str]:
    """Texts in which each id is a number that tells where it appeared first, and no process is named."""
    seen: dict[str, str] = {}
    numbered = [ID.sub(lambda match: seen.setdefault(match.group(), f"<{len(seen)}>"), text) for text in texts]
    return [ORIGIN.sub("<origin>", text) for text in numbered]


# -- AMQP


class Mailbox:
    """Reads what lies in the queues of one virtual host."""

    def __init__(self, server: Any, virtual_host: str) -> None:
        self.server, self.virtual_host = server, virtual_host
        self.connection = amqp.Connection(f"127.0.0.1:{server.port}", virtual_host=virtual_host)
        self.connection.connect()
        self.channel = self.connection.channel()
        # Where workers lead calls through that the broker is to delay.
        self.channel.exchange_declare("celery_delayed_27", "topic", durable=True, auto_delete=False)
        self.channel.queue_declare("delayed", durable=True, auto_delete=False)
        self.channel.queue_bind("delayed", "celery_delayed_27", "#")

    def take(self, names: list[str], taken: dict[str, list[str]]) -> list[str]:
        """What was in these queues till now: it is added to what was *taken* before, of which all is returned."""
        for name in names:
            while (message := self.channel.basic_get(name, no_ack=True)) is not None:
                body = message.body if isinstance(message.body, bytes) else message.body.encode()
                info = {key: message.delivery_info[key] for key in ("exchange", "routing_key", "redelivered")}
                headers = message.properties.pop("application_headers", {})
                fields = typed({"to": info, "properties": dict(sorted(message.properties.items())), "headers": headers})
                taken.setdefault(name, []).append(f"{name}: {fields} {body!r}")
        return without_chance([text for name in names for text in taken.get(name, ())])

    def definitions(self) -> dict[str, Any]:
        """Queues, exchanges and bindings, as the broker has them; without queues of results, which differ on purpose."""
        found = {}
        for kind, fields in {
            "queues": ("name", "durable", "auto_delete", "exclusive", "arguments", "type"),
            "exchanges": ("name", "type", "durable", "auto_delete", "internal", "arguments"),
            "bindings": ("source", "destination", "destination_type", "routing_key", "arguments"),
        }.items():
            rows = self.server.ask("GET", f"{kind}/{self.virtual_host}")
            texts = (json.dumps({field: row[field] for field in fields}) for row in rows)
            found[kind] = sorted(text for text in texts if not ID.search(text))
        return found


def typed(value: Any) -> str:
    """A text of a value in which the types of AMQP's tables differ: ``1`` is not ``True``."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {typed(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(typed, value)) + "]"
    return f"{type(value).__name__} {value!r}"


@pytest.fixture(scope="module")
def amqp_producers(pythons, rabbitmq_server) -> Iterator[dict[str, tuple[Client, Mailbox]]]:
    """A producer of each side with a virtual host of its own."""
    producers = {}
    for side in SIDES:
        host = rabbitmq_server.new_virtual_host()
        client = Client(pythons[side], side, rabbitmq_server.url(host), "rpc://", FROZEN="1")
        producers[side] = client, Mailbox(rabbitmq_server, host)
    for client, _ in producers.values():
        client.keep("stamped", STAMPED)
    yield producers
    for client, mailbox in producers.values():
        client.close()
        mailbox.connection.close()
        mailbox.server.drop_virtual_host(mailbox.virtual_host)


AMQP_CALLS = {
    name: call
    for name, call in {**CALLS, **AMQP_ALONE}.items()
    if "chord" not in name and name not in ("group into task", "chain with group inside")
}
"""Results that travel over AMQP allow no chords."""


@pytest.mark.parametrize("case", AMQP_CALLS)
def test_on_amqp_headers_properties_and_bodies_are_celerys(amqp_producers, case):
    call, found, defined = AMQP_CALLS[case], {}, {}
    taken: dict[str, dict[str, list[str]]] = {side: {} for side in amqp_producers}
    for client, _ in amqp_producers.values():
        client.keep("sent", call)

    def look() -> bool:
        for side, (_, mailbox) in amqp_producers.items():
            defined[side] = mailbox.definitions()
            queues = [json.loads(row)["name"] for row in defined[side]["queues"]]
            found[side] = without_known_differences(case, mailbox.take(queues, taken[side]))
        return bool(found["real"]) and found["ours"] == found["real"]

    # Sent is not yet there: real Celery asks for no confirmation, and a quorum takes its time.
    until = time.monotonic() + 5
    while not look() and time.monotonic() < until:
        time.sleep(0.02)
    assert found["real"], f"real Celery sent nothing at {call}"
    assert found["ours"] == found["real"]
    assert defined["ours"] == defined["real"]
