"""One broker and a result store for tests that run over several of them: what is the same, said once.

Used by the tests of the worker and by chaos tests, which ask it what lies in a queue, what was buried, and to
put in what no producer would send. It speaks to the broker directly and may not use the package under test
for that, but where the embedded broker has no other client.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import kombu
import pytest
import redis

import celery_clone.transport  # noqa: F401  registers the scheme sqlite with kombu
from celery_clone import _state

REDIS = pytest.param("redis", marks=pytest.mark.redis)
AMQP = pytest.param("amqp", marks=pytest.mark.rabbitmq)
EACH = ("sqlite", REDIS, AMQP)
"""Parameters for tests that run over every broker."""

EACH_WITH_TEXTS = ("sqlite", REDIS)
"""Those that keep a message as one text, so that the text itself can be damaged."""

DEAD = ".dead"


@dataclass
class Arena:
    """A broker with its results, empty when the test begins.

    *options* are transport options that every connection of the test should have.
    """

    name: str
    url: str
    results: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What a project of the tests reads its configuration from."""
        return {"BROKER": self.url, "RESULTS": self.results, "BROKER_OPTIONS": json.dumps(self.options)}

    def connection(self) -> kombu.Connection:
        """A new connection to the broker, through kombu alone."""
        return kombu.Connection(self.url, transport_options=self.options)

    def queue(self, name: str) -> kombu.Queue:
        """The queue *name* as the worker declares it, with somewhere for its dead on AMQP."""
        return kombu.Queue(name, kombu.Exchange(name), name, queue_arguments=self.queue_arguments(name))

    def queue_arguments(self, name: str) -> dict[str, Any] | None:
        """What an AMQP queue has to be declared with, so that what is rejected is kept."""
        if self.name != "amqp":
            return None
        return {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": name + DEAD}

    def put(
        self,
        queue: str,
        body: bytes,
        headers: Mapping[str, Any] | None,
        *,
        content_type: str = "application/json",
        content_encoding: str = "utf-8",
        **properties: Any,
    ) -> None:
        """Publish a message as it is given, right or wrong."""
        with self.connection() as connection:
            channel = connection.default_channel
            self.queue(queue)(channel).declare()
            if self.name == "amqp":
                kombu.Queue(queue + DEAD)(channel).declare()
            kombu.Producer(channel).publish(
                body,
                exchange=queue,
                routing_key=queue,
                headers=dict(headers or {}),
                content_type=content_type,
                content_encoding=content_encoding,
                **properties,
            )

    def put_text(self, queue: str, *texts: bytes) -> None:
        """Put *texts* where the broker keeps whole messages."""
        if self.name == "redis":
            with redis.Redis.from_url(self.url) as client:
                client.lpush(queue, *texts)
            return
        from celery_clone.transport.sqlite.session import ring
        from celery_clone.transport.sqlite.tables import Letter

        with self.connection() as connection:
            self.queue(queue)(connection.default_channel).declare()
            letters = [Letter(queue, queue, text) for text in texts]
            ring(connection.transport.broker.publish(letters, 0.0, mandatory=True))

    def pull_text(self, queue: str) -> bytes:
        """Take the text of the first message out of *queue*, which nobody consumes."""
        if self.name == "redis":
            with redis.Redis.from_url(self.url) as client:
                return bytes(client.rpop(queue))
        with closing(sqlite3.connect(self._path, timeout=10)) as database, database:
            (number, text), *_ = database.execute("SELECT id, body FROM celery_bodies ORDER BY id LIMIT 1")
            for table in ("celery_messages", "celery_bodies"):
                database.execute(f"DELETE FROM {table} WHERE id = ?", (number,))
            return bytes(text)

    def waiting(self, queue: str) -> int:
        """How many messages of *queue* are there to be taken."""
        if self.name == "redis":
            with redis.Redis.from_url(self.url) as client:
                return int(client.llen(queue))
        if self.name == "sqlite":
            return self._count("queues.name = ? AND holder IS NULL AND due_at IS NULL", queue)
        with self.connection() as connection:
            try:
                return int(kombu.Queue(queue)(connection.default_channel).queue_declare(passive=True).message_count)
            except connection.channel_errors:
                return 0

    def taken(self) -> int | None:
        """How many messages workers have taken and not settled; ``None`` where the broker does not tell at once."""
        if self.name == "redis":
            with redis.Redis.from_url(self.url) as client:
                return int(client.hlen("unacked")) - int(client.zcard("unacked_schedule"))
        if self.name == "sqlite":
            return self._count("holder IS NOT NULL")
        return None

    def claims(self) -> set[str]:
        """Names of what workers have taken and not settled, one for each time it was; nothing on AMQP."""
        if self.name == "redis":
            with redis.Redis.from_url(self.url) as client:
                return {tag.decode() for tag in client.hkeys("unacked") if b"@parked" not in tag}
        if self.name == "sqlite":
            query = "SELECT id || ' of ' || holder FROM celery_messages WHERE holder IS NOT NULL"
            with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True, timeout=10)) as database:
                return {name for (name,) in database.execute(query)}
        return set()

    def parked(self) -> int:
        """How many messages wait in Redis or SQLite for their time."""
        if self.name == "redis":
            with redis.Redis.from_url(self.url) as client:
                return int(client.zcard("unacked_schedule"))
        return self._count("due_at IS NOT NULL")

    def _count(self, condition: str, *values: Any) -> int:
        query = (
            "SELECT count(*) FROM celery_messages AS messages"
            " JOIN celery_queues AS queues ON messages.queue = queues.id WHERE "
        )
        with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True, timeout=10)) as database:
            (count,) = database.execute(query + condition, values).fetchone()
        return int(count)

    @property
    def _path(self) -> Path:
        return Path(self.url.removeprefix("sqlite:///"))

    def dead(self, queue: str) -> list[tuple[str | None, bytes]]:
        """What of *queue* was buried, oldest first: the reason (AMQP keeps none) and the text or the body."""
        if self.name == "redis":
            with redis.Redis.from_url(self.url) as client:
                records = [json.loads(text) for text in reversed(client.lrange(queue + DEAD, 0, -1))]
            return [(record["reason"], record["message"].encode()) for record in records]
        if self.name == "sqlite":
            query = (
                "SELECT reason, bodies.body FROM celery_messages AS messages"
                " JOIN celery_queues AS queues ON messages.queue = queues.id"
                " JOIN celery_bodies AS bodies ON messages.id = bodies.id WHERE queues.name = ? ORDER BY messages.id"
            )
            with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True, timeout=10)) as database:
                rows = database.execute(query, (queue + DEAD,)).fetchall()
            return [(reason, bytes(body)) for reason, body in rows]
        found: list[tuple[str | None, bytes]] = []
        with self.connection() as connection:
            channel = connection.default_channel
            kombu.Queue(queue + DEAD)(channel).declare()
            # Past kombu, which would look into what may be damaged; not acknowledged, so that it stays.
            while (message := channel.basic_get(queue + DEAD)) is not None:
                found.append((None, message.body if isinstance(message.body, bytes) else message.body.encode()))
        return found


def envelope(
    own_headers: Mapping[str, Any] | None = None, content: bytes = b"[[1, 2], {}, {}]", **changes: Any
) -> dict[str, Any]:
    """A whole message as Redis and SQLite keep it, to be damaged."""
    return {
        "body": base64.b64encode(content).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": dict(own_headers or {}),
        "properties": {
            "correlation_id": "x",
            "reply_to": "",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "celery"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": "00000000-0000-0000-0000-000000000000",
        },
        **changes,
    }


def start_server(name: str, fixture: Callable[[str], Any]) -> None:
    """Have the session's server for *name* run.

    To be called from a fixture of a wider scope than a test's, or the server would seem to be what the first
    test that needs it has left running.
    """
    if name != "sqlite":
        fixture({"redis": "redis_server", "amqp": "rabbitmq_server"}[name])


@contextmanager
def open_arena(name: str, fixture: Callable[[str], Any], folder: Path, **options: Any) -> Iterator[Arena]:
    """An arena of its own on the session's server; *fixture* is ``request.getfixturevalue``."""
    if name == "sqlite":
        url = f"sqlite:///{folder}/broker.db"
        yield Arena(name, url, url, options)
    elif name == "redis":
        server = fixture("redis_server")
        yield Arena(name, server.new_database_url(), server.new_database_url(), options)
    else:
        server = fixture("rabbitmq_server")
        virtual_host = server.new_virtual_host()
        try:
            # Results as messages: the way of an app that has nothing but RabbitMQ.
            yield Arena(name, server.url(virtual_host), "rpc://", options)
        finally:
            server.drop_virtual_host(virtual_host)


def load_project(path: Path, environment: Mapping[str, str]) -> ModuleType:
    """The project at *path*, imported into this process with *environment*, to send its tasks from here.

    It is the test's own: the module is not left behind in ``sys.modules``, nor its tasks in other apps.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    shared = set(_state._on_app_finalizers)
    shadowed = sys.modules.get(path.stem)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        _state._on_app_finalizers.intersection_update(shared)
        del sys.modules[path.stem]
        if shadowed is not None:
            sys.modules[path.stem] = shadowed
    return module
