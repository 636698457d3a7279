"""The loader of the default app, which reads ``celeryconfig``.

Chosen by ``app.base`` when nobody made an app.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

from celery_clone.exceptions import NotConfigured
from celery_clone.loaders.base import BaseLoader
from celery_clone.utils.collections import force_mapping
from celery_clone.utils.serialization import strtobool

__all__ = ("DEFAULT_CONFIG_MODULE", "Loader")

DEFAULT_CONFIG_MODULE = "celeryconfig"

#: Set in the environment to be warned if there is no such module.
C_WNOCONF = strtobool(os.environ.get("C_WNOCONF", False))


class Loader(BaseLoader):
    """Reads settings from the module ``celeryconfig`` or the one named in the environment."""

    def setup_settings(self, settingsdict: Any) -> Any:
        """Return a module or mapping as settings."""
        return force_mapping(settingsdict)

    def read_configuration(self, fail_silently: bool = True) -> Any:  # type: ignore[override]
        """Return the settings of the module ``CELERY_CONFIG_MODULE`` names.

        Without ``fail_silently`` a missing module raises :exc:`ImportError`;
        with it there are no settings.
        """
        name = os.environ.get("CELERY_CONFIG_MODULE", DEFAULT_CONFIG_MODULE)
        try:
            module = self._import_config_module(name)
        except ImportError:
            if not fail_silently:
                raise
            # A pool process started by exec would only repeat its parent's warning.
            if C_WNOCONF and not os.environ.get("FORKED_BY_MULTIPROCESSING"):
                text = f"No {name} module found! Please make sure it exists and is available to Python."
                warnings.warn(NotConfigured(text), stacklevel=2)
            return self.setup_settings({})
        self.configured = True
        return self.setup_settings(module)
