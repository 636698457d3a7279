"""Maps, sets and buffers: layered configuration, bounded sets, bounded buffers.

``ConfigurationView`` is the ground of ``app.settings``, ``LimitedSet`` holds revoked ids in
``worker.state``, ``BufferMap`` is for result stores.  Pure data structures, in one file because
users know them all under this address.
"""

from __future__ import annotations

import collections
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, MutableSet, Sequence
from heapq import heapify, heappop, heappush
from itertools import count
from queue import Empty
from typing import Any, ClassVar

from celery_clone.utils.functional import first, uniq
from celery_clone.utils.text import match_case

__all__ = (
    "AttributeDict",
    "AttributeDictMixin",
    "BufferMap",
    "ChainMap",
    "ConfigurationView",
    "DictAttribute",
    "Evictable",
    "LimitedSet",
    "Messagebuffer",
    "OrderedDict",
    "force_mapping",
    "lpmerge",
)


# -- attributes as keys, keys as attributes


def force_mapping(m: Any) -> Any:
    """Return *m* if it is a mapping, else a mapping of its attributes."""
    return m if isinstance(m, Mapping) else DictAttribute(m)


def lpmerge(L: Any, R: Mapping[Any, Any]) -> Any:  # noqa: N803 (Celery's public name)
    """Put the items of *R* that are not ``None`` into *L*, and return that."""
    for key, value in R.items():
        if value is not None:
            L[key] = value
    return L


class OrderedDict(collections.OrderedDict[Any, Any]):
    """An ordered dict that knows its oldest key."""

    def _LRUkey(self) -> Any:  # noqa: N802 (Celery's name)
        return next(iter(self))


class AttributeDictMixin:
    """Gives a mapping attributes: ``mapping.key`` is ``mapping["key"]``."""

    def __getattr__(self, k: str) -> Any:
        try:
            return self[k]  # type: ignore[index]
        except KeyError:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {k!r}") from None

    def __setattr__(self, key: str, value: Any) -> None:
        self[key] = value


class AttributeDict(dict[Any, Any], AttributeDictMixin):
    """A dict whose items are attributes too."""


class DictAttribute:
    """A mapping of an object's attributes: ``mapping["name"]`` is ``obj.name``."""

    obj: Any = None

    def __init__(self, obj: Any) -> None:
        object.__setattr__(self, "obj", obj)

    def __getattr__(self, key: str) -> Any:
        return getattr(self.obj, key)

    def __setattr__(self, key: str, value: Any) -> None:
        setattr(self.obj, key, value)

    def get(self, key: str, default: Any = None) -> Any:
        """Return the attribute, or *default* if there is none."""
        return getattr(self.obj, key, default)

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Return the attribute; set it to *default* first if there is none."""
        if key not in self:
            self[key] = default
        return self[key]

    def __getitem__(self, key: str) -> Any:
        try:
            return getattr(self.obj, key)
        except AttributeError:
            raise KeyError(key) from None

    def __setitem__(self, key: str, value: Any) -> None:
        setattr(self.obj, key, value)

    def __contains__(self, key: str) -> bool:
        return hasattr(self.obj, key)

    def __iter__(self) -> Iterator[str]:
        return iter(dir(self.obj))

    def keys(self) -> Iterator[str]:
        """Give the names of the attributes."""
        return iter(self)

    def values(self) -> Iterator[Any]:
        """Give the attributes."""
        return (getattr(self.obj, key) for key in self)

    def items(self) -> Iterator[tuple[str, Any]]:
        """Give the names with the attributes."""
        return ((key, getattr(self.obj, key)) for key in self)

    iterkeys, itervalues, iteritems = keys, values, items


MutableMapping.register(DictAttribute)


# -- layered mappings


class ChainMap(MutableMapping[Any, Any]):
    """Several mappings as one: a key is looked up in one after another, and set in the first.

    *key_t* converts keys before they are looked up.
    """

    # Kept in the instance dictionary by name: subclasses turn attribute access into item access.
    key_t: Callable[[Any], Any] | None = None
    #: The first mapping: what was set.
    changes: MutableMapping[Any, Any] = None  # type: ignore[assignment]
    #: The others.
    defaults: list[Mapping[Any, Any]] = None  # type: ignore[assignment]
    #: All of them.
    maps: list[Any] = None  # type: ignore[assignment]
    _observers: list[Callable[..., Any]] = None  # type: ignore[assignment]

    def __init__(self, *maps: Any, **kwargs: Any) -> None:
        layers = list(maps or [{}])
        self.__dict__.update(
            key_t=kwargs.get("key_t"),
            maps=layers,
            changes=layers[0],
            defaults=layers[1:],
            _observers=[],
        )

    def add_defaults(self, d: Any) -> None:
        """Add a mapping, or an object with attributes, that wins over all but what was set."""
        mapping = force_mapping(d)
        self.defaults.insert(0, mapping)
        self.maps.insert(1, mapping)

    def bind_to(self, callback: Callable[..., Any]) -> None:
        """Have ``callback(*args, **kwargs)`` called with what :meth:`update` is called with."""
        self._observers.append(callback)

    def _key(self, key: Any) -> Any:
        return self.key_t(key) if self.key_t is not None else key

    def __getitem__(self, key: Any) -> Any:
        looked_up = self._key(key)
        for mapping in self.maps:
            try:
                return mapping[looked_up]
            except KeyError:
                pass  # the next one may have it
        return self.__missing__(key)

    def __missing__(self, key: Any) -> Any:
        raise KeyError(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.changes[self._key(key)] = value

    def __delitem__(self, key: Any) -> None:
        try:
            del self.changes[self._key(key)]
        except KeyError:
            raise KeyError(f"Key not found in first mapping: {key!r}") from None

    def pop(self, key: Any, *default: Any) -> Any:
        """Take a key that was set out; ``KeyError`` if there is none and no *default*."""
        try:
            return self.changes.pop(self._key(key), *default)
        except KeyError:
            raise KeyError(f"Key not found in the first mapping: {key!r}") from None

    def clear(self) -> None:
        """Take out what was set; the defaults stay."""
        self.changes.clear()

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the value of *key*, or *default* if no mapping has it."""
        try:
            return self[key]
        except KeyError:
            return default

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """Return the value of *key*; set it to *default* first if no mapping has it."""
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Set the items of a mapping, or of pairs, and the keyword arguments; tell who is bound."""
        # Made a dict once: each of those who are told must be able to read it.
        given = tuple(map(dict, args))
        self.changes.update(*given, **kwargs)
        for callback in self._observers:
            callback(*given, **kwargs)

    def __len__(self) -> int:
        return len(set().union(*self.maps))

    def __contains__(self, key: Any) -> bool:
        looked_up = self._key(key)
        return any(looked_up in mapping for mapping in self.maps)

    def __bool__(self) -> bool:
        return any(self.maps)

    def __iter__(self) -> Iterator[Any]:
        # The defaults first, so that a dict made of this ends with what was set.
        return uniq(key for mapping in reversed(self.maps) for key in mapping.keys())  # noqa: SIM118

    def keys(self) -> Iterator[Any]:  # type: ignore[override]
        """Give all keys, each once."""
        return iter(self)

    def values(self) -> Iterator[Any]:  # type: ignore[override]
        """Give the value of each key."""
        return (self[key] for key in self)

    def items(self) -> Iterator[tuple[Any, Any]]:  # type: ignore[override]
        """Give each key with its value."""
        return ((key, self[key]) for key in self)

    iterkeys, itervalues, iteritems = keys, values, items

    @classmethod
    def fromkeys(cls, iterable: Iterable[Any], *args: Any) -> ChainMap:
        """Make one of a single dict with these keys, all with the same value."""
        return cls(dict.fromkeys(iterable, *args))

    def copy(self) -> ChainMap:
        """Return one with a copy of what was set and the same defaults."""
        copied = type(self)(self.maps[0].copy(), *self.maps[1:])
        copied.__dict__["key_t"] = self.key_t
        return copied

    __copy__ = copy

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.maps))})"


class ConfigurationView(ChainMap, AttributeDictMixin):
    """Settings: what was set, over layers of defaults, readable as items and as attributes.

    *keys* are functions that give other spellings of a key to look for.  *prefix* is the start of
    names that may be left out.
    """

    prefix: str | None
    _keys: Sequence[Callable[[str], str]] | None

    def __init__(
        self,
        changes: MutableMapping[Any, Any],
        defaults: Sequence[Mapping[Any, Any]] | None = None,
        keys: Sequence[Callable[[str], str]] | None = None,
        prefix: str | None = None,
    ) -> None:
        super().__init__(changes, *(defaults or ()))
        self.__dict__.update(prefix=prefix.rstrip("_") + "_" if prefix else prefix, _keys=keys)

    def _to_keys(self, key: str) -> tuple[str, ...]:
        """Return the spellings of *key*, in the order in which they are looked for."""
        spellings: tuple[str, ...] = (key,)
        if self.prefix:
            prefixed = key if key.startswith(self.prefix) else self.prefix + key
            spellings = (match_case(prefixed, self.prefix), key)
        return spellings + tuple(spelling(key) for spelling in self._keys or ())

    def __getitem__(self, key: str) -> Any:
        spellings = self._to_keys(key)
        for mapping in self.maps:
            for spelling in spellings:
                try:
                    return mapping[self._key(spelling)]
                except KeyError:
                    pass  # another spelling, or the next mapping, may have it
        try:
            return self.__missing__(key)
        except KeyError:
            if self.prefix:
                raise KeyError(
                    f"Key not found: {spellings[1]!r} (with prefix: {spellings[0]!r})"
                ) from None
            raise

    def __contains__(self, key: Any) -> bool:
        contains = super().__contains__
        return any(contains(spelling) for spelling in self._to_keys(key))

    def first(self, *keys: str) -> Any:
        """Return the first value of these keys that is not ``None``."""
        return first(None, (self.get(key) for key in keys))

    def copy(self) -> ConfigurationView:
        """Return one with a copy of what was set and the same defaults."""
        copied = type(self)(self.changes.copy(), self.defaults, self._keys, self.prefix)  # type: ignore[attr-defined]
        copied.__dict__["key_t"] = self.key_t
        return copied

    __copy__ = copy

    def swap_with(self, other: ConfigurationView) -> None:
        """Take over all layers and spellings of *other*."""
        theirs = other.__dict__
        self.__dict__.update(
            changes=theirs["changes"],
            defaults=theirs["defaults"],
            key_t=theirs["key_t"],
            prefix=theirs["prefix"],
            _keys=theirs["_keys"],
            maps=[theirs["changes"], *theirs["defaults"]],
        )


# -- bounded sets


class LimitedSet:
    """A set that forgets its oldest items.

    It never holds more than *maxlen* items (0: no bound).  Items older than *expires* seconds
    (0: never) are forgotten as others are added, as long as more than *minlen* are left.  *data* is
    what :meth:`update` takes.

    Ages are counted by ``time.monotonic``, which begins anew with each start of the host: to take
    over a set of another host, or of an earlier start, give :meth:`update` a list of its items.
    """

    #: When so many percent of the queue by age are items that have gone, it is made anew.
    max_heap_percent_overload = 15

    def __init__(self, maxlen: int = 0, expires: float = 0, data: Any = None, minlen: int = 0) -> None:
        self.maxlen = maxlen or 0
        self.minlen = minlen or 0
        self.expires = expires or 0
        if not self.maxlen >= self.minlen >= 0:
            raise ValueError("minlen must be a positive number, less or equal to maxlen.")
        if self.expires < 0:
            raise ValueError("expires cannot be negative!")
        # Item to (time of insertion, number, item).  The number keeps the order of items of one
        # instant, and keeps the queue from comparing items.
        self._data: dict[Any, tuple[float, int, Any]] = {}
        # The entries by age.  Those of items that were discarded or added again stay until met.
        self._heap: list[tuple[float, int, Any]] = []
        self._numbers = count()
        self.update(data)

    def add(self, item: Any, now: float | None = None) -> None:
        """Add *item*, or make it young again.  *now*: its time of insertion (monotonic seconds)."""
        self.discard(item)
        self._insert(item, time.monotonic() if now is None else float(now))
        if self.maxlen and len(self._data) >= self.maxlen:
            self.purge()

    def _insert(self, item: Any, inserted: float) -> None:
        entry = self._data[item] = (inserted, next(self._numbers), item)
        heappush(self._heap, entry)

    def update(self, other: Any) -> None:
        """Add the items of another set of this kind, of a dict of insertion times, or of an iterable.

        The first two keep the times they have, the last are all new.
        """
        if not other:
            return
        if isinstance(other, LimitedSet):
            other = other.as_dict()
        if not isinstance(other, dict):
            for item in other:
                self.add(item)
            return
        for item, inserted in other.items():
            stamp = inserted[0] if isinstance(inserted, (tuple, list)) else inserted
            if not isinstance(stamp, float):
                raise ValueError(
                    f"Expecting float timestamp, got type {type(stamp)!r} with value: {stamp}. "
                    "To add items that are new now, pass a list of them."
                )
            self.add(item, stamp)

    def discard(self, item: Any) -> None:
        """Remove *item* if it is there."""
        if self._data.pop(item, None) is None:
            return
        if self._heap_overload >= self.max_heap_percent_overload:
            self._heap[:] = self._data.values()
            heapify(self._heap)

    pop_value = discard

    def pop(self, default: Any = None) -> Any:
        """Remove and return the oldest item; *default* if there is none."""
        entry = self._oldest()
        if entry is None:
            return default
        heappop(self._heap)
        del self._data[entry[2]]
        return entry[2]

    def _oldest(self) -> tuple[float, int, Any] | None:
        while self._heap:
            entry = self._heap[0]
            if self._data.get(entry[2]) is entry:
                return entry
            heappop(self._heap)
        return None

    def purge(self, now: float | Callable[[], float] | None = None) -> None:
        """Remove the oldest items while there are too many, and those that are too old.

        *now*: the time (monotonic seconds), or what tells it.
        """
        if now is None:
            now = time.monotonic
        at = now() if callable(now) else now
        while self.maxlen and len(self._data) > self.maxlen:
            self.pop()
        while self.expires and len(self._data) > self.minlen:
            entry = self._oldest()
            if entry is None or entry[0] + self.expires > at:
                break
            self.pop()

    def clear(self) -> None:
        """Remove all items."""
        self._data.clear()
        self._heap.clear()

    def as_dict(self) -> dict[Any, float]:
        """Return the items with their times of insertion, oldest first."""
        return {item: self._data[item][0] for item in self}

    @property
    def _heap_overload(self) -> float:
        """By how many percent the queue by age is longer than the set."""
        return len(self._heap) * 100 / max(len(self._data), 1) - 100

    def __contains__(self, key: Any) -> bool:
        return key in self._data

    def __iter__(self) -> Iterator[Any]:
        """Give the items, oldest first."""
        return (entry[2] for entry in sorted(self._data.values(), key=lambda entry: entry[:2]))

    def __len__(self) -> int:
        return len(self._data)

    def __bool__(self) -> bool:
        return bool(self._data)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LimitedSet):
            return NotImplemented
        return self.as_dict() == other.as_dict()

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.maxlen, self.expires, self.as_dict(), self.minlen)

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__}({len(self)}): "
            f"maxlen={self.maxlen}, expires={self.expires}, minlen={self.minlen}>"
        )


MutableSet.register(LimitedSet)


# -- bounded buffers


class Evictable:
    """What can drop items until it is within ``maxsize`` (``None`` or 0: no bound)."""

    Empty: ClassVar[type[Exception]] = Empty

    maxsize: int | None = None

    @property
    def _evictcount(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} must define _evictcount")

    def _pop_to_evict(self) -> None:
        raise NotImplementedError(f"{type(self).__name__} must define _pop_to_evict()")

    def evict(self) -> None:
        """Drop items until the bound holds."""
        try:
            while self.maxsize and self._evictcount > self.maxsize:
                self._pop_to_evict()
        except self.Empty:
            pass  # nothing left to drop


class Messagebuffer(Evictable):
    """A queue of at most *maxsize* items that drops the oldest.  Iterating takes the items out."""

    def __init__(self, maxsize: int | None, iterable: Iterable[Any] | None = None) -> None:
        self.maxsize = maxsize
        self.data: deque[Any] = deque(iterable or ())

    @property
    def _evictcount(self) -> int:
        return len(self.data)

    def _pop_to_evict(self) -> None:
        self.take()

    def put(self, item: Any) -> None:
        """Append an item."""
        self.data.append(item)
        self.evict()

    def extend(self, it: Iterable[Any]) -> None:
        """Append items."""
        self.data.extend(it)
        self.evict()

    def take(self, *default: Any) -> Any:
        """Take the oldest item out; *default*, or ``Empty`` raised, if there is none."""
        if self.data:
            return self.data.popleft()
        if default:
            return default[0]
        raise self.Empty()

    def __iter__(self) -> Iterator[Any]:
        while self.data:
            yield self.data.popleft()

    def __reversed__(self) -> Iterator[Any]:
        items: Iterator[Any] = reversed(self.data)
        return items

    def __len__(self) -> int:
        return len(self.data)

    def __contains__(self, item: Any) -> bool:
        return item in self.data

    def __getitem__(self, index: int) -> Any:
        return self.data[index]

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {len(self)}/{self.maxsize}>"


Sequence.register(Messagebuffer)


class BufferMap(OrderedDict, Evictable):
    """A buffer for each key, with at most *maxsize* items in all and *bufmaxsize* for each key.

    What is too much is dropped from the key that was used longest ago.
    """

    Buffer = Messagebuffer

    bufmaxsize: int | None = None
    #: Items in all buffers.
    total = 0

    def __init__(
        self,
        maxsize: int | None,
        iterable: Any = None,
        bufmaxsize: int | None = 1000,
    ) -> None:
        super().__init__()
        self.maxsize = maxsize
        self.bufmaxsize = bufmaxsize
        for key, items in dict(iterable or ()).items():
            self.extend(key, items)

    @property
    def _evictcount(self) -> int:
        return self.total

    def put(self, key: Any, item: Any) -> None:
        """Append an item to the buffer of *key*, which is thereby used."""
        self._append(key, (item,))
        self.move_to_end(key)
        self.evict()

    def extend(self, key: Any, it: Iterable[Any]) -> None:
        """Append items to the buffer of *key*."""
        self._append(key, it)
        self.evict()

    def _append(self, key: Any, items: Iterable[Any]) -> None:
        buffer = self.get(key)
        if buffer is None:
            buffer = self[key] = self.Buffer(maxsize=self.bufmaxsize)
        before = len(buffer)
        buffer.extend(items)
        self.total += len(buffer) - before

    def take(self, key: Any, *default: Any) -> Any:
        """Take the oldest item of *key* out; *default*, or ``Empty`` raised, if there is none."""
        buffer = self.get(key)
        if not buffer:
            if default:
                return default[0]
            raise self.Empty()
        item = buffer.take()
        self.total -= 1
        self.move_to_end(key)
        return item

    def _pop_to_evict(self) -> None:
        if not self:
            raise self.Empty()
        key = self._LRUkey()
        buffer = self[key]
        if buffer:
            buffer.take()
            self.total -= 1
        if buffer:
            self.move_to_end(key)
        else:
            del self[key]

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.total}/{self.maxsize}>"
