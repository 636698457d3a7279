"""Calls from real Celery to our worker and from us to a real one: arguments, times, retries, errors, results."""

from __future__ import annotations

import json
import time

import pytest

from tests.support.two_sides import SIDES, Raised, lines_of, other


def test_a_call_is_run_by_the_other_side_and_answered(way):
    assert way.client("add.apply_async((2, 3), queue=queue).get(timeout=20)", queue=way.queue) == 5
    assert way.client("where.apply_async(queue=queue).get(timeout=20)", queue=way.queue) == way.queue


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("add.apply_async(kwargs={'x': 1, 'y': 2}, queue=queue)", 3),
        ("add.apply_async((1,), {'y': 2}, queue=queue)", 3),
        ("add.s(1).apply_async(queue=queue)", 11),
        ("add.s(1).set(queue=queue).apply_async((5,))", 6),
        ("add.s(1).set(queue=queue).delay(y=7)", 8),
        ("add.si(1, 1).set(queue=queue).apply_async((5,))", 2),
        ("signature('shop.add', (1, 2), queue=queue).apply_async()", 3),
        ("app.send_task('shop.add', (1, 2), queue=queue)", 3),
        ("app.send_task('shop.add', kwargs=dict(x=4), queue=queue)", 14),
        ("echo.apply_async(('ü', None, [1, {'a': 1.5}], '\\U0001f40d'), {'key': ''}, queue=queue)", None),
        ("identity.apply_async(('x' * 500_000,), queue=queue)", "x" * 500_000),
        ("identity.apply_async(([0, -1, 2**70, 1e300, True, ''],), queue=queue)", [0, -1, 2**70, 1e300, True, ""]),
    ],
)
def test_arguments_arrive_as_they_were_given(way, call, expected):
    if expected is None:
        expected = [["ü", None, [1, {"a": 1.5}], "\U0001f40d"], {"key": ""}]
    assert way.client(f"{call}.get(timeout=20)", queue=way.queue) == expected


def test_values_that_json_does_not_know_arrive_with_their_types(way):
    values = (
        "datetime.datetime(2030, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc), datetime.date(2030, 1, 2), "
        "datetime.time(3, 4), decimal.Decimal('1.50'), uuid.UUID(int=7), b'bytes'"
    )
    found = way.client(f"kinds.apply_async(({values}), queue=queue).get(timeout=20)", queue=way.queue)
    assert found == [
        "datetime 2030-01-02 03:04:05+00:00",
        "date 2030-01-02",
        "time 03:04:00",
        "Decimal 1.50",
        "UUID 00000000-0000-0000-0000-000000000007",
        "bytes b'bytes'",
    ]


def test_calls_wait_until_they_are_due(way):
    sent = time.time()
    way.client.keep("moment", "datetime.timedelta(seconds=0.4)")
    way.client.keep(
        "sent",
        "[when.apply_async(queue=queue, **options) for options in (dict(countdown=0.4), "
        "dict(eta=datetime.datetime.now(datetime.timezone.utc) + moment), "
        "dict(eta=datetime.datetime.now(zoneinfo.ZoneInfo('America/Lima')) + moment))]",
        queue=way.queue,
    )
    for began in way.client("[result.get(timeout=20) for result in sent]"):
        assert 0.35 < began - sent < 10


def test_a_call_that_expired_is_not_run_but_revoked(way):
    with pytest.raises(Raised) as failed:
        way.client("add.apply_async((1, 1), queue=queue, expires=past).get(timeout=20)", queue=way.queue, past=_past())
    assert failed.value.kind == "celery.exceptions.TaskRevokedError"
    assert failed.value.arguments == ["expired"]


def _past() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() - 60))


def test_a_task_retries_itself(way):
    found = way.client("flaky.apply_async((2,), queue=queue).get(timeout=20)", queue=way.queue)
    assert found == [2, way.queue]
    found = way.client("flaky.apply_async((1, 0.3), queue=queue).get(timeout=20)", queue=way.queue)
    assert found == [1, way.queue]
    assert way.client("automatic.apply_async((2,), queue=queue).get(timeout=20)", queue=way.queue) == 2


def test_a_retry_is_taken_over_by_the_other_side(way):
    found = way.client(
        "flaky.apply_async((1,), {'queue': onward}, queue=queue).get(timeout=20)",
        queue=way.queue,
        onward=other(way.queue),
    )
    assert found == [1, other(way.queue)]


def test_retries_that_are_used_up_raise_what_the_task_raised(way):
    with pytest.raises(Raised) as failed:
        way.client("automatic.apply_async((9,), queue=queue).get(timeout=20)", queue=way.queue)
    assert failed.value.kind == "shop.OutOfStock"
    assert failed.value.arguments == [2]
    with pytest.raises(Raised) as failed:
        way.client("flaky.apply_async((9,), queue=queue).get(timeout=20)", queue=way.queue)
    assert failed.value.kind == "celery.exceptions.MaxRetriesExceededError"
    assert failed.value.text.startswith("Can't retry shop.flaky[")


@pytest.mark.parametrize(
    ("call", "kind", "arguments"),
    [
        ("fail.apply_async(('OutOfStock', 'apples', 3), queue=queue)", "shop.OutOfStock", ["apples", 3]),
        ("fail.apply_async(('ValueError', 'ü'), queue=queue)", "builtins.ValueError", ["ü"]),
        ("fail.apply_async(('KeyError', 'k'), queue=queue)", "builtins.KeyError", ["k"]),
        ("fail.apply_async(('QueueNotFound', 'q'), queue=queue)", "celery.exceptions.QueueNotFound", ["q"]),
        ("fail.apply_async(('ImproperlyConfigured',), queue=queue)", "celery.exceptions.ImproperlyConfigured", []),
        ("nested_failure.apply_async(queue=queue)", "shop.OutOfStock", ["outer", 3]),
        ("nap.apply_async(queue=queue)", "billiard.exceptions.SoftTimeLimitExceeded", []),
        (
            "add.apply_async((1, 'x'), queue=queue)",
            "builtins.TypeError",
            ["unsupported operand type(s) for +: 'int' and 'str'"],
        ),
        ("app.send_task('shop.nowhere', queue=queue)", "celery.exceptions.NotRegistered", ["shop.nowhere"]),
    ],
)
def test_an_error_has_its_type_its_arguments_and_its_traceback(way, call, kind, arguments):
    way.client.keep("failed", call, queue=way.queue)
    with pytest.raises(Raised) as raised:
        way.client("failed.get(timeout=20)")
    assert (raised.value.kind, raised.value.arguments) == (kind, arguments)
    assert way.client("[failed.state, failed.failed(), failed.successful()]") == ["FAILURE", True, False]
    if "nowhere" not in call:
        trace = way.client("failed.traceback")
        assert trace.startswith("Traceback (most recent call last):\n")
        assert "shop.py" in trace
        assert kind.rpartition(".")[2] in trace.rstrip().splitlines()[-1]


def test_an_error_does_not_raise_when_it_is_not_to(way):
    way.client.keep("result", "fail.apply_async(('ValueError', 'v'), queue=queue)", queue=way.queue)
    assert way.client("repr(result.get(timeout=20, propagate=False))") == "ValueError('v')"
    assert way.client("repr(result.result)") == "ValueError('v')"


def test_a_task_that_ignores_its_result_says_nothing(way, tmp_path):
    path = tmp_path / "quiet"
    way.client.keep("result", "quiet.apply_async((path,), queue=queue)", queue=way.queue, path=str(path))
    assert lines_of(path, 1) == ["done"]
    assert way.client("result.state") == "PENDING"


def test_callbacks_run_on_either_side(way, tmp_path):
    path = tmp_path / "notes"
    way.client(
        "add.apply_async((2, 2), queue=queue, link=[signature('shop.note', args=(path, side), "
        "immutable=True, queue=side) for side in ('real', 'ours')]).get(timeout=20)",
        queue=way.queue,
        path=str(path),
    )
    assert sorted(lines_of(path, 2)) == ["ours", "real"]


@pytest.mark.parametrize("errback", ["errback_old", "errback_new"])
def test_error_callbacks_run_on_either_side(way, tmp_path, errback):
    path = tmp_path / "notes"
    way.client.keep(
        "result",
        f"fail.apply_async(('ValueError', 'v'), queue=queue, link_error={errback}.s(path).set(queue=onward))",
        queue=way.queue,
        path=str(path),
        onward=other(way.queue),
    )
    task_id = way.client("result.id")
    expected = task_id if errback == "errback_old" else f"{task_id} ValueError v"
    assert lines_of(path, 1) == [expected]


CONTEXTS = {
    "nothing": "{}",
    "arguments": "{'args': (1, 'ü', [2]), 'kwargs': {'k': {'x': 1}}}",
    "headers": "{'headers': {'mine': 1, 'text': 'ü'}}",
    "shadow": "{'shadow': 'other.name'}",
    "limits": "{'time_limit': 30, 'soft_time_limit': 20}",
    "priority": "{'priority': 6}",
    "reprs": "{'argsrepr': '<hidden>', 'kwargsrepr': '<hidden too>', 'args': (1,)}",
    "parents": "{'root_id': 'the root', 'parent_id': 'the parent'}",
    "group": "{'group_id': 'the group', 'group_index': 3}",
    "expires": "{'expires': '2030-01-01T00:00:00+00:00', 'expiration': 100}",
    "ignored": "{'ignore_result': False, 'reply_to': 'somewhere'}",
    "stamps": "{'stamped_headers': ['stamp'], 'stamp': ['value']}",
    "callbacks": "{'link': add.si(1, 1).set(queue='nowhere'), 'link_error': add.si(1, 1).set(queue='nowhere')}",
    "retries": "{'retries': 2}",
    "properties": "{'message_id': 'm', 'app_id': 'a', 'delivery_mode': 1}",
    "compressed": "{'compression': 'zlib', 'serializer': 'msgpack'}",
}


NOT_COMPARED = (
    "delivery_tag",
    "expiration",  # counted from the moment of sending
    "application_headers",  # py-amqp's name for the headers, which a task of ours finds in its request alone
)


@pytest.mark.parametrize("options", CONTEXTS.values(), ids=CONTEXTS)
def test_a_task_sees_the_same_of_its_call_on_both_sides(counting_link, sender, options):
    client = counting_link.clients[sender]
    seen = {}
    for side in SIDES:
        client.keep("result", f"seen.apply_async(queue=queue, **{options})", queue=side)
        found = client("result.get(timeout=20)")
        task_id = client("result.id")
        text = json.dumps(found).replace(task_id, "the id").replace(f'"{side}"', '"the queue"')
        seen[side] = json.loads(text)
        for name in NOT_COMPARED:
            seen[side]["properties"].pop(name, None)
    assert different(seen["ours"], seen["real"]) == {}


def different(ours, real, place=""):
    """Every value in which the two are not the same, by its place."""
    if isinstance(ours, dict) and isinstance(real, dict):
        keys = {**real, **ours}
        found = [
            different(ours.get(key, "(no such key)"), real.get(key, "(no such key)"), f"{place}/{key}") for key in keys
        ]
        return {name: values for part in found for name, values in part.items()}
    return {} if ours == real else {place: {"ours": ours, "real": real}}
