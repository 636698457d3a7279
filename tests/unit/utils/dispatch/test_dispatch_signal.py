"""``Signal``: who is told, in which order, and what a failing receiver does."""

from __future__ import annotations

import gc
import logging
import threading
from functools import partial

import pytest

from celery_clone.exceptions import CDeprecationWarning
from celery_clone.local import PromiseProxy, Proxy
from celery_clone.utils.dispatch import Signal


@pytest.fixture(params=[False, True], ids=["uncached", "cached"])
def signal(request):
    return Signal(providing_args={"value"}, use_caching=request.param, name="happened")


class Listener:
    def __init__(self):
        self.heard = []

    def receive(self, sender=None, value=None, **kwargs):
        self.heard.append((sender, value))
        return value


class Sender:
    pass


def answers(responses):
    return [answer for _, answer in responses]


# -- telling


def test_a_receiver_is_told_the_signal_the_sender_and_the_arguments(signal):
    told = []

    def receiver(**kwargs):
        told.append(kwargs)
        return "answer"

    signal.connect(receiver)
    sender = Sender()
    assert signal.send(sender=sender, value=1) == [(receiver, "answer")]
    assert told == [{"signal": signal, "sender": sender, "value": 1}]


def test_the_sender_may_be_given_by_position(signal):
    listener = Listener()
    signal.connect(listener.receive)
    signal.send("me", value=1)
    assert listener.heard == [("me", 1)]


def test_receivers_are_told_in_the_order_of_their_connection(signal):
    def one(**kwargs):
        return 1

    def two(**kwargs):
        return 2

    signal.connect(two)
    signal.connect(one)
    assert answers(signal.send(None)) == [2, 1]


def test_without_receivers_there_are_no_answers_and_receivers_is_false(signal):
    assert signal.send(sender=None, value=1) == []
    assert not signal.receivers
    assert not signal.has_listeners()


def test_what_a_receiver_raises_is_logged_and_stands_for_its_answer(signal, caplog):
    def broken(**kwargs):
        raise KeyError("boom")

    def sound(**kwargs):
        return "fine"

    signal.connect(broken)
    signal.connect(sound)
    with caplog.at_level(logging.ERROR, logger="celery"):
        (_, error), (_, answer) = signal.send(None)
    assert isinstance(error, KeyError)
    assert answer == "fine"
    assert "raised: KeyError('boom')" in caplog.text
    assert "Traceback" in caplog.text


def test_a_receiver_may_end_the_program(signal):
    def leave(**kwargs):
        raise SystemExit(3)

    signal.connect(leave)
    with pytest.raises(SystemExit):
        signal.send(None)


def test_a_receiver_may_disconnect_itself_while_it_is_told(signal):
    def once(**kwargs):
        signal.disconnect(once)
        return "once"

    def always(**kwargs):
        return "always"

    signal.connect(once)
    signal.connect(always)
    assert answers(signal.send(None)) == ["once", "always"]
    assert answers(signal.send(None)) == ["always"]


# -- of whom


def test_a_receiver_for_one_sender_hears_of_no_other(signal):
    listener, mine, other = Listener(), Sender(), Sender()
    signal.connect(listener.receive, sender=mine)
    signal.send(other, value=1)
    signal.send(mine, value=2)
    signal.send(None, value=3)
    assert listener.heard == [(mine, 2)]
    assert signal.has_listeners(mine)
    assert not signal.has_listeners(other)


def test_senders_that_are_texts_are_compared_by_value(signal):
    listener = Listener()
    signal.connect(listener.receive, sender="proj.add")
    signal.send("".join(["proj", ".add"]), value=1)
    assert listener.heard == [("proj.add", 1)]


def test_a_sender_may_be_a_bound_method(signal):
    owner, listener = Listener(), Listener()
    signal.connect(listener.receive, sender=owner.receive)
    signal.send(owner.receive, value=1)
    signal.send(Listener().receive, value=2)
    assert [value for _, value in listener.heard] == [1]


def test_a_sender_may_be_a_proxy_of_the_one_who_sends(signal):
    listener, sender = Listener(), Sender()
    signal.connect(listener.receive, sender=Proxy(lambda: sender))
    signal.send(sender, value=1)
    assert listener.heard == [(sender, 1)]


def test_a_promised_sender_is_not_asked_for_but_connected_when_it_is_there(signal):
    listener, sender, asked = Listener(), Sender(), []
    promise = PromiseProxy(lambda: asked.append(1) or sender)
    signal.connect(listener.receive, sender=promise, weak=False)
    assert asked == []
    assert not signal.receivers
    promise.__evaluate__()
    signal.send(sender, value=1)
    assert listener.heard == [(sender, 1)]


# -- connecting


def test_connect_is_a_decorator_with_and_without_options(signal):
    @signal.connect
    def plain(**kwargs):
        return "plain"

    @signal.connect(sender="mine")
    def choosy(**kwargs):
        return "choosy"

    assert answers(signal.send("mine")) == ["plain", "choosy"]
    assert answers(signal.send("other")) == ["plain"]
    assert plain(x=1) == "plain"


def test_options_may_be_given_by_position(signal):
    def receiver(**kwargs):
        return "told"

    signal.connect(receiver, "mine", False, "uid")
    assert answers(signal.send("mine")) == ["told"]
    assert signal.disconnect(sender="mine", dispatch_uid="uid")


def test_a_receiver_connected_twice_is_told_once(signal):
    listener = Listener()
    signal.connect(listener.receive)
    signal.connect(listener.receive)
    signal.send(None, value=1)
    assert listener.heard == [(None, 1)]


def test_methods_of_two_objects_are_two_receivers(signal):
    one, two = Listener(), Listener()
    signal.connect(one.receive)
    signal.connect(two.receive)
    signal.send(None, value=1)
    assert one.heard == two.heard == [(None, 1)]


def test_of_receivers_with_the_same_uid_only_the_first_is_connected(signal):
    def one(**kwargs):
        return "one"

    def two(**kwargs):
        return "two"

    signal.connect(one, dispatch_uid="uid")
    signal.connect(two, dispatch_uid="uid")
    assert answers(signal.send(None)) == ["one"]


def test_a_receiver_must_take_keyword_arguments(signal):
    with pytest.raises(ValueError, match="must accept keyword arguments"):
        signal.connect(lambda sender: None)


def test_a_receiver_must_be_callable(signal):
    with pytest.raises(TypeError, match="must be callable"):
        signal.connect(sender="mine")("no function")


def test_a_callable_object_may_receive(signal):
    class Receiver:
        def __call__(self, **kwargs):
            return "object"

    receiver = Receiver()
    signal.connect(receiver)
    signal.connect(partial(lambda word, **kwargs: word, "partial"), weak=False)
    assert answers(signal.send(None)) == ["object", "partial"]


# -- weak and strong


def test_a_receiver_nobody_holds_is_forgotten(signal):
    def receiver(**kwargs):
        return "told"

    signal.connect(receiver)
    assert signal.send(None)
    del receiver
    gc.collect()
    assert signal.send(None) == []
    assert not signal.receivers


def test_a_method_lives_as_long_as_its_object(signal):
    listener = Listener()
    signal.connect(listener.receive)
    signal.send(None, value=1)
    assert listener.heard
    del listener
    gc.collect()
    assert not signal.has_listeners()


def test_a_strong_receiver_stays(signal):
    signal.connect(lambda **kwargs: "told", weak=False)
    gc.collect()
    assert answers(signal.send(None)) == ["told"]


def test_a_receiver_that_cannot_be_weak_is_refused_with_the_remedy(signal):
    class Slotted:
        __slots__ = ()

        def __call__(self, **kwargs):
            return "told"

    slotted = Slotted()
    with pytest.raises(TypeError, match="weak=False"):
        signal.connect(slotted)
    signal.connect(slotted, weak=False)
    assert answers(signal.send(None)) == ["told"]


def test_a_newcomer_is_not_taken_for_a_dead_receiver_of_the_same_identity(signal):
    def connect_and_die():
        def receiver(**kwargs):
            return "dead"

        signal.connect(receiver)

    def survivor(**kwargs):
        return "alive"

    connect_and_die()
    # What CPython does sooner or later: a new object at the address of a dead one.
    (_, sender_key), dead = signal.receivers[0]
    signal.receivers = [((id(survivor), sender_key), dead)]
    signal.connect(survivor)
    assert answers(signal.send(None)) == ["alive"]


# -- disconnecting


def test_disconnect_tells_whether_there_was_something_to_undo(signal):
    listener = Listener()
    signal.connect(listener.receive, sender="mine")
    assert signal.disconnect(listener.receive) is False
    assert signal.disconnect(listener.receive, sender="mine") is True
    assert signal.disconnect(listener.receive, sender="mine") is False
    assert not signal.receivers


def test_disconnect_by_uid_needs_no_receiver(signal):
    signal.connect(lambda **kwargs: 1, weak=False, dispatch_uid="uid")
    assert signal.disconnect(dispatch_uid="uid") is True


def test_weak_means_nothing_to_disconnect(signal):
    with pytest.warns(CDeprecationWarning, match="no effect"):
        signal.disconnect(print, weak=True)


# -- retries


class Patient(Signal):
    """A signal whose pauses are written down instead of waited for."""

    def __init__(self):
        super().__init__()
        self.paused = []

    def _sleep(self, seconds):
        self.paused.append(seconds)


def test_a_retried_receiver_is_called_until_it_succeeds(caplog):
    signal = Patient()
    failures = 20

    def flaky(**kwargs):
        nonlocal failures
        if failures:
            failures -= 1
            raise ConnectionError("away")
        return "at last"

    with caplog.at_level(logging.ERROR, logger="celery"):
        signal.connect(flaky, retry=True)
        assert answers(signal.send(None)) == ["at last"]
    assert signal.paused == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, *[30] * 6]
    assert "Retrying in 2.00 seconds" in caplog.text


def test_a_retried_receiver_is_held_strongly_and_disconnected_by_the_function_or_its_wrapper():
    signal = Patient()

    def receiver(**kwargs):
        return "told"

    wrapper = signal.connect(receiver, retry=True)
    assert wrapper(x=1) == "told"
    assert answers(signal.send(None)) == ["told"]
    assert signal.disconnect(receiver)
    signal.connect(receiver, retry=True)
    wrapper = signal.connect(receiver, retry=True)
    assert len(signal.receivers) == 1
    assert signal.disconnect(wrapper)


def test_a_retried_receiver_may_have_a_uid():
    signal = Patient()
    signal.connect(retry=True, dispatch_uid="uid")(lambda **kwargs: "told")
    assert answers(signal.send(None)) == ["told"]
    assert signal.disconnect(dispatch_uid="uid")


# -- caching, threads, words


def test_a_cached_sender_is_looked_up_anew_after_connecting():
    signal = Signal(use_caching=True)
    assert signal.send("mine") == []
    signal.connect(lambda **kwargs: 1, weak=False, dispatch_uid="one")
    assert answers(signal.send("mine")) == [1]
    assert answers(signal.send("mine")) == [1]
    signal.connect(lambda **kwargs: 2, weak=False, dispatch_uid="two")
    assert answers(signal.send("mine")) == [1, 2]
    signal.disconnect(dispatch_uid="one")
    assert answers(signal.send("mine")) == [2]


def test_the_cache_of_senders_is_bounded():
    signal = Signal(use_caching=True)
    signal.connect(lambda **kwargs: 1, weak=False)
    for number in range(3 * Signal._CACHE_LIMIT):
        signal.send(f"task-{number}")
    assert len(signal.sender_receivers_cache) <= Signal._CACHE_LIMIT


def test_sending_waits_for_nobody_who_connects(signal):
    signal.connect(lambda **kwargs: "told", weak=False)
    told = []
    with signal.lock:
        thread = threading.Thread(target=lambda: told.extend(signal.send(None)))
        if not signal.use_caching:
            thread.start()
            thread.join(10)
            assert answers(told) == ["told"]


def test_its_repr_names_it_and_its_arguments():
    assert repr(Signal({"a"}, name="happened")) == "<Signal: happened providing_args={'a'}>"
    assert str(Signal(name="happened")) == "<Signal: happened providing_args=set()>"


def test_send_robust_is_send():
    assert Signal.send_robust is Signal.send
