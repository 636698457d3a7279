"""Tasks that can be told to end early, and look now and then whether they were.

The caller's :meth:`AbortableAsyncResult.abort` leaves a word in the result store, where the task finds it::

    @app.task(bind=True, base=AbortableTask)
    def import_rows(self, rows):
        for number, row in enumerate(rows):
            if number % 100 == 0 and self.is_aborted():
                return f"aborted at {number}"
            store(row)

    result = import_rows.delay(rows)
    result.abort()

It works with every result store that can be read and written by id: all but ``rpc://``.
"""

from __future__ import annotations

from typing import Any

from celery_clone.app.task import Task
from celery_clone.result import AsyncResult

__all__ = ("ABORTED", "AbortableAsyncResult", "AbortableTask")

#: The state of a task that was told to end, until it does.
ABORTED = "ABORTED"


class AbortableAsyncResult(AsyncResult):
    """The result of a task that can be aborted."""

    def is_aborted(self) -> bool:
        """Was the task told to end, and has it not ended yet?"""
        return bool(self.state == ABORTED)

    def abort(self) -> Any:
        """Tell the task to end.

        When it does, if it does at all, is up to the task.
        """
        return self.backend.store_result(self.id, result=None, state=ABORTED, traceback=None)


class AbortableTask(Task):
    """Base class of tasks that can be aborted; they have to call :meth:`is_aborted`."""

    abstract = True

    def AsyncResult(self, task_id: str) -> AbortableAsyncResult:  # type: ignore[override] # noqa: N802 Celery's name
        """The result of a call of this task."""
        return AbortableAsyncResult(task_id, backend=self.backend, task_name=self.name, app=self.app)

    def is_aborted(self, **kwargs: Any) -> bool:
        """Was the call that runs (or that of *task_id*) told to end?  Each answer is read from the result store."""
        task_id = kwargs.get("task_id", self.request.id)
        result = self.AsyncResult(task_id)
        return isinstance(result, AbortableAsyncResult) and result.is_aborted()
