"""Beat: sends tasks when their schedules say so.

Run by ``apps.beat`` as a program and by ``worker.components`` inside a worker (``-B``).  It runs nothing itself.
"""

from __future__ import annotations

from celery_clone.beat.embedded import EmbeddedService
from celery_clone.beat.entries import BeatLazyFunc, ScheduleEntry, event_t
from celery_clone.beat.persistent import PersistentScheduler
from celery_clone.beat.pidbox import BeatPidbox, beat_nodename
from celery_clone.beat.scheduler import DEFAULT_MAX_INTERVAL, Scheduler, SchedulingError
from celery_clone.beat.service import Service
from celery_clone.utils.log import get_logger

__all__ = (
    "DEFAULT_MAX_INTERVAL",
    "BeatLazyFunc",
    "BeatPidbox",
    "EmbeddedService",
    "PersistentScheduler",
    "ScheduleEntry",
    "Scheduler",
    "SchedulingError",
    "Service",
    "beat_nodename",
    "event_t",
)

logger = get_logger("celery.beat")
