"""Calls are checked against the function by counting, and refused in Python's own words."""

from __future__ import annotations

import functools
import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_clone.app.arguments import checker


def add(x, y, *, z=3): ...


def default(x, y=2, *rest): ...


def positional(a, b, /, c, *, d, **more): ...


def anything(*args, **kwargs): ...


def nothing(): ...


def keywords(*, a, b=1): ...


def many(a, b=1, c=2, /, d=3, *args, e, f=6): ...


FUNCTIONS = [add, default, positional, anything, nothing, keywords, many]
NAMES = ["a", "b", "c", "d", "e", "f", "x", "y", "z", "q"]


def complaint_of(fun, args, kwargs):
    try:
        fun(*args, **kwargs)
    except TypeError as error:
        return str(error)
    return None


@given(
    fun=st.sampled_from(FUNCTIONS),
    args=st.lists(st.integers(), max_size=6),
    kwargs=st.dictionaries(st.sampled_from(NAMES), st.integers(), max_size=5),
)
def test_the_answer_is_that_of_calling_the_function_word_for_word(fun, args, kwargs):
    assert complaint_of(checker(fun), args, kwargs) == complaint_of(fun, args, kwargs)


@given(
    fun=st.sampled_from([add, default, positional, anything, many]),
    args=st.lists(st.integers(), max_size=6),
    kwargs=st.dictionaries(st.sampled_from(NAMES), st.integers(), max_size=5),
)
def test_bound_functions_are_accepted_as_they_would_be_with_self_in_front(fun, args, kwargs):
    first = next(iter(inspect.signature(fun).parameters))
    if first in kwargs and fun not in (anything, positional, many):
        return  # the task could not be called so at all
    accepts = complaint_of(checker(fun, bound=True), args, kwargs) is None
    assert accepts == (complaint_of(fun, [None, *args], kwargs) is None)


def test_bound_functions_are_complained_of_without_self():
    def task(self, x, y=3): ...

    check = checker(task, bound=True)
    check(1)
    check(1, y=2)
    where = task.__qualname__
    assert complaint_of(check, (), {}) == f"{where}() missing 1 required positional argument: 'x'"
    assert (
        complaint_of(check, (1, 2, 3), {})
        == f"{where}() takes from 1 to 2 positional arguments but 3 were given"
    )


def test_a_bound_function_with_one_default_keeps_it():
    def task(self=None): ...

    checker(task, bound=True)()
    with pytest.raises(TypeError, match="takes 0 positional arguments but 1 was given"):
        checker(task, bound=True)(1)


def test_what_wraps_a_function_counts_and_not_what_is_wrapped():
    @functools.wraps(add)
    def wrapper(*args, **kwargs): ...

    checker(wrapper)(1, 2, 3, 4, anything=5)


def test_objects_with_a_call_method_are_checked_by_it():
    class Adder:
        def __call__(self, x, y=1): ...

    check = checker(Adder())
    check(1)
    with pytest.raises(TypeError, match="Adder.*missing 1 required positional argument: 'x'"):
        check()


def test_partials_are_checked_by_what_is_left_to_give():
    check = checker(functools.partial(add, 1))
    check(2)
    with pytest.raises(TypeError):
        check(2, 3)


def test_functions_that_do_not_tell_their_parameters_take_anything():
    checker(dict)(1, 2, 3)
    checker(type)(1, 2, 3, 4)


def test_the_function_itself_is_never_called():
    calls = []

    def task(x):
        calls.append(x)

    check = checker(task)
    check(1)
    with pytest.raises(TypeError):
        check()
    assert calls == []


def test_classes_are_checked_by_what_makes_an_instance():
    class Job:
        def __init__(self, x): ...

    checker(Job)(1)
    with pytest.raises(TypeError):
        checker(Job)()
