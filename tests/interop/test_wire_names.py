"""Names that are part of the wire and of what people configure: they say celery, whatever this package is called.

Each is listed here once, and asked of real Celery and of us.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.two_sides import SIDES, Client

PACKAGE = Path(__file__).resolve().parents[2] / "celery_clone"

WORKER_STATE = "part('worker.state')"
SHOWN = "part('utils.nodenames')"
BACKEND = "part('backends.redis').RedisBackend(app=app, url='redis://')"

NAMES = {
    "built-in tasks": (
        # But for the one that stands for large bodies of chords (decisions, 5), which is ours alone.
        "sorted(name for name in app.tasks if name.startswith('celery.') and name != 'celery.stored_body')",
        ["celery.accumulate", "celery.backend_cleanup", "celery.chain", "celery.chord", "celery.chord_unlock"]
        + ["celery.chunks", "celery.group", "celery.map", "celery.starmap"],
    ),
    "names of workflows in messages": (
        "[part['task'] for part in (chain(add.s(), add.s()), group(add.s(), add.s()), chord([add.s()], add.s()),"
        " add.map([1]), add.starmap([(1,)]), add.chunks([1], 1))]",
        ["celery.chain", "celery.group", "celery.chord", "celery.map", "celery.starmap", "celery.chunks"],
    ),
    "kinds of workflows in messages": (
        "[part['subtask_type'] for part in (add.s(), chain(add.s(), add.s()), group(add.s()), chord([add.s()], add.s()),"
        " add.map([1]), add.starmap([(1,)]), add.chunks([1], 1))]",
        [None, "chain", "group", "chord", None, None, None],
    ),
    "default queue, exchange and key": (
        "[app.conf.task_default_queue, app.amqp.default_exchange.name, app.amqp.default_exchange.type,"
        " app.conf.task_default_routing_key, list(app.amqp.queues)]",
        ["celery", "celery", "direct", "celery", ["celery"]],
    ),
    "exchanges of remote control": (
        "[app.control.mailbox.namespace, app.control.mailbox.exchange.name, app.control.mailbox.exchange.type,"
        " app.control.mailbox.reply_exchange.name, app.control.mailbox.reply_exchange.type]",
        ["celery", "celery.pidbox", "fanout", "reply.celery.pidbox", "direct"],
    ),
    "a worker's mailbox": (
        "app.control.mailbox.Node('worker@host').mailbox.get_queue('worker@host').name",
        "worker@host.celery.pidbox",
    ),
    "exchange of events": (
        "[app.conf.event_exchange, app.conf.event_queue_prefix,"
        " part('events').event_exchange.name,"
        " part('events').event_exchange.type]",
        ["celeryev", "celeryev", "celeryev", "topic"],
    ),
    "exchange of results": ("app.conf.result_exchange", "celeryresults"),
    "keys of results": (
        f"(lambda backend: [str(key) for key in (backend.get_key_for_task('ID'), backend.get_key_for_group('ID'),"
        f" backend.get_key_for_group('ID', '.j'), backend.get_key_for_chord('ID'))])({BACKEND})",
        [
            "b'celery-task-meta-ID'",
            "b'celery-taskset-meta-ID'",
            "b'celery-taskset-meta-ID.j'",
            "b'chord-unlock-ID'",
        ],
    ),
    "who a worker says it is": (
        f"[{WORKER_STATE}.SOFTWARE_INFO['sw_ident'], {WORKER_STATE}.SOFTWARE_INFO['sw_ver']]",
        ["py-celery", "5.7.0"],
    ),
    "names of nodes": (
        f"[{SHOWN}.default_nodename('host'), {SHOWN}.worker_direct('worker@host').name,"
        f" {SHOWN}.worker_direct('worker@host').exchange.name, {SHOWN}.worker_direct('worker@host').routing_key]",
        ["celery@host", "worker@host.dq2", "C.dq2", "worker@host"],
    ),
    "language of a message": (
        "[app.amqp.as_task_v2('ID', 'name').headers[key] for key in ('lang', 'task', 'id')]",
        ["py", "name", "ID"],
    ),
    "modules of stored errors": (
        "[app.backend.prepare_exception(error, 'json')['exc_module'] for error in (exceptions.QueueNotFound(),"
        " exceptions.TaskRevokedError(), exceptions.ChordError(), exceptions.SoftTimeLimitExceeded(),"
        " exceptions.WorkerLostError(), exceptions.OperationalError(), OutOfStock(), ValueError())]",
        ["celery.exceptions"] * 3 + ["billiard.exceptions"] * 2 + ["kombu.exceptions", "shop", "builtins"],
    ),
    "kinds of stored errors": (
        "app.backend.prepare_exception(exceptions.NotRegistered('name'), 'json')",
        {"exc_type": "NotRegistered", "exc_message": ["name"], "exc_module": "celery.exceptions"},
    ),
    "states": (
        "[sorted(states.ALL_STATES), states.IGNORED, states.REJECTED]",
        [["FAILURE", "PENDING", "RECEIVED", "RETRY", "REVOKED", "STARTED", "SUCCESS"], "IGNORED", "REJECTED"],
    ),
    "module read for settings": (
        "part('loaders.default').DEFAULT_CONFIG_MODULE",
        "celeryconfig",
    ),
    "file of beat": ("app.conf.beat_schedule_filename", "celerybeat-schedule"),
}

ENVIRONMENT = [
    *("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL", "CELERY_RESULT_BACKEND"),
    *("CELERY_CONFIG_MODULE", "CELERY_LOADER", "CELERY_CUSTOM_WORKER_POOL", "CELERY_SKIP_CHECKS", "CELERY_TRACE_APP"),
    *("CELERY_LOG_LEVEL", "CELERY_LOG_FILE", "CELERY_LOG_REDIRECT", "CELERY_LOG_REDIRECT_LEVEL"),
    *("C_FORCE_ROOT", "C_FAKEFORK", "FORKED_BY_MULTIPROCESSING"),
    *("CELERY_WORKER_REVOKES_MAX", "CELERY_WORKER_REVOKE_EXPIRES"),
    *("CELERY_WORKER_SUCCESSFUL_MAX", "CELERY_WORKER_SUCCESSFUL_EXPIRES"),
]

ENTRY_POINTS = ["celery.commands", "celery.result_backends", "celery.beat_schedulers"]

LOGGED = {
    "add.apply_async((1, 1), queue=queue)": [
        ("celery.worker.strategy", r"Task shop\.add\[{id}\] received"),
        ("celery.app.trace", r"Task shop\.add\[{id}\] succeeded in "),
    ],
    "fail.apply_async(queue=queue)": [("celery.app.trace", r"Task shop\.fail\[{id}\] raised unexpected: OutOfStock")],
    "flaky.apply_async((1,), queue=queue)": [("celery.app.trace", r"Task shop\.flaky\[{id}\] retry: Retry in 0s")],
    "ignored.apply_async(queue=queue)": [("celery.app.trace", r"Task shop\.ignored\[{id}\] ignored")],
    "add.apply_async((1, 1), queue=queue, expires='2001-01-01T00:00:00+00:00')": [
        ("celery.worker.request", r"Discarding revoked task: shop\.add\[{id}\]"),
    ],
    "say.apply_async(('some words',), queue=queue)": [("shop.say", "some words of {id}")],
    "app.send_task('shop.nowhere', queue=queue)": [
        ("celery.worker.consumer.consumer", r"Received unregistered task of type 'shop\.nowhere'"),
    ],
}

BOOT = [
    ("celery.worker.consumer.connection", "Connected to redis://"),
    ("celery.worker.consumer.mingle", "mingle: searching for neighbors"),
    ("celery.apps.worker", "real@interop ready\\."),
]


@pytest.fixture(scope="module")
def asked(pythons):
    """A process of each side that can be asked for its names."""
    clients = {side: Client(pythons[side], side, "memory://", "cache+memory://") for side in SIDES}
    yield clients
    for client in clients.values():
        client.close()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("question", "expected"), NAMES.values(), ids=NAMES)
def test_a_name_is_celerys(asked, side, question, expected):
    assert asked[side](question) == expected


@pytest.mark.parametrize("name", [*ENVIRONMENT, *ENTRY_POINTS])
def test_what_is_read_from_the_world_has_celerys_name(name, celery_python):
    theirs = next(celery_python.parents[1].glob("lib/python*/site-packages/celery"))
    for package in (theirs, PACKAGE):
        pattern = re.compile(rf"[\"']{re.escape(name)}[\"']")
        assert any(pattern.search(path.read_text()) for path in package.rglob("*.py")), (
            f"{package} does not read {name}"
        )


def test_no_logger_has_our_name(asked):
    loaded = asked["ours"](
        "[part(name).__name__ for name in names] and [name for name in logging.root.manager.loggerDict]",
        names=[
            ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
            for folder in ("app", "backends", "events", "loaders", "message", "transport", "worker", "concurrency")
            for path in sorted((PACKAGE / folder).rglob("*.py"))
            if path.name != "__init__.py" and path.stem not in OPTIONAL
        ],
    )
    assert "celery.worker.strategy" in loaded
    assert [name for name in loaded if name.startswith("celery_clone")] == []


OPTIONAL = {"gevent", "eventlet"}
"""Modules that change the interpreter when they are imported."""


@pytest.mark.parametrize("side", SIDES)
def test_what_a_worker_says_comes_from_celerys_loggers(redis_link, side):
    client, worker = redis_link.clients[side], redis_link.workers[side]
    for call, expected in LOGGED.items():
        client.keep("sent", call, queue=side)
        task_id = client("sent.id")
        for logger, words in expected:
            worker.wait_for_log(rf"<{re.escape(logger)}> {words.format(id=task_id)}")
    for logger, words in BOOT:
        worker.wait_for_log(rf"<{re.escape(logger)}> {words.replace('real', side)}")
