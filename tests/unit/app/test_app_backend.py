"""The result backend of an app, asked for by several threads."""

from __future__ import annotations

import threading

from celery_clone import Celery
from celery_clone.backends.cache import CacheBackend


class SlowlyMade(CacheBackend):
    """A backend whose making lets other threads in, as an import or a connection pool does."""

    made: list[object] = []
    gate: threading.Barrier

    def __init__(self, app, url=None, **kwargs):
        super().__init__(app, backend="memory", **kwargs)
        self.made.append(self)
        try:
            # Opens when a second one is being made meanwhile; there must never be a second one.
            self.gate.wait(timeout=0.3)
        except threading.BrokenBarrierError:
            pass  # as it should be: nobody else came


def test_threads_that_ask_first_at_the_same_time_get_one_backend():
    SlowlyMade.made, SlowlyMade.gate = [], threading.Barrier(2)
    app = Celery("shop", set_as_current=False)
    app.backend_cls = SlowlyMade
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(app.backend)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert len(found) == 4
    assert len(SlowlyMade.made) == 1
    assert all(backend is SlowlyMade.made[0] for backend in found)
