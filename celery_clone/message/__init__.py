"""The wire as values: the data types that producers, sources, pools and workers hand each other.

Re-exports them; the functions that make and read them stay in their modules.
"""

from __future__ import annotations

from celery_clone.message.delivery import Delivery
from celery_clone.message.envelope import Envelope, Parts, Peek
from celery_clone.message.frames import Job, Report
from celery_clone.message.outgoing import TaskMessage

__all__ = ("Delivery", "Envelope", "Job", "Parts", "Peek", "Report", "TaskMessage")
