"""Tasks that retry themselves on certain errors."""

from __future__ import annotations

import asyncio

import pytest

from celery_clone.app.autoretry import add_autoretry_behaviour
from celery_clone.exceptions import Ignore, Retry


class Request:
    retries = 0


class FakeTask:
    """As much of a task as the wrapper touches; ``retry`` raises, as the real one does."""

    def __init__(self, body, **attributes):
        self.run = body
        self.request = Request()
        self.retried = []
        vars(self).update(attributes)

    def retry(self, **kwargs):
        self.retried.append(kwargs)
        raise Retry("again", kwargs["exc"])


def raising(error):
    def body(*args, **kwargs):
        raise error

    return body


def retries_of(task, **options):
    add_autoretry_behaviour(task, **options)
    try:
        task.run()
    except Exception as error:
        return error, task.retried
    return None, task.retried


def test_listed_errors_are_retried_and_others_are_not():
    error = ConnectionError("away")
    raised, retried = retries_of(FakeTask(raising(error)), autoretry_for=(OSError,))
    assert isinstance(raised, Retry)
    assert retried == [{"exc": error}]

    raised, retried = retries_of(FakeTask(raising(KeyError("k"))), autoretry_for=(OSError,))
    assert isinstance(raised, KeyError)
    assert retried == []


@pytest.mark.parametrize(
    "error", [Ignore(), Retry("own"), KeyError("excluded")], ids=lambda error: type(error).__name__
)
def test_what_ends_a_task_or_is_excluded_is_never_retried(error):
    task = FakeTask(raising(error), autoretry_for=(Exception,), dont_autoretry_for=(LookupError,))
    raised, retried = retries_of(task)
    assert raised is error
    assert retried == []


@pytest.mark.parametrize(
    ("backoff", "retries", "countdown"),
    [(True, 0, 1), (True, 3, 8), (3, 2, 12), (2.7, 1, 4), (0.5, 2, 4), (3, 30, 100)],
)
def test_the_delay_doubles_with_each_retry_up_to_its_bound(backoff, retries, countdown):
    task = FakeTask(raising(OSError()))
    task.request.retries = retries
    _, retried = retries_of(
        task, autoretry_for=(OSError,), retry_backoff=backoff, retry_backoff_max=100, retry_jitter=False
    )
    assert retried[0]["countdown"] == countdown


def test_jitter_keeps_the_delay_within_its_bound():
    task = FakeTask(raising(OSError()))
    task.request.retries = 5
    _, retried = retries_of(task, autoretry_for=(OSError,), retry_backoff=1)
    assert 0 <= retried[0]["countdown"] <= 32


def test_arguments_of_retry_are_passed_on_and_never_changed():
    given = {"max_retries": 5, "countdown": 9}
    _, retried = retries_of(FakeTask(raising(OSError())), autoretry_for=(OSError,), retry_kwargs=given)
    assert retried[0]["max_retries"] == 5
    assert retried[0]["countdown"] == 9

    retries_of(FakeTask(raising(OSError())), autoretry_for=(OSError,), retry_kwargs=given, retry_backoff=1)
    assert given == {"max_retries": 5, "countdown": 9}


def test_a_limit_the_task_set_for_itself_wins():
    task = FakeTask(raising(OSError()), override_max_retries=77)
    _, retried = retries_of(task, autoretry_for=(OSError,), retry_kwargs={"max_retries": 1})
    assert retried[0]["max_retries"] == 77


def test_options_may_stand_on_the_class():
    class Base(FakeTask):
        autoretry_for = (OSError,)
        retry_kwargs = {"max_retries": 2}

    _, retried = retries_of(Base(raising(OSError())))
    assert retried[0]["max_retries"] == 2


def test_wrapping_twice_retries_once():
    task = FakeTask(raising(OSError()))
    add_autoretry_behaviour(task, autoretry_for=(OSError,))
    _, retried = retries_of(task, autoretry_for=(OSError,))
    assert len(retried) == 1


def test_a_task_without_the_option_is_left_alone():
    body = raising(OSError())
    task = FakeTask(body)
    add_autoretry_behaviour(task)
    assert task.run is body


def test_results_and_the_face_of_the_body_are_kept():
    def body(x):
        """Doubles."""
        return x * 2

    task = FakeTask(body)
    add_autoretry_behaviour(task, autoretry_for=(OSError,))
    assert task.run(4) == 8
    assert task.run.__doc__ == "Doubles."


def test_coroutines_are_retried_when_they_fail_while_awaited():
    async def body():
        await asyncio.sleep(0)
        raise OSError

    task = FakeTask(body)
    add_autoretry_behaviour(task, autoretry_for=(OSError,))
    coroutine = task.run()
    assert task.retried == []
    with pytest.raises(Retry):
        asyncio.run(coroutine)
    assert len(task.retried) == 1
