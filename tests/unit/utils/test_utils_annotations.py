"""What annotations mean."""

from __future__ import annotations

from typing import Any, Optional, Union

import pytest

from celery_clone.utils.annotations import (
    annotation_is_class,
    annotation_issubclass,
    get_optional_arg,
    is_none_type,
)


@pytest.mark.parametrize(
    ("annotation", "inner"),
    [
        (Optional[int], int),  # noqa: UP045
        (Union[None, int], int),  # noqa: UP007
        (int | None, int),
        (list[int] | None, list[int]),
        (int, None),
        (int | str, None),
        (int | str | None, None),
        (list[int], None),
        (None, None),
        (Any, None),
    ],
    ids=str,
)
def test_the_type_inside_an_optional_one(annotation, inner):
    assert get_optional_arg(annotation) == inner


@pytest.mark.parametrize(
    ("annotation", "is_class"),
    [(int, True), (Exception, True), (list[int], False), (int | None, False), ("int", False)],
    ids=str,
)
def test_what_can_be_asked_for_its_base_classes(annotation, is_class):
    assert annotation_is_class(annotation) is is_class


def test_only_classes_are_subclasses():
    assert annotation_issubclass(KeyError, LookupError)
    assert not annotation_issubclass(int, LookupError)
    assert not annotation_issubclass(list[int], list)
    assert not annotation_issubclass("KeyError", LookupError)


def test_the_type_of_none():
    assert is_none_type(type(None))
    assert not is_none_type(None)
