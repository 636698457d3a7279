"""A connection that is lost at a bad moment: while the worker stops, and under a task that is cancelled for it."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.brokers import load_project
from tests.support.proxy import TcpProxy
from tests.support.wait import wait_until
from tests.support.worker import WorkerProcess

PROJECT = """
import os, time
from celery_clone import Celery

app = Celery("project", broker=os.environ["BROKER"], set_as_current=False)
app.conf.update(
    broker_heartbeat=0,
    control_queue_exclusive=False,
    event_queue_exclusive=False,
    worker_cancel_long_running_tasks_on_connection_loss=bool(os.environ.get("CANCEL")),
)

@app.task(acks_late=True)
def wait_for(path):
    with open(path + ".begun", "a") as begun:
        begun.write("begun\\n")
    while not os.path.exists(path):
        time.sleep(0.02)
    with open(path + ".done", "a") as done:
        done.write("done\\n")
"""


@pytest.fixture
def proxied(rabbitmq_url):
    """A proxy before the broker, and the URL that leads through it."""
    port = urlsplit(rabbitmq_url).port
    with TcpProxy(port) as proxy:
        yield proxy, rabbitmq_url.replace(f":{port}/", f":{proxy.port}/"), rabbitmq_url


def lines_of(path: Path) -> int:
    """How many lines a file has; none if it does not exist."""
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture
def shop(proxied, tmp_path):
    """The proxy, a project that sends past it, and a way to start workers that go through it."""
    proxy, through, direct = proxied
    (tmp_path / "project.py").write_text(PROJECT)
    project = load_project(tmp_path / "project.py", {"BROKER": direct})

    def worker(*options, **environment):
        return WorkerProcess(
            "project",
            ["-c", "1", *(options or ("--without-gossip", "--without-mingle"))],
            folder=tmp_path,
            environment={"BROKER": through, **environment},
        )

    yield proxy, project, worker
    project.app.close()


def test_a_worker_that_stops_finishes_its_task_although_the_broker_goes_away(shop, tmp_path):
    proxy, project, make = shop
    path = tmp_path / "go"
    with make() as worker:
        project.wait_for.delay(str(path))
        wait_until(lambda: lines_of(Path(f"{path}.begun")) == 1, 10, worker.log)
        worker.process.send_signal(signal.SIGTERM)
        worker.wait_for_log("Warm shutdown")
        proxy.refuse()
        proxy.cut()
        worker.wait_for_log("lost while running tasks are finished")
        path.touch()
        wait_until(lambda: worker.exit_code is not None, 10, worker.log)

    assert worker.exit_code == 0
    assert lines_of(Path(f"{path}.done")) == 1
    assert len(re.findall("lost while running", worker.log())) == 1
    assert "Traceback" not in worker.log()


def test_a_task_cancelled_for_a_lost_connection_runs_again(shop, tmp_path):
    proxy, project, make = shop
    path = tmp_path / "go"
    with make(CANCEL="yes") as worker:
        project.wait_for.delay(str(path))
        wait_until(lambda: lines_of(Path(f"{path}.begun")) == 1, 10, worker.log)
        proxy.cut()
        wait_until(lambda: lines_of(Path(f"{path}.begun")) == 2, 15, worker.log)
        path.touch()
        wait_until(lambda: lines_of(Path(f"{path}.done")) == 1, 10, worker.log)


def test_queues_that_are_deleted_under_a_worker_cost_it_neither_its_connection_nor_its_task(
    shop, tmp_path, rabbitmq_server, rabbitmq_url
):
    """RabbitMQ ends a consumer whose queue is gone, which py-amqp tells as a lost connection."""
    proxy, project, make = shop
    path, host = tmp_path / "go", rabbitmq_url.rpartition("/")[2]

    def queues():
        return {queue["name"] for queue in rabbitmq_server.ask("GET", f"queues/{host}")}

    with make("-n", "w@here") as worker:
        project.wait_for.delay(str(path))
        wait_until(lambda: lines_of(Path(f"{path}.begun")) == 1, 10, worker.log)
        worker.wait_for_log("mingle: all alone")
        made, deleted = proxy.connections_made, queues()
        assert any(name.startswith("celeryev.") for name in deleted)
        with project.app.connection_for_write() as connection:
            for name in deleted:
                connection.default_channel.queue_delete(name)
        worker.wait_for_log("cancelled the consumer of queue 'celery'")

        ping = project.app.control.ping
        wait_until(lambda: ping(["w@here"], timeout=0.5, limit=1), 10, worker.log)
        wait_until(
            lambda: {"celery", "w@here.celery.pidbox"} < (there := queues())
            and any(name.startswith("celeryev.") for name in there),
            10,
            lambda: f"the queues to be back, of which there are {queues()}; {worker.log()}",
        )
        path.touch()
        wait_until(lambda: lines_of(Path(f"{path}.done")) == 1, 10, worker.log)
        project.wait_for.delay(str(path))
        wait_until(lambda: lines_of(Path(f"{path}.done")) == 2, 10, worker.log)

    assert lines_of(Path(f"{path}.begun")) == 2
    assert proxy.connections_made == made
    assert "Traceback" not in worker.log()
