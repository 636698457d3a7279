"""Quorum queues are found among the declared ones."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from kombu import Queue

from celery_clone.utils.quorum_queues import detect_quorum_queues

CLASSIC = Queue("classic")
EXPLICIT = Queue("explicit", queue_arguments={"x-queue-type": "classic"})
QUORUM = Queue("quorum", queue_arguments={"x-queue-type": "quorum"})
OTHER = Queue("other", queue_arguments={"x-queue-type": "quorum"})


@pytest.mark.parametrize(
    ("queues", "driver", "found"),
    [
        ([CLASSIC, QUORUM, OTHER], "amqp", (True, "quorum")),
        ([CLASSIC, EXPLICIT], "amqp", (False, "")),
        ([QUORUM], "redis", (False, "")),
        ([], "amqp", (False, "")),
    ],
)
def test_the_first_quorum_queue_of_an_amqp_broker_is_found(queues, driver, found):
    app = SimpleNamespace(amqp=SimpleNamespace(queues={queue.name: queue for queue in queues}))
    assert detect_quorum_queues(app, driver) == found
