"""``autoretry_for``: tasks that are retried when they raise certain errors.

``app.base`` calls :func:`add_autoretry_behaviour` for every task it registers.  It wraps
the body of the task and leaves deciding about limits to ``Task.retry``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

from celery_clone.exceptions import Ignore, Retry
from celery_clone.utils.functional import is_coroutine_function
from celery_clone.utils.time import get_exponential_backoff_interval

__all__ = ("add_autoretry_behaviour",)


class Policy(NamedTuple):
    """When and how a task is retried by itself."""

    retry_for: tuple[type[BaseException], ...]
    never_for: tuple[type[BaseException], ...]
    retry_kwargs: dict[str, Any]
    backoff_s: float
    backoff_max_s: int
    jitter: bool


def add_autoretry_behaviour(task: Any, **options: Any) -> None:
    """Wrap the body of *task* if it, or the *options* it was declared with, names ``autoretry_for``."""

    def option(name: str, default: Any) -> Any:
        return options[name] if name in options else getattr(task, name, default)

    retry_for = tuple(option("autoretry_for", ()))
    if not retry_for or hasattr(task, "_orig_run"):
        return
    policy = Policy(
        retry_for=retry_for,
        # What a task raises to end itself must reach the worker, even where retry_for is Exception.
        never_for=(Ignore, Retry, *option("dont_autoretry_for", ())),
        retry_kwargs=option("retry_kwargs", {}),
        backoff_s=float(option("retry_backoff", False)),
        backoff_max_s=int(option("retry_backoff_max", 600)),
        jitter=bool(option("retry_jitter", True)),
    )
    task._orig_run, task.run = task.run, _wrapped(task, task.run, policy)


def _wrapped(task: Any, body: Callable[..., Any], policy: Policy) -> Callable[..., Any]:
    if is_coroutine_function(body):

        @wraps(body)
        async def run_async(*args: Any, **kwargs: Any) -> Any:
            try:
                return await task._orig_run(*args, **kwargs)
            except policy.never_for:
                raise
            except policy.retry_for as error:
                raise _retried(task, policy, error)  # noqa: B904 task.retry has chained it, if it should

        return run_async

    @wraps(body)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return task._orig_run(*args, **kwargs)
        except policy.never_for:
            raise
        except policy.retry_for as error:
            raise _retried(task, policy, error)  # noqa: B904 task.retry has chained it, if it should

    return run


def _retried(task: Any, policy: Policy, error: BaseException) -> BaseException:
    """Retry *task* because of *error*; gives the exception that says so, if ``retry`` returns at all."""
    retry_kwargs = dict(policy.retry_kwargs)
    if policy.backoff_s:
        retry_kwargs["countdown"] = get_exponential_backoff_interval(
            factor=int(max(1.0, policy.backoff_s)),
            retries=task.request.retries,
            maximum=policy.backoff_max_s,
            full_jitter=policy.jitter,
        )
    if hasattr(task, "override_max_retries"):
        # Set by the task's own call of retry(max_retries=...), for this run.
        retry_kwargs["max_retries"] = task.override_max_retries
    retry: BaseException = task.retry(exc=error, **retry_kwargs)
    if hasattr(task, "override_max_retries"):
        del task.override_max_retries
    return retry
