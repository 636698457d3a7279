"""The loader of apps that somebody made, as opposed to the default app.

Chosen by ``app.base``; settings come from the app, never from a file of its own.
"""

from __future__ import annotations

from celery_clone.loaders.base import BaseLoader

__all__ = ("AppLoader",)


class AppLoader(BaseLoader):
    """Reads settings only where ``CELERY_CONFIG_MODULE`` says so."""
