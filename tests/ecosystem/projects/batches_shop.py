"""A project with a task that takes many calls at once, by celery-batches."""

import os

from celery import Celery
from celery_batches import Batches

app = Celery("batches_shop", broker=os.environ["BROKER"], backend=os.environ["RESULTS"])
app.conf.worker_prefetch_multiplier = 10


@app.task(base=Batches, flush_every=5, flush_interval=1)
def total(requests):
    amounts = [request.args[0] for request in requests]
    print(f"BATCH {sorted(amounts)}", flush=True)
    for request in requests:
        app.backend.mark_as_done(request.id, sum(amounts), request=request)
