"""Results as files, one for each task and group, in a folder that workers and callers share.

Chosen by ``result_backend = "file:///path/to/folder"``.  Expired files are removed by the daily
``celery.backend_cleanup``.
"""

from __future__ import annotations

import builtins
import locale
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from kombu.utils.encoding import ensure_bytes

from celery_clone.exceptions import ImproperlyConfigured
from celery_clone.utils.ids import uuid

from .base import KeyValueStoreBackend

__all__ = ("FilesystemBackend",)

default_encoding = locale.getpreferredencoding(False)

E_NO_PATH_SET = "You need to configure a path for the file-system backend: file:///path/to/folder"
E_PATH_NON_CONFORMING_SCHEME = (
    "A path for the file-system backend should conform to the file URI scheme: file:///path/to/folder"
)
E_PATH_INVALID = (
    "The configured path for the file-system backend does not\nwork correctly, please make sure that it "
    "exists and has\nthe correct permissions."
)

UNFINISHED = b".new-"
"""What the names of files begin with that are just being written."""

UNFINISHED_FOR_S = 3600.0
"""A file that is being written for so long belongs to a process that died."""


class FilesystemBackend(KeyValueStoreBackend):
    """Keeps results in a folder.

    *url* is ``file:///path``; *open* and *unlink* replace the functions of those names, *sep* stands
    between folder and file name, *encoding* is that of file names.
    """

    supports_result_compression = True
    # Files are opened anew each time: there is nothing that threads could share.
    thread_safe = True
    #: The states of many tasks are read together, though members are waited for in turn, as in Celery.
    reads_many = True

    def __init__(
        self,
        url: str | None = None,
        open: Callable[..., Any] = builtins.open,
        unlink: Callable[..., Any] = os.unlink,
        sep: str = os.sep,
        encoding: str = default_encoding,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.url = url
        path = self._find_path(url)
        if os.name == "nt":
            path = path.removeprefix("/")
        self.path = path.encode(encoding)
        self.sep = sep.encode(encoding)
        self.open = open
        self.unlink = unlink
        self._do_directory_test(b".fs-backend-" + uuid().encode(encoding))

    def __reduce__(self, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        return super().__reduce__(args, {**(kwargs or {}), "url": self.url})

    def _find_path(self, url: str | None) -> str:
        if not url:
            raise ImproperlyConfigured(E_NO_PATH_SET)
        for start in ("file://localhost", "file://"):
            if url.startswith(start):
                return url[len(start) :]
        raise ImproperlyConfigured(E_PATH_NON_CONFORMING_SCHEME)

    def _do_directory_test(self, key: bytes) -> None:
        try:
            self.set(key, b"test value")
            read = self.get(key)
            self.delete(key)
        except OSError as exc:
            raise ImproperlyConfigured(f"{E_PATH_INVALID} ({self.path!r}: {exc})") from exc
        if read != b"test value":
            raise ImproperlyConfigured(E_PATH_INVALID)

    def _filename(self, key: bytes) -> bytes:
        # An id is the caller's choice: it must not lead out of the folder.
        return self.sep.join((self.path, key.replace(self.sep, b"%2F")))

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, or ``None``."""
        try:
            with self.open(self._filename(key), "rb") as file:
                content: bytes = file.read()
                return content
        except FileNotFoundError:
            return None

    def mget(self, keys: Iterable[bytes]) -> Iterator[bytes | None]:
        """The values of several keys."""
        return (self.get(key) for key in keys)

    def set(self, key: bytes, value: Any) -> None:
        """Write a value; who reads at the same time sees all of it or what was there before."""
        unfinished = self._filename(UNFINISHED + uuid().encode())
        try:
            with self.open(unfinished, "wb") as file:
                file.write(ensure_bytes(value))
            os.replace(unfinished, self._filename(key))
        except BaseException:
            self._remove(unfinished)
            raise

    def delete(self, key: bytes) -> None:
        """Remove a key; legal if it is not there."""
        self._remove(self._filename(key))

    def _remove(self, path: bytes) -> None:
        try:
            self.unlink(path)
        except FileNotFoundError:
            pass  # gone is what was wanted

    def cleanup(self) -> None:
        """Remove expired results, and what was never finished."""
        now = time.time()
        limits = {UNFINISHED: now - UNFINISHED_FOR_S}
        if self.expires:
            for prefix in (self.task_keyprefix, self.group_keyprefix, self.chord_keyprefix):
                limits[prefix] = now - self.expires
        with os.scandir(self.path) as entries:
            for entry in entries:
                limit = next((limit for prefix, limit in limits.items() if entry.name.startswith(prefix)), None)
                try:
                    if limit is not None and entry.stat().st_mtime < limit:
                        self._remove(entry.path)
                except FileNotFoundError:
                    pass  # another worker cleans as well
