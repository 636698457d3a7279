"""A project whose schedule lives in Redis, by celery-redbeat."""

import os

from celery import Celery

app = Celery("redbeat_shop", broker=os.environ["BROKER"], backend=os.environ["RESULTS"])
app.conf.redbeat_redis_url = os.environ["RESULTS"]
app.conf.redbeat_lock_timeout = 5
app.conf.beat_max_loop_interval = 1
app.conf.beat_schedule = {"from-configuration": {"task": "redbeat_shop.tick", "schedule": 1.0, "args": ("conf",)}}


@app.task
def tick(word):
    print(f"TICK {word}", flush=True)
