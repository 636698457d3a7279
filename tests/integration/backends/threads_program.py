"""A client of many threads: ``python threads_program.py ACTION COUNT`` prints what it found as JSON.

Started by ``test_results_under_threads``; its worker runs ``-A threads_program``.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from celery_clone import Celery

THREADS = 16
POOL = 4

app = Celery("threads", broker=os.environ["THREADS_URL"], backend=os.environ["THREADS_URL"])
app.conf.broker_pool_limit = POOL


@app.task(name="threads.add")
def add(x: int, y: int) -> int:
    return x + y


def sockets() -> set[str]:
    """The sockets of this process that lead to the server."""
    port = f":{app.connection().port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    to_server = {row[9] for row in rows if row[2].endswith(port)}
    mine = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            mine.add(os.readlink(descriptor).removeprefix("socket:[").rstrip("]"))
        except FileNotFoundError:
            continue  # the one that lists this folder
    return to_server & mine


def channels() -> int:
    """How many results somebody is subscribed to."""
    return len(app.backend.client.pubsub_channels("celery-task-meta-*"))


def call_and_wait(count: int) -> dict[str, Any]:
    """Threads that call and wait, *count* times each, while another collects garbage."""
    inherited = sockets()
    errors: list[str] = []
    over = threading.Event()

    def call(thread: int) -> None:
        try:
            for number in range(count):
                value = add.delay(thread, number).get(timeout=60)
                if value != thread + number:
                    errors.append(f"{thread} + {number} gave {value!r}")
        except BaseException as error:  # the test tells of it, whatever it is
            errors.append(repr(error))

    def collect() -> None:
        while not over.wait(0.01):
            gc.collect()

    collector = threading.Thread(target=collect)
    collector.start()
    callers = [threading.Thread(target=call, args=(thread,)) for thread in range(THREADS)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    over.set()
    collector.join()
    return {
        "errors": errors,
        "pending": len(app.backend._pending_results),
        "waited_for": len(app.backend.result_consumer.subscribed_to),
        "sockets": len(sockets() - inherited),
        "channels": channels(),
    }


def threads(count: int) -> dict[str, Any]:
    """In this process, and then in one that it forks."""
    parent = call_and_wait(count)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        found = call_and_wait(count)
        os.write(writer, json.dumps(found).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        found = pipe.read()
    os.waitpid(child, 0)
    again = add.delay(1, 2).get(timeout=60)
    app.backend.close()
    return {"parent": parent, "child": json.loads(found), "again": again}


def unread(count: int) -> dict[str, Any]:
    """Calls whose results nobody asks for: what they leave in this process, and on the server."""

    def call(times: int) -> dict[str, int]:
        for number in range(times):
            add.delay(number, 1)
        gc.collect()
        resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
        return {
            "objects": len(gc.get_objects()),
            "bytes": resident_pages * os.sysconf("SC_PAGE_SIZE"),
            "channels": channels(),
            "sockets": len(sockets()),
        }

    return {"before": call(count // 10), "after": call(count)}


if __name__ == "__main__":
    print(json.dumps({"threads": threads, "unread": unread}[sys.argv[1]](int(sys.argv[2]))))
