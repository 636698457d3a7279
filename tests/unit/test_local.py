"""Proxies behave as the object they stand for."""

from __future__ import annotations

import copy
import operator
import pickle
import weakref

import pytest

from celery_clone import local
from celery_clone.local import PromiseProxy, Proxy, class_property, maybe_evaluate, try_import


def unbound():
    raise RuntimeError("nothing here")


class Thing:
    """What a thing is."""

    def __init__(self):
        self.colour = "red"

    def __call__(self, *args, **kwargs):
        return args, kwargs

    def __enter__(self):
        return "entered"

    def __exit__(self, *exc_info):
        return exc_info[0] is KeyError


# -- what it says of itself


def test_a_proxy_is_an_instance_of_the_class_of_its_target():
    assert isinstance(Proxy(lambda: [1]), list)
    assert Proxy(lambda: [1]).__class__ is list


def test_a_proxy_asks_for_its_target_at_each_use():
    targets = iter(["first", "second"])
    proxy = Proxy(lambda: next(targets))
    assert str(proxy) == "first"
    assert str(proxy) == "second"


def test_a_proxy_passes_the_arguments_it_was_given():
    assert Proxy(lambda a, b: a + b, (1,), {"b": 2}) == 3


def test_module_name_and_documentation_are_the_targets():
    proxy = Proxy(lambda: Thing)
    assert (proxy.__module__, proxy.__name__, proxy.__qualname__) == (__name__, "Thing", "Thing")
    assert proxy.__doc__ == "What a thing is."


def test_own_name_and_documentation_win():
    proxy = Proxy(unbound, name="mine", __doc__="my words")
    assert (proxy.__name__, proxy.__qualname__, proxy.__doc__) == ("mine", "mine", "my words")


@pytest.mark.parametrize("cls", [Proxy, PromiseProxy])
def test_of_the_proxy_class_itself_they_are_texts(cls):
    assert cls.__module__ == "celery_clone.local"
    assert "target" in cls.__doc__


def test_an_unbound_proxy_is_false_and_says_so():
    proxy = Proxy(unbound)
    assert not proxy
    assert repr(proxy) == "<Proxy unbound>"
    assert dir(proxy) == []
    with pytest.raises(AttributeError):
        proxy.__dict__  # noqa: B018
    with pytest.raises(RuntimeError, match="nothing here"):
        proxy.anything  # noqa: B018


def test_a_proxy_can_be_referenced_weakly():
    proxy = Proxy(lambda: 1)
    assert weakref.ref(proxy)() is proxy


# -- what is done with it is done with the target


def test_attributes_are_those_of_the_target():
    thing = Thing()
    proxy = Proxy(lambda: thing)
    proxy.colour = "blue"
    assert thing.colour == "blue"
    assert "colour" in dir(proxy)
    assert proxy.__dict__ is thing.__dict__
    del proxy.colour
    with pytest.raises(AttributeError):
        proxy.colour  # noqa: B018


def test_items_are_those_of_the_target():
    target = {"a": 1}
    proxy = Proxy(lambda: target)
    proxy["b"] = 2
    del proxy["a"]
    assert target == {"b": 2}
    assert proxy["b"] == 2
    assert "b" in proxy
    assert list(proxy) == ["b"]
    assert len(proxy) == 1


def test_calls_and_contexts_are_those_of_the_target():
    proxy = Proxy(Thing)
    assert proxy(1, a=2) == ((1,), {"a": 2})
    with proxy as entered:
        assert entered == "entered"
        raise KeyError("swallowed by the target")


@pytest.mark.parametrize(
    "operate",
    [
        *(operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod),
        *(divmod, operator.pow, operator.lshift, operator.rshift, operator.and_, operator.or_, operator.xor),
        *(operator.lt, operator.le, operator.eq, operator.ne, operator.gt, operator.ge),
    ],
    ids=lambda operate: operate.__name__,
)
def test_operators_give_what_the_target_gives_on_either_side(operate):
    assert operate(Proxy(lambda: 7), 3) == operate(7, 3)
    assert operate(7, Proxy(lambda: 3)) == operate(7, 3)


@pytest.mark.parametrize(
    "operate",
    [operator.neg, operator.pos, operator.abs, operator.invert, int, float, complex, str, repr, hash, bool],
    ids=lambda operate: operate.__name__,
)
def test_unary_operators_give_what_the_target_gives(operate):
    assert operate(Proxy(lambda: -7)) == operate(-7)


def test_a_proxy_can_be_an_index():
    assert ["a", "b"][Proxy(lambda: 1)] == "b"


def test_pickling_and_copying_a_proxy_gives_the_target():
    target = {"a": [1]}
    proxy = Proxy(lambda: target)
    assert type(pickle.loads(pickle.dumps(proxy))) is dict
    assert copy.copy(proxy) == target
    assert copy.deepcopy(proxy) == target


# -- promises


def test_a_promise_asks_for_its_target_once():
    asked = []
    promise = PromiseProxy(lambda: asked.append(1) or Thing())
    assert asked == []
    assert promise.colour == promise.colour == "red"
    assert asked == [1]


def test_a_promise_lets_go_what_made_its_target():
    class Maker:
        def __call__(self):
            return 1

    maker = Maker()
    gone = weakref.ref(maker)
    promise = PromiseProxy(maker)
    assert promise == 1
    del maker
    assert gone() is None


def test_what_waits_for_a_promise_runs_in_order_when_it_is_kept():
    ran = []
    promise = PromiseProxy(lambda: 42)
    promise.__then__(ran.append, "first")
    promise.__then__(ran.append, "second")
    assert ran == []
    assert promise == 42
    assert ran == ["first", "second"]


def test_what_comes_after_a_promise_was_kept_runs_at_once():
    promise = PromiseProxy(lambda: 42)
    promise.__evaluate__()
    assert promise.__then__(lambda: "now") == "now"


def test_a_promise_that_fails_may_be_asked_again():
    answers = iter([ValueError("not yet"), 42])

    def ask():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    promise = PromiseProxy(ask)
    with pytest.raises(ValueError, match="not yet"):
        promise + 1
    assert not promise.__evaluated__()
    assert promise == 42
    assert promise.__evaluated__()


def test_maybe_evaluate_evaluates_promises_only():
    thing = Thing()
    assert maybe_evaluate(PromiseProxy(lambda: thing)) is thing
    assert maybe_evaluate(thing) is thing


def test_try_import_gives_the_module_or_the_default():
    assert try_import("celery_clone.local") is local
    assert try_import("celery_clone.no_such_module") is None
    assert try_import("celery_clone.no_such_module", default="none") == "none"


# -- class properties


def read_level(cls):
    """How loud."""
    return cls._level


def write_level(cls, value):
    cls._level = value


class Settings:
    _level = 1

    level = class_property(read_level, write_level)
    fixed = class_property(classmethod(lambda cls: cls.__name__))


def test_a_class_property_is_read_from_the_class_and_from_its_instances():
    class Quiet(Settings):
        _level = 0

    assert (Settings.level, Quiet.level, Quiet().level) == (1, 0, 0)
    assert Quiet.fixed == "Quiet"
    assert Settings.__dict__["level"].__doc__ == "How loud."


def test_a_class_property_set_through_an_instance_is_set_for_the_class():
    class Loud(Settings):
        pass

    Loud().level = 3
    assert (Loud.level, Settings.level) == (3, 1)


def test_a_class_property_without_setter_cannot_be_set():
    with pytest.raises(AttributeError, match="cannot be set"):
        Settings().fixed = 1


def test_setter_gives_a_property_that_can_be_set():
    writable = Settings.__dict__["fixed"].setter(lambda cls, value: setattr(cls, "_name", value))

    class Named:
        name = writable

    Named().name = "x"
    assert Named._name == "x"


def test_a_promise_that_is_asked_for_while_it_is_made_ends_with_the_outer_answer():
    answers = iter(["inner", "outer"])
    depth = []

    def ask():
        depth.append(1)
        if len(depth) == 1:
            assert promise == "inner"
        return next(answers)

    promise = PromiseProxy(ask)
    assert promise == "outer"
    assert promise == "outer"


def test_reduce_is_that_of_the_target():
    class Reducible:
        def __reduce__(self):
            return list, ("ab",)

    assert Proxy(Reducible).__reduce__() == (list, ("ab",))
