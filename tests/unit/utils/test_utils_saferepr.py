"""Bounded texts: equal to what Celery writes, never raising, never walking too far."""

from __future__ import annotations

from collections import OrderedDict, deque, namedtuple
from datetime import datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as some

from celery_clone.utils.saferepr import reprstream, saferepr

Point = namedtuple("Point", "x y")


class Tags(frozenset):
    """A set of somebody's own."""


class Silent:
    """Cannot be shown."""

    def __repr__(self):
        raise ValueError("no")


class Counted(list):
    """Tells how far it was walked."""

    walked = 0

    def __iter__(self):
        for item in super().__iter__():
            self.walked += 1
            yield item


# Right-hand sides were printed by Celery 5.7.0.
@pytest.mark.parametrize(
    ("value", "text"),
    [
        ((), "()"),
        ({}, "{}"),
        ([], "[]"),
        (set(), "set()"),
        (frozenset(), "frozenset()"),
        ((2, 2), "(2, 2)"),
        ((1,), "(1,)"),
        (("it's",), "('it\\'s',)"),
        (("line\nbreak",), "('line\nbreak',)"),
        (({"a": [1, None, True]}, 1.5), "({'a': [1, None, True]}, 1.5)"),
        ({"x": b"bytes", 3: "y"}, "{'x': b'bytes', 3: 'y'}"),
        (b"\xff\x00", "b'ff00'"),
        ({1}, "{1}"),
        (frozenset({1}), "frozenset({1})"),
        (Tags({2}), "Tags({2})"),
        (Point(1, "b"), "(1, 'b')"),
        (OrderedDict(a=1), "{'a': 1}"),
        (range(3), "range(0, 3)"),
        (Decimal("1.50"), "Decimal('1.50')"),
        (3 + 4j, "(3+4j)"),
        (datetime(2020, 1, 2), "datetime.datetime(2020, 1, 2, 0, 0)"),
        ([timedelta(3)], "[datetime.timedelta(days=3)]"),
        ([[[[1]]]], "[[[[...]]]]"),
        ({"a": {"b": {"c": {}}}}, "{'a': {'b': {'c': {...}}}}"),
        (int, "<class 'int'>"),
    ],
    ids=repr,
)
def test_ordinary_values_read_as_in_celery(value, text):
    assert saferepr(value) == text
    assert saferepr(value, maxlen=1024) == text


@pytest.mark.parametrize(
    ("value", "maxlen", "text"),
    [
        (list(range(10)), 10, "[0, 1, 2, , ...]"),
        ([1, [2, [3, 4]], 5], 10, "[1, [2, [3..., ...]]]"),
        ("a long text of words", 10, "'a long...'"),
        (b"0123456789", 4, "b'0123...'"),
        ({"key": "value", "other": "x" * 50}, 20, "{'key': 'value', 'oth...', ...}"),
        ((1, 2), 6, "(1, 2)"),
        ([[]], 0, ", ..."),
    ],
    ids=repr,
)
def test_a_text_that_is_cut_closes_what_it_opened(value, maxlen, text):
    assert saferepr(value, maxlen=maxlen) == text


def test_the_number_of_levels_can_be_chosen():
    value = [[[[["deep"]]]]]
    assert saferepr(value, maxlevels=1) == "[[...]]"
    assert saferepr(value, maxlevels=0) == "[[[[['deep']]]]]"


def test_a_value_that_holds_itself_is_shown_once():
    value = [1]
    value.append(value)
    assert saferepr(value, maxlevels=9) == f"[1, <Recursion on list with id={id(value)}>]"


def test_a_value_met_twice_side_by_side_is_shown_twice():
    twin = {"a": 1}
    assert saferepr([twin, twin]) == "[{'a': 1}, {'a': 1}]"


def test_depth_without_limit_needs_no_stack():
    value = []
    for _ in range(5000):
        value = [value]
    assert saferepr(value, maxlen=100, maxlevels=0).startswith("[[[[")


def test_no_more_is_walked_than_is_shown():
    endless = Counted(range(1_000_000))
    saferepr((endless,), maxlen=50)
    assert endless.walked < 60


def test_an_object_that_cannot_be_shown_is_named():
    text = saferepr([Silent(), 1])
    assert "Unrepresentable" in text
    assert "Silent" in text
    assert "ValueError('no')" in text


def test_a_number_too_long_for_python_is_no_error():
    assert "Unrepresentable" in saferepr((10**5000,)) or "1000" in saferepr((10**5000,))


def test_a_container_that_fails_while_it_is_walked_is_no_error():
    class Broken(list):
        def __iter__(self):
            yield 1
            raise RuntimeError("changed")

    assert "RuntimeError('changed')" in saferepr(Broken([1, 2]))


def test_tokens_are_made_one_at_a_time():
    tokens = reprstream(deque([iter([[1, 2, 3]])]))
    first, _ = next(tokens)
    second, _ = next(tokens)
    assert (first.value, second) == ("[", "1")


plain = some.recursive(
    some.none() | some.booleans() | some.integers() | some.text(max_size=20) | some.floats(),
    lambda inner: (
        some.lists(inner, max_size=4)
        | some.lists(inner, max_size=4).map(tuple)
        | some.dictionaries(some.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=15,
)


@given(plain, some.integers(min_value=1, max_value=200), some.integers(min_value=0, max_value=5))
def test_the_fast_way_and_the_long_way_agree(value, maxlen, maxlevels):
    # An identity that is "already shown" elsewhere turns the fast way off.
    assert saferepr(value, maxlen, maxlevels) == saferepr(value, maxlen, maxlevels, seen={-1})


@given(plain, some.integers(min_value=1, max_value=100))
def test_a_text_is_never_much_longer_than_asked(value, maxlen):
    brackets_and_dots = 40
    assert len(saferepr(value, maxlen)) <= 2 * maxlen + brackets_and_dots
