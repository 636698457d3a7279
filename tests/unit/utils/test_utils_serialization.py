"""Making exceptions and values storable."""

from __future__ import annotations

import json
import pickle
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal

import pytest
from kombu import Queue

from celery_clone.utils.serialization import (
    UnpickleableExceptionWrapper,
    b64decode,
    b64encode,
    create_exception_cls,
    ensure_serializable,
    find_pickleable_exception,
    get_pickleable_etype,
    get_pickleable_exception,
    get_pickled_exception,
    jsonify,
    raise_with_context,
    strtobool,
    subclass_exception,
)


class Unpicklable:
    """Refuses to travel."""

    def __reduce__(self):
        raise TypeError("stays here")

    def __repr__(self):
        return "<Unpicklable>"


class NeedsTwo(KeyError):
    """Cannot be rebuilt from its ``args``."""

    def __init__(self, name, reason):
        super().__init__(f"{name}: {reason}")


class Lonely(Exception):
    """Neither it nor any ancestor worth naming can carry its argument."""


# -- exceptions


def test_an_exception_that_can_travel_is_left_alone():
    error = ValueError("x")
    assert get_pickleable_exception(error) is error


def test_an_exception_that_cannot_be_rebuilt_travels_as_its_nearest_ancestor():
    found = get_pickleable_exception(NeedsTwo("a", "b"))
    assert type(found) is KeyError
    assert found.args == ("a: b",)


def test_an_exception_with_an_argument_that_cannot_travel_is_wrapped():
    wrapped = get_pickleable_exception(Lonely(Unpicklable(), 3))
    assert isinstance(wrapped, UnpickleableExceptionWrapper)
    assert wrapped.exc_cls_name == "Lonely"
    assert wrapped.exc_args == ("<Unpicklable>", 3)
    assert str(wrapped) == "Lonely(<Unpicklable>, 3)"


def test_a_wrapped_exception_survives_the_journey_and_gets_its_name_back():
    wrapped = pickle.loads(pickle.dumps(get_pickleable_exception(Lonely(Unpicklable()))))
    restored = get_pickled_exception(wrapped)
    assert type(restored).__name__ == "Lonely"
    assert type(restored).__module__ == Lonely.__module__
    assert restored.args == ("<Unpicklable>",)


def test_a_wrapper_keeps_the_traceback():
    try:
        raise Lonely(Unpicklable())
    except Lonely as error:
        wrapped = UnpickleableExceptionWrapper.from_exception(error)
        assert wrapped.__traceback__ is error.__traceback__


def test_a_wrapper_without_text_still_says_what_it_wraps():
    assert str(UnpickleableExceptionWrapper("m", "C", (1,))) == "m.C(1,)"


def test_plain_exceptions_come_back_unchanged():
    error = ValueError(1)
    assert get_pickled_exception(error) is error


def test_only_telling_ancestors_are_looked_for():
    assert find_pickleable_exception(Lonely(Unpicklable())) is None


def test_a_class_another_process_cannot_import_becomes_exception():
    here = subclass_exception("Here", ValueError, "no.such.module")
    assert get_pickleable_etype(here) is Exception
    assert get_pickleable_etype(KeyError) is KeyError


def test_stand_ins_carry_name_and_module():
    made = create_exception_cls("Lost", "shop.errors", LookupError)
    assert (made.__name__, made.__module__, made.__mro__[1]) == ("Lost", "shop.errors", LookupError)
    assert create_exception_cls("Lost", "shop.errors").__mro__[1] is Exception


def test_items_that_an_encoder_refuses_become_texts():
    assert ensure_serializable([1, Unpicklable()], json.dumps) == (1, "<Unpicklable>")


def test_the_exception_in_hand_becomes_the_cause():
    first = KeyError("first")
    with pytest.raises(ValueError, match="second") as caught:
        try:
            raise first
        except KeyError:
            raise_with_context(ValueError("second"))
    assert caught.value.__cause__ is first


def test_the_exception_in_hand_is_not_its_own_cause():
    error = KeyError("only")
    with pytest.raises(KeyError) as caught:
        try:
            raise error
        except KeyError:
            raise_with_context(error)
    assert caught.value.__cause__ is None


def test_without_an_exception_in_hand_there_is_no_cause():
    with pytest.raises(ValueError, match="alone") as caught:
        raise_with_context(ValueError("alone"))
    assert caught.value.__cause__ is None


# -- values


@pytest.mark.parametrize("word", ["true", "YES", "On", "1"])
def test_words_for_true(word):
    assert strtobool(word) is True


@pytest.mark.parametrize("word", ["false", "No", "OFF", "0"])
def test_words_for_false(word):
    assert strtobool(word) is False


def test_what_is_no_text_is_returned_as_it_is():
    assert strtobool(None) is None
    assert strtobool(3) == 3


def test_an_unknown_word_is_refused_with_the_known_ones():
    with pytest.raises(TypeError, match="'maybe' to type bool.*yes"):
        strtobool("maybe")


def test_words_of_ones_own():
    assert strtobool("ja", {"ja": True}) is True


def test_base64_takes_text_and_bytes():
    assert b64encode("é") == b64encode("é".encode()) == "w6k="
    assert b64decode("w6k=") == b64decode(b"w6k=") == "é".encode()


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (None, None),
        ((1, "a"), [1, "a"]),
        ({"a": (1,)}, {"a": [1]}),
        (datetime(2020, 1, 2, 3, 4, 5, 678900), "2020-01-02T03:04:05.678"),
        (datetime(2020, 1, 2, tzinfo=timezone.utc), "2020-01-02T00:00:00Z"),
        (date(2020, 1, 2), "2020-01-02"),
        (time(1, 2, 3, 456789), "01:02:03.456"),
        (time(1, 2, 3), "01:02:03"),
        (timedelta(seconds=61), "0:01:01"),
    ],
    ids=repr,
)
def test_json_knows_the_result(value, plain):
    assert jsonify(value) == plain
    json.dumps(jsonify(value))


def test_queues_describe_themselves():
    assert jsonify(Queue("jobs", max_length=3), unknown_type_filter=str)["name"] == "jobs"


def test_keys_can_be_left_out():
    assert jsonify({"a": 1, "_b": {"_c": 2}}, keyfilter=lambda key: not key.startswith("_")) == {"a": 1}


def test_an_unknown_type_is_refused_with_its_place():
    with pytest.raises(ValueError, match=r"complex.*parent: size.*unknown_type_filter"):
        jsonify({"size": 1j})


def test_an_unknown_type_can_be_converted():
    assert jsonify([Decimal(1), {2}], unknown_type_filter=repr) == ["Decimal('1')", "{2}"]
