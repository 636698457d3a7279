"""What a running task reads of its request."""

from __future__ import annotations

import pytest

from celery_clone.execution.context import Context


def test_a_name_that_was_not_sent_has_its_default():
    context = Context({"id": "1"})
    assert (context.id, context.retries, context.called_directly, context.children) == ("1", 0, True, [])


def test_a_name_nobody_knows_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match="'nonsense'"):
        _ = Context().nonsense


def test_time_limits_follow_the_header_in_its_order_on_the_wire():
    context = Context({"timelimit": [10, 5]})
    assert (context.time_limit, context.soft_time_limit) == (10, 5)
    context.update(timelimit=None)
    assert (context.time_limit, context.soft_time_limit) == (None, None)


def test_what_the_caller_added_to_the_headers_is_found_under_headers():
    assert Context({"id": "1", "lang": "py", "task": "t", "tenant": "blue"}).headers == {"tenant": "blue"}
    assert Context({"id": "1"}).headers is None


def test_execution_options_make_the_same_call_again():
    context = Context(
        {
            "id": "1",
            "root_id": "0",
            "retries": 2,
            "timelimit": [9, 3],
            "callbacks": ["c"],
            "headers": {"tenant": "blue", "x-death": ["dead"]},
            "stamped_headers": ["tag"],
            "stamps": {"tag": ["v"], "other": ["w"]},
        }
    )
    options = context.as_execution_options()
    assert options["task_id"] == "1"
    assert (options["time_limit"], options["soft_time_limit"]) == (9, 3)
    assert options["link"] == ["c"]
    assert options["headers"] == {"tenant": "blue"}
    assert options["tag"] == ["v"]
    assert "other" not in options


def test_children_of_one_context_are_not_those_of_another():
    first, second = Context(), Context()
    first.children.append("x")
    assert second.children == []
