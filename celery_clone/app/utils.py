"""Helpers around an app: finding it by name, and describing it.

``bin.celery`` finds the app of ``--app`` here; ``celery report`` and the worker ask for
descriptions.  Also the public address of :class:`Settings`, which lives in
``app.settings``.  Importing the user's modules is all this may do to the outside.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from celery_clone._state import _get_active_apps
from celery_clone._version import VERSION_BANNER
from celery_clone.exceptions import ImproperlyConfigured
from celery_clone.platforms import pyimplementation
from celery_clone.utils.imports import import_from_cwd, qualname
from celery_clone.utils.suggest import hint

from .settings import (
    Settings,
    detect_settings,
    filter_hidden_settings,
    find_deprecated_settings,
    sanitize_url,
)

__all__ = (
    "AppPickler",
    "Settings",
    "appstr",
    "bugreport",
    "certificates_must_be_readable",
    "detect_settings",
    "filter_hidden_settings",
    "find_app",
    "find_deprecated_settings",
    "sanitize_url",
    "unreadable_url",
)

REPORT = """
software -> celery:{banner} kombu:{kombu} py:{python}
            billiard:{billiard} {driver}
platform -> system:{system} arch:{architecture}
            kernel version:{kernel} imp:{implementation}
loader   -> {loader}
settings -> transport:{transport} results:{results}

{settings}
"""


# -- describing


def appstr(app: Any) -> str:
    """An app as ``main at 0x7f...``, for its ``repr`` and those of its tasks."""
    return f"{app.main or '__main__'} at {id(app):#x}"


def bugreport(app: Any) -> str:
    """The versions and the settings of an app, without secrets, as text for a bug report."""
    driver = transport = ""
    try:
        connection = app.connection()
        transport = connection.transport_cls
        driver = f"{connection.transport.driver_name}:{connection.transport.driver_version()}"
    except Exception as error:  # noqa: BLE001 the report is asked for when something is broken
        driver = f"(driver unknown: {error!r})"
    return REPORT.format(
        banner=VERSION_BANNER,
        # Loaded for the report only: billiard takes longer than the rest of this module.
        kombu=import_module("kombu").__version__,
        python=platform.python_version(),
        billiard=import_module("billiard").__version__,
        driver=driver,
        system=platform.system(),
        # Not platform.architecture(), which runs a program to find out.
        architecture=f"{sys.maxsize.bit_length() + 1}bit, {platform.machine()}",
        kernel=platform.release(),
        implementation=pyimplementation(),
        loader=qualname(type(app.loader)),
        transport=transport,
        results=sanitize_url(app.conf.result_backend) or "disabled",
        settings=app.conf.humanize(),
    )


# -- finding


def find_app(app: Any) -> Any:
    """The app that ``--app`` names; what is not text is returned as it is.

    ``module:attribute`` names it outright.  ``module``, or ``package.module``, is searched:
    its attributes ``app`` and ``celery`` first, then any attribute that is an app; of a
    package, its submodule ``celery`` in the same way.  Modules of the current directory
    win over installed ones.

    Raises:
        ModuleNotFoundError: if there is no such module.
        AttributeError: if there is no app in it; says what was tried.
    """
    found = _named(app) if isinstance(app, str) else app
    if not isinstance(found, ModuleType):
        return found
    tried: list[str] = []
    in_module = _app_of_module(found, tried)
    if in_module is None and hasattr(found, "__path__"):
        submodule = _submodule(found, "celery", tried)
        in_module = None if submodule is None else _app_of_module(submodule, tried)
    if in_module is None:
        raise AttributeError(
            f"module {found.__name__!r} has no attribute 'celery', nor any other, that is a Celery "
            f"application. Tried {', '.join(tried)}. Name the application as module.path:attribute."
        )
    return in_module


def _named(name: str) -> Any:
    module_name, colon, attributes = name.partition(":")
    if colon:
        return _attribute(import_from_cwd(module_name), attributes.split(".") if attributes else [])
    package_name, _, last = name.rpartition(".")
    if package_name:
        package = import_from_cwd(package_name)
        if hasattr(package, last):
            return getattr(package, last)
        if not hasattr(package, "__path__"):
            return _attribute(package, [last])
    return import_from_cwd(name)


def _attribute(found: Any, path: Iterable[str]) -> Any:
    for name in path:
        if not hasattr(found, name):
            where = getattr(found, "__name__", None) or repr(found)
            raise AttributeError(f"{where!r} has no attribute {name!r}.{hint(name, dir(found))}")
        found = getattr(found, name)
    return found


def _app_of_module(module: ModuleType, tried: list[str]) -> Any:
    name = module.__name__
    tried += [f"{name}.app", f"{name}.celery", f"any attribute of {name}"]
    # Apps tell us of themselves, so their class, which is defined above, need not be imported.
    app_classes = tuple({type(app) for app in _get_active_apps()})
    for attribute in ("app", "celery"):
        candidate = getattr(module, attribute, None)
        if isinstance(candidate, app_classes):
            return candidate
    # By type: a proxy such as current_app, imported for use, is not the app of the module.
    return next((value for value in vars(module).values() if issubclass(type(value), app_classes)), None)


def _submodule(package: ModuleType, name: str, tried: list[str]) -> ModuleType | None:
    full_name = f"{package.__name__}.{name}"
    try:
        found: ModuleType = import_from_cwd(full_name)
    except ModuleNotFoundError as error:
        if error.name != full_name:
            raise  # it is there, but something that it imports is not
        tried.append(f"module {full_name} (not found)")
        return None
    return found


# -- pickling


class AppPickler:
    """Makes an app again from its class and the arguments it was pickled with.

    ``Celery.Pickler``; subclasses change how an app is made in :meth:`construct` or what
    is done to it afterwards in :meth:`prepare`.
    """

    def __call__(self, cls: type, kwargs: Mapping[str, Any]) -> Any:
        return self.prepare(self.construct(cls, **kwargs), **kwargs)

    def construct(self, cls: type, **kwargs: Any) -> Any:
        """The app; it does not become the current one."""
        return cls(**{"set_as_current": False, **kwargs})

    def prepare(self, app: Any, **kwargs: Any) -> Any:
        """*app*, ready for use."""
        return app


CERTIFICATES = ("ca_certs", "certfile", "keyfile", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
"""Options for TLS that name files."""


def certificates_must_be_readable(setting: str, value: Any) -> None:
    """Raise :exc:`ImproperlyConfigured` if the options for TLS name a file that cannot be read.

    The libraries that connect would say so at each try, and most without the name of the file.
    """
    for option in CERTIFICATES if isinstance(value, Mapping) else ():
        path = value.get(option)
        if not isinstance(path, (str, os.PathLike)):
            continue
        try:
            with open(path, "rb"):
                pass
        except OSError as exc:
            raise ImproperlyConfigured(
                f"{setting}[{option!r}] names the file {str(path)!r}, which cannot be read: {exc.strerror}. "
                "Correct the path, or let the user of this process read the file."
            ) from None


def unreadable_url(url: Any, reason: Exception) -> str:
    """The error for the URL of a broker that cannot be taken apart, without its password."""
    shown = re.sub(r"(?<=:)[^:@/]*(?=@)", "**", str(url))
    return (
        f"The broker URL {shown!r} cannot be read: {reason}. Write transport://user:password@host:port/virtual_host, "
        "with special characters of the password as %XX (broker_url)."
    )
