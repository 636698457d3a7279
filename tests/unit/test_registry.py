"""``celery_clone.registry.tasks`` stands for the tasks of the current app."""

from __future__ import annotations

import pytest

from celery_clone import _state
from celery_clone.app.base import Celery
from celery_clone.registry import tasks


@pytest.fixture
def app():
    before = _state._tls.current_app
    made = Celery("proj", set_as_current=True)
    yield made
    _state._set_current_app(before)
    made.close()


def test_it_has_the_tasks_of_the_current_app(app):
    @app.task(name="proj.add")
    def add(x, y):
        return x + y

    app.finalize()
    assert tasks["proj.add"].name == "proj.add"
    assert "celery.chord_unlock" in tasks
    assert tasks == app.tasks
