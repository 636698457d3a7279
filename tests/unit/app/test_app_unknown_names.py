"""A name that nobody knows is told with the names that somebody knows."""

from __future__ import annotations

import pytest

from celery_clone import Celery
from celery_clone.exceptions import ImproperlyConfigured


def test_an_unknown_scheme_is_explained_when_a_task_is_sent():
    app = Celery("unknown", broker="reddis://localhost", set_as_current=False)

    @app.task(shared=False)
    def add():
        return None

    with pytest.raises(ImproperlyConfigured, match=r"begin with 'reddis'.* Did you mean 'redis'\?") as caught:
        add.delay()
    assert " amqp, " in str(caught.value) and " sqlite, " in str(caught.value)


def test_an_unknown_scheme_is_explained_to_who_consumes():
    app = Celery("unknown", broker="nothing://localhost", set_as_current=False)

    with pytest.raises(ImproperlyConfigured, match="begin with 'nothing'"):
        app.connection_for_read()
