"""``async def`` tasks without a worker: called directly, and eagerly."""

from __future__ import annotations

import asyncio

import pytest

from celery_clone import Celery, Task, chain, current_task
from celery_clone.utils.coroutines import close_loop


@pytest.fixture
def app():
    with Celery("awaited", broker="memory://", backend="cache+memory://", set_as_current=False) as made:
        yield made
    close_loop()


def test_a_direct_call_is_awaited_and_is_its_own_request(app):
    @app.task(bind=True)
    async def add(self, x, y):
        await asyncio.sleep(0)
        return x + y, self.request.called_directly, self.request.args, current_task.name

    async def both():
        return await asyncio.gather(add(1, 2), add(3, 4))

    assert asyncio.run(both()) == [(3, True, (1, 2), add.name), (7, True, (3, 4), add.name)]
    assert not current_task


def test_an_eager_call_returns_when_the_coroutine_has_ended(app):
    app.conf.task_always_eager = True

    @app.task
    async def add(x, y):
        await asyncio.sleep(0)
        return x + y

    async def within_a_loop():
        return add.delay(1, 2).get()

    assert add.delay(1, 2).get() == 3
    assert asyncio.run(within_a_loop()) == 3
    assert chain(add.s(1, 2), add.s(3))().get() == 6


def test_an_eager_coroutine_fails_retries_and_keeps_its_traceback(app):
    @app.task(bind=True, autoretry_for=(KeyError,), max_retries=2, default_retry_delay=0)
    async def try_again(self):
        await asyncio.sleep(0)
        if self.request.retries < 2:
            raise KeyError("not yet")
        return self.request.retries

    @app.task
    async def fail():
        await asyncio.sleep(0)
        raise KeyError("no such thing")

    assert try_again.apply().get() == 2
    failed = fail.apply()
    assert failed.state == "FAILURE"
    assert [line for line in failed.traceback.splitlines() if " in " in line][-1].endswith("in fail")
    assert "coroutines.py" not in failed.traceback
    with pytest.raises(KeyError):
        fail.apply(throw=True)


def test_a_call_of_its_own_may_give_or_be_a_coroutine(app):
    class Giving(Task):
        def __call__(self, *args):
            return super().__call__(*args)

    class Being(Task):
        async def __call__(self, *args):
            return await super().__call__(*args) + 1

    @app.task(base=Giving)
    async def given(x):
        return x

    @app.task(base=Being)
    async def being(x):
        return x

    assert given.apply((1,)).get() == 1
    assert being.apply((1,)).get() == 2


def test_a_function_that_returns_a_coroutine_is_a_coroutine_too(app):
    async def later(x):
        await asyncio.sleep(0)
        return x

    @app.task
    def wrapped(x):
        return later(x)

    assert wrapped.apply((5,)).get() == 5
