"""``app.conf``: the layers of the configuration and how a name is looked up in them.

Made by ``app.base`` when an app is created and again, by :func:`detect_settings`,
when its configuration is first read.  ``app.utils`` gives :class:`Settings` its
public address.

A value is taken from the first layer that has it: the environment (the broker
and result addresses only), what was set on ``app.conf`` or given to the app, the
loaded object, the defaults added by the app, and the table in ``app.defaults``.
In each layer a setting may be written with the namespace of the app in front, by
its name, or by its name in Celery 3.

This module imports no configuration and opens nothing; it reads the environment.
"""

from __future__ import annotations

import json
import os
import re
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from difflib import SequenceMatcher
from types import FunctionType, ModuleType
from typing import Any

from celery_clone.app.defaults import (
    DEFAULTS,
    OLD_SETTING_KEYS,
    SETTING_KEYS,
    TO_NEW_KEY,
    TO_OLD_KEY,
    Conf,
    Extras,
    Option,
    SearchResult,
    find,
)
from celery_clone.exceptions import CeleryWarning, ImproperlyConfigured
from celery_clone.utils.collections import ConfigurationView
from celery_clone.utils.deprecated import warn
from celery_clone.utils.suggest import closest, hint
from celery_clone.utils.text import pretty

MASK = "*" * 8

_MISSING: Any = object()
_ENVIRONMENT = {name: option.env for name, option in Conf.options.items() if option.env}
_MUTABLE_DEFAULTS = tuple(name for name, value in DEFAULTS.items() if isinstance(value, (dict, list)))
_KNOWN_NAMES = {*Conf.options, *Extras.options}

# How alike an unknown name and a setting must be before we speak up.  "task_route" and
# "task_routes" are; a name that a project made up for itself should not be.
_MISSPELLING_RATIO = 0.87
_LOADING = threading.RLock()
_LOAD_TIMEOUT_S = 30.0
_judged: set[tuple[str, str]] = set()

SECRET_NAME = re.compile("API|TOKEN|KEY|SECRET|PASS|PROFANITIES_LIST|SIGNATURE|DATABASE", re.IGNORECASE)
# The password of an address, up to the last "@" before the query: unquoted passwords may hold
# slashes and at-signs, and hiding too much is better than showing a part.
_URL_PASSWORD = re.compile(r"(?<=://)([^:/?#;\s]*):[^?#;\s]*@")
_URL_SECRET_PARAMETER = re.compile(r"([\w-]*(?:token|key|secret|pass)[\w-]*=)[^;&\s]+", re.IGNORECASE)


# -- names


class _Spellings(dict[str, tuple[str | None, tuple[str, ...]]]):
    """For each name asked for: its environment variable, and the keys a layer may hold it under.

    Filled as names are asked for, so that reading a setting again costs one lookup.
    """

    def __init__(self, prefix: str, transforms: Iterable[Callable[[str], str]]) -> None:
        super().__init__()
        self.prefix = prefix
        self.transforms = tuple(transforms)

    def __missing__(self, key: str) -> tuple[str | None, tuple[str, ...]]:
        name = self.canonical(key)
        keys = [name, TO_OLD_KEY.get(name, name), key]
        if self.prefix:
            keys.insert(0, self.prefix + (name.upper() if self.prefix.isupper() else name.lower()))
        keys += [transform(name) for transform in self.transforms]
        self[key] = found = (_ENVIRONMENT.get(name), tuple(dict.fromkeys(keys)))
        return found

    def canonical(self, key: str) -> str:
        """The name a setting has today, for any spelling of it; an unknown key stays as it is."""
        if key in SETTING_KEYS:
            return key
        if self.prefix and key.lower().startswith(self.prefix.lower()):
            bare = key[len(self.prefix) :].lower()
            if bare in _KNOWN_NAMES:
                return bare
        return TO_NEW_KEY.get(key, key)


def nearest_setting(key: str, prefix: str = "") -> str | None:
    """The setting that *key* seems to have been meant for, or ``None`` if it is one or is nobody's.

    *prefix* is the namespace of the app, with its underscore.  Without one, names in
    upper case that do not begin with ``CELERY`` are taken for somebody else's.
    """
    if prefix:
        if not key.startswith(prefix):
            return None
        key = key[len(prefix) :].lower()
    elif not key.islower() and not key.startswith("CELERY"):
        return None
    known: Collection[str] = _KNOWN_NAMES if key.islower() else OLD_SETTING_KEYS
    if key in known or key.startswith("_"):
        return None
    # Comparing is slow, and names of very different lengths cannot be alike enough.
    possible = [name for name in known if _alike_at_best(key, name) >= _MISSPELLING_RATIO]
    near = closest(key, possible)
    if near is None or SequenceMatcher(None, key, near).ratio() < _MISSPELLING_RATIO:
        return None
    return near


def _alike_at_best(one: str, other: str) -> float:
    return 2 * min(len(one), len(other)) / (len(one) + len(other))


def _warn_of_misspellings(source: Mapping[str, Any], prefix: str) -> None:
    for key in source:
        if not isinstance(key, str) or key in SETTING_KEYS or (prefix, key) in _judged:
            continue
        _judged.add((prefix, key))
        near = nearest_setting(key, prefix)
        # What a configuration module imports and defines for its own use is none of our business.
        if near is not None and not isinstance(source.get(key), (ModuleType, FunctionType, type)):
            warnings.warn(
                f"There is no setting {key!r}. Did you mean {near!r}? "
                "The value is kept under the name given, but nothing reads it.",
                CeleryWarning,
                stacklevel=4,
            )


# -- the layers


class Settings(ConfigurationView, Conf):
    """The configuration of an app, as attributes and as a mapping.

    Positional arguments are those of ``ConfigurationView``: the changes, the layers
    below them, functions giving further spellings of a name, and the namespace.

    Arguments:
        deprecated_settings: old names that were found in the loaded configuration.
    """

    deprecated_settings: Collection[str]
    _spellings: _Spellings
    _pending: bool
    _loader: int | None

    def __init__(self, *args: Any, deprecated_settings: Collection[str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        transforms = kwargs.get("keys") or (args[2] if len(args) > 2 else None) or ()
        vars(self).update(
            deprecated_settings=frozenset(deprecated_settings or ()),
            _spellings=_Spellings(self.prefix or "", transforms),
            _pending=hasattr(self.changes, "callback"),
            _loader=None,
        )

    def _load(self) -> None:
        """Load the configuration, once, whoever comes first.

        Until then the changes are a ``PendingConfiguration``, whose ``callback`` loads.  What
        reads the configuration while it is being loaded sees what was set so far.
        """
        if self._loader == threading.get_ident():
            return
        # Not for ever: loading imports modules, and a thread that waits here may be importing one.
        ours = _LOADING.acquire(timeout=_LOAD_TIMEOUT_S)
        try:
            if not self._pending:
                return
            pending: Any = self.changes
            vars(self).update(_loader=threading.get_ident(), maps=[pending._data, DEFAULTS])
            try:
                loaded = pending.callback()
            except BaseException:
                vars(self).update(maps=[pending])
                raise
            finally:
                vars(self).update(_loader=None)
            if self._pending and loaded is not self:
                self.swap_with(loaded)
        finally:
            if ours:
                _LOADING.release()

    # Reading.  conf.x is read in many places, so it goes straight to the layers.

    def value_of(self, option: Option) -> Any:
        """The value of a declared setting, as ``conf.<name>`` gives it."""
        value = self._look_up(option.name)
        if value is None or value is _MISSING:
            for other in option.fallbacks:
                substitute = getattr(self, other, None)
                if substitute is not None:
                    return substitute
        if value is _MISSING:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {option.name!r}")
        return value

    def _look_up(self, key: str) -> Any:
        if self._pending:
            self._load()
        variable, spellings = self._spellings[key]
        if variable is not None:
            value = os.environ.get(variable)
            if value:
                return value
        for layer in self.maps:
            for spelling in spellings:
                if spelling in layer:
                    return layer[spelling]
        return _MISSING

    def __getitem__(self, key: str) -> Any:
        value = self._look_up(key)
        return self.__missing__(key) if value is _MISSING else value

    def get(self, key: str, default: Any = None) -> Any:
        """The value of *key* in any of its spellings, or *default*."""
        value = self._look_up(key)
        return default if value is _MISSING else value

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._look_up(key) is not _MISSING

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        self.finalize()
        return super().__repr__()

    def __iter__(self) -> Iterator[str]:
        self.finalize()
        canonical = self._spellings.canonical
        names = (canonical(key) for layer in reversed(self.maps) for key in layer)
        return iter(dict.fromkeys(names))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    # Writing goes to the changes, under the name a setting has today.

    def _key(self, key: Any) -> Any:
        return self._spellings.canonical(key) if isinstance(key, str) else key

    def _to_keys(self, key: str) -> tuple[str, ...]:
        return self._spellings[key][1]

    def __setitem__(self, key: str, value: Any) -> None:
        _warn_of_misspellings({key: value}, "")
        name = self._key(key)
        self.changes[name] = value
        for tell in self._observers:
            tell({name: value})

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Set several settings at once."""
        changes = {self._key(key): value for key, value in dict(*args, **kwargs).items()}
        _warn_of_misspellings(changes, "")
        super().update(changes)

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Set *key* unless it has a value; does not load the configuration if that is still to come."""
        if self._pending:
            return self.changes.setdefault(self._key(key), default)
        if key not in self:
            self[key] = default
        return self[key]

    def swap_with(self, other: Any) -> None:
        """Become *other*, in place, so that whoever holds this object sees what was loaded."""
        super().swap_with(other)
        vars(self).update(
            deprecated_settings=other.deprecated_settings,
            _spellings=other._spellings,
            _pending=other._pending,
        )

    def copy(self) -> Settings:
        """A configuration whose changes are its own and whose lower layers are shared."""
        self.finalize()
        return self._with_layers(dict(self.changes), self.maps[1:])

    __copy__ = copy

    def _with_layers(self, changes: dict[str, Any], layers: list[Any]) -> Settings:
        return Settings(
            changes,
            layers,
            self._spellings.transforms,
            self.prefix,
            deprecated_settings=self.deprecated_settings,
        )

    def finalize(self) -> Settings:
        """Read the configuration now if that has not happened yet."""
        self._look_up("task_default_queue")
        return self

    # Looking at the whole.

    def without_defaults(self) -> Settings:
        """The same configuration without the table of defaults: what somebody decided."""
        self.finalize()
        return self._with_layers({}, self.maps[:-1])

    def value_set_for(self, key: str) -> bool:
        """Whether somebody gave *key* a value, be it the same as the default."""
        return key in self.without_defaults()

    def find_option(self, name: str, namespace: str = "") -> SearchResult:
        """Find a setting by a name that may lack its namespace; ``KeyError`` if there is none."""
        return find(name, namespace)

    def find_value_for_key(self, name: str, namespace: str = "celery") -> Any:
        """The value of a setting whose name may lack its namespace."""
        return self.get_by_parts(*self.find_option(name, namespace=namespace)[:-1])

    def get_by_parts(self, *parts: str | None) -> Any:
        """The value of the setting whose name is *parts* joined; empty parts are left out."""
        return self["_".join(part for part in parts if part)]

    def table(self, with_defaults: bool = False, censored: bool = True) -> dict[str, Any]:
        """All settings as a dict; secrets are masked unless *censored* is off."""
        settings = self.finalize() if with_defaults else self.without_defaults()
        shown = {key: settings[key] for key in settings if not key.startswith("__")}
        return filter_hidden_settings(shown) if censored else shown

    def humanize(self, with_defaults: bool = False, censored: bool = True) -> str:
        """All settings as text, one a line; secrets are masked unless *censored* is off."""
        table = self.table(with_defaults, censored)
        return "\n".join(f"{key}: {pretty(value, width=50)}" for key, value in table.items())

    def maybe_warn_deprecated_settings(self) -> bool:
        """Warn of each old name that was found; whether there was any."""
        self.finalize()
        for key in sorted(self.deprecated_settings):
            warn(
                description=f"The {key!r} setting",
                removal="6.0.0",
                alternative=f"Use the {TO_NEW_KEY[key]} instead",
                stacklevel=3,
            )
        return bool(self.deprecated_settings)


def find_deprecated_settings(source: Any) -> Any:
    """Warn of each deprecated setting that *source*, an object or a mapping, gives; returns *source*."""
    for option in Conf.options.values():
        if not option.deprecate_by:
            continue
        names = (option.name, option.old_name)
        given = any(
            name in source if isinstance(source, Mapping) else hasattr(source, name) for name in names
        )
        if given:
            warn(
                description=f"The {option.name!r} setting",
                deprecation=option.deprecate_by,
                removal=option.remove_by,
                alternative=f"Use the {option.alt} instead",
                stacklevel=3,
            )
    return source


def detect_settings(
    conf: Mapping[str, Any] | None,
    preconf: dict[str, Any] | None = None,
    ignore_keys: Collection[str] = (),
    prefix: str | None = None,
) -> Settings:
    """Put the layers of a configuration together.

    Arguments:
        conf: the loaded object, in old names, in new names or with the namespace in front;
            ``None`` if nothing was loaded.
        preconf: what was set before anything was loaded; becomes the layer of changes.
        ignore_keys: keys that the app was given as arguments, so that their style says nothing.
        prefix: the namespace of the app, with or without its underscore.

    Raises:
        ImproperlyConfigured: if old and new names are used together, which
            makes it unclear what the project means.
    """
    conf = {} if conf is None else conf
    changes = {} if preconf is None else preconf
    prefix = f"{prefix.rstrip('_')}_" if prefix else ""
    # What was set on app.conf has been translated already; only a file can be of two minds.
    used = {key for key in conf if isinstance(key, str)}.difference(ignore_keys)
    # Under the namespace CELERY_ the new names look like old ones; those are no mistake.
    old = {key for key in used & OLD_SETTING_KEYS if not _is_prefixed(key, prefix)}
    if not prefix:
        _refuse_mixed_names(used & SETTING_KEYS, old)
    _warn_of_misspellings(conf, prefix)
    _warn_of_misspellings(changes, "")
    defaults = DEFAULTS | {name: DEFAULTS[name].copy() for name in _MUTABLE_DEFAULTS}
    return Settings(changes, [conf, defaults], deprecated_settings=old, prefix=prefix or None)


def _is_prefixed(key: str, prefix: str) -> bool:
    return bool(prefix) and key.startswith(prefix) and key[len(prefix) :].lower() in SETTING_KEYS


def _refuse_mixed_names(new: set[str], old: set[str]) -> None:
    if not new or not old:
        return
    keep_old = len(old) > len(new)
    translation = TO_OLD_KEY if keep_old else TO_NEW_KEY
    used = new | old
    stray = sorted(key for key in (new if keep_old else old) if translation[key] not in used)
    if not stray:
        return
    width = max(map(len, stray))
    renames = "\n".join(f"    {key:<{width}} -> {translation[key]}" for key in stray)
    style = "old" if keep_old else "new"
    advice = "\n\nOr, better, use the new names for all of them." if keep_old else ""
    raise ImproperlyConfigured(
        "Cannot mix new and old setting keys in one configuration: it is unclear which should win.\n"
        f"Please rename the following settings to the {style} format:\n\n{renames}{advice}"
    )


# -- the command line


_CAST = re.compile(r"\((\w+)\)")
_CASTS: dict[str, Callable[[str], Any]] = {
    **Option.typemap,
    "json": json.loads,
    "dict": json.loads,
    "list": json.loads,
    "tuple": lambda text: value if not isinstance(value := json.loads(text), list) else tuple(value),
}


def parse_assignment(text: str, namespace: str = "celery") -> tuple[str, Any]:
    """Read ``worker.concurrency=3`` as a setting and its value.

    Dots and underscores between the parts are the same, case does not matter, and
    a name that begins with one of them is completed by *namespace*.  The value is
    converted to the type of the setting; ``(int)3``, ``(float)``, ``(bool)``,
    ``(string)`` and ``(json)`` name the type, and allow names that are no settings.

    Raises:
        ValueError: if the text is no assignment or the value is not of the type.
        KeyError: if the name is no setting and no type is given.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"Cannot read {text!r} as a setting. Write it as namespace.key=value.")
    name = key.lower().replace(".", "_")
    if name.startswith("_"):
        name = namespace + name
    cast = _CAST.match(value)
    try:
        if cast is not None:
            return name, _CASTS[cast.group(1).lower()](value[cast.end() :])
        if name not in Conf.options:
            raise KeyError(f"There is no setting {name!r}.{hint(name, Conf.options)}")
        return name, Conf.options[name].to_python(value)
    except KeyError:
        if cast is None:
            raise
        types = ", ".join(sorted(_CASTS))
        raise KeyError(f"Cannot convert {text!r}: {cast.group(1)!r} is not one of {types}.") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"Cannot read the value in {text!r}: {error}") from error


# -- showing a configuration without its secrets


def sanitize_url(url: Any, mask: str = MASK) -> Any:
    """*url* with its passwords and keys replaced by *mask*; what is not text is returned as it is."""
    if not isinstance(url, str):
        return url
    url = _URL_PASSWORD.sub(rf"\1:{mask}@", url)
    return _URL_SECRET_PARAMETER.sub(rf"\1{mask}", url) if "://" in url else url


def filter_hidden_settings(conf: Mapping[Any, Any]) -> dict[Any, Any]:
    """A copy of *conf* in which secrets are masked, at any depth.

    Declared settings are masked if the table says so, any other key if its name
    sounds secret; in all other values the passwords of addresses are masked.
    """
    return {key: _without_secrets(key, value) for key, value in conf.items()}


def _without_secrets(key: Any, value: Any) -> Any:
    if isinstance(value, Mapping):
        return filter_hidden_settings(value)
    if isinstance(key, str):
        option = Conf.options.get(key) or Conf.options.get(TO_NEW_KEY.get(key, ""))
        secret = option.secret if option is not None else SECRET_NAME.search(key) is not None
        if secret and value is not None:
            return MASK
    if type(value) in (list, tuple, set):
        return type(value)(_without_secrets(None, item) for item in value)
    return sanitize_url(value)


# -- the reference page


def settings_page() -> str:
    """The reference page of the settings, in Markdown, from the table in ``app.defaults``."""
    page = [
        "# Settings",
        "",
        "Set them on `app.conf`, in the object given to `app.config_from_object`, or as arguments of "
        "the app. The old name is that of Celery 3; a configuration uses new names or old ones.",
    ]
    groups: dict[str, list[Option]] = {}
    for option in (*Conf.options.values(), *Extras.options.values()):
        groups.setdefault(option.namespace or "general", []).append(option)
    for namespace, options in groups.items():
        page += ["", f"## {namespace}"]
        for option in options:
            page += ["", *_described(option)]
    return "\n".join(page) + "\n"


def _described(option: Option) -> Iterator[str]:
    yield f"### `{option.name}`"
    yield ""
    yield option.doc
    yield ""
    if option.name in DEFAULTS:
        yield f"- Default: `{option.default!r}`"
        yield f"- Old name: `{option.old_name}`"
    else:
        yield "- Default: none; reading it from a configuration that does not set it is a `KeyError`"
    yield f"- Type: {option.type}"
    if option.env:
        yield f"- Environment: `{option.env}`, which wins over every other place"
    if option.deprecate_by:
        versions = f"since {option.deprecate_by}, to be removed in {option.remove_by}"
        yield f"- Deprecated {versions}: use {option.alt}"
