"""What the tests of workflows share: an app with a few tasks, and a look at what it sends."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from celery_clone import Celery
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
