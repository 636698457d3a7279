"""The base of all pools, without any process or thread."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo

from celery_clone.concurrency.base import BasePool, apply_target
from celery_clone.concurrency.reports import Inbox
from celery_clone.exceptions import WorkerLostError, WorkerShutdown
from celery_clone.message.frames import Began, Ended, Job, Lost, Unfit


def test_apply_target_calls_back_in_order():
    heard: list[Any] = []
    apply_target(
        lambda x, y: x + y,
        (1,),
        {"y": 2},
        callback=heard.append,
        accept_callback=lambda pid, at: heard.append((pid, at)),
        monotonic=lambda: 7.0,
    )
    assert heard == [(os.getpid(), 7.0), 3]


def test_apply_target_leaves_errors_to_its_caller():
    with pytest.raises(KeyError):
        apply_target({}.__getitem__, ("x",), callback=pytest.fail)
    with pytest.raises(WorkerShutdown):
        apply_target(exit_with(WorkerShutdown(0)), callback=pytest.fail)
    with pytest.raises(KeyboardInterrupt):
        apply_target(exit_with(KeyboardInterrupt()), callback=pytest.fail, propagate=(KeyboardInterrupt,))


def test_apply_target_turns_an_exit_into_a_lost_worker():
    heard: list[Any] = []
    apply_target(exit_with(SystemExit(3)), callback=heard.append)
    (error,) = heard
    assert isinstance(error, ExceptionInfo)
    assert isinstance(error.exception.exc, WorkerLostError)
    assert "SystemExit(3)" in str(error.exception.exc)


def exit_with(error: BaseException) -> Any:
    def leave() -> None:
        raise error

    return leave


def test_a_pool_goes_through_its_states_and_calls_its_hooks():
    called: list[str] = []

    class Pool(BasePool):
        def on_start(self) -> None:
            called.append("start")

        def on_close(self) -> None:
            called.append("close")

        def on_stop(self) -> None:
            called.append("stop")

        def on_terminate(self) -> None:
            called.append("terminate")

    pool = Pool(4, app="app", timeout=3)
    assert (pool.limit, pool.num_processes, pool.app, pool.options) == (4, 4, "app", {"timeout": 3})
    assert not pool.active
    pool.start()
    assert pool.active
    pool.close()
    assert not pool.active
    pool.stop()
    pool.terminate()
    assert called == ["start", "close", "stop", "terminate"]
    assert pool.info["max-concurrency"] == 4
    for method, args in ((pool.terminate_job, (1,)), (pool.restart, ())):
        with pytest.raises(NotImplementedError):
            method(*args)


def test_options_of_a_call_reach_on_apply():
    class Pool(BasePool):
        def on_apply(self, target: Any, args: Any, kwargs: Any, **options: Any) -> Any:
            return target, args, kwargs, options

    pool = Pool(1, putlocks=False, callbacks_propagate=(KeyError,))
    target, args, kwargs, options = pool.apply_async(len, correlation_id="x")
    assert (target, args, kwargs) == (len, [], {})
    assert options == {"waitforslot": False, "callbacks_propagate": (KeyError,), "correlation_id": "x"}


class Runner:
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.unsent = True

    def prepare(self) -> None:
        self.calls.append("prepare")

    def flush(self) -> None:
        self.calls.append("flush")

    def finish(self) -> None:
        self.calls.append("finish")

    def __call__(self, job: Job, begin: Callable[[], None]) -> Any:
        begin()
        self.calls.append(job.task)
        if job.task == "boom":
            raise ValueError("boom")
        return Ended(job.seq, ("SUCCESS",))


class HeldPool(BasePool):
    """Keeps calls until it is told to make one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kept: list[Any] = []

    def on_apply(self, target: Any, args: Any, kwargs: Any, **options: Any) -> None:
        self.kept.append((target, args, options))

    def release(self, how: str = "return") -> None:
        target, args, options = self.kept.pop(0)
        options["accept_callback"](99, 1.5)
        if how == "return":
            options["callback"](target(*args))
        elif how == "info":
            options["callback"](ExceptionInfo)
        else:
            options["error_callback"](None)


@pytest.fixture
def held() -> tuple[HeldPool, Runner, list[Any]]:
    pool, runner, reports = HeldPool(2), Runner(), []
    pool.bind(runner, reports.extend)
    pool.start()
    return pool, runner, reports


def test_jobs_go_to_a_pool_as_far_as_it_can_run_them_and_the_rest_can_be_recalled(held):
    pool, _, reports = held
    pool.submit([Job(seq, "x", flags=1) for seq in range(4)])
    assert len(pool.kept) == 2
    assert pool.room() == 0
    pool.release()
    assert len(pool.kept) == 2
    assert pool.recall() == [3]
    pool.release()
    pool.release()
    pool.wait(0)
    assert [type(report) for report in reports] == [Began, Ended] * 3
    assert pool.room() == 2


def test_results_are_flushed_before_their_report(held):
    pool, runner, _ = held
    pool.submit([Job(0, "x")])
    pool.release()
    pool.stop()
    assert runner.calls == ["prepare", "x", "flush", "finish"]


def test_what_the_pool_could_not_run_is_lost_and_what_the_runner_could_not_is_unfit(held):
    pool, _, reports = held
    pool.submit([Job(0, "x"), Job(1, "x"), Job(2, "boom")])
    pool.release("error")
    pool.release("info")
    pool.release()
    pool.wait(0)
    assert reports[:2] == [Lost(0, 99, None), Lost(1, 99, None)]
    assert isinstance(reports[2], Unfit)
    assert "boom" in reports[2].detail


def test_a_result_that_cannot_be_stored_makes_a_lost_job(held, caplog):
    pool, runner, reports = held

    def refuse() -> None:
        raise ConnectionError("store is away")

    runner.flush = refuse
    pool.submit([Job(0, "x")])
    pool.release()
    pool.wait(0)
    assert reports == [Lost(0, os.getpid(), None)]
    assert "store is away" in caplog.text


def test_begun_jobs_are_those_the_pool_accepted(held):
    pool, _, _ = held
    pool.submit([Job(5, "x")])
    assert pool.begun() == {}
    _, _, options = pool.kept[0]
    options["accept_callback"](99, 1.5)
    assert pool.begun() == {5: (99, 1.5)}
    assert not pool.kill(6, 15)


def test_an_inbox_without_a_hub_keeps_reports_until_it_is_asked():
    told: list[Any] = []
    inbox = Inbox(told.append)
    inbox.put(Lost(1, 2, 3))
    inbox.put(Lost(2, 2, 3))
    assert told == []
    inbox.wait(0)
    assert told == [[Lost(1, 2, 3), Lost(2, 2, 3)]]
    inbox.wait(0)
    assert len(told) == 1


def test_an_inbox_of_a_green_pool_tells_at_once():
    told: list[Any] = []
    Inbox(told.append, direct=True).put(Lost(1, 2, 3))
    assert told == [[Lost(1, 2, 3)]]
