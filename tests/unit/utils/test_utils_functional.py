"""Lazy values, caches, iterables and the shape of functions."""

from __future__ import annotations

import copy
import json
import operator
import pickle
from functools import partial, wraps

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils.functional import lazy as kombu_lazy
from vine import promise

from celery_clone.utils.functional import (
    DummyContext,
    LRUCache,
    arity_greater,
    chunks,
    dictfilter,
    first,
    firstmethod,
    fun_accepts_kwargs,
    fun_takes_argument,
    head_from_fun,
    is_list,
    is_numeric_value,
    lazy,
    lookahead,
    mattrgetter,
    maybe,
    maybe_evaluate,
    maybe_list,
    memoize,
    mlazy,
    noop,
    padlist,
    pass1,
    regen,
    seq_concat_item,
    seq_concat_seq,
    uniq,
)

# -- values that are not there yet


def test_a_lazy_value_is_computed_anew_each_time():
    numbers = iter(range(10))
    value = lazy(next, numbers)
    assert (value(), value.evaluate(), str(value), repr(value)) == (0, 1, "2", "3")
    assert value == 4
    assert value != 4


def test_a_memoized_lazy_value_is_computed_once():
    numbers = iter(range(10))
    value = mlazy(next, numbers)
    assert not value.evaluated
    assert (value(), value()) == (0, 0)
    assert value.evaluated


def test_lazy_values_survive_copying_and_pickling():
    value = lazy(max, 1, 2, key=abs)
    assert copy.deepcopy(value) is value
    assert pickle.loads(pickle.dumps(value))() == 2


def test_only_lazy_values_are_evaluated_kombus_included():
    assert maybe_evaluate(lazy(lambda: 1)) == 1
    assert maybe_evaluate(mlazy(lambda: 2)) == 2
    assert maybe_evaluate(kombu_lazy(lambda: 3)) == 3
    assert maybe_evaluate(len) is len


# -- caches


def test_the_least_recently_used_key_is_dropped():
    cache = LRUCache(limit=2)
    cache["a"], cache["b"] = 1, 2
    assert cache["a"] == 1
    cache["c"] = 3
    assert dict(cache.items()) == {"a": 1, "c": 3}
    assert "b" not in cache


def test_overwriting_a_key_drops_none():
    cache = LRUCache(limit=2)
    cache.update(a=1, b=2)
    cache["b"] = 3
    assert dict(cache.items()) == {"a": 1, "b": 3}


def test_update_keeps_the_bound_and_none_means_no_bound():
    bounded, unbounded = LRUCache(limit=3), LRUCache()
    for cache in (bounded, unbounded):
        cache.update({number: number for number in range(10)})
    assert list(bounded) == [7, 8, 9]
    assert len(unbounded) == 10


def test_iterating_goes_over_a_snapshot():
    cache = LRUCache()
    cache.update(a=1, b=2)
    for view in (cache.items(), cache.values(), iter(cache), cache.iteritems(), cache.itervalues()):
        seen = []
        for each in view:
            cache[each] = each
            seen.append(each)
        assert len(seen) >= 2
    assert set(cache.keys()) >= {"a", "b"}
    assert cache.iterkeys() == cache.keys()


def test_popitem_takes_the_newest_or_the_oldest():
    cache = LRUCache()
    cache.update(a=1, b=2, c=3)
    assert cache.popitem() == ("c", 3)
    assert cache.popitem(last=False) == ("a", 1)


def test_a_number_kept_as_text_can_be_increased():
    cache = LRUCache(limit=2)
    cache["hits"] = "7"
    assert cache.incr("hits") == 8
    assert cache.incr("hits", 10) == 18
    assert cache["hits"] == "18"
    with pytest.raises(KeyError):
        cache.incr("misses")


def test_a_cache_survives_pickling():
    cache = LRUCache(limit=2)
    cache.update(a=1)
    again = pickle.loads(pickle.dumps(cache))
    again.update(b=2, c=3)
    assert list(again) == ["b", "c"]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5))), st.integers(1, 4))
def test_a_cache_holds_exactly_the_keys_used_last(uses, limit):
    cache, recent = LRUCache(limit=limit), []
    for write, key in uses:
        if write:
            if key not in recent:
                recent = recent[-limit + 1 :] if limit > 1 else []
                recent.append(key)
            cache[key] = key
        elif key in recent:
            recent.remove(key)
            recent.append(key)
            assert cache[key] == key
    assert set(cache) == set(recent)


def test_a_memoized_function_is_called_once_for_equal_arguments():
    calls = []

    @memoize()
    def add(x, y=0):
        """Adds."""
        calls.append((x, y))
        return x + y

    assert [add(1), add(1), add(1, y=2), add(1, y=2)] == [1, 1, 3, 3]
    assert calls == [(1, 0), (1, 2)]
    assert (add.hits, add.misses, add.__doc__) == (2, 2, "Adds.")
    assert add.original_func(1) == 1
    add.clear()
    assert (add(1), add.hits, add.misses) == (1, 0, 1)


def test_a_memoized_function_remembers_so_many_results():
    square = memoize(maxsize=1)(lambda x: x * x)
    assert [square(2), square(3), square(2)] == [4, 9, 4]
    assert square.misses == 3


def test_the_key_of_a_call_may_be_made_otherwise():
    absolute = memoize(keyfun=lambda args, kwargs: abs(args[0]))(lambda x: x)
    assert [absolute(-3), absolute(3)] == [-3, -3]


# -- iterables and mappings


@pytest.mark.parametrize(
    ("value", "listed"),
    [(None, None), ("text", ["text"]), ({"a": 1}, [{"a": 1}]), (3, [3]), ([1], [1]), ((1, 2), (1, 2))],
)
def test_a_single_value_is_put_into_a_list(value, listed):
    assert maybe_list(value) == listed


def test_what_counts_as_a_list_may_be_told():
    assert is_list([1])
    assert is_list(iter("ab"))
    assert not is_list("ab")
    assert is_list("ab", scalars=())
    assert not is_list((1,), iters=(list,))


def test_values_that_are_none_are_left_out():
    assert dictfilter({"a": 1, "b": None}, c=2, e=None) == {"a": 1, "c": 2}
    assert dictfilter(a=None, b=0) == {"b": 0}
    assert dictfilter({}) == {}


def test_the_first_accepted_value_is_found_promises_being_called():
    assert first(lambda value: value > 2, [1, 2, 3, 4]) == 3
    assert first(None, [None, 0, 1]) == 0
    assert first(None, [None]) is None
    assert first(lambda value: value == 7, [1, promise(lambda: 7)]) == 7


def test_the_first_answer_of_several_objects_is_taken():
    class Silent:
        def route(self, *args, **kwargs):
            return None

    class Speaking:
        def route(self, task, queue=None):
            return task, queue

    ask = firstmethod("route")
    assert ask([object(), Silent(), mlazy(Speaking)], "add", queue="q") == ("add", "q")
    assert ask([Silent()], "add") is None
    shout = firstmethod("route", lambda bound, task: bound(task.upper()))
    assert shout([Speaking()], "add") == ("ADD", None)


def test_chunks_are_of_equal_length_but_the_last():
    assert list(chunks(iter(range(7)), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(chunks(iter([]), 3)) == []


def test_a_list_is_filled_up_or_cut():
    assert padlist(["a"], 3) == ["a", None, None]
    assert padlist(["a", "b"], 3, default="-") == ["a", "b", "-"]
    assert padlist(iter("abcd"), 2) == ["a", "b"]


def test_attributes_are_read_missing_ones_as_none():
    assert mattrgetter("real", "nonsense")(7) == {"real": 7, "nonsense": None}


def test_each_item_is_given_once_in_order():
    assert list(uniq([3, 1, 3, 2, 1])) == [3, 1, 2]


@pytest.mark.parametrize("items", [[], [1], [1, 2, 3]], ids=str)
def test_each_item_comes_with_the_one_after_it(items):
    following = [*items[1:], None] if items else []
    assert list(lookahead(iter(items))) == list(zip(items, following, strict=True))


def test_an_item_is_appended_to_a_copy_of_the_same_type():
    assert seq_concat_item((1,), 2) == (1, 2)
    assert seq_concat_item([1], 2) == [1, 2]


@pytest.mark.parametrize(
    ("left", "right", "joined"),
    [((1, 2), [3], (1, 2, 3)), ([1], (2, 3), (1, 2, 3)), ([1], (2,), [1, 2]), ([1, 2], (3,), [1, 2, 3])],
)
def test_joined_sequences_have_the_type_of_the_longer(left, right, joined):
    assert seq_concat_seq(left, right) == joined


# -- regen


class Source:
    """Counts up and remembers how far it was asked."""

    def __init__(self, length):
        self.given = 0
        self.length = length

    def __iter__(self):
        while self.given < self.length:
            self.given += 1
            yield self.given - 1


def test_lists_and_tuples_stay_what_they_are():
    for sequence in ([1], (1,)):
        assert regen(sequence) is sequence


def test_a_generator_can_be_read_many_times():
    numbers = regen(number for number in range(3))
    assert list(numbers) == list(numbers) == [0, 1, 2]
    assert isinstance(numbers, list)


def test_a_generator_is_read_no_further_than_needed():
    source = Source(10)
    numbers = regen(source)
    assert source.given == 0
    assert bool(numbers)
    assert numbers[0] == 0
    assert source.given == 1
    assert numbers[3] == 3
    assert source.given == 4
    iterator = iter(numbers)
    assert [next(iterator) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert source.given == 5
    assert len(numbers) == 10


def test_an_empty_generator_is_false():
    assert not regen(iter([]))


def test_its_repr_shows_what_was_read_and_that_there_is_more():
    numbers = regen(iter(range(3)))
    assert repr(numbers) == "<_regen: [...]>"
    assert numbers[1] == 1
    assert repr(numbers) == "<_regen: [0, 1...]>"
    assert list(numbers)
    assert repr(numbers) == "<_regen: [0, 1, 2]>"


def test_an_index_beyond_the_end_is_an_index_error():
    with pytest.raises(IndexError):
        regen(iter(range(3)))[3]
    with pytest.raises(TypeError):
        regen(iter(range(3)))["1"]


def test_two_iterations_and_a_length_may_be_interleaved():
    numbers = regen(iter(range(4)))
    pairs = []
    for one in numbers:
        for two in numbers:
            pairs.append((one, two))
        assert len(numbers) == 4
    assert pairs == [(one, two) for one in range(4) for two in range(4)]


def test_mapping_turns_what_was_read_and_what_is_to_come():
    source = Source(3)
    numbers = regen(source)
    assert numbers[0] == 0
    numbers.map(lambda number: number * 10)
    assert source.given == 1
    assert list(numbers) == [0, 10, 20]
    numbers.map(str)
    assert numbers == ["0", "10", "20"]


def test_it_is_serialised_whole_before_anybody_read_it():
    assert json.dumps(regen(iter(range(3)))) == "[0, 1, 2]"
    assert pickle.loads(pickle.dumps(regen(iter(range(3))))) == [0, 1, 2]
    assert copy.deepcopy(regen(iter(range(3)))) == [0, 1, 2]
    assert copy.copy(regen(iter(range(3)))) == [0, 1, 2]


def test_the_length_can_be_estimated_without_reading():
    source = Source(3)
    assert regen(iter([1, 2, 3])).__length_hint__() == 3
    assert regen(source).__length_hint__() == 0
    assert source.given == 0


def test_data_is_a_plain_list():
    assert type(regen(iter([1])).data) is list


READERS = {
    "len": len,
    "sum": sum,
    "reversed": lambda items: list(reversed(items)),
    "contains": lambda items: 2 in items,
    "slice": lambda items: items[1:],
    "negative index": lambda items: items[-1],
    "equal": lambda items: items == [0, 1, 2],
    "unequal": lambda items: items != [0, 1, 2],
    "greater": lambda items: items > [0],
    "add": lambda items: items + [3],
    "add on the right": lambda items: [3] + items,
    "times": lambda items: items * 2,
    "times on the right": lambda items: 2 * items,
    "tuple": tuple,
    "star": lambda items: [*items],
    "index": lambda items: items.index(2),
    "count": lambda items: items.count(1),
    "copy": lambda items: items.copy(),
    "pop": lambda items: (items.pop(), list(items)),
    "append": lambda items: (items.append(9), list(items)),
    "insert": lambda items: (items.insert(0, 9), list(items)),
    "extend": lambda items: (items.extend([9]), list(items)),
    "remove": lambda items: (items.remove(1), list(items)),
    "reverse": lambda items: (items.reverse(), list(items)),
    "sort": lambda items: (items.sort(key=lambda item: -item), list(items)),
    "clear": lambda items: (items.clear(), list(items)),
    "set item": lambda items: (operator.setitem(items, 0, 9), list(items)),
    "delete item": lambda items: (operator.delitem(items, 0), list(items)),
    "extend in place": lambda items: list(operator.iadd(items, [9])),
    "repeat in place": lambda items: list(operator.imul(items, 2)),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())
@pytest.mark.parametrize("read_before", [0, 1, 3])
def test_whatever_is_done_with_it_is_what_a_list_would_do(read, read_before):
    numbers = regen(iter(range(3)))
    for _ in zip(range(read_before), numbers, strict=False):
        pass
    assert read(numbers) == read([0, 1, 2])


A_READ = st.one_of(st.integers(-4, 4), st.slices(6), st.sampled_from(["iterate", "bool", "len"]))


@given(st.lists(st.integers()), st.lists(A_READ, max_size=8))
def test_in_any_order_of_reading_it_gives_what_the_list_gives(items, reads):
    lazily = regen(iter(items))
    for read in reads:
        if read == "iterate":
            assert list(lazily) == items
        elif read == "bool":
            assert bool(lazily) is bool(items)
        elif read == "len":
            assert len(lazily) == len(items)
        elif isinstance(read, slice) or -len(items) <= read < len(items):
            assert lazily[read] == items[read]
        else:
            with pytest.raises(IndexError):
                lazily[read]
    assert lazily == items


# -- functions


def test_small_functions():
    assert noop(1, a=2) is None
    assert pass1(1, 2, a=3) == 1
    assert maybe(int, "7") == 7
    assert maybe(int, None) is None
    assert [value for value in (1, 1.5, True, "1", None) if is_numeric_value(value)] == [1, 1.5]
    with DummyContext() as context:
        assert isinstance(context, DummyContext)


def two(a, b=None):
    """Takes two."""


def anything(*args, **kwargs):
    """Takes anything."""


def test_how_many_arguments_a_function_takes():
    assert arity_greater(two, 1)
    assert not arity_greater(two, 2)
    assert arity_greater(anything, 9)


def test_which_arguments_a_function_takes():
    assert fun_takes_argument("b", two)
    assert not fun_takes_argument("c", two)
    assert fun_takes_argument("c", anything)
    assert fun_takes_argument("x", two, position=2)
    assert not fun_takes_argument("x", two, position=3)


class Callable:
    def __call__(self, a, **kwargs):
        """Takes keywords."""

    def method(self, a):
        """Takes none."""


@pytest.mark.parametrize(
    ("function", "accepts"),
    [
        (two, False),
        (anything, True),
        (lambda *args: None, False),
        (Callable(), True),
        (Callable().method, False),
        (partial(anything, 1), True),
        (partial(two, 1), False),
    ],
)
def test_whether_a_function_takes_arbitrary_keywords(function, accepts):
    assert fun_accepts_kwargs(function) is accepts


def many(a, b=1, *args, c, d=2, **kwargs):
    """Takes many."""


def positional_only(a, b=1, /, c=2):
    """Takes some by position."""


def keyword_only(*, a, b=1):
    """Takes keywords."""


def annotated(a: NotThere = None) -> NotThere:  # noqa: F821
    """Its annotations cannot be evaluated."""


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "fits"),
    [
        (two, (1,), {}, True),
        (two, (1, 2), {}, True),
        (two, (), {}, False),
        (two, (1, 2, 3), {}, False),
        (two, (1,), {"nonsense": 1}, False),
        (two, (1,), {"a": 1}, False),
        (anything, (1, 2, 3), {"x": 1}, True),
        (many, (1,), {"c": 1}, True),
        (many, (1,), {}, False),
        (many, (1, 2, 3, 4), {"c": 1, "x": 1}, True),
        (positional_only, (1,), {"c": 3}, True),
        (positional_only, (1,), {"b": 3}, False),
        (keyword_only, (), {"a": 1}, True),
        (keyword_only, (1,), {"a": 1}, False),
        (annotated, (1,), {}, True),
        (lambda x: x, (1,), {}, True),
        (lambda x: x, (), {}, False),
    ],
)
def test_the_head_of_a_function_takes_what_the_function_takes(function, args, kwargs, fits):
    head = head_from_fun(function)
    if fits:
        head(*args, **kwargs)
    else:
        with pytest.raises(TypeError) as ours:
            head(*args, **kwargs)
        with pytest.raises(TypeError) as python:
            function(*args, **kwargs)
        assert str(ours.value) == str(python.value).rpartition(".")[2]


def test_a_default_value_need_not_be_writable_as_source():
    head = head_from_fun(lambda x=object(): x)  # noqa: B008
    head()
    head(1)


def test_a_bound_head_has_its_first_argument():
    head = head_from_fun(two, bound=True)
    head()
    head(1)
    with pytest.raises(TypeError):
        head(1, 2)


def test_the_head_of_an_object_is_that_of_its_call():
    head = head_from_fun(Callable())
    head(object(), 1, x=2)
    with pytest.raises(TypeError, match="Callable"):
        head(object())


def test_the_head_of_a_wrapper_is_that_of_the_wrapper():
    @wraps(two)
    def wrapper(*args, **kwargs):
        return two(*args, **kwargs)

    head_from_fun(wrapper)(1, 2, 3)
