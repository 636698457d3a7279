"""Names ``Signal`` at the address where users and libraries import it from."""

from __future__ import annotations

from celery_clone.utils.dispatch.signal import Signal

__all__ = ("Signal",)
