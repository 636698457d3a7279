"""The old home of the ISO 8601 parser, kept for those who import it.

Nobody inside calls it: ``utils.time`` reads dates.
"""

from __future__ import annotations

from datetime import datetime

from celery_clone.utils import deprecated
from celery_clone.utils import time as _time

__all__ = ("parse_iso8601",)


def parse_iso8601(datestring: str) -> datetime:
    """Return the moment an ISO 8601 text stands for; :exc:`ValueError` if it is none."""
    deprecated.warn("parse_iso8601", "v5.3", "v6", "datetime.datetime.fromisoformat or dateutil.parser.isoparse")
    return _time.parse_iso8601(datestring)
