"""``SyncBackendMixin``: waiting for results by asking the store again and again.

Mixed into the stores that do not tell of results by themselves; those that can read many tasks at
once have ``get_many`` from ``ManyAtOnceMixin``.  It may not know how a store is read beyond
``get_task_meta``, ``get_many`` and the function it is handed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from kombu.utils.encoding import bytes_to_str

from celery_clone import states
from celery_clone.exceptions import ImproperlyConfigured, TimeoutError
from celery_clone.result import ResultSet

__all__ = ("ManyAtOnceMixin", "SyncBackendMixin", "look_until_ready", "naps")

FIRST_NAP_S = 0.005
"""The pause after the first look; each is half as long again, up to the interval that was asked for."""

GROWTH = 1.5


def naps(interval: float) -> Iterator[float]:
    """Pauses between looks, in seconds: short tasks are seen soon, long ones ask seldom."""
    nap = FIRST_NAP_S
    while nap < interval:
        yield nap
        nap *= GROWTH
    while True:
        yield interval


def look_until_ready(
    backend: Any,
    read: Callable[[Sequence[str]], Mapping[str, Any]],
    task_ids: Iterable[str],
    timeout: float | None = None,
    interval: float | None = 0.5,
    on_message: Callable[[Any], Any] | None = None,
    on_interval: Callable[[], Any] | None = None,
    max_iterations: int | None = None,
    ready_states: Any = states.READY_STATES,
) -> Iterator[tuple[str, Any]]:
    """Yield ``(id, meta)`` of tasks as they end; *read* gives the metas of those of some tasks that have.

    Looks soon, then ever less often, at last every *interval* seconds.  Ends when all tasks have
    ended, or after *max_iterations* looks.

    Raises:
        celery_clone.exceptions.TimeoutError: *timeout* seconds have passed.
    """
    backend._flush_deferred()
    ids = set(task_ids)
    for task_id in list(ids):
        cached = backend._cache.get(task_id)
        if cached is not None and cached["status"] in ready_states:
            ids.discard(task_id)
            yield bytes_to_str(task_id), cached
    end = None if timeout is None else time.monotonic() + timeout
    looks = 0
    pauses = naps(0.5 if interval is None else interval)
    while ids:
        found = read(list(ids))
        backend._cache.update(found)
        ids.difference_update(found)
        for task_id, meta in found.items():
            if on_message is not None:
                on_message(meta)
            yield task_id, meta
        if not ids:
            return
        looks += 1
        if max_iterations and looks >= max_iterations:
            return
        if on_interval is not None:
            on_interval()
        nap = next(pauses)
        if end is not None:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"Operation timed out ({timeout})")
            nap = min(nap, left)
        time.sleep(nap)


class ManyAtOnceMixin:
    """For stores that can read many tasks at once; they define :meth:`_read_ended`."""

    _ensure_retryable: Callable[..., Any]

    def _read_ended(self, task_ids: Sequence[str], ready_states: Any) -> Mapping[str, Any]:
        """The metas of those tasks that have ended."""
        raise NotImplementedError(f"{type(self).__name__} must define _read_ended().")

    def get_many(
        self,
        task_ids: Iterable[str],
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_message: Callable[[Any], Any] | None = None,
        on_interval: Callable[[], Any] | None = None,
        max_iterations: int | None = None,
        READY_STATES: Any = states.READY_STATES,  # noqa: N803 Celery's name
    ) -> Iterator[tuple[str, Any]]:
        """Yield ``(id, meta)`` of tasks as they end; see :func:`look_until_ready`."""
        return look_until_ready(
            self,
            lambda ids: self._ensure_retryable(self._read_ended, ids, READY_STATES),
            task_ids,
            timeout=timeout,
            interval=interval,
            on_message=on_message,
            on_interval=on_interval,
            max_iterations=max_iterations,
            ready_states=READY_STATES,
        )


class SyncBackendMixin:
    """For stores that must be asked."""

    get_task_meta: Callable[..., Any]
    get_many: Callable[..., Any]
    _ensure_not_eager: Callable[[], None]

    def iter_native(
        self,
        result: Any,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_message: Callable[[Any], Any] | None = None,
        on_interval: Callable[[], Any] | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """Yield ``(id, meta)`` of the members of *result* as they end; of a group ``(id, its results)``."""
        self._ensure_not_eager()
        task_ids = set()
        for member in result.results:
            if isinstance(member, ResultSet):
                yield member.id, member.results  # type: ignore[attr-defined]
            else:
                task_ids.add(member.id)
        if task_ids:
            yield from self.get_many(
                task_ids,
                timeout=timeout,
                interval=interval,
                no_ack=no_ack,
                on_message=on_message,
                on_interval=on_interval,
            )

    def wait_for_pending(
        self,
        result: Any,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_message: Callable[[Any], Any] | None = None,
        on_interval: Callable[[], Any] | None = None,
        callback: Callable[[str, Any], Any] | None = None,
        propagate: bool = True,
    ) -> Any:
        """Wait for the end of a task; its value, or its error raised.

        Raises:
            celery_clone.exceptions.TimeoutError: it took longer than *timeout* seconds.
        """
        self._ensure_not_eager()
        if on_message is not None:
            raise ImproperlyConfigured(
                "Backend does not support on_message callback: this store is asked, it does not tell. "
                "Use redis://, sqlite:// or rpc://, or leave on_message out."
            )
        meta = self.wait_for(result.id, timeout=timeout, interval=interval, on_interval=on_interval, no_ack=no_ack)
        if meta:
            result._maybe_set_cache(meta)
            return result.maybe_throw(propagate=propagate, callback=callback)
        return None

    def wait_for(
        self,
        task_id: str,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_interval: Callable[[], Any] | None = None,
    ) -> Any:
        """Ask until the task has ended; what is stored of it then."""
        self._ensure_not_eager()
        end = None if timeout is None else time.monotonic() + timeout
        for nap in naps(interval):
            meta = self.get_task_meta(task_id)
            if meta["status"] in states.READY_STATES:
                return meta
            if on_interval is not None:
                on_interval()
            if end is not None:
                left = end - time.monotonic()
                if left <= 0:
                    raise TimeoutError("The operation timed out.")
                nap = min(nap, left)
            time.sleep(nap)
        return None  # pragma: no cover (naps never ends)

    def add_pending_result(self, result: Any, weak: bool = False) -> Any:
        """Nothing to prepare: the store will be asked."""
        return result

    def remove_pending_result(self, result: Any) -> Any:
        """Nothing to undo."""
        return result

    @property
    def is_async(self) -> bool:
        """Does the store tell of results by itself?"""
        return False
