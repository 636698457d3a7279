"""Which error callbacks are called with the failure, and which are sent as tasks with the id alone."""

from __future__ import annotations

import pytest

from celery_clone import Celery, Task
from celery_clone.backends.failures import takes_failure


@pytest.fixture
def app():
    return Celery("errbacks", broker="memory://", set_as_current=False)


def one(task_id):
    """Takes the id."""


def three(request, exc, traceback):
    """Takes the failure."""


def id_and_more(task_id, path):
    """Takes the id and something that is stored on the signature."""


def three_and_more(request, exc, traceback, path):
    """Takes the failure and something that is stored on the signature."""


def anything(*args):
    """Takes what there is."""


def bound(self, request, exc, traceback):
    """May retry."""


@pytest.mark.parametrize(
    ("function", "stored", "expected"),
    [
        (one, (), False),
        (three, (), True),
        (id_and_more, (), True),
        (id_and_more, ("path",), False),
        (three_and_more, ("path",), True),
        (one, ("too", "many"), False),
        (anything, (), True),
    ],
)
def test_what_is_stored_on_the_signature_is_not_asked_of_the_failure(app, function, stored, expected):
    task = app.task(function)
    assert takes_failure(task.s(*stored)) is expected


def test_an_immutable_signature_counts_as_it_stands(app):
    assert takes_failure(app.task(id_and_more).si("path")) is True


def test_a_bound_task_is_sent_because_it_may_retry(app):
    assert takes_failure(app.task(bound, bind=True).s()) is False


def test_a_task_class_is_sent(app):
    class Errback(Task):
        name = "errback"

        def run(self, request, exc, traceback):
            """Takes the failure."""

    assert takes_failure(app.register_task(Errback()).s()) is False
