"""``BaseKeyValueStoreBackend``: results in a store that knows keys and values.

A store needs ``get``, ``mget``, ``set`` and ``delete``; with an atomic ``incr`` it counts chords as
well.  Subclassed by redis, cache, filesystem and by stores of third parties.  Keys and values are
Celery's, so that both may read each other's results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

from kombu.utils.encoding import bytes_to_str, ensure_bytes

from celery_clone import states
from celery_clone.exceptions import BackendStoreError
from celery_clone.result import result_from_tuple

from . import chords
from .backend import Backend, stays
from .polling import ManyAtOnceMixin

__all__ = ("BaseKeyValueStoreBackend",)

PREFIX_ENDS = ":_-."
"""A global prefix that ends in one of these is taken as it is; any other gets an underscore."""


class BaseKeyValueStoreBackend(ManyAtOnceMixin, Backend):
    """Base class of key/value stores."""

    #: Makes a key of text or bytes.
    key_t: Callable[[Any], Any] = ensure_bytes
    task_keyprefix: Any = "celery-task-meta-"
    group_keyprefix: Any = "celery-taskset-meta-"
    chord_keyprefix: Any = "chord-unlock-"

    #: Is ``incr`` there and atomic?
    implements_incr = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # A function on the class would be bound like a method.
        self.key_t = getattr(self.key_t, "__func__", self.key_t)
        super().__init__(*args, **kwargs)
        self._chord_expires = self.app.conf.get("result_chord_expires")
        self._add_global_keyprefix()
        self._encode_prefixes()
        if self.implements_incr:
            self.apply_chord = self._apply_chord_incr  # type: ignore[method-assign]

    # --- for stores -----------------------------------------------------------------

    def get(self, key: Any) -> Any:
        """The value of a key, or ``None``."""
        raise NotImplementedError("Must implement the get method.")

    def mget(self, keys: Sequence[Any]) -> Any:
        """The values of several keys, as a list in their order or as a mapping."""
        raise NotImplementedError("Does not support get_many")

    def set(self, key: Any, value: Any) -> Any:
        """Write a value."""
        raise NotImplementedError("Must implement the set method.")

    def delete(self, key: Any) -> Any:
        """Remove a key."""
        raise NotImplementedError("Must implement the delete method")

    def incr(self, key: Any) -> Any:
        """Add one to a counter; its new value."""
        raise NotImplementedError("Does not implement incr")

    def expire(self, key: Any, value: Any) -> Any:
        """Have a key vanish after *value* seconds."""

    def _set_with_state(self, key: Any, value: Any, state: str) -> Any:
        """As :meth:`set`, for stores to which the state matters."""
        return self.set(key, value)

    # --- keys -----------------------------------------------------------------------

    @property
    def chord_expires(self) -> Any:
        """Seconds that the bookkeeping of a chord is kept."""
        if self._chord_expires is None:
            return self.expires
        return self.prepare_expires(self._chord_expires, type=int)

    @property
    def _chord_result_expires(self) -> Any:
        """Seconds that the results of a running chord's members are kept; 0: for ever."""
        expires = self.chord_expires
        return max(expires, self.expires) if expires and self.expires else 0

    def _add_global_keyprefix(self) -> None:
        options = self.app.conf.get("result_backend_transport_options") or {}
        prefix = options.get("global_keyprefix")
        if prefix:
            if prefix[-1] not in PREFIX_ENDS:
                prefix += "_"
            self.task_keyprefix = f"{prefix}{self.task_keyprefix}"
            self.group_keyprefix = f"{prefix}{self.group_keyprefix}"
            self.chord_keyprefix = f"{prefix}{self.chord_keyprefix}"

    def _encode_prefixes(self) -> None:
        self.task_keyprefix = self.key_t(self.task_keyprefix)
        self.group_keyprefix = self.key_t(self.group_keyprefix)
        self.chord_keyprefix = self.key_t(self.chord_keyprefix)

    def get_key_for_task(self, task_id: Any, key: Any = "") -> Any:
        """The key of a task's result, with *key* behind it."""
        if not task_id:
            raise ValueError(f"task_id must not be empty. Got {task_id} instead.")
        return self._get_key_for(self.task_keyprefix, task_id, key)

    def get_key_for_group(self, group_id: Any, key: Any = "") -> Any:
        """The key of a stored group, with *key* behind it."""
        if not group_id:
            raise ValueError(f"group_id must not be empty. Got {group_id} instead.")
        return self._get_key_for(self.group_keyprefix, group_id, key)

    def get_key_for_chord(self, group_id: Any, key: Any = "") -> Any:
        """The key of a chord's counter, with *key* behind it."""
        if not group_id:
            raise ValueError(f"group_id must not be empty. Got {group_id} instead.")
        return self._get_key_for(self.chord_keyprefix, group_id, key)

    def _get_key_for(self, prefix: Any, id: Any, key: Any = "") -> Any:
        make = self.key_t
        if isinstance(id, UUID):
            id = str(id)
        return prefix + make(id) + make(key) if key else prefix + make(id)

    def _strip_prefix(self, key: Any) -> str:
        key = self.key_t(key)
        for prefix in (self.task_keyprefix, self.group_keyprefix):
            if key.startswith(prefix):
                return bytes_to_str(key[len(prefix) :])  # type: ignore[no-any-return]
        return bytes_to_str(key)  # type: ignore[no-any-return]

    # --- tasks ----------------------------------------------------------------------

    def _get_task_meta_for(self, task_id: str) -> Any:
        payload = self.get(self.get_key_for_task(task_id))
        if not payload:
            return {"status": states.PENDING, "result": None}
        return self.decode_result(payload)

    def _result_payload(self, task_id: Any, result: Any, state: str, traceback: str | None, request: Any) -> Any:
        """A task's result as it is written."""
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        meta["task_id"] = bytes_to_str(task_id)
        return self.encode(meta)

    def _store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: str | None = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        payload = self._result_payload(task_id, result, state, traceback, request)
        if not stays(self._get_task_meta_for(task_id)["status"], state):
            try:
                self._set_with_state(self.get_key_for_task(task_id), payload, state)
            except BackendStoreError as exc:
                raise BackendStoreError(str(exc), state=state, task_id=task_id) from exc
        return result

    def task_result_exists(self, task_id: str) -> bool:
        """Is anything stored of this task?"""
        return bool(self.get(self.get_key_for_task(task_id)))

    def _forget(self, task_id: str) -> None:
        self.delete(self.get_key_for_task(task_id))

    # --- many tasks -----------------------------------------------------------------

    def _filter_ready(
        self,
        values: Iterable[tuple[Any, Any]],
        READY_STATES: Any = states.READY_STATES,  # noqa: N803
    ) -> Iterator[tuple[Any, Any]]:
        for key, value in values:
            if value is not None:
                meta = self.decode_result(value)
                if meta["status"] in READY_STATES:
                    yield key, meta

    def _mget_to_results(
        self,
        values: Any,
        keys: Sequence[Any],
        READY_STATES: Any = states.READY_STATES,  # noqa: N803
    ) -> dict[str, Any]:
        if isinstance(values, Mapping) or hasattr(values, "items"):
            ready = self._filter_ready(values.items(), READY_STATES)
            return {self._strip_prefix(key): meta for key, meta in ready}
        ready = self._filter_ready(enumerate(values), READY_STATES)
        return {bytes_to_str(keys[place]): meta for place, meta in ready}

    def _read_ended(self, task_ids: Sequence[str], ready_states: Any) -> dict[str, Any]:
        """The metas of those tasks that have ended."""
        values = self.mget([self.get_key_for_task(task_id) for task_id in task_ids])
        return self._mget_to_results(values, task_ids, ready_states)

    # --- groups and chords -------------------------------------------------------------

    def _save_group(self, group_id: str, result: Any) -> Any:
        payload = self.encode({"result": result.as_tuple()})
        self._set_with_state(self.get_key_for_group(group_id), payload, states.SUCCESS)
        return result

    def _restore_group(self, group_id: str) -> Any:
        payload = self.get(self.get_key_for_group(group_id))
        if not payload:
            return None
        meta = self.decode(payload)
        meta["result"] = result_from_tuple(meta["result"], self.app)
        return meta

    def _delete_group(self, group_id: str) -> None:
        self.delete(self.get_key_for_group(group_id))

    def _apply_chord_incr(self, header_result_args: Any, body: Any, **kwargs: Any) -> None:
        """A chord is about to be sent: store its header, by which the last member finds all others."""
        self.ensure_chords_allowed()
        header = self.app.GroupResult(*header_result_args)
        header.save(backend=self)
        self.expire(self.get_key_for_group(header.id), self._chord_result_expires)

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:
        """Count a member that has ended; the last one sends the body."""
        if self.implements_incr:
            chords.part_returned(self, request)

    def _is_new_chord_part(self, request: Any) -> bool:
        """Is this the first end of this member?  For stores that can tell it."""
        return True
