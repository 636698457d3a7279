"""Stacks and attributes of one context, background threads, socket timeouts."""

from __future__ import annotations

import asyncio
import contextvars
import os
import socket
import threading
from types import SimpleNamespace

import pytest

from celery_clone.utils import threads
from celery_clone.utils.threads import (
    Local,
    LocalManager,
    LocalStack,
    bgThread,
    bound_open_broker_sockets,
    default_socket_timeout,
    release_local,
)


def in_another_thread(function):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(function()))
    thread.start()
    thread.join(10)
    return answers[0]


# -- LocalStack


def test_a_stack_gives_back_what_was_pushed_last_first():
    stack = LocalStack()
    assert stack.top is None
    assert stack.push(1) == [1]
    assert stack.push(2) == [1, 2]
    assert (stack.top, len(stack), stack.stack) == (2, 2, [1, 2])
    assert (stack.pop(), stack.pop(), stack.pop()) == (2, 1, None)
    assert (stack.top, len(stack), stack.stack) == (None, 0, [])


def test_changing_the_list_it_shows_does_not_change_the_stack():
    stack = LocalStack()
    stack.push(1).append("intruder")
    stack.stack.append("intruder")
    assert stack.stack == [1]


def test_a_stack_belongs_to_its_thread():
    stack = LocalStack()
    stack.push("mine")
    assert in_another_thread(lambda: (stack.top, stack.push("theirs"))) == (None, ["theirs"])
    assert stack.stack == ["mine"]


def test_a_coroutine_sees_what_its_starter_pushed_and_shows_nothing_back():
    stack = LocalStack()

    async def inner():
        seen = stack.top
        stack.push("inner")
        return seen

    async def outer():
        stack.push("outer")
        seen = await asyncio.create_task(inner())
        return seen, stack.stack

    assert asyncio.run(outer()) == ("outer", ["outer"])
    assert stack.stack == []


def test_two_stacks_do_not_mix():
    one, two = LocalStack(), LocalStack()
    one.push(1)
    assert two.top is None


def test_releasing_a_stack_empties_it():
    stack = LocalStack()
    stack.push(1)
    release_local(stack)
    assert stack.stack == []


def test_a_called_stack_is_a_proxy_of_its_top():
    stack = LocalStack()
    top = stack()
    with pytest.raises(RuntimeError, match="object unbound"):
        top.anything  # noqa: B018
    stack.push({"a": 1})
    assert top["a"] == 1
    stack.push(None)
    assert top == None  # noqa: E711


# -- Local


def test_attributes_belong_to_their_thread():
    local = Local()
    local.name = "mine"
    assert in_another_thread(lambda: hasattr(local, "name")) is False
    assert local.name == "mine"
    del local.name
    for forbidden in (lambda: local.name, lambda: delattr(local, "name")):
        with pytest.raises(AttributeError, match="name"):
            forbidden()


def test_iterating_gives_each_context_with_its_attributes():
    local = Local()
    local.name = "mine"
    in_another_thread(lambda: setattr(local, "name", "theirs"))
    assert sorted(attributes["name"] for _, attributes in local) == ["mine", "theirs"]


def test_a_called_local_is_a_proxy_of_the_named_attribute():
    local = Local()
    name = local("name")
    with pytest.raises(RuntimeError, match="no object bound to name"):
        name._get_current_object()
    assert not name
    local.name = "mine"
    assert name == "mine"


def test_a_manager_cleans_up_all_its_locals():
    local, stack = Local(), LocalStack()
    local.name = "mine"
    stack.push(1)
    manager = LocalManager([local, stack])
    manager.cleanup()
    manager.cleanup()
    assert not hasattr(local, "name")
    assert stack.top is None
    assert repr(manager) == "<LocalManager storages: 2>"


def test_a_manager_may_be_given_one_local_or_none():
    local = Local()
    assert LocalManager(local).locals == [local]
    assert LocalManager().locals == []


def test_a_manager_may_say_what_a_context_is():
    request = contextvars.ContextVar("request", default="first")
    local = Local()
    manager = LocalManager([local, LocalStack()], ident_func=request.get)
    local.name = "of the first"
    request.set("second")
    assert manager.get_ident() == "second"
    assert not hasattr(local, "name")
    request.set("first")
    assert local.name == "of the first"


def test_without_greenlets_a_context_is_a_thread():
    assert in_another_thread(threads.get_ident) != threads.get_ident()


# -- bgThread


class Counting(bgThread):
    def __init__(self):
        super().__init__()
        self.rounds = 0
        self.worked = threading.Event()

    def body(self):
        self.rounds += 1
        self.worked.set()


def test_a_background_thread_works_until_it_is_stopped():
    thread = Counting()
    assert (thread.name, thread.daemon) == ("Counting", True)
    thread.start()
    assert thread.worked.wait(10)
    thread.stop()
    assert not thread.is_alive()
    rounds = thread.rounds
    thread.stop()
    assert thread.rounds == rounds


def test_stopping_before_the_start_means_no_round_at_all():
    thread = Counting()
    thread.stop()
    thread.start()
    thread.join(10)
    assert thread.rounds == 0


def test_a_background_thread_may_stop_itself():
    class Once(Counting):
        def body(self):
            super().body()
            self.stop()

    thread = Once()
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert thread.rounds == 1


def test_a_background_thread_without_a_body_says_what_is_missing():
    with pytest.raises(NotImplementedError, match=r"must define body\(\)"):
        bgThread(name="empty").body()


def test_when_the_body_raises_the_process_ends_with_code_1(monkeypatch, capsys):
    ended = []

    def leave(code):
        ended.append(code)
        raise SystemExit  # what follows must not run, as it would not after the real one

    monkeypatch.setattr(os, "_exit", leave)

    class Broken(bgThread):
        def body(self):
            raise KeyError("boom")

    with pytest.raises(SystemExit):
        Broken(name="broken").run()
    assert ended == [1]
    said = capsys.readouterr().err
    assert "'broken' crashed: KeyError('boom')" in said
    assert "Traceback" in said


# -- sockets


def test_the_default_timeout_of_sockets_is_put_back(monkeypatch):
    before = socket.getdefaulttimeout()
    with pytest.raises(KeyError), default_socket_timeout(3.5):
        assert socket.getdefaulttimeout() == 3.5
        raise KeyError
    assert socket.getdefaulttimeout() == before


class Bounded:
    def __init__(self, broken=False):
        self.timeouts = []
        self.broken = broken

    def settimeout(self, timeout):
        if self.broken:
            raise OSError("bad file descriptor")
        self.timeouts.append(timeout)


def redis_channel(**sockets):
    channel = SimpleNamespace()
    for name, bounded in sockets.items():
        vars(channel)[name] = SimpleNamespace(connection=SimpleNamespace(_sock=bounded))
    return channel


def test_open_sockets_of_virtual_transports_are_bounded_the_broken_among_them_skipped():
    command, subscriber, broken = Bounded(), Bounded(), Bounded(broken=True)
    connection = SimpleNamespace(
        transport=SimpleNamespace(
            channels=[redis_channel(client=broken), redis_channel(client=command, subclient=subscriber)]
        ),
        _connection=None,
    )
    bound_open_broker_sockets(connection, 2)
    assert (command.timeouts, subscriber.timeouts) == ([2], [2])


def test_the_open_socket_of_amqp_is_bounded():
    bounded = Bounded()
    connection = SimpleNamespace(
        transport=SimpleNamespace(),
        _connection=SimpleNamespace(_transport=SimpleNamespace(sock=bounded)),
    )
    bound_open_broker_sockets(connection, 2)
    assert bounded.timeouts == [2]


def test_bounding_never_raises_and_never_connects():
    class Connection:
        _connection = None

        @property
        def transport(self):
            raise ConnectionRefusedError

    class Channel:
        @property
        def client(self):
            raise AssertionError("this would connect")

    bound_open_broker_sockets(Connection(), 2)
    bound_open_broker_sockets(SimpleNamespace(transport=SimpleNamespace(channels=[Channel()])), 2)
