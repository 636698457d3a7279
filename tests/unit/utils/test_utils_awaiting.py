"""Results in asyncio: what is refused, what is raised, and who reads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from celery_clone import Celery
from celery_clone.backends.base import KeyValueStoreBackend
from celery_clone.result import EagerResult, allow_join_result, denied_join_result


class AskedStore(KeyValueStoreBackend):
    """Keeps values; must be asked; can be told to fail."""

    thread_safe = True
    supports_native_join = True
    error: Exception | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.values: dict[bytes, Any] = {}

    def get(self, key: bytes) -> Any:
        if self.error is not None:
            raise self.error
        return self.values.get(key)

    def mget(self, keys: Any) -> Any:
        return [self.get(key) for key in keys]

    def set(self, key: bytes, value: Any) -> None:
        self.values[key] = value

    def delete(self, key: bytes) -> None:
        self.values.pop(key, None)


@pytest.fixture
def app() -> Iterator[Celery]:
    with Celery("tests", broker="memory://", backend=AskedStore, set_as_current=False) as app:
        yield app


def run(awaitable: Any, timeout: float = 10) -> Any:
    async def main() -> Any:
        return await asyncio.wait_for(awaitable, timeout)

    return asyncio.run(main())


def test_inside_a_task_waiting_is_refused_with_the_way_out(app: Celery) -> None:
    app.backend.mark_as_done("a", 1)

    with denied_join_result():
        with pytest.raises(RuntimeError, match="chain|callback"):
            run(app.AsyncResult("a"))
        with allow_join_result():
            assert run(app.AsyncResult("a")) == 1


def test_the_error_of_a_task_is_raised(app: Celery) -> None:
    app.backend.mark_as_failure("a", KeyError("apples"), "")

    with pytest.raises(KeyError):
        run(app.AsyncResult("a"))


def test_an_error_of_a_step_before_ends_the_wait(app: Celery) -> None:
    app.backend.mark_as_failure("first", KeyError("apples"), "")
    second = app.AsyncResult("never sent", parent=app.AsyncResult("first"))

    with pytest.raises(KeyError):
        run(second)


def test_a_group_in_a_group_keeps_its_structure(app: Celery) -> None:
    for name in "abc":
        app.backend.mark_as_done(name, name)
    inner = app.GroupResult("inner", [app.AsyncResult("a"), app.AsyncResult("b")])
    outer = app.GroupResult("outer", [inner, app.AsyncResult("c")])

    async def main() -> list[Any]:
        return [member.id async for member in outer]

    assert run(outer) == [["a", "b"], "c"]
    assert sorted(run(main())) == ["c", "inner"]


def test_what_is_known_already_is_not_asked_for(app: Celery) -> None:
    app.backend.error = RuntimeError("the store was asked")
    ignored = app.AsyncResult("ignored")
    ignored.ignored = True

    assert run(EagerResult("a", 42, "SUCCESS")) == 42
    assert run(ignored) is None
    assert run(app.ResultSet([])) == []


def test_a_store_that_fails_ends_every_wait_with_its_error(app: Celery) -> None:
    results = [app.AsyncResult(name) for name in "ab"]

    async def main() -> list[Any]:
        waits = [asyncio.ensure_future(asyncio.wait_for(result, 10)) for result in results]
        await asyncio.sleep(0.05)
        app.backend.error = OSError("the store is gone")
        return await asyncio.gather(*waits, return_exceptions=True)

    assert [type(error) for error in asyncio.run(main())] == [OSError, OSError]


def test_many_waits_share_one_thread(app: Celery) -> None:
    results = [app.AsyncResult(f"task-{number}") for number in range(50)]

    def watchers() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if "celery-results" in thread.name}

    before = watchers()

    async def main() -> tuple[list[Any], int]:
        waits = [asyncio.ensure_future(asyncio.wait_for(result, 10)) for result in results]
        await asyncio.sleep(0.1)
        waiting = len(watchers() - before)
        for number in range(50):
            app.backend.mark_as_done(f"task-{number}", number)
        return await asyncio.gather(*waits), waiting

    assert asyncio.run(main()) == (list(range(50)), 1)
