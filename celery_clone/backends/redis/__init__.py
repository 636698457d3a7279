"""Results in Redis: stored and told of in one step, waited for over one connection.

Chosen by ``result_backend = "redis://host:6379/0"`` (also ``rediss://``, ``redis+socket://`` and
``sentinel://``).  Keys, values and channels are Celery's, so that both may work on one Redis; what
each key holds stands at the top of the ``.lua`` files beside this one.
"""

from __future__ import annotations

from .sentinel import SentinelBackend
from .store import RedisBackend
from .waiting import ResultConsumer

__all__ = ("RedisBackend", "ResultConsumer", "SentinelBackend")
