"""Tasks with a countdown on RabbitMQ's quorum queues, which wait at the broker and not in a worker."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.support.processes import free_port
from tests.support.worker import clean_environment

PROJECT = """
import os, time
from kombu import Exchange, Queue
from celery_clone import Celery

app = Celery("project", broker=os.environ["BROKER"])
app.conf.task_queues = [
    Queue("lasting", Exchange("lasting", type="topic"), "lasting", queue_arguments={"x-queue-type": "quorum"})
]
app.conf.task_default_queue = app.conf.task_default_exchange = app.conf.task_default_routing_key = "lasting"
app.conf.task_default_exchange_type = "topic"

@app.task(shared=False)
def note(sent):
    print(f"came after {time.time() - sent:.3f} s", flush=True)
"""

SENDER = """
import time
from project import note
note.apply_async((time.time(),), countdown=2)
"""


def test_a_task_waits_at_the_broker_also_when_a_spare_broker_is_away(rabbitmq_url, tmp_path, start_worker):
    (tmp_path / "project.py").write_text(PROJECT)
    (tmp_path / "sender.py").write_text(SENDER)
    away = f"amqp://guest@127.0.0.1:{free_port()}//"
    worker = start_worker("project", "-c", "1", environment={"BROKER": f"{rabbitmq_url};{away}"})
    worker.wait_for_log("Failed to setup delayed delivery for 'amqp://guest@127.0.0.1:[0-9]+//'")

    subprocess.run(
        [sys.executable, "sender.py"],
        cwd=tmp_path,
        env=clean_environment({"BROKER": rabbitmq_url}),
        check=True,
        timeout=20,
    )

    (line,) = worker.wait_for_log("came after .* s", timeout=15)
    assert 1.9 < float(re.findall("[0-9.]+", line)[0]) < 6
