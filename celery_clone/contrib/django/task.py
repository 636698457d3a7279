"""Tasks that are called when the transaction of the caller is committed.

The Django fixup makes :class:`DjangoTask` the base of all tasks of an app.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from django.db import transaction

from celery_clone.app.task import Task

__all__ = ("DjangoTask",)


class DjangoTask(Task):
    """A task with calls that a rollback undoes; without a transaction they are ordinary calls."""

    def delay_on_commit(self, *args: Any, **kwargs: Any) -> None:
        """As :meth:`~celery_clone.app.task.Task.delay`, once the transaction is committed.

        The id of the call is not known before, so nothing is returned.
        """
        transaction.on_commit(partial(self.delay, *args, **kwargs))

    def apply_async_on_commit(self, *args: Any, **kwargs: Any) -> None:
        """As :meth:`~celery_clone.app.task.Task.apply_async`, once the transaction is committed."""
        transaction.on_commit(partial(self.apply_async, *args, **kwargs))
