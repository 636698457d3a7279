"""Names of nodes: made, split, completed and filled in."""

from __future__ import annotations

import os
import socket

import pytest
from kombu import Queue

from celery_clone.utils import nodenames
from celery_clone.utils.nodenames import (
    anon_nodename,
    default_nodename,
    gethostname,
    host_format,
    node_format,
    nodename,
    nodesplit,
    worker_direct,
)


def test_a_node_name_is_made_of_a_name_and_a_host():
    assert nodename("w1", "host.example") == "w1@host.example"
    assert anon_nodename("host") == f"gen{os.getpid()}@host"
    assert anon_nodename(prefix="beat") == f"beat{os.getpid()}@{socket.gethostname()}"


def test_a_node_name_is_split_at_the_first_sign():
    assert list(nodesplit("w1@host")) == ["w1", "host"]
    assert list(nodesplit("w1@host@x")) == ["w1", "host@x"]
    assert nodesplit("host") == (None, "host")


def test_what_is_missing_in_a_node_name_is_completed():
    host = socket.gethostname()
    assert default_nodename(None) == f"celery@{host}"
    assert default_nodename("w1@") == f"w1@{host}"
    assert default_nodename("host") == "celery@host"
    assert default_nodename("host", default_name="celerybeat") == "celerybeat@host"


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("%h", "box.example.org"),
        ("%n", "w1"),
        ("%d", "example.org"),
        ("%i", "0"),
        ("log%I", "log"),
        ("%p", "w1@box.example.org"),
        ("100%%", "100%"),
    ],
)
def test_letters_stand_for_the_parts_of_the_node(pattern, text):
    assert node_format(pattern, "w1@box.example.org") == text


def test_without_a_name_the_short_host_is_meant():
    assert host_format("%n", "box.example.org") == "box"
    assert host_format("%h") == socket.gethostname()
    assert node_format("%n", "box.example.org") == "celery"


def test_further_letters_may_be_given():
    assert host_format("%x", "box", x="more") == "more"


@pytest.mark.parametrize(("index", "plain", "dashed"), [(None, "0", ""), (3, "3", "-3")])
def test_the_index_of_a_process_of_the_pool(monkeypatch, index, plain, dashed):
    monkeypatch.setattr(nodenames, "current_process_index", lambda: index)
    assert host_format("%i|%I", "box") == f"{plain}|{dashed}"


def test_the_host_is_asked_for_its_name_once(monkeypatch):
    known = gethostname()
    monkeypatch.setattr(socket, "gethostname", lambda: "renamed")
    assert gethostname() == known


def test_the_queue_of_one_worker():
    queue = worker_direct("w1@host")
    assert (queue.name, queue.exchange.name, queue.routing_key) == ("w1@host.dq2", "C.dq2", "w1@host")
    assert queue.exchange == nodenames.WORKER_DIRECT_EXCHANGE
    mine = Queue("mine")
    assert worker_direct(mine) is mine


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        nodenames.nonsense  # noqa: B018
