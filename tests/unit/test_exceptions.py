"""Errors: their texts, their attributes, and that they cross a process boundary."""

from __future__ import annotations

import copy
import pickle
from datetime import datetime, timezone

import billiard.exceptions
import click
import kombu.exceptions
import pytest

from celery_clone import exceptions


class Unpicklable(Exception):
    def __reduce__(self):
        raise TypeError("cannot pickle a socket")


class Unprintable(Exception):
    def __repr__(self):
        raise RuntimeError("no words")


def test_every_public_name_is_there():
    for name in exceptions.__all__:
        assert getattr(exceptions, name) is not None
    assert set(exceptions.__all__) <= set(dir(exceptions))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        exceptions.Nonsense  # noqa: B018


@pytest.mark.parametrize(
    "name", ["SoftTimeLimitExceeded", "TimeLimitExceeded", "WorkerLostError", "Terminated"]
)
def test_errors_of_billiard_are_the_very_same_classes(name):
    assert getattr(exceptions, name) is getattr(billiard.exceptions, name)


def test_the_operational_error_is_that_of_kombu():
    assert exceptions.OperationalError is kombu.exceptions.OperationalError


def test_old_names_are_the_same_classes():
    assert exceptions.RetryTaskError is exceptions.Retry
    assert exceptions.SystemTerminate is exceptions.WorkerTerminate


# -- Retry


def test_a_retry_tells_its_message_first():
    assert str(exceptions.Retry("later", ValueError("x"), 10)) == "later"


@pytest.mark.parametrize(
    ("when", "text"),
    [
        (10, "Retry in 10s: ValueError('x')"),
        (1.5, "Retry in 1.5s: ValueError('x')"),
        (
            datetime(2030, 1, 1, tzinfo=timezone.utc),
            "Retry at 2030-01-01 00:00:00+00:00: ValueError('x')",
        ),
    ],
)
def test_a_retry_without_message_tells_when_and_why(when, text):
    assert str(exceptions.Retry(exc=ValueError("x"), when=when)) == text


def test_a_retry_without_cause_tells_when():
    assert str(exceptions.Retry(when=3)) == "Retry in 3s"


def test_a_retry_keeps_its_cause_and_the_repr_of_it():
    cause = KeyError("k")
    retry = exceptions.Retry(exc=cause, when=1, is_eager=True, sig="signature")
    assert retry.exc is cause
    assert retry.excs == "KeyError('k')"
    assert retry.is_eager is True
    assert retry.sig == "signature"


def test_the_cause_of_a_retry_may_be_given_as_text():
    retry = exceptions.Retry(exc="ValueError('x')", when=1)
    assert retry.exc is None
    assert str(retry) == "Retry in 1s: ValueError('x')"


def test_a_falsy_cause_is_still_a_cause():
    class Empty(Exception):
        def __len__(self):
            return 0

    assert exceptions.Retry(exc=Empty(), when=1).excs == "Empty()"


def test_a_retry_of_an_unprintable_error_can_be_printed():
    assert "Unprintable" in str(exceptions.Retry(exc=Unprintable(), when=1))


def test_a_retry_survives_pickling():
    again = pickle.loads(pickle.dumps(exceptions.Retry("later", ValueError("x"), 10)))
    assert (again.message, again.when, again.excs) == ("later", 10, "ValueError('x')")
    assert isinstance(again.exc, ValueError)


def test_a_retry_whose_cause_cannot_be_pickled_survives_with_its_text():
    again = pickle.loads(pickle.dumps(exceptions.Retry(exc=Unpicklable("boom"), when=10)))
    assert again.exc is None
    assert again.excs == "Unpicklable('boom')"
    assert str(again) == "Retry in 10s: Unpicklable('boom')"


def test_a_retry_takes_no_unknown_arguments():
    with pytest.raises(TypeError):
        exceptions.Retry("later", nonsense=1)


# -- others with arguments


def test_a_reject_tells_its_reason_and_whether_it_requeues():
    reject = exceptions.Reject("no disk", requeue=True)
    assert repr(reject) == "reject requeue=True: no disk"
    again = pickle.loads(pickle.dumps(reject))
    assert (again.reason, again.requeue) == ("no disk", True)


def test_not_registered_is_a_key_error_that_names_the_task():
    error = exceptions.NotRegistered("proj.add")
    assert isinstance(error, KeyError)
    assert repr(error) == "Task of kind 'proj.add' never registered, please make sure it's imported."


def test_max_retries_exceeded_keeps_the_arguments_of_the_task():
    error = exceptions.MaxRetriesExceededError("too often", task_args=(1,), task_kwargs={"a": 2})
    assert str(error) == "too often"
    again = pickle.loads(pickle.dumps(error))
    assert (again.task_args, again.task_kwargs) == ((1,), {"a": 2})


def test_max_retries_exceeded_without_arguments_has_empty_ones():
    error = exceptions.MaxRetriesExceededError()
    assert (error.task_args, error.task_kwargs) == ([], {})


def test_store_errors_name_the_task_and_the_state():
    store = exceptions.BackendStoreError("down", state="SUCCESS", task_id="id1")
    assert repr(store) == "BackendStoreError('down') state:SUCCESS task_id:id1"
    read = exceptions.BackendGetMetaError("down", task_id="id1")
    assert repr(read) == "BackendGetMetaError('down') task_id:id1"
    assert copy.copy(store).task_id == "id1"
    assert pickle.loads(pickle.dumps(read)).task_id == "id1"


def test_a_command_error_is_one_of_click_and_ends_with_its_exit_code():
    error = exceptions.CeleryCommandException("no such thing", exit_code=71)
    assert isinstance(error, click.ClickException)
    assert error.format_message() == "no such thing"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is exceptions.CeleryCommandException
    assert (again.message, again.exit_code) == ("no such thing", 71)


def test_a_worker_that_shall_end_is_not_stopped_by_except_exception():
    for cls in (exceptions.WorkerShutdown, exceptions.WorkerTerminate):
        assert issubclass(cls, SystemExit)
        assert not issubclass(cls, Exception)


@pytest.mark.parametrize("given", [None, "keep"])
def test_reraise_raises_the_value_with_the_given_traceback(given):
    try:
        raise ValueError("x")
    except ValueError as error:
        original, traceback = error, error.__traceback__
    with pytest.raises(ValueError, match="x") as caught:
        exceptions.reraise(ValueError, original, traceback if given else None)
    assert caught.value is original
    depth = 0
    step = caught.value.__traceback__
    while step is not None:
        depth, step = depth + 1, step.tb_next
    assert depth == (3 if given else 2)


PICKLABLE = sorted(set(exceptions.__all__) - {"CeleryCommandException", "TimeLimitExceeded", "reraise"})


@pytest.mark.parametrize("name", PICKLABLE)
def test_every_error_survives_pickling(name):
    cls = getattr(exceptions, name)
    again = pickle.loads(pickle.dumps(cls("text")))
    assert type(again) is cls
    assert "text" in str(again)
