"""What counts as a task and as a signature."""

from __future__ import annotations

import pytest

from celery_clone.utils.abstract import CallableSignature, CallableTask


class LooksLikeATask:
    def delay(self): ...

    def apply_async(self): ...

    def apply(self): ...


class LooksLikeASignature(LooksLikeATask):
    def clone(self): ...

    def freeze(self): ...

    def set(self): ...

    def link(self): ...

    def link_error(self): ...

    def __or__(self, other): ...


def test_what_does_all_a_task_does_is_one():
    assert isinstance(LooksLikeATask(), CallableTask)
    assert not isinstance(object(), CallableTask)
    assert not isinstance(LooksLikeATask(), CallableSignature)


def test_what_does_all_a_signature_does_is_one():
    assert isinstance(LooksLikeASignature(), CallableSignature)
    assert isinstance(LooksLikeASignature(), CallableTask)


def test_a_class_may_be_registered_whatever_it_does_and_is_given_back():
    @CallableSignature.register
    class Registered:
        pass

    assert isinstance(Registered(), CallableSignature)
    assert isinstance(Registered(), CallableTask)


def test_neither_can_be_made_itself():
    for cls in (CallableTask, CallableSignature):
        with pytest.raises(TypeError, match="abstract"):
            cls()


def test_a_subclass_that_requires_nothing_is_an_ordinary_class():
    class Special(CallableTask):
        pass

    assert not isinstance(LooksLikeATask(), Special)
    assert not isinstance(object(), Special)
