"""What the tests of workflows share: an app with a few tasks, and a look at what it sends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from kombu import Queue

from celery_clone import Celery
from celery_clone.app.runner import TaskRunner
from celery_clone.message.frames import Job
from celery_clone.signals import before_task_publish


@pytest.fixture
def app() -> Iterator[Celery]:
    """An app whose broker and result store are in memory."""
    app = Celery("proj", broker="memory://", backend="cache+memory://", set_as_current=False)
    yield app
    app.close()


@pytest.fixture
def tasks(app: Celery) -> SimpleNamespace:
    """``add(x, y)``, ``xsum(numbers)``, ``tell(*args)``, which remembers its calls, and ``fail()``."""
    told: list[Any] = []

    @app.task(shared=False, name="proj.tasks.add")
    def add(x: Any, y: Any) -> Any:
        return x + y

    @app.task(shared=False, name="proj.tasks.xsum")
    def xsum(numbers: Any) -> Any:
        return sum(numbers)

    @app.task(shared=False, name="proj.tasks.tell")
    def tell(*args: Any, **kwargs: Any) -> Any:
        told.append((args, kwargs) if kwargs else args)
        return args

    @app.task(shared=False, name="proj.tasks.fail")
    def fail(*args: Any) -> None:
        raise ValueError("as told")

    return SimpleNamespace(add=add, xsum=xsum, tell=tell, fail=fail, told=told)


@pytest.fixture
def eager(app: Celery) -> Celery:
    """The same app, running calls here and now."""
    app.conf.task_always_eager = True
    return app


@pytest.fixture
def sent() -> Iterator[list[SimpleNamespace]]:
    """The calls sent, in order: ``task``, ``args``, ``kwargs``, ``embed``, ``headers``, ``to``."""
    calls: list[SimpleNamespace] = []

    def remember(sender: str, body: Any, headers: Any, routing_key: Any = None, **_: Any) -> None:
        args, kwargs, embed = body
        calls.append(
            SimpleNamespace(task=sender, args=list(args), kwargs=kwargs, embed=embed, headers=headers, to=routing_key)
        )

    before_task_publish.connect(remember, weak=False)
    yield calls
    before_task_publish.disconnect(remember)


class QueueRunner:
    """Runs the messages of an app's queue here, one after the other, in an order that *choose* decides."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.names: list[str] = []
        self.bytes = 0
        self._run = TaskRunner(app, "here")

    def __call__(self, choose: Callable[[int], int] = lambda count: 0, most: int = 2000) -> list[str]:
        """Run until the queue is empty; give the names of the tasks that ran.

        ``bytes`` is then the size of their messages: arguments and all that travels with them.
        """
        self.names, self.bytes = [], 0
        waiting: list[Any] = []
        with self.app.connection_for_read() as connection:
            queue = Queue(self.app.conf.task_default_queue)(connection.default_channel)
            queue.declare()
            while True:
                while (message := queue.get(no_ack=True)) is not None:
                    waiting.append(message)
                if not waiting:
                    return self.names
                message = waiting.pop(choose(len(waiting)))
                assert len(self.names) < most, "tasks send tasks without end"
                self.names.append(message.headers["task"])
                self.bytes += len(message.body)
                parts = (
                    message.headers,
                    message.properties,
                    message.body,
                    message.content_type,
                    message.content_encoding,
                )
                self._run(Job(len(self.names), message.headers["task"], parts=parts, facts={}), lambda: None)


def app_with_a_queue_of_its_own(name: str) -> Celery:
    app = Celery(name, broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(task_default_queue=f"{name}-{uuid4().hex}", task_ignore_result=False)
    return app


@pytest.fixture(scope="module")
def queued_app() -> Iterator[Celery]:
    """An app whose calls lie in a queue in memory until they are run."""
    app = app_with_a_queue_of_its_own("queued")
    yield app
    app.close()


@pytest.fixture(scope="module")
def run_queue(queued_app: Celery) -> QueueRunner:
    """Runs what lies in that queue, as a worker's process would."""
    return QueueRunner(queued_app)
