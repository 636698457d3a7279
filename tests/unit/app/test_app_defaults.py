"""The table of settings and what is derived from it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from celery_clone.app import defaults
from celery_clone.app.defaults import (
    DEFAULTS,
    NAMESPACES,
    SETTING_KEYS,
    TO_NEW_KEY,
    TO_OLD_KEY,
    Conf,
    Extras,
    Option,
    SettingsTable,
    find,
    flatten,
    setting,
)


def test_every_setting_has_a_documentation_of_one_paragraph():
    for option in (*Conf.options.values(), *Extras.options.values()):
        assert len(option.doc) > 15, option.name
        assert "\n" not in option.doc, option.name
        assert option.doc.endswith("."), option.name


def test_no_documentation_stands_at_two_settings_that_are_not_twins():
    documented = [option.doc for option in Conf.options.values()]
    assert len(set(documented)) > len(documented) - 5


def test_the_table_has_all_settings_of_celery_in_every_derived_form():
    assert len(DEFAULTS) == len(SETTING_KEYS) == len(list(flatten(NAMESPACES))) == 207
    assert [name for name, _ in flatten(NAMESPACES)] == list(DEFAULTS)


def test_old_names_lead_to_one_setting_each_and_back():
    assert TO_NEW_KEY["CELERYD_PREFETCH_MULTIPLIER"] == "worker_prefetch_multiplier"
    assert all(TO_NEW_KEY[TO_OLD_KEY[name]] == name for name in DEFAULTS)


def test_types_come_from_the_annotations_unless_celery_calls_them_otherwise():
    types = {name: option.type for name, option in Conf.options.items()}
    assert types["task_acks_late"] == "bool"
    assert types["worker_prefetch_multiplier"] == "int"
    assert types["broker_connection_timeout"] == "float"
    assert types["accept_content"] == "list"
    assert types["result_expires"] == "float"
    assert types["task_default_delivery_mode"] == "string"
    assert set(types.values()) <= set(Option.typemap)


def test_every_default_is_of_the_type_of_its_setting_or_none():
    python_types = {
        "bool": bool,
        "dict": dict,
        "float": (int, float, timedelta),
        "int": (int, float),
        "list": (list, tuple),
        "string": (str, int),
        "tuple": tuple,
    }
    for name, option in Conf.options.items():
        if option.default is not None and option.type in python_types:
            assert isinstance(option.default, python_types[option.type]), name


@pytest.mark.parametrize(
    ("asked", "namespace", "found"),
    [
        ("acks_late", "celery", ("task", "acks_late")),
        ("ACKS_LATE", "celery", ("task", "acks_late")),
        ("concurrency", "worker", ("worker", "concurrency")),
        ("timezone", "celery", (None, "timezone")),
        ("task_acks_late", "celery", (None, "task_acks_late")),
        ("imports", "worker", (None, "imports")),
        ("url", "broker", ("broker", "url")),
    ],
)
def test_settings_are_found_without_their_namespace(asked, namespace, found):
    assert find(asked, namespace)[:2] == found


def test_a_namespace_is_found_as_such():
    assert find("broker").type is NAMESPACES["broker"]


def test_looking_for_an_unknown_setting_is_a_key_error():
    with pytest.raises(KeyError, match="no_such_setting"):
        find("no_such_setting")


def test_flatten_gives_what_the_key_filter_makes():
    pairs = list(flatten({"a": {"b": Option(1)}}, "root_", lambda namespace, key, _: [(namespace, key)]))
    assert pairs == [("root_a_", "b")]


@pytest.mark.parametrize(
    ("type_name", "text", "value"),
    [
        ("bool", "yes", True),
        ("bool", "0", False),
        ("int", "3", 3),
        ("float", "1.5", 1.5),
        ("string", 3, "3"),
        ("bytes", "secret", b"secret"),
        ("dict", [("a", 1)], {"a": 1}),
        ("any", "anything", "anything"),
        (int, "7", 7),
    ],
)
def test_options_convert_texts_to_their_type(type_name, text, value):
    assert Option(type=type_name).to_python(text) == value


def test_a_word_that_is_no_truth_value_is_refused():
    with pytest.raises(TypeError):
        Option(type="bool").to_python("perhaps")


def test_a_table_gives_options_by_class_and_values_by_instance():
    class Table(SettingsTable):
        some_number: int | None = setting(3, doc="A number.")

    assert isinstance(Table.some_number, Option)
    assert Table.some_number.type == "int"
    assert Table().some_number == 3
    assert list(Table.options) == ["some_number"]


def test_the_formats_of_the_log_are_those_of_celery():
    assert defaults.DEFAULT_PROCESS_LOG_FMT == "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s"
    assert "%(task_name)s[%(task_id)s]" in defaults.DEFAULT_TASK_LOG_FMT
