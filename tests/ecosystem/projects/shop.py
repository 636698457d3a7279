"""A project that Flower looks at. Nothing here knows which Celery it runs on."""

import os
import time

from celery import Celery

app = Celery("shop", broker=os.environ["BROKER"], backend=os.environ["RESULTS"])
app.conf.worker_send_task_events = True
app.conf.task_send_sent_event = True


@app.task
def add(x, y):
    return x + y


@app.task
def nap(seconds):
    time.sleep(seconds)


@app.task
def fail():
    raise ValueError("as asked")
