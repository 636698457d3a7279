"""Shortening, indenting and filling in texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_clone.utils.text import (
    WhateverIO,
    abbr,
    abbrtask,
    dedent,
    dedent_initial,
    ensure_newlines,
    ensure_sep,
    fill_paragraphs,
    indent,
    join,
    match_case,
    pluralize,
    pretty,
    remove_repeating,
    remove_repeating_from_task,
    simple_format,
    str_to_list,
    truncate,
)


def test_a_text_is_split_at_its_commas_a_list_stays():
    assert str_to_list("a,b") == ["a", "b"]
    assert str_to_list(["a"]) == ["a"]
    assert str_to_list(None) is None


def test_indentation_is_removed_and_added():
    assert dedent_initial("    x") == "x"
    assert dedent_initial("  x", 2) == "x"
    assert dedent_initial("  x") == "  x"
    assert dedent("    x\n      y\nz") == "x\n  y\nz"
    assert indent("x\ny", 2) == "  x\n  y"


def test_long_paragraphs_are_broken_each_for_itself():
    assert fill_paragraphs("one two\nthree", 5) == "one\ntwo\nthree"


def test_empty_texts_are_left_out_when_joining():
    assert join(["a", "", None, "b"]) == "a\nb"
    assert join(["a", "b"], sep="-") == "a-b"


def test_separators_are_added_up_to_a_number():
    assert ensure_sep("-", "a-") == "a--"
    assert ensure_newlines("a\n\n") == "a\n\n"
    assert ensure_newlines("a", 1) == "a\n"


@pytest.mark.parametrize(
    ("text", "length", "ellipsis", "short"),
    [
        (None, 3, "...", "???"),
        ("abc", 3, "...", "abc"),
        ("abcdef", 5, "...", "ab..."),
        ("abcdef", 5, False, "abcde"),
    ],
)
def test_words_are_abbreviated(text, length, ellipsis, short):
    assert abbr(text, length, ellipsis) == short


def test_task_names_are_abbreviated_in_their_module():
    assert abbrtask(None, 3) == "???"
    assert abbrtask("proj.tasks.add", 20) == "proj.tasks.add"
    assert abbrtask("feeds.tasks.refresh", 15) == "feeds[.]refresh"


@given(st.text(), st.integers(3, 20))
def test_an_abbreviation_is_never_too_long(text, length):
    assert len(abbr(text, length)) <= length


def test_a_text_is_cut_at_a_space():
    assert truncate("one two three", 9) == "one two..."
    assert truncate("short", 9) == "short"
    assert truncate("any length", 0) == "any length"


def test_a_word_is_in_the_plural_unless_there_is_one():
    assert [pluralize(number, "task") for number in (0, 1, 2, 1.5)] == ["tasks", "task", "tasks", "tasks"]
    assert pluralize(2, "child", "ren") == "children"


def test_values_are_laid_out_for_people():
    assert pretty("x") == "'x'"
    assert pretty((1, 2)) == "\n    (1, 2)"
    assert pretty({"a": 1}) == "\n 'a': 1}"


def test_case_is_matched():
    assert match_case("Name", "CELERY_") == "NAME"
    assert match_case("NAME", "celery_") == "name"


# -- formats


def test_letters_are_filled_in_called_if_they_are_functions():
    assert simple_format("%h-%i%%", {"h": "host", "i": lambda: "3"}) == "host-3%"
    assert simple_format("", {}) == ""


def test_an_unknown_letter_is_an_error_that_shows_it():
    with pytest.raises(ValueError, match="Unknown format %x in string 'a%x'"):
        simple_format("a%x", {"h": "host"})


# -- repetitions


def test_the_module_of_a_task_is_named_once():
    assert (
        remove_repeating_from_task("proj.tasks.add", "proj.tasks.add(2, 2) | proj.tasks.mul(3)")
        == "proj.tasks.add(2, 2) | mul(3)"
    )
    assert remove_repeating_from_task("add", "add(2) | add(3)") == "add(2) | add(3)"


@pytest.mark.parametrize("inside", ["webapp.add", "my-app.add", "my.app.add", "_app.add", "app.app.x"])
def test_a_longer_name_is_not_shortened(inside):
    expected = {"app.app.x": "app.x"}.get(inside, inside)
    assert remove_repeating("app.", f"app.one, {inside}") == f"app.one, {expected}"


def test_without_a_repetition_nothing_changes():
    assert remove_repeating("app.", "nothing here") == "nothing here"
    assert remove_repeating("app.", "app.once") == "app.once"


def test_a_buffer_takes_texts_and_bytes():
    buffer = WhateverIO(b"a")
    buffer.seek(0, 2)
    buffer.write(b"b")
    buffer.write("c")
    assert buffer.getvalue() == "abc"
