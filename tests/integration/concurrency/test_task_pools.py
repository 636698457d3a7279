"""The public pools: as callers of functions, and as runners of jobs through one contract."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from billiard.exceptions import SoftTimeLimitExceeded, Terminated, TimeLimitExceeded, WorkerLostError
from billiard.exceptions import TimeoutError as CallTimeoutError
from kombu.asynchronous import Hub, set_event_loop

from celery_clone.concurrency import get_implementation
from celery_clone.concurrency.base import BasePool
from celery_clone.concurrency.prefork import TaskPool
from celery_clone.message.frames import TELL_BEGIN, Began, Ended, Job, Lost, Overtime, Unfit
from tests.support.processes import is_alive
from tests.support.wait import wait_until

# -- as a caller of functions


@pytest.fixture(params=[True, False], ids=["attended", "served by the caller"])
def prefork(request: pytest.FixtureRequest) -> Iterator[TaskPool]:
    """A pool of two processes, with a thread that serves it or without."""
    pool = TaskPool(2, threads=request.param)
    pool.start()
    yield pool
    pool.terminate()


def served_until(pool: TaskPool, condition: Callable[[], bool]) -> None:
    """Wait for *condition*, serving the pool if nobody else does."""

    def holds() -> bool:
        pool.wait(0.01)
        return condition()

    wait_until(holds, 10)


def sleep_and_tell(seconds: float) -> str:
    try:
        time.sleep(seconds)
    except SoftTimeLimitExceeded:
        return "soft"
    return "slept"


def fail(text: str) -> None:
    raise ValueError(text)


def lambda_result() -> Any:
    return lambda: None


def test_a_call_returns_and_its_callbacks_are_called(prefork):
    heard: list[Any] = []
    result = prefork.apply_async(
        pow, (2, 10), callback=heard.append, accept_callback=lambda pid, at: heard.append((pid, at))
    )
    assert result.get(timeout=10) == 1024
    assert result.ready()
    assert result.successful()
    (pid, at), value = heard
    assert pid in prefork.info["processes"]
    assert result.worker_pids() == [pid]
    assert abs(time.monotonic() - at) < 10
    assert value == 1024


def test_an_error_of_the_function_reaches_the_caller_with_its_traceback(prefork):
    heard: list[Any] = []
    result = prefork.apply_async(fail, ("boom",), error_callback=heard.append)
    with pytest.raises(ValueError, match="boom"):
        result.get(timeout=10)
    (error,) = heard
    assert isinstance(error, ExceptionInfo)
    assert "in fail" in error.traceback
    assert not result.successful()


def test_a_result_that_cannot_be_pickled_is_an_error(prefork):
    with pytest.raises(Exception, match="lambda"):
        prefork.apply_async(lambda_result).get(timeout=10)


def test_what_cannot_be_pickled_is_refused_to_the_caller(prefork):
    with pytest.raises((pickle.PicklingError, AttributeError)):
        prefork.apply_async(lambda: None)


def test_an_exit_of_the_function_is_an_error_and_the_process_is_replaced(prefork):
    with pytest.raises(SystemExit):
        prefork.apply_async(sys.exit, (3,)).get(timeout=10)
    assert prefork.apply_async(pow, (2, 3)).get(timeout=10) == 8


def test_the_death_of_the_process_is_an_error(prefork):
    with pytest.raises(WorkerLostError, match=r"exitcode 9 Job: -2\."):
        prefork.apply_async(os._exit, (9,)).get(timeout=10)


def test_a_call_can_be_terminated(prefork):
    began = threading.Event()
    result = prefork.apply_async(time.sleep, (30,), accept_callback=lambda pid, at: began.set())
    served_until(prefork, began.is_set)
    result.terminate(signal.SIGTERM)
    with pytest.raises(Terminated):
        result.get(timeout=10)


def test_time_limits_hold_for_calls(prefork):
    heard: list[Any] = []
    soft = prefork.apply_async(
        sleep_and_tell, (30,), soft_timeout=0.2, timeout_callback=lambda *args: heard.append(args)
    )
    hard = prefork.apply_async(time.sleep, (30,), timeout=0.2)
    assert soft.get(timeout=10) == "soft"
    assert heard == [(True, 0.2)]
    with pytest.raises(TimeLimitExceeded):
        hard.get(timeout=10)


def test_waiting_for_a_call_has_a_bound(prefork):
    result = prefork.apply_async(time.sleep, (5,))
    with pytest.raises(CallTimeoutError):
        result.get(timeout=0.1)
    with pytest.raises(ValueError, match="not ended"):
        result.successful()


def test_a_failing_callback_is_logged_and_others_are_called(prefork, caplog):
    failing = prefork.apply_async(pow, (2, 3), callback=lambda value: 1 / 0)
    assert failing.get(timeout=10) == 8
    assert prefork.apply_async(pow, (2, 4)).get(timeout=10) == 16
    assert "Pool callback raised exception: ZeroDivisionError" in caplog.text


def test_more_calls_than_the_pool_has_room_for_wait_for_their_turn(prefork):
    results = [prefork.apply_async(pow, (2, n)) for n in range(50)]
    assert [result.get(timeout=10) for result in results] == [2**n for n in range(50)]


def test_the_pool_grows_shrinks_and_restarts(prefork):
    prefork.grow(2)
    assert prefork.num_processes == 4
    prefork.shrink(3)
    served_until(prefork, lambda: len(prefork.info["processes"]) == 1)
    (before,) = prefork.info["processes"]
    prefork.restart()

    def is_replaced() -> bool:
        pids = prefork.info["processes"]
        return len(pids) == 1 and before not in pids

    served_until(prefork, is_replaced)
    assert prefork.apply_async(pow, (2, 3)).get(timeout=10) == 8


def test_stop_waits_for_calls_and_terminate_does_not():
    pool = TaskPool(1)
    pool.start()
    slow = pool.apply_async(sleep_and_tell, (0.3,))
    queued = pool.apply_async(pow, (2, 3))
    pool.stop()
    assert (slow.get(timeout=0), queued.get(timeout=0)) == ("slept", 8)
    pool.start()
    pids = pool.info["processes"]
    endless = pool.apply_async(time.sleep, (60,))
    queued = pool.apply_async(pow, (2, 3))
    pool.terminate()
    for result in (endless, queued):
        with pytest.raises(WorkerLostError):
            result.get(timeout=1)
    assert not any(is_alive(pid) for pid in pids)
    pool.stop()
    pool.terminate()
    with pytest.raises(RuntimeError, match="start"):
        pool.apply_async(pow, (2, 3))


def test_info_has_what_celery_shows(prefork):
    info = prefork.info
    assert info["implementation"] == "celery_clone.concurrency.prefork:TaskPool"
    assert info["max-concurrency"] == 2
    assert len(info["processes"]) == 2
    assert info["max-tasks-per-child"] == "N/A"
    assert info["timeouts"] == (0, 0)
    assert set(info["writes"]) == {"total", "avg", "all", "raw", "strategy", "inqueues"}


def test_spawned_processes_work_as_forked_ones_do(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(SPAWNING)
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=50, check=False, cwd=os.getcwd(),
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert done.stdout.split() == ["8", "42", "lost", "8"], done.stderr


SPAWNING = """
import os
from billiard.exceptions import WorkerLostError
from celery_clone.concurrency.prefork import TaskPool

def answer():
    return 42

if __name__ == "__main__":
    pool = TaskPool(1, forking_enable=False)
    pool.start()
    print(pool.apply_async(pow, (2, 3)).get(timeout=20))
    print(pool.apply_async(answer).get(timeout=20))
    try:
        pool.apply_async(os._exit, (3,)).get(timeout=20)
    except WorkerLostError:
        print("lost")
    print(pool.apply_async(pow, (2, 3)).get(timeout=20))
    pool.stop()
"""


# -- as a runner of jobs


class Runner:
    """Runs jobs whose name says what to do, in whatever process or thread."""

    def __init__(self) -> None:
        self.prepared: list[int] = []
        self.finished = 0
        self.waiting = 0
        self.unflushed: list[int] = []

    def prepare(self) -> None:
        self.prepared.append(os.getpid())

    @property
    def unsent(self) -> bool:
        return bool(self.unflushed)

    def flush(self) -> None:
        self.unflushed.clear()

    def finish(self) -> None:
        self.finished += 1

    def __call__(self, job: Job, begin: Callable[[], None]) -> Any:
        what, _, argument = job.task.partition(":")
        if what == "refuse":
            return Unfit(job.seq, "undecodable", argument)
        begin()
        if what == "sleep":
            time.sleep(float(argument))
        elif what == "spin":
            until = time.monotonic() + float(argument)
            try:
                while time.monotonic() < until:
                    time.sleep(0.01)
            except SoftTimeLimitExceeded:
                argument = "soft"
        elif what == "exit":
            raise SystemExit(int(argument))
        elif what == "fail":
            raise ValueError(argument)
        self.unflushed.append(job.seq)
        prepared = os.getpid() in self.prepared
        return Ended(job.seq, ("SUCCESS", argument if prepared else "unprepared", 0.0, None, False))


class ForeignPool(BasePool):
    """As others write them: a thread for each call, and nothing but ``on_apply``."""

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Any = (),
        kwargs: Any = None,
        callback: Any = None,
        accept_callback: Any = None,
        error_callback: Any = None,
        timeout_callback: Any = None,
        timeout: float | None = None,
        **options: Any,
    ) -> Any:
        def work() -> None:
            accept_callback(os.getpid(), time.monotonic())
            if timeout:
                timeout_callback(False, timeout)
            try:
                value = target(*args, **kwargs)
            except BaseException:
                error_callback(ExceptionInfo())
            else:
                callback(value)

        thread = threading.Thread(target=work)
        thread.start()
        return thread


class Driven:
    """A pool driven by a hub, as the worker drives it."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self.hub = Hub()
        set_event_loop(self.hub)
        self.runner = Runner()
        self.reports: list[Any] = []
        self.tellers: set[int] = set()
        pool.bind(self.runner, self.tell)
        pool.start()
        pool.watch(self.hub)
        pool.register_with_event_loop(self.hub)

    def tell(self, reports: Any) -> None:
        self.tellers.add(threading.get_ident())
        self.reports.extend(reports)

    def until(self, condition: Callable[[], Any], timeout: float = 10.0) -> Any:
        timer = self.hub.call_repeatedly(0.02, lambda: None)
        try:
            return wait_until(lambda: self.hub.run_once() or condition(), timeout, every=0.0)
        finally:
            timer.cancel()

    def finals(self) -> list[Any]:
        return [report for report in self.reports if not isinstance(report, (Began, Overtime))]

    def close(self) -> None:
        self.pool.unwatch(self.hub)
        self.pool.terminate()
        self.hub.close()
        set_event_loop(None)


POOLS = {
    "prefork": lambda: TaskPool(2, threads=False),
    "solo": lambda: get_implementation("solo")(1),
    "threads": lambda: get_implementation("threads")(2),
    "asyncio": lambda: get_implementation("asyncio")(2),
    "foreign": lambda: ForeignPool(2),
}


@pytest.fixture(params=[*POOLS])
def driven(request: pytest.FixtureRequest) -> Iterator[Driven]:
    one = Driven(POOLS[request.param]())
    yield one
    one.close()


def test_every_pool_runs_every_job_and_tells_in_the_thread_of_the_loop(driven):
    driven.pool.submit([Job(seq, f"echo:{seq}") for seq in range(100)])
    driven.until(lambda: len(driven.finals()) == 100)
    assert sorted(report.seq for report in driven.finals()) == [*range(100)]
    assert {report.outcome[1] for report in driven.finals()} == {str(seq) for seq in range(100)}
    assert driven.tellers == {threading.get_ident()}
    assert driven.pool.begun() == {}
    assert driven.pool.room() >= 1


def test_every_pool_tells_a_begin_before_the_end(driven):
    driven.pool.submit([Job(7, "sleep:0.1", flags=TELL_BEGIN)], [(None, None)])
    driven.until(lambda: driven.finals())
    began, ended = driven.reports
    assert isinstance(began, Began)
    assert isinstance(ended, Ended)
    assert time.monotonic() - began.at < 10


def test_every_pool_tells_no_begin_of_what_the_runner_cannot_understand(driven):
    driven.pool.submit([Job(7, "refuse:why", flags=TELL_BEGIN)])
    driven.until(lambda: driven.finals())
    assert driven.reports == [Unfit(7, "undecodable", "why")]


def test_every_pool_gives_back_what_has_not_begun(driven):
    driven.pool.submit([Job(seq, "sleep:0.2", flags=TELL_BEGIN) for seq in range(20)])
    driven.until(lambda: any(isinstance(report, Began) for report in driven.reports))
    recalled = set(driven.pool.recall())
    assert recalled
    driven.until(lambda: len(driven.finals()) == 20 - len(recalled))
    assert {report.seq for report in driven.finals()} == set(range(20)) - recalled


def test_every_pool_survives_a_task_that_exits_or_fails(driven):
    driven.pool.submit([Job(1, "exit:3"), Job(2, "fail:x"), Job(3, "echo:x")])
    driven.until(lambda: len(driven.finals()) == 3)
    assert {report.seq for report in driven.finals()} == {1, 2, 3}
    ended = {report.seq for report in driven.finals() if isinstance(report, Ended) and report.outcome[0] == "SUCCESS"}
    assert ended == {3}


def test_every_pool_has_a_name_a_size_and_facts_that_fit_into_json(driven):
    import json

    assert driven.pool.name
    assert driven.pool.green is False
    assert driven.pool.num_processes in (1, 2)
    assert json.dumps(driven.pool.info)
    assert driven.pool.did_start_ok()


def test_every_pool_can_be_stopped_early_and_twice(driven):
    driven.pool.submit([Job(1, "echo:x")])
    driven.until(lambda: driven.finals())
    driven.pool.stop()
    driven.pool.stop()
    driven.pool.terminate()
    for make in POOLS.values():
        fresh = make()
        fresh.stop()
        fresh.terminate()


def test_every_pool_waits_for_what_runs_when_it_is_stopped(driven):
    driven.pool.submit([Job(1, "sleep:0.3", flags=TELL_BEGIN)])
    if driven.pool.name != "solo":
        driven.until(lambda: driven.reports)
    driven.pool.stop()
    driven.pool.unwatch(driven.hub)
    driven.pool.wait(0.5)
    if driven.pool.name != "foreign":  # which has no on_stop
        assert [report.seq for report in driven.finals()] == ([] if driven.pool.name == "solo" else [1])


def test_every_pool_is_silent_about_what_dies_in_a_cold_end(driven):
    driven.pool.submit([Job(1, "sleep:0.5", flags=TELL_BEGIN)])
    driven.until(lambda: driven.reports)
    driven.reports.clear() if driven.pool.name != "solo" else None
    driven.pool.kill_all(0.2)
    driven.pool.wait(0.6)
    assert [report for report in driven.finals() if isinstance(report, Lost)] == []


def test_results_of_the_worker_itself_do_not_wait_for_a_task():
    one = Driven(POOLS["solo"]())
    try:
        one.runner.unflushed.append(1)
        one.until(lambda: not one.runner.unflushed)
    finally:
        one.close()


def test_prefork_kills_by_job_number():
    one = Driven(POOLS["prefork"]())
    try:
        one.pool.submit([Job(1, "sleep:30", flags=TELL_BEGIN)])
        one.until(lambda: one.reports)
        assert one.pool.kill(1, signal.SIGKILL)
        one.until(lambda: one.finals())
        assert one.finals() == [Lost(1, one.reports[0].pid, -9)]
    finally:
        one.close()


def test_threads_say_that_they_cannot_kill(caplog):
    one = Driven(POOLS["threads"]())
    try:
        one.pool.submit([Job(1, "sleep:0.3", flags=TELL_BEGIN)])
        one.until(lambda: one.reports)
        assert not one.pool.kill(1, signal.SIGKILL)
        assert "cannot be terminated in the thread pool" in caplog.text
        one.pool.resize(1)
        assert one.pool.num_processes == 3
    finally:
        one.close()


def test_solo_keeps_its_size_and_says_so():
    one = Driven(POOLS["solo"]())
    try:
        with pytest.raises(NotImplementedError, match="-c"):
            one.pool.resize(1)
    finally:
        one.close()


def test_threads_are_replaced_after_so_many_tasks():
    one = Driven(get_implementation("threads")(1, maxtasksperchild=3))
    try:
        one.pool.submit([Job(seq, f"echo:{seq}") for seq in range(8)])
        one.until(lambda: len(one.finals()) == 8)
        assert sorted(thread.name for thread in one.pool.executor.threads) == ["ThreadPoolExecutor-0_2"]
    finally:
        one.close()


@pytest.mark.parametrize("name", ["threads", "solo", "asyncio"])
def test_a_plain_function_is_told_of_its_soft_limit_and_no_later_one_is(name):
    one = Driven(get_implementation(name)(1))
    try:
        one.pool.submit([Job(1, "spin:5"), Job(2, "spin:0.3")], [(0.2, None), (5.0, None)])
        one.until(lambda: len(one.finals()) == 2)
        assert [report.outcome[1] for report in one.finals()] == ["soft", "0.3"]
        assert Overtime(1, True, 0.2) in one.reports
    finally:
        one.close()


def test_a_foreign_pool_reports_overtime_and_errors(caplog):
    one = Driven(POOLS["foreign"]())
    try:
        one.pool.submit([Job(1, "echo:x")], [(None, 3.0)])
        one.until(lambda: one.finals())
        assert Overtime(1, False, 3.0) in one.reports
    finally:
        one.close()


def polls_of(pid):
    """How many pollers a process holds."""
    return sum("eventpoll" in os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink())


def test_children_do_not_share_the_parents_hub():
    strangers = polls_of("self")
    one = Driven(POOLS["prefork"]())
    try:
        pids = one.pool.info["processes"]
        os.kill(pids[0], signal.SIGKILL)
        one.until(lambda: one.pool.info["processes"] not in ([], pids) and len(one.pool.info["processes"]) == 2)
        one.pool.submit([Job(seq, "sleep:0.05") for seq in range(4)])
        one.until(lambda: len(one.finals()) == 4)
        for pid in one.pool.info["processes"]:
            assert polls_of(pid) <= strangers
    finally:
        one.close()
