"""Clients of stores whose libraries are optional: one for each process, and a clear word when one is missing.

Used by the stores that a service on the network keeps.  Knows no library.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import RLock
from typing import Any, Generic, TypeVar

from celery_clone.exceptions import ImproperlyConfigured

__all__ = ("PerProcess", "library_missing", "settings_of")

Client = TypeVar("Client")


class PerProcess(Generic[Client]):
    """A client that is made when it is first needed; threads share it, and a forked child makes its own.

    *make* makes it; *close* ends it.
    """

    def __init__(self, make: Callable[[], Client], close: Callable[[Client], Any] | None = None) -> None:
        self._make = make
        self._close = close
        self._forget()

    def _forget(self) -> None:
        self._lock = RLock()
        self._pid = os.getpid()
        self._client: Client | None = None

    def __call__(self) -> Client:
        """The client of this process."""
        if self._pid != os.getpid():
            # The connections are the parent's, and its lock may have been held.
            self._forget()
        with self._lock:
            if self._client is None:
                self._client = self._make()
            return self._client

    def close(self) -> None:
        """End the client of this process.  Legal twice; the next use makes a new one."""
        if self._pid != os.getpid():
            self._forget()
        with self._lock:
            client, self._client = self._client, None
        if client is not None and self._close is not None:
            self._close(client)


def library_missing(store: str, library: str, extra: str) -> ImproperlyConfigured:
    """The error to raise when a store's library is not installed."""
    return ImproperlyConfigured(
        f"You need to install the {library} library to use the {store} result backend: "
        f"pip install celery_clone[{extra}]"
    )


def settings_of(app: Any, name: str, store: str) -> dict[str, Any]:
    """The mapping that the setting *name* is; empty if it is not set.

    Raises:
        ImproperlyConfigured: it is something else.
    """
    settings = app.conf.get(name)
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ImproperlyConfigured(f"{store} backend settings should be grouped in a dict: {name} is {settings!r}")
    return dict(settings)
