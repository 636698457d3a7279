"""Warnings of what goes away."""

from __future__ import annotations

import pytest

from celery_clone.exceptions import CDeprecationWarning, CPendingDeprecationWarning
from celery_clone.utils import deprecated


def test_a_warning_names_the_thing_the_version_and_the_remedy():
    with pytest.warns(
        CDeprecationWarning,
        match=r"^The old way is deprecated and scheduled for removal in version 6\.0\. Use the new way\.$",
    ) as caught:
        deprecated.warn("The old way", removal="6.0", alternative="Use the new way.")
    assert caught[0].filename == __file__


def test_what_will_be_deprecated_later_has_a_pending_warning():
    with pytest.warns(
        CPendingDeprecationWarning,
        match=r"^X is scheduled for deprecation in version 5\.9 and removal in version v6\.0\.$",
    ):
        deprecated.warn("X", deprecation="5.9", removal="6.0")


def test_a_deprecated_function_warns_where_it_is_called_and_works():
    @deprecated.Callable(removal="6.0", alternative="Use new().")
    def old(x, y=1):
        """Old."""
        return x + y

    with pytest.warns(CDeprecationWarning, match="old is deprecated") as caught:
        assert old(1, y=2) == 3
    assert caught[0].filename == __file__
    assert old.__doc__ == "Old."


def test_a_deprecated_function_may_be_described_otherwise():
    @deprecated.Callable(removal="6.0", description="The task module")
    def old():
        return 1

    with pytest.warns(CDeprecationWarning, match="^The task module is deprecated"):
        old()


class Thing:
    def __init__(self):
        self._value = 1

    @deprecated.Property(removal="6.0")
    def value(self):
        """The value."""
        return self._value

    @value.setter
    def value(self, value):
        self._value = value

    @value.deleter
    def value(self):
        del self._value

    @deprecated.Property(removal="6.0", description="Thing.fixed")
    def fixed(self):
        return 1


def test_a_deprecated_property_warns_when_it_is_read_set_and_deleted():
    thing = Thing()
    with pytest.warns(CDeprecationWarning, match="value is deprecated") as caught:
        assert thing.value == 1
        thing.value = 2
        assert thing.value == 2
        del thing.value
    assert len(caught) == 4
    assert {warning.filename for warning in caught} == {__file__}
    assert not hasattr(thing, "_value")


def test_what_has_no_setter_or_deleter_cannot_be_set_or_deleted():
    thing = Thing()
    with pytest.raises(AttributeError, match="cannot set"):
        thing.fixed = 2
    with pytest.raises(AttributeError, match="cannot delete"):
        del thing.fixed
    with pytest.warns(CDeprecationWarning, match=r"^Thing\.fixed is deprecated"):
        assert thing.fixed == 1


def test_of_the_class_the_property_itself_is_given_without_a_warning():
    assert Thing.value.__doc__ == "The value."
    assert Thing.value.__name__ == "value"
