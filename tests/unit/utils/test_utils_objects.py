"""Objects: MRO look-up, fallback contexts, item properties, cached properties."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import pytest

from celery_clone.utils.objects import Bunch, FallbackContext, cached_property, getitem_property, mro_lookup

# -- Bunch


def test_a_bunch_has_the_attributes_it_was_given():
    bunch = Bunch(name="x", size=2)
    bunch.size += 1
    assert (bunch.name, bunch.size) == ("x", 3)
    assert repr(bunch) == "Bunch(name='x', size=3)"
    with pytest.raises(AttributeError):
        bunch.colour  # noqa: B018


# -- mro_lookup


class Base:
    def run(self):
        """Defined at the bottom."""


class Middle(Base):
    pass


class Top(Middle):
    def other(self):
        """Defined at the top."""


def test_the_first_class_that_defines_an_attribute_is_found():
    assert mro_lookup(Top, "run") is Base
    assert mro_lookup(Top, "other") is Top
    assert mro_lookup(Top, "missing") is None


def test_the_search_ends_at_the_stop_classes():
    assert mro_lookup(Top, "run", stop={Base}, monkey_patched=[__name__]) is None
    assert mro_lookup(Top, "run", stop={Middle}) is None


def test_a_stop_class_counts_if_the_attribute_was_patched():
    assert mro_lookup(Top, "run", stop={Base}, monkey_patched=["the.original.module"]) is Base


def test_a_value_without_a_module_is_no_patch():
    class Plain:
        value = 3

    class Child(Plain):
        pass

    assert mro_lookup(Child, "value", stop={Plain}) is None


# -- FallbackContext


@contextmanager
def connection(name, closed, **options):
    try:
        yield name, options
    finally:
        closed.append(name)


def test_what_is_provided_is_given_and_left_open():
    closed = []
    with FallbackContext("mine", connection, "made", closed) as value:
        assert value == "mine"
    assert closed == []


def test_what_is_falsy_is_still_provided():
    with FallbackContext(0, connection, "made", []) as value:
        assert value == 0


def test_what_is_made_is_given_and_closed():
    closed = []
    with FallbackContext(None, connection, "made", closed, timeout=3) as value:
        assert value == ("made", {"timeout": 3})
        assert closed == []
    assert closed == ["made"]


def test_an_error_reaches_the_context_that_was_made():
    closed = []
    with pytest.raises(KeyError), FallbackContext(None, connection, "made", closed):
        raise KeyError("inside")
    assert closed == ["made"]


# -- getitem_property


class Options(dict):
    """With attributes for its items."""

    task_id = getitem_property("options.task_id", "Id of the call.")
    name = getitem_property("name")


def test_an_item_property_reads_and_writes_along_its_path():
    options = Options(options={})
    assert options.task_id is None
    options.task_id = "id1"
    options.name = "add"
    assert options == {"options": {"task_id": "id1"}, "name": "add"}
    assert (options.task_id, options.name) == ("id1", "add")


def test_a_missing_step_of_the_path_is_a_key_error():
    with pytest.raises(KeyError):
        Options().task_id  # noqa: B018


def test_of_the_class_it_gives_the_class():
    assert Options.task_id is Options
    assert Options.__dict__["task_id"].__doc__ == "Id of the call."


# -- cached_property


class Costly:
    def __init__(self):
        self.computed = 0
        self.gone = []

    @cached_property
    def value(self):
        """Computed once."""
        self.computed += 1
        return self.computed

    @cached_property
    def checked(self):
        return 1

    @checked.setter
    def checked(self, value):
        return value * 2

    @checked.deleter
    def checked(self, value):
        self.gone.append(value)


def test_it_is_computed_once_per_object():
    one, two = Costly(), Costly()
    assert (one.value, one.value, two.value, one.computed) == (1, 1, 1, 1)


def test_it_may_be_set_and_deleted():
    costly = Costly()
    costly.value = 7
    assert costly.value == 7
    del costly.value
    assert costly.value == 1
    del costly.value
    del costly.value
    assert costly.value == 2


def test_the_setter_turns_the_value_and_the_deleter_is_told():
    costly = Costly()
    costly.checked = 4
    assert costly.checked == 8
    del costly.checked
    assert costly.gone == [8]
    del costly.checked
    assert costly.gone == [8]


def test_of_the_class_it_gives_itself():
    assert isinstance(Costly.value, cached_property)
    assert Costly.value.__doc__ == "Computed once."


def test_threads_that_ask_at_once_see_one_value():
    both_ask = threading.Barrier(2, timeout=10)
    values = []

    class Slow:
        @cached_property
        def value(self):
            return object()

    slow = Slow()

    def ask():
        both_ask.wait()
        values.append(slow.value)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert values[0] is values[1]
