"""Programs that the tests of the embedded broker run as processes of their own.

``python sqlite_programs.py NAME URL [ARGUMENT ...]``; each says what it does in lines on its standard output.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from kombu import Connection, Consumer, Exchange, Producer, Queue, pidbox
from kombu.asynchronous import Hub, set_event_loop

import celery_clone.transport  # noqa: F401 registers sqlite://

TASKS = Queue("tasks", Exchange("tasks"), "tasks")


def say(*words: Any) -> None:
    """One line for the test that listens."""
    print(*words, flush=True)


def connect(url: str) -> Connection:
    """A connection with a short lease, so that tests need not wait for a long one."""
    return Connection(url, transport_options={"lease": 1.0, "visibility_timeout": 30.0})


def compete(url: str, size: str) -> None:
    """Take messages in batches of *size* and acknowledge them, until ``end`` comes; say their ids."""
    from celery_clone.transport.sqlite_source import SqliteSource

    with connect(url) as connection:
        source = SqliteSource(connection)
        source.set_queues([TASKS])
        say("ready")
        seen: list[str] = []
        while True:
            taken = source.take(int(size), timeout=10.0)
            if not taken:
                break
            seen.extend(delivery.headers["id"] for delivery in taken)
            source.ack([delivery.tag for delivery in taken])
            if any(delivery.headers["task"] == "end" for delivery in taken):
                break
        source.quiet()
        source.close()
    say("took", *seen)


def hold(url: str, count: str, how: str) -> None:
    """Take *count* messages and hold them: for ever, or after ``stop`` without moving."""
    from celery_clone.transport.sqlite_source import SqliteSource

    connection = connect(url)
    source = SqliteSource(connection)
    source.set_queues([TASKS])
    taken = source.take(int(count), timeout=10.0 if int(count) else 0.0)
    say("holding", len(taken))
    if how == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    while True:
        source.take(0, timeout=0.2)


def hold_by_kombu(url: str) -> None:
    """Take one message with an ordinary kombu consumer, and neither settle it nor come back to the file."""
    connection = connect(url)
    queue = connection.SimpleQueue(TASKS)
    queue.get(timeout=10)
    say("holding", 1)
    time.sleep(600)


def echo(url: str) -> None:
    """Send each message of ``tasks`` back to the queue ``answers``, until ``end`` comes."""
    with connect(url) as connection:
        producer = Producer(connection.default_channel)
        ended = False

        def answer(body: Any, message: Any) -> None:
            nonlocal ended
            producer.publish(body, routing_key="answers")
            message.ack()
            ended = body == "end"

        with Consumer(connection.default_channel, [TASKS], callbacks=[answer]):
            say("ready")
            while not ended:
                try:
                    connection.drain_events(timeout=10)
                except TimeoutError:
                    break


def idle(url: str, seconds: str) -> None:
    """Wait in a hub for messages that do not come; say how much of a core that took."""
    hub = Hub()
    set_event_loop(hub)
    with connect(url) as connection:
        channel = connection.channel()
        with Consumer(channel, [TASKS]):
            connection.register_with_event_loop(hub)
            hub.run_once()
            cpu, wall = time.process_time(), time.monotonic()
            while time.monotonic() - wall < float(seconds):
                hub.run_once()
            say("share", (time.process_time() - cpu) / (time.monotonic() - wall))


def listen(url: str, name: str) -> None:
    """Say every body that comes over the fanout exchange ``news`` to a private queue."""
    with connect(url) as connection:
        channel = connection.channel()
        queue = Queue(name, Exchange("news", "fanout"), auto_delete=True, durable=False)

        def heard(body: Any, message: Any) -> None:
            say("heard", body)

        with Consumer(channel, [queue], callbacks=[heard], no_ack=True):
            say("ready")
            while True:
                try:
                    connection.drain_events(timeout=0.5)
                except TimeoutError:
                    continue


def mailbox(url: str, name: str) -> None:
    """Answer ``ping`` from a hub, as a worker does."""
    hub = Hub()
    set_event_loop(hub)
    connection = connect(url)
    box = pidbox.Mailbox("celery", type="fanout", connection=connection)
    node = box.Node(name, channel=connection.channel(), handlers={"ping": lambda state: "pong"})
    node.listen()
    connection.register_with_event_loop(hub)
    say("ready")
    while True:
        hub.run_once()


def write_as_nobody(url: str) -> None:
    """Try to publish without being root; say the error."""
    once = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}
    connection = Connection(url, transport_options=once)
    _ = connection.transport  # loads what nobody may not read
    os.setgid(65534)
    os.setuid(65534)
    try:
        with connection:
            Producer(connection.default_channel).publish("x", routing_key="tasks")
    except Exception as error:
        say(type(error).__name__, error)
    else:
        say("published")


def fork_and_use(url: str) -> None:
    """Hold a message, fork, and let the child use the inherited connection in every way; say what is left."""
    connection = connect(url)
    queue = connection.SimpleQueue(TASKS)
    message = queue.get(timeout=10)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            Producer(connection.default_channel).publish("from the child", routing_key="children")
            connection.collect()
            with connect(url) as own:
                Producer(own.default_channel).publish("from the child", routing_key="children")
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    say("child", status)
    with connect(url) as other:
        say("tasks", other.SimpleQueue(TASKS).qsize(), "children", other.SimpleQueue("children").qsize())
    message.ack()
    queue.put("still works")
    say("got", queue.get(timeout=10).payload)
    connection.release()


def outlive_the_parents_connection(url: str) -> None:
    """Fork with the file open, close it in the parent, and go on writing in the child."""
    parent = connect(url)
    parent.SimpleQueue(TASKS).put("from the parent")
    go, told = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with connect(url) as own:
                own.SimpleQueue(TASKS).put("from the child")
                os.read(go, 1)
                own.SimpleQueue(TASKS).put("from the child, later")
            code = 0
        finally:
            os._exit(code)
    with connect(url) as other:
        while other.SimpleQueue(TASKS).qsize() < 2:
            time.sleep(0.01)
    parent.release()
    with connect(url) as other:
        other.SimpleQueue(TASKS).put("from another")
    os.write(told, b"x")
    os.waitpid(child, 0)
    with connect(url) as other:
        queue = other.SimpleQueue(TASKS, no_ack=True)
        for _ in range(queue.qsize()):
            say(queue.get(block=False).payload)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
