"""The scheduler that remembers in a file when entries ran.

Beat's own, unless another is asked for; made by ``beat.service``.
"""

from __future__ import annotations

import dbm
import errno
import os
import shelve
from pickle import UnpicklingError
from typing import Any

from celery_clone import platforms
from celery_clone._version import __version__
from celery_clone.beat.scheduler import Scheduler
from celery_clone.utils.log import get_logger

__all__ = ("PersistentScheduler",)

logger = get_logger("celery.beat")

AWAKE_S = 1.0
"""A sleep that is not worth writing the file before it."""

NOT_CORRUPT = frozenset({errno.EACCES, errno.EPERM, errno.EAGAIN, errno.EROFS, errno.ENOSPC, errno.ENOENT})
"""What keeps a file from being opened and is no reason to delete it."""

DAMAGED = ".damaged"
"""What the name of a file ends with that could not be read, before any suffix of its kind."""

UNREADABLE = (
    *(KeyError, IndexError, EOFError, TypeError, ValueError, ImportError, AttributeError),
    *(UnicodeDecodeError, UnpicklingError),
)
"""What reading entries of another version may raise."""

ACCOUNTED = {"__version__": "__version__ field", "tz": "tz field", "utc_enabled": "utc_enabled field"}


class PersistentScheduler(Scheduler):
    """Remembers in a file (``beat_schedule_filename``) when entries ran."""

    persistence: Any = shelve
    known_suffixes = ("", ".db", ".dat", ".bak", ".dir")

    _store: Any = None

    #: The entries that know their app.
    _adopted: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.schedule_filename = kwargs.get("schedule_filename")
        super().__init__(*args, **kwargs)

    # -- the file

    def _open_schedule(self) -> Any:
        return self.persistence.open(self.schedule_filename, writeback=True)

    def _put_aside(self) -> str:
        """Give the file another name, at which whoever asks what ran may look; returns that name."""
        aside = f"{self.schedule_filename}{DAMAGED}"
        for suffix in self.known_suffixes:
            with platforms.ignore_errno(errno.ENOENT):
                os.replace(f"{self.schedule_filename}{suffix}", f"{aside}{suffix}")
        return aside

    def _destroy_open_corrupted_schedule(self, exc: BaseException) -> Any:
        """Begin with a new file, unless the old one is sound and cannot be used for another reason."""
        if isinstance(exc, OSError) and exc.errno in NOT_CORRUPT:
            logger.critical(
                "The schedule file %r cannot be used: %s. Another beat may use it, or it may belong to another "
                "user; end that beat, or choose another file with --schedule.",
                self.schedule_filename,
                exc,
            )
            raise exc
        logger.error(
            "The schedule file %r is damaged: %s. It is kept as %r, and a new one is begun.",
            self.schedule_filename,
            repr(exc),  # as text: the error holds the file open for as long as somebody keeps the record
            self._put_aside(),
        )
        return self._open_schedule()

    def setup_schedule(self) -> None:
        """Open the file and bring its entries in line with the settings."""
        try:
            self._store = self._open_schedule()
            # Some kinds of file only notice now that they are broken.
            self._store.keys()
        except Exception as exc:  # noqa: BLE001 every kind of file has errors of its own
            self._let_go()
            self._store = self._destroy_open_corrupted_schedule(exc)
        self._create_schedule()
        conf, store = self.app.conf, self._store
        self._reset_if_changed("tz", "Timezone", conf.timezone)
        self._reset_if_changed("utc_enabled", "UTC", conf.enable_utc)
        entries = store.setdefault("entries", {})
        self.merge_inplace(conf.beat_schedule)
        self.install_default_entries(self.schedule)
        store.update({"__version__": __version__, "tz": conf.timezone, "utc_enabled": conf.enable_utc})
        self.sync()
        logger.debug("Current schedule:\n%s", "\n".join(repr(entry) for entry in entries.values()))

    def _reset_if_changed(self, key: str, what: str, now: Any) -> None:
        """Times noted in another zone mean nothing."""
        before = self._store.get(key)
        if before is not None and before != now:
            logger.warning("Reset: %s changed from %r to %r", what, before, now)
            self._store.clear()

    def _create_schedule(self) -> None:
        """Make sure that there are entries that can be read."""
        try:
            for field in ("entries", *ACCOUNTED):
                if field in self._store:
                    self._store[field]
            missing = next((field for field in ACCOUNTED if field not in self._store), None)
            if "entries" in self._store and missing is not None:
                logger.warning("DB Reset: Account for new %s", ACCOUNTED[missing])
                self._store.clear()
        except (*UNREADABLE, OSError, *dbm.error) as exc:
            self._let_go()
            self._store = self._destroy_open_corrupted_schedule(exc)
        if "entries" not in self._store:
            self._store["entries"] = {}

    def _let_go(self) -> None:
        """Close a file that cannot be used, without writing to it."""
        store, self._store = self._store, None
        if store is None:
            return
        try:
            store.cache.clear()
            store.close()
        except Exception as exc:  # noqa: BLE001 every kind of file has errors of its own
            # As text, like the damage itself.
            logger.debug("The damaged schedule file could not be closed: %s", repr(exc))

    # -- the entries

    def get_schedule(self) -> Any:
        """The entries by name, kept in the file."""
        entries = self._store["entries"]
        if entries is not self._adopted:
            # Read from the file (again): an app is not written there.
            for entry in entries.values():
                entry.app = entry.app or self.app
                if getattr(entry.schedule, "_app", self.app) is None:
                    entry.schedule.app = self.app
            self._adopted = entries
        return entries

    def set_schedule(self, schedule: Any) -> None:
        """Use other entries."""
        self._store["entries"] = schedule

    schedule = property(get_schedule, set_schedule)

    def tick(self) -> float:
        """As :meth:`Scheduler.tick`; what ran is written down before a longer sleep."""
        seconds = super().tick()
        if self._tasks_since_sync and seconds > AWAKE_S:
            # Killed later, beat would send it again when it comes back.
            self._do_sync()
        return seconds

    def sync(self) -> None:
        """Write the file."""
        if self._store is not None:
            self._store.sync()

    def close(self) -> None:
        """Write and close the file, and let go of the broker.  Legal twice."""
        try:
            super().close()
        finally:
            if self._store is not None:
                self._store.close()
                self._store = None

    def abandon(self) -> None:
        """Close the file as it is."""
        store, self._store = self._store, None
        if store is not None:
            store.cache.clear()
            store.close()
        super().abandon()

    @property
    def info(self) -> str:
        """Lines for the program's banner."""
        return f"    . db -> {self.schedule_filename}"
