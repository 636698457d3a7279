"""The path of a task through a worker, as its author, its caller and its operator see it, on every broker."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from celery_clone import Celery, chain, chord, group, states
from celery_clone.exceptions import (
    MaxRetriesExceededError,
    SoftTimeLimitExceeded,
    TaskRevokedError,
    TimeLimitExceeded,
    WorkerLostError,
)
from celery_clone.exceptions import TimeoutError as NoResultInTime
from tests.support.brokers import AMQP, EACH, EACH_WITH_TEXTS, Arena, load_project, open_arena, start_server
from tests.support.processes import is_alive
from tests.support.wait import wait_until
from tests.support.worker import WorkerProcess

PROJECT = '''
import json, os, signal, sys, time
from pathlib import Path
from kombu import Exchange, Queue
from celery_clone import Celery, signals
from celery_clone.exceptions import Ignore, Reject, SoftTimeLimitExceeded

app = Celery("project", broker=os.environ["BROKER"], backend=os.environ["RESULTS"], set_as_current=False)
app.conf.broker_transport_options = json.loads(os.environ["BROKER_OPTIONS"])
app.conf.result_extended = True
HERE = Path(__file__).parent

def queue(name):
    dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": name + ".dead"}
    return Queue(name, Exchange(name), name, queue_arguments=dead if os.environ["BROKER"].startswith("amqp") else None)

app.conf.task_queues = [queue(name) for name in os.environ.get("QUEUES", "celery").split(",")]

def note(name, text=""):
    """One line for each run, written at once: tests read what really happened."""
    with open(HERE / name, "a") as file:
        file.write(f"{text}\\n")

def wait_for(name, seconds=20):
    until = time.monotonic() + seconds
    while not (HERE / name).exists() and time.monotonic() < until:
        time.sleep(0.005)

@app.task
def add(x, y, *, debug=False):
    return x + y

@app.task
def mul(x, y):
    return x * y

@app.task
def xsum(numbers):
    return sum(numbers)

@app.task
def fail(text):
    raise ValueError(text)

@app.task(bind=True)
def describe(self, *args, **kwargs):
    request = self.request
    return {
        "args": list(args), "kwargs": kwargs, "id": request.id, "retries": request.retries,
        "hostname": request.hostname, "pid": os.getpid(), "parent": os.getppid(),
        "routing_key": request.delivery_info["routing_key"], "redelivered": request.delivery_info["redelivered"],
        "is_eager": request.is_eager, "called_directly": request.called_directly,
    }

@app.task(bind=True, max_retries=3, default_retry_delay=0)
def third_time_lucky(self, name):
    note(name, self.request.retries)
    if self.request.retries < 2:
        raise self.retry(exc=KeyError(name))
    return self.request.retries

@app.task(bind=True, max_retries=1, default_retry_delay=0)
def never(self, name, error=True):
    note(name, self.request.retries)
    raise self.retry(exc=KeyError(name) if error else None)

@app.task(autoretry_for=(OSError,), retry_kwargs={"max_retries": 2, "countdown": 0})
def auto(name):
    note(name)
    raise OSError(name)

@app.task(bind=True)
def ignored(self, name):
    note(name)
    self.update_state(state="MINE", meta={"at": 7})
    raise Ignore()

@app.task(bind=True, acks_late=True)
def rejected(self, name, requeue):
    note(name, self.request.delivery_info["redelivered"])
    if requeue and self.request.delivery_info["redelivered"]:
        return "second"
    raise Reject("not now", requeue=requeue)

@app.task
def note_time(name):
    note(name, time.time())

def body_of(name, until):
    note(name, os.getpid())
    wait_for(until)
    note(name + ".ended")
    return name

@app.task
def early(name, until): return body_of(name, until)

@app.task(acks_late=True)
def late(name, until): return body_of(name, until)

@app.task(acks_late=True, reject_on_worker_lost=True)
def stubborn(name, until): return body_of(name, until)

@app.task(acks_late=True, acks_on_failure=False)
def late_failure_dropped(name):
    note(name)
    raise ValueError(name)

@app.task(bind=True, acks_late=True, time_limit=0.3, acks_on_timeout=False)
def late_timeout_again(self, name):
    note(name)
    if not self.request.delivery_info["redelivered"]:
        time.sleep(30)
    return "again"

@app.task(acks_late=True, time_limit=0.3)
def late_timeout_done(name):
    note(name)
    time.sleep(30)

@app.task(soft_time_limit=0.2)
def softly(handled):
    try:
        time.sleep(30)
    except SoftTimeLimitExceeded:
        if not handled:
            raise
        return "handled"

@app.task(time_limit=0.3)
def hardly(name):
    note(name, os.getpid())
    time.sleep(30)

@app.task
def leave(code): sys.exit(code)

@app.task
def die(signum): os.kill(os.getpid(), signum)

@app.task
def pid(): return os.getpid()

@app.task(rate_limit="20/s")
def limited(name):
    note(name, time.monotonic())

@app.task
def elsewhere(): return "elsewhere"

IMPORTED_IN = os.getpid()

def tell(signal_name):
    def receiver(**kwargs):
        note("signals", f"{signal_name} {'parent' if os.getpid() == IMPORTED_IN else 'child'}")
    return receiver

if os.environ.get("TELL_SIGNALS"):
    for each in ("task_received", "task_prerun", "task_postrun", "task_success", "task_failure", "task_retry",
                 "task_revoked", "task_unknown", "task_rejected", "task_internal_error", "worker_ready",
                 "worker_shutdown", "worker_shutting_down", "worker_process_init", "worker_process_shutdown",
                 "celeryd_init", "celeryd_after_setup", "worker_init", "before_task_publish", "after_task_publish"):
        getattr(signals, each).connect(tell(each), weak=False)
'''


class Shop:
    """A project on one broker: its app to send from here, and workers."""

    def __init__(self, arena: Arena, folder: Path, **environment: str) -> None:
        self.arena, self.folder = arena, folder
        self.environment = {**arena.environment, **environment}
        (folder / "project.py").write_text(PROJECT)
        self.tasks: Any = load_project(folder / "project.py", self.environment)
        self.app: Celery = self.tasks.app
        self._numbers = 0
        for name in self.environment.get("QUEUES", "celery").split(","):
            with arena.connection() as connection:
                arena.queue(name)(connection.default_channel).declare()

    def name(self) -> str:
        """A name of a file that nobody has used yet."""
        self._numbers += 1
        return f"note-{self._numbers}"

    def lines(self, name: str) -> list[str]:
        """What tasks have noted under *name*."""
        path = self.folder / name
        return path.read_text().split("\n")[:-1] if path.exists() else []

    def wait_for_lines(self, name: str, count: int = 1, timeout: float = 10.0) -> list[str]:
        return wait_until(
            lambda: lines if len(lines := self.lines(name)) >= count else [],
            timeout,
            lambda: f"{count} lines of {name}, which has {self.lines(name)}",
        )

    def open_gate(self, name: str) -> None:
        """Let tasks that wait for *name* go on."""
        (self.folder / name).touch()

    def worker(self, *options: str, **environment: str) -> WorkerProcess:
        return WorkerProcess(
            "project", ["-n", "w@here", *options], folder=self.folder, environment={**self.environment, **environment}
        )


@pytest.fixture(scope="module", params=EACH)
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A project with one worker of two processes that serves all tests that need nothing special."""
    folder = tmp_path_factory.mktemp(f"path-{request.param}")
    with open_arena(request.param, request.getfixturevalue, folder, lease=3) as arena:
        one = Shop(arena, folder)
        with one.worker("-c", "2") as worker:
            one.running = worker  # type: ignore[attr-defined]
            yield one
            assert worker.stop(10) == 0, worker.log()
        one.app.close()


@pytest.fixture
def own_shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Shop]]:
    """``own_shop("redis", ...)``: a project of the test's own, on a broker without anything in it."""
    opened: list[Any] = []

    def open_shop(name: str, **environment: str) -> Shop:
        context = open_arena(name, request.getfixturevalue, tmp_path, lease=3)
        opened.append((context, Shop(context.__enter__(), tmp_path, **environment)))
        return opened[-1][1]

    yield open_shop
    for context, one in opened:
        one.app.close()
        context.__exit__(None, None, None)


@pytest.fixture(scope="module", params=EACH)
def broker(request: pytest.FixtureRequest) -> str:
    """The name of each broker, whose server runs."""
    start_server(request.param, request.getfixturevalue)
    return str(request.param)


@pytest.fixture
def fresh(broker: str, own_shop: Callable[..., Shop]) -> Shop:
    """A project of the test's own on each broker, without a worker."""
    return own_shop(broker)


@pytest.fixture
def started(fresh: Shop) -> Iterator[Callable[..., WorkerProcess]]:
    """``started("-c", "1")``: a worker of that project that is ready; ended after the test."""
    workers: list[WorkerProcess] = []

    def start(*options: str, **environment: str) -> WorkerProcess:
        workers.append(fresh.worker(*options, **environment))
        return workers[-1].start()

    yield start
    for worker in workers:
        worker.close()


def state_of(shop: Shop, task_id: str) -> str:
    """The state as the store has it now: results that are final are not asked for again."""
    return shop.app.AsyncResult(task_id).state


# -- calls, results, errors


def test_a_call_runs_and_its_result_comes_back(shop):
    result = shop.tasks.add.delay(2, 2)
    assert result.get(timeout=10) == 4
    assert (result.state, result.successful(), result.failed(), result.ready()) == (states.SUCCESS, True, False, True)
    assert shop.tasks.add.apply_async((2,), {"y": 3, "debug": True}).get(timeout=10) == 5
    assert shop.app.send_task("project.mul", [3, 4]).get(timeout=10) == 12
    assert shop.tasks.add(2, 2) == 4


def test_a_task_sees_its_request(shop):
    result = shop.tasks.describe.delay(1, "zwei", drei=[3], vier=None)
    seen = result.get(timeout=10)
    assert (seen["args"], seen["kwargs"]) == ([1, "zwei"], {"drei": [3], "vier": None})
    assert (seen["id"], seen["retries"], seen["hostname"]) == (result.id, 0, "w@here")
    assert (seen["routing_key"], seen["redelivered"]) == ("celery", False)
    assert (seen["is_eager"], seen["called_directly"]) == (False, False)
    assert seen["pid"] in shop.running.children() and seen["parent"] == shop.running.pid


def test_an_error_comes_back_by_its_type_with_the_workers_traceback(shop):
    result = shop.tasks.fail.delay("no such luck")
    with pytest.raises(ValueError, match="^no such luck$"):
        result.get(timeout=10)
    assert (result.state, result.failed(), result.successful()) == (states.FAILURE, True, False)
    assert "raise ValueError(text)" in result.traceback
    assert isinstance(result.get(propagate=False), ValueError)
    wait_until(lambda: f"Task project.fail[{result.id}] raised unexpected" in shop.running.log())


def test_a_wrong_call_from_elsewhere_fails_with_a_type_error(shop):
    result = shop.app.send_task("project.add", (1,))
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'y'"):
        result.get(timeout=10)


def test_a_result_that_does_not_exist_is_pending(shop):
    assert shop.app.AsyncResult("this-id-does-not-exist").state == states.PENDING
    with pytest.raises(NoResultInTime):
        shop.app.AsyncResult("this-id-does-not-exist").get(timeout=0.1)


# -- retries, and ends that are none


def test_a_task_is_tried_again_until_it_succeeds(shop):
    name = shop.name()
    result = shop.tasks.third_time_lucky.delay(name)
    assert result.get(timeout=10) == 2
    assert shop.lines(name) == ["0", "1", "2"]


def test_when_retries_are_used_up_the_reason_comes_back(shop):
    name = shop.name()
    with pytest.raises(KeyError):
        shop.tasks.never.delay(name).get(timeout=10)
    assert shop.lines(name) == ["0", "1"]
    with pytest.raises(MaxRetriesExceededError, match="Can't retry"):
        shop.tasks.never.delay(shop.name(), error=False).get(timeout=10)


def test_errors_that_were_named_are_retried_by_themselves(shop):
    name = shop.name()
    with pytest.raises(OSError, match=name):
        shop.tasks.auto.delay(name).get(timeout=10)
    assert len(shop.lines(name)) == 3


def test_an_ignored_run_leaves_its_state_alone(shop):
    name = shop.name()
    result = shop.tasks.ignored.delay(name)
    shop.wait_for_lines(name)
    assert shop.tasks.add.delay(1, 1).get(timeout=10) == 2
    wait_until(lambda: state_of(shop, result.id) == "MINE" or result.state == "MINE", 5)
    assert result.info == {"at": 7}


def test_a_rejected_message_is_run_again_or_dropped_as_asked(shop):
    again, dropped = shop.name(), shop.name()
    assert shop.tasks.rejected.delay(again, True).get(timeout=10) == "second"
    assert shop.lines(again) == ["False", "True"]
    before = len(shop.arena.dead("celery")) if shop.arena.name == "amqp" else 0
    shop.tasks.rejected.delay(dropped, False)
    shop.wait_for_lines(dropped)
    if shop.arena.name == "amqp":
        wait_until(lambda: len(shop.arena.dead("celery")) == before + 1, describe="the dead letter")
    else:
        wait_until(lambda: not shop.arena.taken(), describe="nothing to be taken")
    assert shop.arena.waiting("celery") == 0
    assert shop.lines(dropped) == ["False"]


# -- time


def test_tasks_for_later_run_when_they_are_due_and_hold_up_nobody(shop):
    counted, timed = shop.name(), shop.name()
    now = time.time()
    due = datetime.now(timezone.utc) + timedelta(seconds=4.0)
    # More than the worker would take at once, were they to count.
    for _ in range(40):
        shop.tasks.note_time.apply_async((counted,), eta=due)
    shop.tasks.note_time.apply_async((timed,), countdown=1.0)
    assert shop.tasks.add.delay(1, 1).get(timeout=10) == 2
    (at,) = map(float, shop.wait_for_lines(timed))
    assert at - now > 0.9
    assert not shop.lines(counted)
    times = [float(line) - now for line in shop.wait_for_lines(counted, 40)]
    assert 3.9 < min(times) < 6, times


@pytest.mark.parametrize("shop", EACH_WITH_TEXTS, indirect=True)
def test_tasks_for_later_are_parked_in_the_broker_where_it_can_hold_them(shop):
    result = shop.tasks.add.apply_async((1, 1), countdown=600)
    shop.running.wait_for_log(rf"Task project\.add\[{result.id}\] received")
    wait_until(lambda: shop.arena.taken() == 0, describe="nobody to hold what is due later")
    assert shop.arena.waiting("celery") == 0


def test_an_expired_task_is_not_run(shop):
    name = shop.name()
    result = shop.tasks.note_time.apply_async((name,), expires=datetime.now(timezone.utc) - timedelta(seconds=1))
    with pytest.raises(TaskRevokedError, match="expired"):
        result.get(timeout=10)
    assert result.state == states.REVOKED
    assert shop.lines(name) == []


def test_a_task_that_expires_behind_a_busy_worker_is_not_run(shop):
    name, gate = shop.name(), shop.name()
    busy = [shop.tasks.early.delay(shop.name(), gate) for _ in range(2)]
    result = shop.tasks.note_time.apply_async((name,), expires=0.3)
    later = shop.tasks.note_time.apply_async((name,), countdown=0.5, expires=0.2)
    for each in (result, later):
        with pytest.raises(TaskRevokedError, match="expired"):
            each.get(timeout=10)
    shop.open_gate(gate)
    for each in busy:
        each.get(timeout=10)
    assert shop.lines(name) == []


def test_a_task_that_was_revoked_before_it_came_is_not_run(shop):
    name, task_id = shop.name(), f"revoked-{time.monotonic_ns()}"
    shop.app.control.revoke(task_id, destination=["w@here"], reply=True, timeout=5)
    result = shop.tasks.note_time.apply_async((name,), task_id=task_id)
    with pytest.raises(TaskRevokedError, match="revoked"):
        result.get(timeout=10)
    assert shop.lines(name) == []
    said = f"Discarding revoked task: project.note_time[{task_id}]"
    wait_until(lambda: shop.running.log().count(said) == 1, 5, "the log line of the revoked task")


def test_a_soft_limit_is_an_error_in_the_task(shop):
    assert shop.tasks.softly.delay(True).get(timeout=10) == "handled"
    with pytest.raises(SoftTimeLimitExceeded):
        shop.tasks.softly.delay(False).get(timeout=10)
    with pytest.raises(SoftTimeLimitExceeded):
        shop.tasks.early.apply_async((shop.name(), "never"), soft_time_limit=0.2).get(timeout=10)


def test_a_hard_limit_ends_the_process_and_the_pool_goes_on(shop):
    name = shop.name()
    result = shop.tasks.hardly.delay(name)
    (pid,) = shop.wait_for_lines(name)
    with pytest.raises(TimeLimitExceeded, match=r"0\.3"):
        result.get(timeout=10)
    wait_until(lambda: not is_alive(int(pid)), 5)
    assert shop.tasks.add.delay(1, 1).get(timeout=10) == 2
    assert int(pid) not in shop.running.wait_for_children(2)
    with pytest.raises(TimeLimitExceeded):
        shop.tasks.early.apply_async((shop.name(), "never"), time_limit=0.2).get(timeout=10)


def test_a_rate_limit_spreads_runs_out(shop):
    name, since = shop.name(), time.monotonic()
    for _ in range(10):
        shop.tasks.limited.delay(name)
    times = [float(line) for line in shop.wait_for_lines(name, 10)]
    assert max(times) - since > 0.3, times


# -- the death of a process


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_task_whose_process_dies_has_failed_and_the_pool_is_filled_up(shop, number):
    result = shop.tasks.die.delay(int(number))
    # TERM lets the task clean up: it is an exit that the task may see.
    with pytest.raises(WorkerLostError, match=rf"{signal.Signals(number).name}|SystemExit\({128 + number}\)"):
        result.get(timeout=10)
    shop.running.wait_for_children(2)
    assert shop.tasks.add.delay(1, 1).get(timeout=10) == 2


def test_a_task_that_exits_has_failed_with_its_exit(shop):
    with pytest.raises(BaseException, match="3") as caught:
        shop.tasks.leave.delay(3).get(timeout=10)
    assert "SystemExit" in repr(caught.value) or isinstance(caught.value, SystemExit)
    assert shop.tasks.add.delay(1, 1).get(timeout=10) == 2


# -- acknowledgements


def test_an_early_task_is_acknowledged_when_it_begins_and_a_late_one_when_it_ends(fresh, started):
    early, late, gate = fresh.name(), fresh.name(), fresh.name()
    first = started("-c", "2")
    fresh.tasks.early.delay(early, gate)
    fresh.tasks.late.delay(late, gate)
    fresh.wait_for_lines(early), fresh.wait_for_lines(late)
    if fresh.arena.taken() is not None:
        wait_until(lambda: fresh.arena.taken() == 1, 5, lambda: f"one to be taken, not {fresh.arena.taken()}")
    else:
        # Once it has answered, the loop has passed the point where it acknowledges.
        wait_until(lambda: fresh.app.control.ping(destination=["w@here"], timeout=5))
    first.kill()
    first.close()
    fresh.open_gate(gate)
    started("-c", "2")
    fresh.wait_for_lines(late, 2, timeout=15)
    fresh.wait_for_lines(f"{late}.ended")
    assert fresh.tasks.add.delay(1, 1).get(timeout=10) == 2
    assert len(fresh.lines(early)) == 1


def test_a_late_task_that_failed_may_have_its_message_dropped(shop):
    name, keeps = shop.name(), shop.arena.name == "amqp"
    before = len(shop.arena.dead("celery")) if keeps else 0
    with pytest.raises(ValueError, match=name):
        shop.tasks.late_failure_dropped.delay(name).get(timeout=10)
    if keeps:
        wait_until(lambda: len(shop.arena.dead("celery")) == before + 1, 5, "the dead letter")
    else:
        wait_until(lambda: not shop.arena.taken(), 5, "nothing to be taken")
    assert shop.arena.waiting("celery") == 0
    assert len(shop.lines(name)) == 1


def test_a_late_task_over_its_limit_is_done_or_runs_again_as_its_options_say(shop):
    done, again = shop.name(), shop.name()
    with pytest.raises(TimeLimitExceeded):
        shop.tasks.late_timeout_done.delay(done).get(timeout=10)
    shop.tasks.late_timeout_again.delay(again)
    shop.wait_for_lines(again, 2)
    wait_until(lambda: not shop.arena.taken(), 5, "nothing to be taken")
    assert shop.tasks.add.delay(1, 1).get(timeout=10) == 2
    assert (len(shop.lines(done)), len(shop.lines(again))) == (1, 2)


def test_a_late_task_whose_process_dies_fails_or_runs_again_as_its_options_say(shop):
    name, gate = shop.name(), shop.name()
    result = shop.tasks.late.delay(name, gate)
    os.kill(int(shop.wait_for_lines(name)[0]), signal.SIGKILL)
    with pytest.raises(WorkerLostError):
        result.get(timeout=10)

    name, gate = shop.name(), shop.name()
    result = shop.tasks.stubborn.delay(name, gate)
    os.kill(int(shop.wait_for_lines(name)[0]), signal.SIGKILL)
    shop.wait_for_lines(name, 2)
    shop.open_gate(gate)
    assert result.get(timeout=10) == name
    assert len(shop.lines(name)) == 2


# -- signals


def test_signals_are_sent_where_celery_sends_them(own_shop):
    one = own_shop("sqlite")
    with one.worker("-c", "1", TELL_SIGNALS="1") as worker:
        wait_until(lambda: "worker_ready parent" in "\n".join(one.lines("signals")))
        start = one.lines("signals")
        assert one.tasks.add.delay(1, 1).get(timeout=10) == 2
        with pytest.raises(ValueError, match="x"):
            one.tasks.fail.delay("x").get(timeout=10)
        assert one.tasks.third_time_lucky.delay("lucky").get(timeout=10) == 2
        one.app.send_task("project.unknown")
        one.tasks.add.apply_async((1, 1), expires=datetime.now(timezone.utc) - timedelta(seconds=1))
        one.arena.put("celery", b"?", {})
        wait_until(
            lambda: "task_rejected parent" in one.lines("signals"),
            describe=lambda: f"a rejection among {one.lines('signals')}; the log:\n{worker.log()}",
        )
        before = len(one.lines("signals"))
        assert worker.stop() == 0
    told = one.lines("signals")
    kinds = {line.split()[0]: line.split()[1] for line in told}
    assert [line.split()[0] for line in start if "parent" in line] == [
        "celeryd_init", "worker_init", "celeryd_after_setup", "worker_ready"
    ]  # fmt: skip
    for name in ("task_prerun", "task_postrun", "task_success", "task_failure", "task_retry", "worker_process_init"):
        assert kinds[name] == "child", name
    for name in ("task_received", "task_unknown", "task_revoked", "task_rejected", "worker_ready", "worker_shutdown"):
        assert kinds[name] == "parent", name
    # Retries are sent from the child.
    assert kinds["before_task_publish"] == kinds["after_task_publish"] == "child"
    assert [told.count(f"task_{name} child") for name in ("prerun", "postrun", "success", "failure", "retry")] == [
        5, 5, 2, 1, 2
    ]  # fmt: skip
    assert told.count("task_received parent") == 6
    end = [line.split()[0] for line in told[before:]]
    assert end == ["worker_shutting_down", "worker_process_shutdown", "worker_shutdown"], end


# -- options of the worker


def test_a_process_is_replaced_after_so_many_tasks(fresh, started):
    started("-c", "1", "--max-tasks-per-child", "2")
    pids = [fresh.tasks.pid.delay().get(timeout=10) for _ in range(6)]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [2, 2, 2]


def test_queues_are_chosen_and_left_out(own_shop):
    one = own_shop("sqlite", QUEUES="celery,other,third")
    elsewhere = one.tasks.elsewhere
    with one.worker("-c", "1", "-Q", "other,third") as worker:
        left = elsewhere.apply_async(queue="celery")
        chosen = [elsewhere.apply_async(queue=queue) for queue in ("other", "third")]
        assert [each.get(timeout=10) for each in chosen] == ["elsewhere"] * 2
        assert (left.state, one.arena.waiting("celery")) == (states.PENDING, 1)
        assert ".> celery " not in worker.log() and ".> third " in worker.log()
    with one.worker("-c", "1", "-X", "other,third"):
        left, chosen = elsewhere.apply_async(queue="other"), left
        assert chosen.get(timeout=10) == "elsewhere"
        assert (left.state, one.arena.waiting("other")) == (states.PENDING, 1)


def test_a_queue_that_nobody_declared_is_made(own_shop):
    one = own_shop("sqlite")
    one.arena.put("fresh", b"", {"x": 1})
    with one.worker("-c", "1", "-Q", "fresh") as worker:
        worker.wait_for_log("cannot be run")
        assert one.tasks.elsewhere.apply_async(queue="fresh").get(timeout=10) == "elsewhere"


def test_further_modules_a_pid_file_and_a_log_file(own_shop, tmp_path):
    one = own_shop("sqlite")
    (tmp_path / "more.py").write_text("from project import app\n@app.task(name='more.of')\ndef of(): return 'more'\n")
    log, pid = tmp_path / "w.log", tmp_path / "w.pid"
    worker = one.worker("-c", "1", "-I", "more", "--pidfile", str(pid), "-f", str(log)).spawn()
    try:
        assert one.app.send_task("more.of").get(timeout=10) == "more"
        assert pid.read_text() == f"{worker.pid}\n"
        assert "w@here ready." in log.read_text() and "Task more.of[" in log.read_text()
        assert worker.stop() == 0
        assert not pid.exists()
    finally:
        worker.close()


@pytest.mark.parametrize("pool", ["solo", "threads", "prefork"])
def test_every_pool_of_the_package_runs_tasks(own_shop, pool):
    one = own_shop("sqlite")
    with one.worker("-P", pool, "-c", "1") as worker:
        assert one.tasks.add.delay(1, 1).get(timeout=10) == 2
        with pytest.raises(ValueError, match="x"):
            one.tasks.fail.delay("x").get(timeout=10)
        assert one.tasks.third_time_lucky.delay("lucky").get(timeout=10) == 2
        assert [each.get(timeout=10) for each in [one.tasks.add.delay(n, n) for n in range(50)]] == [
            2 * n for n in range(50)
        ]
        assert worker.stop() == 0


# -- the end of a worker


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 1)])
def test_a_warm_end_finishes_what_runs_and_gives_back_what_waits(fresh, started, signum, code):
    running, waiting, gate = fresh.name(), fresh.name(), fresh.name()
    worker = started("-c", "1", "--prefetch-multiplier", "10")
    first = fresh.tasks.late.delay(running, gate)
    fresh.wait_for_lines(running)
    rest = [fresh.tasks.early.delay(waiting, gate) for _ in range(5)]
    later = fresh.tasks.early.apply_async((waiting, gate), countdown=0.9)
    worker.wait_for_log(rf"{later.id}\] received")
    worker.signal(signum)
    worker.wait_for_log("Warm shutdown")
    wait_until(lambda: fresh.arena.waiting("celery") >= 5, 5, lambda: f"{fresh.arena.waiting('celery')} given back")
    assert worker.exit_code is None
    fresh.open_gate(gate)
    assert worker.wait(10) == code
    assert first.get(timeout=5) == running
    assert fresh.lines(waiting) == []
    started("-c", "1")
    assert [each.get(timeout=10) for each in [*rest, later]] == [waiting] * 6
    assert len(fresh.lines(waiting)) == 6 and len(fresh.lines(running)) == 1


@pytest.mark.parametrize(
    ("signums", "code"), [((signal.SIGQUIT,), 0), ((signal.SIGINT, signal.SIGINT), 1)], ids=["QUIT", "INT twice"]
)
def test_a_cold_end_gives_late_tasks_back(fresh, started, signums, code):
    early, late, gate = fresh.name(), fresh.name(), fresh.name()
    worker = started("-c", "2")
    fresh.tasks.early.delay(early, gate)
    result = fresh.tasks.late.delay(late, gate)
    fresh.wait_for_lines(early), fresh.wait_for_lines(late)
    children = worker.children()
    since = time.monotonic()
    for signum in signums:
        worker.signal(signum)
        worker.wait_for_log("Warm shutdown|Cold shutdown")
    assert worker.wait(10) == code
    assert time.monotonic() - since < 5
    assert not any(is_alive(pid) for pid in children)
    assert "Cold shutdown" in worker.log()
    assert fresh.arena.waiting("celery") == 1
    fresh.open_gate(gate)
    started("-c", "2")
    assert result.get(timeout=10) == late
    assert (len(fresh.lines(early)), len(fresh.lines(late))) == (1, 2)


# -- workflows, as the guide has them


@pytest.fixture(scope="module")
def counting_store(request: pytest.FixtureRequest, broker: str) -> dict[str, str]:
    """Configuration for results that chords can count: RabbitMQ has none of its own."""
    return {"RESULTS": request.getfixturevalue("redis_server").new_database_url()} if broker == "amqp" else {}


@pytest.fixture
def workflows(broker: str, counting_store: dict[str, str], own_shop: Callable[..., Shop]) -> Iterator[Shop]:
    """A project with a worker and a store that can count."""
    one = own_shop(broker, **counting_store)
    with one.worker("-c", "2"):
        yield one


def test_the_workflows_of_the_guide(workflows):
    add, mul, xsum = workflows.tasks.add, workflows.tasks.mul, workflows.tasks.xsum
    assert group(add.s(i, i) for i in range(10))().get(timeout=10) == [2 * i for i in range(10)]
    assert group(add.s(i) for i in range(10))(10).get(timeout=10) == [10 + i for i in range(10)]
    assert chain(add.s(4, 4) | mul.s(8))().get(timeout=10) == 64
    assert chain(add.s(4) | mul.s(8))(4).get(timeout=10) == 64
    assert (add.s(4, 4) | mul.s(8))().get(timeout=10) == 64
    assert chord((add.s(i, i) for i in range(10)), xsum.s())().get(timeout=10) == 90
    assert (group(add.s(i, i) for i in range(10)) | xsum.s())().get(timeout=10) == 90
    assert xsum.map([[1, 2], [3]]).delay().get(timeout=10) == [3, 3]
    assert add.starmap([(1, 2), (3, 4)]).delay().get(timeout=10) == [3, 7]
    assert add.chunks([(i, i) for i in range(10)], 4)().get(timeout=10) == [[0, 2, 4, 6], [8, 10, 12, 14], [16, 18]]
    with pytest.raises(ValueError, match="broken"):
        chain(workflows.tasks.fail.s("broken"), add.s(1))().get(timeout=10)


@pytest.mark.parametrize("shop", [AMQP], indirect=True)
def test_chains_and_groups_work_with_results_as_messages(shop):
    add, mul = shop.tasks.add, shop.tasks.mul
    assert group(add.s(i, i) for i in range(10))().get(timeout=10) == [2 * i for i in range(10)]
    assert (add.s(4, 4) | mul.s(8))().get(timeout=10) == 64
    assert add.starmap([(1, 2), (3, 4)]).delay().get(timeout=10) == [3, 7]


def test_a_partial_call_takes_the_rest_of_its_arguments(shop):
    assert shop.tasks.add.s(2).delay(8).get(timeout=10) == 10
    partial = shop.tasks.add.s(2, 2, debug=True)
    assert partial.delay(debug=False).get(timeout=10) == 4
    assert shop.tasks.add.signature((2, 2), countdown=0.1).delay().get(timeout=10) == 4
