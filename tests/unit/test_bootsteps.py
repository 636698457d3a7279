"""Parts that are started in a written order and stopped in reverse."""

from __future__ import annotations

import io
import logging
from types import SimpleNamespace

import pytest

from celery_clone import bootsteps
from celery_clone.bootsteps import (
    CLOSE,
    RUN,
    TERMINATE,
    Blueprint,
    ConsumerStep,
    StartStopStep,
    Step,
    boot_order,
    resolve_step,
)
from celery_clone.exceptions import ImproperlyConfigured


class Diary:
    """A parent whose steps write down what happens to them."""

    def __init__(self):
        self.steps = []
        self.lines = []


class Noted(StartStopStep):
    """Writes down what happens to it."""

    def start(self, parent):
        parent.lines.append(f"start {self.alias}")

    def close(self, parent):
        parent.lines.append(f"close {self.alias}")

    def stop(self, parent):
        parent.lines.append(f"stop {self.alias}")

    def terminate(self, parent):
        parent.lines.append(f"terminate {self.alias}")


class First(Noted):
    """Starts before the others."""


class Second(Noted):
    """Starts after the first."""

    requires = (First,)


class Third(Noted):
    """Starts after the second."""

    requires = (f"{__name__}:Second",)


class Last(Noted):
    """Starts when all the others have."""

    last = True


def made(*steps, **options) -> tuple[Blueprint, Diary]:
    """A blueprint of these steps, in this order, applied to a diary."""
    kind = type("Made", (Blueprint,), {"default_steps": steps, "name": "Made"})
    parent = Diary()
    return kind(**options).apply(parent), parent


# -- names


def test_a_step_is_called_like_its_class_unless_it_says_otherwise():
    class Own(Step):
        name = "my.step"
        label = "mine"

    assert First.name == f"{__name__}.First"
    assert str(First) == First.name
    assert repr(First) == f"step:{First.name}{{()}}"
    assert Own.name == "my.step"
    assert Own(None).alias == "mine"
    assert repr(First(None)) == "<step: First>"


def test_a_step_can_be_named_by_its_address():
    assert resolve_step(f"{__name__}:First") is First
    assert resolve_step("celery.bootsteps:StartStopStep") is StartStopStep
    assert Blueprint().load_step(First) == (First.name, First)


# -- order


def foreign(name: str, *requires, last: bool = False) -> type[Step]:
    return type(name, (Noted,), {"requires": requires, "last": last, "__module__": "shop"})


def test_the_written_order_is_kept():
    assert boot_order([First, Second, Third, Last]) == [First, Second, Third, Last]


def test_a_foreign_step_starts_right_after_what_it_requires():
    extra = foreign("Extra", First)
    assert boot_order([First, Second, Last], [extra]) == [First, extra, Second, Last]


def test_foreign_steps_with_the_same_requirement_keep_their_order():
    one, two, three = foreign("One", First), foreign("Two", First), foreign("Three", First)
    assert boot_order([First, Second], [one, two, three]) == [First, one, two, three, Second]


def test_a_foreign_step_may_require_another_in_any_order():
    one = foreign("One", First)
    two = foreign("Two", one, First)
    three = foreign("Three", First)
    assert boot_order([First, Second], [two, one, three]) == [First, one, two, three, Second]


def test_a_foreign_step_waits_for_the_last_of_its_requirements():
    extra = foreign("Extra", Third, First)
    assert boot_order([First, Second, Third, Last], [extra]) == [First, Second, Third, extra, Last]


def test_a_foreign_step_without_requirements_starts_before_the_last_step():
    extra = foreign("Extra")
    assert boot_order([First, Last], [extra]) == [First, extra, Last]


def test_a_required_step_that_nobody_listed_is_added():
    assert boot_order([Third]) == [First, Second, Third]


def test_steps_that_require_each_other_are_refused():
    one = foreign("One")
    two = foreign("Two", one)
    one.requires = (two,)
    with pytest.raises(ImproperlyConfigured, match=r"shop\.One -> shop\.Two -> shop\.One"):
        boot_order([], [one])


def test_the_order_does_not_depend_on_that_of_a_set():
    steps = {foreign(name, First) for name in "dbca"}
    blueprint, _ = made(First, steps=steps)
    assert [step.alias for step in blueprint.order] == ["First", "a", "b", "c", "d"]


# -- making


def test_steps_are_made_in_order_and_found_by_name():
    blueprint, parent = made(First, Second)
    assert [type(step) for step in parent.steps] == [First, Second]
    assert blueprint[First.name] is blueprint.order[0]
    assert blueprint.types == {First, Second}
    assert blueprint.alias == "Made"
    assert Blueprint().name.endswith("Blueprint")


def test_a_step_gets_the_options_of_its_parent():
    class Configured(Step):
        def __init__(self, parent, size=None, **kwargs):
            parent.size = size

    parent = Diary()
    Blueprint(steps=[Configured]).apply(parent, size=3, other=4)
    assert parent.size == 3


def test_a_step_that_is_not_needed_does_not_take_part():
    class Unneeded(Noted):
        def include_if(self, parent):
            return False

    class Disabled(Noted):
        enabled = False

    blueprint, parent = made(First, Unneeded, Disabled)
    assert [step.alias for step in parent.steps] == ["First"]
    assert len(blueprint.order) == 3


def test_what_a_step_creates_is_started_and_stopped():
    calls = []

    class Engine:
        def start(self):
            calls.append("start")

        def stop(self):
            calls.append("stop")

    class WithEngine(StartStopStep):
        def create(self, parent):
            return self.instantiate(Engine)

    blueprint, parent = made(WithEngine)
    blueprint.start(parent)
    blueprint.stop(parent)
    step = parent.steps[0]
    step.terminate(parent)
    assert calls == ["start", "stop", "stop"]


def test_a_step_without_an_object_does_nothing():
    step = StartStopStep(None)
    assert (step.start(None), step.close(None), step.stop(None), step.terminate(None)) == (None,) * 4


# -- running


def test_steps_start_in_order_close_in_order_and_stop_in_reverse():
    blueprint, parent = made(First, Second)
    blueprint.start(parent)
    assert blueprint.human_state() == "running"
    blueprint.stop(parent)
    assert parent.lines == [
        "start First",
        "start Second",
        "close First",
        "close Second",
        "stop Second",
        "stop First",
    ]
    assert blueprint.state == TERMINATE
    blueprint.join(timeout=0)


def test_steps_can_be_asked_not_to_wait():
    blueprint, parent = made(First)
    blueprint.start(parent)
    blueprint.stop(parent, close=False, terminate=True)
    assert parent.lines == ["start First", "terminate First"]


def test_stop_is_legal_early_and_twice():
    blueprint, parent = made(First)
    assert blueprint.human_state() == "initializing"
    blueprint.stop(parent)
    blueprint.stop(parent)
    assert parent.lines == []
    assert blueprint.human_state() == "terminating"
    assert blueprint.shutdown_complete.is_set()


def test_what_was_started_is_stopped_even_if_the_rest_never_started():
    class Failing(Noted):
        def start(self, parent):
            super().start(parent)
            raise RuntimeError("no port")

    blueprint, parent = made(First, Failing, Last)
    with pytest.raises(RuntimeError, match="no port"):
        blueprint.start(parent)
    blueprint.stop(parent)
    assert parent.lines == [
        "start First",
        "start Failing",
        "close First",
        "close Failing",
        "stop Failing",
        "stop First",
    ]


def test_a_step_that_fails_to_stop_does_not_keep_the_others(caplog):
    class Stuck(Noted):
        def close(self, parent):
            raise RuntimeError("busy")

        def stop(self, parent):
            raise RuntimeError("jammed")

    blueprint, parent = made(First, Stuck)
    blueprint.start(parent)
    blueprint.stop(parent)
    assert parent.lines[-1] == "stop First"
    assert "Error on stopping Stuck: RuntimeError('jammed')" in caplog.text
    assert "Error on closing Stuck: RuntimeError('busy')" in caplog.text


def test_a_parent_that_fails_to_close_is_stopped_all_the_same(caplog):
    def fail():
        raise RuntimeError("cannot close")

    blueprint, parent = made(First, on_close=fail)
    blueprint.start(parent)
    blueprint.stop(parent)
    assert parent.lines == ["start First", "stop First"]
    assert "cannot close" in caplog.text


def test_the_parent_is_told_of_each_stage():
    stages = []
    blueprint, parent = made(
        First,
        on_start=lambda: stages.append(("start", blueprint.state, blueprint.started)),
        on_close=lambda: stages.append(("close", blueprint.state, blueprint.started)),
        on_stopped=lambda: stages.append(("stopped", blueprint.state, blueprint.started)),
    )
    blueprint.start(parent)
    blueprint.stop(parent)
    assert stages == [("start", RUN, 0), ("close", RUN, 1), ("stopped", CLOSE, 1)]


def test_steps_can_be_restarted():
    blueprint, parent = made(First, Second)
    blueprint.start(parent)
    blueprint.restart(parent)
    blueprint.start(parent)
    assert parent.lines[2:] == ["stop Second", "stop First", "start First", "start Second"]


def test_a_method_of_all_steps_can_be_called():
    class Listening(Noted):
        def hear(self, parent, word):
            parent.lines.append(f"{self.alias} heard {word}")

    blueprint, parent = made(First, Listening)
    blueprint.send_all(parent, "hear", args=("hello",))
    assert parent.lines == ["Listening heard hello"]


def test_an_error_ends_a_round_if_asked():
    class Deaf(Noted):
        def hear(self, parent):
            raise ValueError("what?")

    blueprint, parent = made(Deaf, First)
    with pytest.raises(ValueError, match="what"):
        blueprint.send_all(parent, "hear", reverse=False)
    blueprint.send_all(parent, "hear", propagate=False)


def test_steps_tell_what_statistics_shall_show():
    class Telling(Noted):
        def info(self, obj):
            return {"size": 3}

    blueprint, parent = made(First, Telling)
    assert blueprint.info(parent) == {"size": 3}


def test_the_order_of_the_boot_is_logged(caplog):
    with caplog.at_level(logging.DEBUG, "celery.bootsteps"):
        blueprint, parent = made(First, Second)
        blueprint.start(parent)
    assert "| Made: Boot order: {First, Second}" in caplog.messages
    assert "| Made: Starting First" in caplog.messages


# -- consumers


class Channel:
    """Can be closed."""

    closed = False

    def close(self):
        self.closed = True


class Connection:
    """Hands out one channel and knows its errors."""

    connection_errors = (ConnectionError,)
    channel_errors = (LookupError,)

    def __init__(self):
        self.given = Channel()

    def channel(self):
        return self.given


class Reader:
    """A consumer that remembers what it is doing."""

    def __init__(self, channel, error=None):
        self.channel = channel
        self.error = error
        self.reading = False

    def consume(self):
        self.reading = True

    def cancel(self):
        if self.error:
            raise self.error
        self.reading = False


class Reading(ConsumerStep):
    """Reads with one reader."""

    error = None
    requires = ()

    def get_consumers(self, channel):
        self.reader = Reader(channel, self.error)
        return [self.reader]


def test_a_consumer_step_reads_until_it_is_stopped():
    c = SimpleNamespace(connection=Connection())
    step = Reading(c)
    step.start(c)
    assert step.reader.reading
    step.stop(c)
    assert not step.reader.reading
    assert c.connection.given.closed
    step.stop(c)


def test_a_consumer_step_closes_only_its_channel_when_the_connection_goes_anyway():
    c = SimpleNamespace(connection=Connection())
    step = Reading(c)
    step.start(c)
    step.shutdown(c)
    assert step.reader.reading
    assert c.connection.given.closed


@pytest.mark.parametrize("error", [ConnectionError("gone"), LookupError("no queue")])
def test_a_lost_connection_is_no_error_while_stopping(error):
    c = SimpleNamespace(connection=Connection())
    step = Reading(c)
    step.error = error
    step.start(c)
    step.stop(c)
    assert c.connection.given.closed


def test_a_consumer_step_stopped_before_it_started_does_nothing():
    Reading(None).stop(SimpleNamespace(connection=None))


def test_a_consumer_step_must_say_what_it_reads():
    with pytest.raises(NotImplementedError, match="missing get_consumers"):
        ConsumerStep(None).get_consumers(None)
    assert ConsumerStep.requires == (f"{bootsteps.ROOT}.worker.consumer:Connection",)


# -- drawing


def test_a_blueprint_can_be_drawn():
    class Maybe(Noted):
        conditional = True

    blueprint, _ = made(First, Second, Maybe, Last)
    out = io.StringIO()
    blueprint.graph.to_dot(out)
    text = out.getvalue()
    assert '"Second" -> "First"' in text
    assert '"⧉Last" -> "First"' in text
    assert '"∘Maybe"' in text


def test_the_blueprint_of_a_part_can_be_drawn_too():
    outer, _ = made(First, Last)
    inner, _ = made(foreign("Inner"))
    outer.connect_with(inner)
    assert [str(step) for step in outer.graph] == [First.name, Last.name, "shop.Inner"]
    assert outer.graph[type(inner.order[0])] == [Last]
