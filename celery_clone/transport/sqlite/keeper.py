"""The thread that renews a session's lease where no loop does.

Owned by ``transport.sqlite_source`` for pools that run tasks in the loop's own thread.  It may not take or
settle messages, nor bury other sessions: it only shows that this one lives.
"""

from __future__ import annotations

import threading

from kombu.exceptions import OperationalError

from celery_clone.transport.sqlite.session import BrokerSession
from celery_clone.utils.log import get_logger

__all__ = ("SessionKeeper",)

logger = get_logger(__name__)

STOP_S = 15.0
"""How long the end of the thread is waited for: it may be waiting for the write lock."""


class SessionKeeper:
    """Beats for *session* until it is stopped."""

    def __init__(self, session: BrokerSession) -> None:
        self._session = session
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="celery-sqlite-lease", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._session.interval_s):
            try:
                self._session.beat()
            except OperationalError as exc:
                logger.warning("The lease could not be renewed, which is tried again: %s", exc)

    def stop(self) -> None:
        """End the thread; it is waited for, so that nothing uses the session afterwards.  Legal twice."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join(STOP_S)
