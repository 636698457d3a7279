"""The application of the example project.

Without any configuration it keeps messages and results in one file, ``proj.db``, in the current folder: no
server is needed. ``CELERY_BROKER_URL`` and ``CELERY_RESULT_BACKEND`` name others, for instance
``redis://localhost`` or ``amqp://`` with ``rpc://``.
"""

from __future__ import annotations

import os

from celery_clone import Celery

EMBEDDED = "sqlite:///proj.db"

app = Celery(
    "proj",
    broker=os.environ.get("CELERY_BROKER_URL", EMBEDDED),
    backend=os.environ.get("CELERY_RESULT_BACKEND", EMBEDDED),
    include=["proj.tasks"],
)

app.conf.update(
    result_expires=3600,
)

if __name__ == "__main__":
    app.start()
