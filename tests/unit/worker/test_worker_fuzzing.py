"""Whatever lies in a queue, the worker reads it, runs it or keeps it: nothing escapes.

``FUZZ_EXAMPLES`` is how many messages are made up for each test, 300 unless it says otherwise.
"""

from __future__ import annotations

import base64
import json
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_clone import Celery
from celery_clone.app.runner import Call, TaskRunner
from celery_clone.message.delivery import Delivery
from celery_clone.message.frames import Unfit
from celery_clone.worker import state
from celery_clone.worker.state import Phase
from tests.support.brokers import envelope
from tests.support.dispatching import Bench
from tests.support.messages import call_headers

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "300"))

pytestmark = pytest.mark.timeout(60 + EXAMPLES // 5)

ACCEPTED = frozenset({"application/json", "application/x-yaml"})

HEADERS = call_headers("t.add", losses=0, redelivered=False)

TIMES = st.sampled_from(["2030-01-01T00:00:00", "2030-01-01", "1970-01-01T00:00:00+99:99", "now", "", "9" * 400])
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), TIMES, st.just("x" * 10_000)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
KNOWN = st.sampled_from([*HEADERS, "compression", "callbacks", "chord", "chain", "errbacks", "utc", "args", "kwargs"])
MEMBERS = st.sampled_from(["body", "content-type", "content-encoding", "headers", "properties", "more"])
PROPERTIES = st.sampled_from([*envelope()["properties"], "expiration", "application_headers", "more"])
BODIES = st.one_of(
    st.binary(max_size=60),
    VALUES.map(lambda value: json.dumps(value).encode()),
    st.tuples(VALUES, VALUES, VALUES).map(lambda value: json.dumps(value).encode()),
    st.dictionaries(KNOWN, VALUES, max_size=6).map(lambda value: json.dumps(value).encode()),
)
KINDS = st.sampled_from(
    [
        "application/json",
        "application/x-python-serialize",
        "application/data",
        "text/plain",
        "application/x-yaml",
        "",
        "x",
    ]
)
ENCODINGS = st.sampled_from(["utf-8", "binary", "latin-1", "utf-16", "us-ascii", "rot13", "hex", "nosuch", ""])


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A message as Redis and SQLite keep it, with something wrong with it, or several things."""
    message: dict[str, Any] = envelope(HEADERS, draw(st.just(b"[[1, 2], {}, {}]") | BODIES))
    for _ in range(draw(st.integers(0, 3))):
        where = draw(st.sampled_from(["headers", "properties", "member", "kind"]))
        if where == "member":
            message[draw(MEMBERS)] = draw(VALUES)
        elif where == "kind":
            message["content-type"], message["content-encoding"] = draw(KINDS), draw(ENCODINGS)
        elif isinstance(message.get(where), dict):
            name = draw(KNOWN if where == "headers" else PROPERTIES)
            if draw(st.booleans()):
                message[where][name] = draw(VALUES)
            else:
                message[where].pop(name, None)
    text = json.dumps(message).encode()
    damage = draw(st.sampled_from(["none", "none", "cut", "flip", "insert"]))
    at = draw(st.integers(0, len(text)))
    if damage == "cut":
        return text[:at]
    if damage == "insert":
        return text[:at] + draw(st.binary(max_size=5)) + text[at:]
    if damage == "flip" and at < len(text):
        return text[:at] + bytes([text[at] ^ draw(st.integers(1, 255))]) + text[at + 1 :]
    return text


@pytest.fixture(scope="module")
def app():
    app = Celery("fuzzing", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.accept_content = ["json", "yaml"]

    @app.task(name="t.add", shared=False)
    def add(*args, **kwargs):
        return "x"

    @app.task(name="t.late", acks_late=True, reject_on_worker_lost=True, shared=False)
    def late(*args, **kwargs):
        return "x"

    yield app
    app.close()


@pytest.fixture(scope="module")
def runner(app):
    runner = TaskRunner(app, "w@here")
    runner._accept = ACCEPTED
    return runner


def goes_somewhere(app: Celery, runner: TaskRunner, delivery: Delivery, bench: Bench) -> None:
    """The delivery is run to its end, waits for its time, or lies aside; and the books are right."""
    state.reset_state()
    bench.dispatcher.receive([delivery])
    bench.dispatcher.turn()
    for flight in [*bench.dispatcher.flights.values()]:
        if flight.phase is Phase.HELD:
            assert flight.due is not None and flight.due > bench.now
            return
        (job,) = bench.pool.submitted
        found = runner.understand(job)
        if isinstance(found, Unfit):
            bench.tell(found)
        else:
            assert isinstance(found, Call)
            bench.begin(flight)
            assert flight.request.info() is not None
            outcome = runner.conclude(found, lambda call=found: call.task.__trace__(*call[1:]))
            bench.end(flight, outcome.state)
    credit = bench.dispatcher.credit
    assert (len(bench.dispatcher.flights), credit.outstanding, credit.lent) == (0, 0, 0)
    source = bench.source
    assert source.acked == [delivery.tag] or delivery.tag in (*source.buried, *source.requeued)


def within_the_bench(examples: int = EXAMPLES) -> Any:
    return settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


@within_the_bench()
@given(text=damaged())
def test_a_text_is_run_or_kept_whatever_it_holds(app, runner, text):
    bench = Bench(app)
    goes_somewhere(app, runner, Delivery.of_raw(text, "a-tag", "celery", bench.source, accept=ACCEPTED), bench)


@within_the_bench(EXAMPLES // 2)
@given(text=st.binary(max_size=300) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_bytes_that_are_no_message_are_kept(app, runner, text):
    bench = Bench(app)
    goes_somewhere(app, runner, Delivery.of_raw(text, "a-tag", "celery", bench.source, accept=ACCEPTED), bench)
    assert bench.source.buried == ["a-tag"]


@within_the_bench()
@given(
    headers=st.dictionaries(KNOWN, VALUES, max_size=4),
    dropped=st.sets(KNOWN, max_size=2),
    properties=st.dictionaries(PROPERTIES, VALUES, max_size=4),
    body=st.just(b"[[1, 2], {}, {}]") | BODIES,
    kind=st.just("application/json") | KINDS,
    encoding=st.just("utf-8") | ENCODINGS,
    late=st.booleans(),
)
def test_parts_of_a_message_are_run_or_kept_whatever_they_are(
    app, runner, headers, dropped, properties, body, kind, encoding, late
):
    merged = {**HEADERS, **({"task": "t.late"} if late else {}), **headers}
    for name in dropped:
        merged.pop(name, None)
    bench = Bench(app)
    parts = merged, properties, body, kind, encoding
    delivery = Delivery.of_parts(*parts, "a-tag", "celery", bench.source, accept=ACCEPTED, facts={"redelivered": late})
    goes_somewhere(app, runner, delivery, bench)


def test_a_body_may_be_nested_as_deep_as_anybody_likes(app, runner):
    for deep in (b"[" * 200_000, b'{"a":' * 100_000, b"[[" + b"[" * 50_000 + b"]" * 50_000 + b"], {}, {}]"):
        for text in (deep, json.dumps(envelope(HEADERS, deep)).encode()):
            bench = Bench(app)
            goes_somewhere(app, runner, Delivery.of_raw(text, "a-tag", "celery", bench.source, accept=ACCEPTED), bench)
            assert bench.source.buried == ["a-tag"], base64.b64encode(text[:40])
