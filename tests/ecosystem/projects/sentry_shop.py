"""A project that reports to Sentry; what would be sent is written to a file instead."""

import json
import os
from datetime import datetime, timedelta, timezone
from pathlib import Path

import sentry_sdk
from celery import Celery
from sentry_sdk.integrations.celery import CeleryIntegration
from sentry_sdk.transport import Transport

OUTBOX = Path(os.environ["OUTBOX"])


class FileTransport(Transport):
    def capture_envelope(self, envelope):
        for item in envelope.items:
            if item.payload.json is not None:
                line = json.dumps({"kind": item.type, **item.payload.json}, default=str)
                with OUTBOX.open("a") as outbox:
                    outbox.write(line + "\n")


sentry_sdk.init(
    dsn="http://key@127.0.0.1:9/1",
    transport=FileTransport,
    traces_sample_rate=1.0,
    integrations=[CeleryIntegration(monitor_beat_tasks=True)],
)

app = Celery("sentry_shop", broker=os.environ["BROKER"], backend=os.environ["RESULTS"])
# Sentry watches nothing that runs more often than once a minute; the first run is overdue.
app.conf.beat_schedule = {
    "each-minute": {
        "task": "sentry_shop.add",
        "schedule": timedelta(minutes=1),
        "args": (1, 1),
        "last_run_at": datetime.now(timezone.utc) - timedelta(hours=1),
    }
}


@app.task
def add(x, y):
    return x + y


@app.task
def fail():
    raise ValueError("as asked")
