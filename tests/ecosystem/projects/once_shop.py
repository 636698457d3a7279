"""A project with a task that may be queued once only, by celery-once."""

import os
import time

from celery import Celery
from celery_once import QueueOnce

app = Celery("once_shop", broker=os.environ["BROKER"], backend=os.environ["RESULTS"])
app.conf.ONCE = {
    "backend": "celery_once.backends.Redis",
    "settings": {"url": os.environ["RESULTS"], "default_timeout": 60},
}


@app.task(base=QueueOnce, once={"keys": ["order"]})
def ship(order, seconds):
    time.sleep(seconds)
    return order
