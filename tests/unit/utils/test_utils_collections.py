"""Layered mappings, bounded sets and bounded buffers."""

from __future__ import annotations

import copy
import pickle
import time
from collections.abc import Mapping, MutableMapping, MutableSet, Sequence
from queue import Empty

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_clone.utils.collections import (
    AttributeDict,
    BufferMap,
    ChainMap,
    ConfigurationView,
    DictAttribute,
    Evictable,
    LimitedSet,
    Messagebuffer,
    OrderedDict,
    force_mapping,
    lpmerge,
)


class Config:
    """An object whose attributes are settings."""

    broker_url = "redis://"


# -- attributes and keys


def test_items_of_an_attribute_dict_are_attributes():
    config = AttributeDict(a=1)
    config.b = 2
    assert (config.a, config["b"]) == (1, 2)
    with pytest.raises(AttributeError, match="'AttributeDict' object has no attribute 'c'"):
        config.c  # noqa: B018


def test_attributes_of_an_object_are_items():
    source = Config()
    mapping = DictAttribute(source)
    assert isinstance(mapping, MutableMapping)
    assert mapping["broker_url"] == mapping.broker_url == "redis://"
    assert "broker_url" in mapping
    assert mapping.get("nonsense") is None
    assert mapping.get("nonsense", 3) == 3
    with pytest.raises(KeyError):
        mapping["nonsense"]
    mapping["a"] = 1
    mapping.b = 2
    assert (source.a, source.b) == (1, 2)
    assert mapping.setdefault("a", 9) == 1
    assert mapping.setdefault("c", 3) == 3
    assert source.c == 3


def test_an_object_can_be_iterated_over_as_a_mapping():
    mapping = DictAttribute(Config())
    assert "broker_url" in list(mapping)
    assert list(mapping.keys()) == list(mapping)
    assert dict(mapping.items())["broker_url"] == "redis://"
    assert "redis://" in list(mapping.values())
    assert dict(mapping.iteritems()).keys() == set(mapping.iterkeys())


def test_any_object_can_be_had_as_a_mapping():
    given_mapping = {"a": 1}
    assert force_mapping(given_mapping) is given_mapping
    assert force_mapping(Config())["broker_url"] == "redis://"


def test_the_right_mapping_wins_unless_it_says_none():
    left = {"a": 1, "b": 2}
    assert lpmerge(left, {"a": None, "b": 3, "c": 4}) is left
    assert left == {"a": 1, "b": 3, "c": 4}


def test_an_ordered_dict_knows_its_oldest_key():
    ordered = OrderedDict(a=1, b=2)
    ordered.move_to_end("a")
    assert ordered._LRUkey() == "b"


# -- ChainMap


def test_a_key_is_looked_up_in_one_mapping_after_another_and_set_in_the_first():
    changes, low, lowest = {}, {"a": 1}, {"a": 0, "b": 0}
    chain = ChainMap(changes, low, lowest)
    assert (chain["a"], chain["b"]) == (1, 0)
    chain["b"] = 5
    assert changes == {"b": 5}
    assert (chain.changes, chain.defaults, chain.maps) == (changes, [low, lowest], [changes, low, lowest])
    with pytest.raises(KeyError):
        chain["c"]
    assert chain.get("c") is None
    assert chain.get("c", 3) == 3


def test_only_what_was_set_can_be_taken_out():
    chain = ChainMap({"a": 2}, {"a": 1, "b": 1})
    del chain["a"]
    assert chain["a"] == 1
    with pytest.raises(KeyError, match="Key not found in first mapping: 'a'"):
        del chain["a"]
    chain["b"] = 7
    assert chain.pop("b") == 7
    assert chain.pop("b", None) is None
    with pytest.raises(KeyError, match="Key not found in the first mapping: 'b'"):
        chain.pop("b")


def test_added_defaults_win_over_the_earlier_ones():
    chain = ChainMap({}, {"broker_url": "memory://"})
    chain.add_defaults(Config())
    assert chain["broker_url"] == "redis://"


def test_a_missing_key_may_be_made_up():
    class Counting(ChainMap):
        def __missing__(self, key):
            return 0

    assert Counting({})["any"] == 0


def test_keys_may_be_converted():
    chain = ChainMap({}, {"a": 1}, key_t=str.lower)
    assert chain["A"] == 1
    assert "A" in chain
    chain["B"] = 2
    assert chain.changes == {"b": 2}
    del chain["B"]
    assert chain.pop("B", "gone") == "gone"


def test_a_default_is_set_only_if_no_mapping_has_the_key():
    chain = ChainMap({}, {"a": 1})
    assert chain.setdefault("a", 2) == 1
    assert chain.setdefault("b", 2) == 2
    assert chain.changes == {"b": 2}


def test_what_is_updated_is_told_to_who_is_bound():
    chain, told = ChainMap({}), []
    for _ in range(2):
        chain.bind_to(lambda *args, **kwargs: told.append(dict(*args, **kwargs)))
    chain.update((key, 1) for key in "ab")
    chain.update({"c": 2}, d=3)
    assert told == [{"a": 1, "b": 1}] * 2 + [{"c": 2, "d": 3}] * 2
    assert chain.changes == {"a": 1, "b": 1, "c": 2, "d": 3}


def test_each_key_is_given_once_with_the_value_that_wins():
    chain = ChainMap({"a": 2}, {"a": 1, "b": 1})
    assert dict(chain.items()) == dict(chain.iteritems()) == {"a": 2, "b": 1}
    assert sorted(chain) == sorted(chain.keys()) == sorted(chain.iterkeys()) == ["a", "b"]
    assert sorted(chain.values()) == sorted(chain.itervalues()) == [1, 2]
    assert (len(chain), dict(chain)) == (2, {"a": 2, "b": 1})


def test_a_chain_is_false_if_all_its_mappings_are():
    assert not ChainMap()
    assert ChainMap({}, {"a": 1})


def test_clearing_takes_out_what_was_set():
    chain = ChainMap({"a": 2}, {"a": 1})
    chain.clear()
    assert chain["a"] == 1


def test_a_copy_has_changes_of_its_own():
    chain = ChainMap({"a": 1}, {"b": 1}, key_t=str.lower)
    copied = copy.copy(chain)
    copied["A"] = 2
    assert (chain["a"], copied["a"], copied["b"]) == (1, 2, 1)
    assert copied.maps[1] is chain.maps[1]


def test_a_chain_of_keys_with_one_value():
    assert dict(ChainMap.fromkeys("ab", 1)) == {"a": 1, "b": 1}


def test_its_repr_shows_all_mappings():
    assert repr(ChainMap({"a": 1}, {})) == "ChainMap({'a': 1}, {})"
    assert isinstance(ChainMap(), Mapping)


# -- ConfigurationView


@pytest.fixture
def view():
    return ConfigurationView(
        {"changed": 1, "both": 2},
        [{"default": 1, "both": 1}],
    )


def test_settings_are_items_and_attributes(view):
    assert (view.changed, view["default"], view.both) == (1, 1, 2)
    view.default = 5
    assert view.changes["default"] == 5
    assert view.defaults == [{"default": 1, "both": 1}]
    with pytest.raises(AttributeError, match="nonsense"):
        view.nonsense  # noqa: B018
    with pytest.raises(KeyError, match="nonsense"):
        view["nonsense"]
    assert view.get("nonsense", 3) == 3


def test_the_first_setting_that_is_not_none_is_found(view):
    view["nothing"] = None
    assert view.first("missing", "nothing", "both") == 2
    assert view.first("missing") is None


def test_a_prefix_may_be_left_out():
    view = ConfigurationView({"CELERY_TASK": 1, "plain": 2}, prefix="CELERY")
    assert view["task"] == view["CELERY_TASK"] == 1
    assert view["plain"] == 2
    assert "task" in view
    assert "other" not in view
    with pytest.raises(KeyError, match=r"Key not found: 'other' \(with prefix: 'CELERY_OTHER'\)"):
        view["other"]


def test_other_spellings_are_looked_for():
    view = ConfigurationView({"BROKER": 1}, [{"broker": 0}], keys=[str.upper])
    assert view["broker"] == 1
    assert "broker" in view


def test_clearing_settings_keeps_the_defaults(view):
    view.clear()
    assert (view["both"], "changed" in view) == (1, False)


def test_copied_settings_can_be_changed_alone(view):
    copied = copy.copy(view)
    copied.both = 9
    assert (view.both, copied.both, copied.default) == (2, 9, 1)


def test_settings_may_be_swapped_for_others(view):
    other = ConfigurationView({"new": 1}, [{"low": 2}], keys=[str.upper], prefix="x")
    view.swap_with(other)
    assert (view["new"], view["low"], "changed" in view) == (1, 2, False)
    assert view.changes is other.changes
    assert (view.prefix, len(view.maps)) == ("x_", 2)


# -- LimitedSet


def test_an_item_is_there_until_it_is_discarded():
    ids = LimitedSet()
    ids.add("a")
    ids.add("b")
    assert isinstance(ids, MutableSet)
    assert ("a" in ids, len(ids), list(ids)) == (True, 2, ["a", "b"])
    ids.discard("a")
    ids.discard("a")
    ids.pop_value("nonsense")
    assert list(ids) == ["b"]
    ids.clear()
    assert not ids
    assert ids.pop("none") == "none"


def test_the_oldest_items_make_way():
    ids = LimitedSet(maxlen=3)
    for number in range(5):
        ids.add(number)
    assert list(ids) == [2, 3, 4]


def test_an_item_that_is_added_again_is_young_again():
    ids = LimitedSet(maxlen=2)
    for item in ("a", "b", "a", "c"):
        ids.add(item)
    assert list(ids) == ["a", "c"]


def test_items_that_are_too_old_go_but_some_may_stay():
    ids = LimitedSet(maxlen=10, expires=5, minlen=2)
    for number in range(4):
        ids.add(number, now=float(number))
    ids.purge(now=6)
    assert list(ids) == [2, 3]
    ids.purge(now=lambda: 1000)
    assert list(ids) == [2, 3]


def test_without_a_minimum_all_old_items_go():
    ids = LimitedSet(expires=5)
    ids.add("old", now=time.monotonic() - 10)
    ids.add("new")
    ids.purge()
    assert list(ids) == ["new"]


def test_old_items_go_as_others_are_added_to_a_full_set():
    ids = LimitedSet(maxlen=3, expires=5)
    for item in "ab":
        ids.add(item, now=time.monotonic() - 10)
    ids.add("c")
    assert list(ids) == ["c"]


def test_impossible_bounds_are_refused():
    with pytest.raises(ValueError, match="minlen"):
        LimitedSet(maxlen=1, minlen=2)
    with pytest.raises(ValueError, match="minlen"):
        LimitedSet(minlen=-1)
    with pytest.raises(ValueError, match="expires"):
        LimitedSet(expires=-1)


def test_a_set_takes_over_another_with_its_times():
    one, two = LimitedSet(expires=10), LimitedSet(expires=10)
    one.add("young", now=100.0)
    two.add("old", now=50.0)
    two.add("oldest", now=40.0)
    one.update(two)
    assert list(one) == ["oldest", "old", "young"]
    assert one.as_dict() == {"oldest": 40.0, "old": 50.0, "young": 100.0}


def test_a_dict_is_taken_over_with_its_times_a_list_as_new():
    ids = LimitedSet(data={"a": 1.0, "b": [2.0, 7, "b"]})
    before = time.monotonic()
    ids.update(["c"])
    ids.update([])
    ids.update(None)
    times = ids.as_dict()
    assert (times["a"], times["b"]) == (1.0, 2.0)
    assert before <= times["c"] <= time.monotonic()


def test_what_is_no_time_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="Expecting float timestamp, got type <class 'str'>.*pass a list"):
        LimitedSet().update({"a": "yesterday"})


def test_a_set_survives_pickling_in_order():
    ids = LimitedSet(maxlen=10, expires=60, minlen=1)
    for item in "bca":
        ids.add(item, now=5.0)
    again = pickle.loads(pickle.dumps(ids))
    assert again == ids
    assert list(again) == ["b", "c", "a"]
    assert (again.maxlen, again.expires, again.minlen) == (10, 60, 1)
    assert ids != LimitedSet()
    assert ids != {"b", "c", "a"}


def test_items_need_not_be_comparable():
    ids = LimitedSet(maxlen=2)
    for item in (1, "a", None, (2,)):
        ids.add(item, now=1.0)
    assert list(ids) == [None, (2,)]


def test_its_repr_shows_its_bounds():
    assert repr(LimitedSet(maxlen=3, data=["a"])) == "<LimitedSet(1): maxlen=3, expires=0, minlen=0>"


def test_what_was_discarded_takes_no_room_for_long():
    ids = LimitedSet()
    for number in range(1000):
        ids.add(number)
        ids.discard(number - 3)
    assert len(ids) == 3
    assert len(ids._heap) < 20


@given(st.lists(st.tuples(st.sampled_from(["add", "discard", "pop"]), st.integers(0, 5), st.integers(0, 9))))
def test_it_always_holds_what_a_plain_model_holds(steps):
    ids, model = LimitedSet(maxlen=4), {}
    for number, (step, item, at) in enumerate(steps):
        if step == "add":
            ids.add(item, now=float(at))
            model[item] = (at, number)
            while len(model) > 4:
                del model[min(model, key=model.get)]
        elif step == "discard":
            ids.discard(item)
            model.pop(item, None)
        else:
            oldest = min(model, key=model.get, default=None)
            assert ids.pop() == oldest
            model.pop(oldest, None)
        assert list(ids) == sorted(model, key=model.get)


# -- buffers


def test_a_buffer_drops_its_oldest_items():
    buffer = Messagebuffer(3, iterable=[1])
    buffer.put(2)
    buffer.extend([3, 4])
    assert isinstance(buffer, Sequence)
    assert (len(buffer), buffer[0], 4 in buffer) == (3, 2, True)
    assert list(reversed(buffer)) == [4, 3, 2]
    assert repr(buffer) == "<Messagebuffer: 3/3>"


def test_items_are_taken_oldest_first():
    buffer = Messagebuffer(None, iterable=[1, 2])
    assert (buffer.take(), buffer.take(), buffer.take("none")) == (1, 2, "none")
    with pytest.raises(Empty):
        buffer.take()
    buffer.extend([3, 4])
    assert list(buffer) == [3, 4]
    assert len(buffer) == 0


def test_a_lowered_bound_holds_after_evicting():
    buffer = Messagebuffer(None, iterable=range(1000))
    buffer.maxsize = 2
    buffer.evict()
    assert list(buffer) == [998, 999]


def test_what_can_be_evicted_must_say_how():
    with pytest.raises(NotImplementedError, match="_evictcount"):
        Evictable()._evictcount  # noqa: B018
    with pytest.raises(NotImplementedError, match="_pop_to_evict"):
        Evictable()._pop_to_evict()


def test_each_key_has_a_buffer_of_its_own():
    buffers = BufferMap(None, iterable={"a": [1, 2]})
    buffers.put("b", 3)
    buffers.extend("a", [4])
    assert (buffers.total, buffers.take("a"), buffers.take("b")) == (4, 1, 3)
    assert buffers.take("b", "none") == "none"
    assert buffers.take("c", None) is None
    for key in ("b", "c"):
        with pytest.raises(BufferMap.Empty):
            buffers.take(key)
    assert repr(buffers) == "<BufferMap: 2/None>"


def test_the_buffer_of_one_key_is_bounded():
    buffers = BufferMap(None, bufmaxsize=2)
    buffers.extend("a", range(500))
    assert (buffers.total, list(buffers["a"])) == (2, [498, 499])


def test_of_too_many_items_those_of_the_key_used_longest_ago_go():
    buffers = BufferMap(4)
    for key in "aabb":
        buffers.put(key, key)
    buffers.put("c", "c")
    assert (buffers.total, len(buffers["a"]), len(buffers["b"])) == (4, 1, 2)
    assert buffers.take("a") == "a"
    buffers.extend("d", "dd")
    assert buffers.total == 4
    assert len(buffers["d"]) == 2


A_STEP = st.tuples(st.sampled_from(["put", "extend", "take"]), st.sampled_from("abc"), st.integers(0, 4))


@given(st.lists(A_STEP), st.integers(1, 6))
def test_the_bound_and_the_total_always_hold(steps, maxsize):
    buffers = BufferMap(maxsize, bufmaxsize=3)
    for step, key, number in steps:
        if step == "put":
            buffers.put(key, number)
        elif step == "extend":
            buffers.extend(key, range(number))
        else:
            buffers.take(key, None)
        assert buffers.total == sum(len(buffer) for buffer in buffers.values()) <= maxsize
