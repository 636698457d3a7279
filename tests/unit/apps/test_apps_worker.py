"""The worker program: its banner, its logging, and what process signals do to it."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import sys
import warnings

import pytest

import celery_clone.apps.worker as program
from celery_clone import Celery, _state, platforms, signals
from celery_clone.app.log import Logging
from celery_clone.apps.worker import (
    AGAIN_FOR_COLD,
    AGAIN_FOR_KILL,
    COLD,
    PUSHES,
    WARM,
    Push,
    safe_say,
    shutdown_handler,
)
from celery_clone.exceptions import SecurityError, SecurityWarning
from celery_clone.worker import state
from celery_clone.worker.lifecycle import Nudge, Phase
from tests.support.loggers import loggers_restored


@pytest.fixture(autouse=True)
def a_process_of_its_own(monkeypatch):
    """What a worker changes in its process is put back after each test."""
    for name in ("CELERY_LOG_LEVEL", "CELERY_LOG_FILE", "CELERY_LOG_REDIRECT", "CELERY_LOG_REDIRECT_LEVEL"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(Logging, "_setup", False)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    monkeypatch.setattr(_state, "default_app", _state.default_app)
    monkeypatch.setattr(_state, "_task_join_will_block", False)
    monkeypatch.setattr(_state._tls, "current_app", _state._tls.current_app)
    monkeypatch.setattr(state, "should_stop", None)
    monkeypatch.setattr(state, "should_terminate", None)
    with loggers_restored(), warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)
        yield
    logging.captureWarnings(False)


@pytest.fixture
def app():
    app = Celery("proj", broker="memory://", set_as_current=False)

    @app.task(name="proj.tasks.add", shared=False)
    def add(x, y):
        return x + y

    return app


@pytest.fixture
def make(app):
    def make(**options):
        return app.Worker(**{"pool": "solo", "concurrency": 3, "hostname": "w@h", **options})

    return make


# -- the banner


def test_the_banner_tells_what_the_worker_is(app, make):
    lines = make().startup_info().splitlines()
    assert lines[0] == " -------------- w@h v5.7.0 (collider)"
    assert re.search(r"^-- \*{7} ---- \S+ \d{4}-\d\d-\d\d \d\d:\d\d:\d\d$", lines[2])
    assert lines[4] == "- ** ---------- [config]"
    assert lines[5] == f"- ** ---------- .> app:         proj:{id(app):#x}"
    assert lines[6].startswith("- ** ---------- .> transport:   memory://")
    assert lines[7] == "- ** ---------- .> results:     disabled://"
    assert lines[8] == "- *** --- * --- .> concurrency: 3 (solo)"
    assert lines[9] == "-- ******* ---- .> task events: OFF (enable -E to monitor tasks in this worker)"
    assert lines[11] == " -------------- [queues]"
    assert lines[12] == "                .> celery           exchange=celery(direct) key=celery"


def test_the_banner_can_do_without_its_ornament(make):
    text = make().startup_info(artlines=False)
    assert text.startswith("w@h v5.7.0 (collider)\n")
    assert "\n.> concurrency: 3 (solo)\n" in text


def test_the_banner_tells_of_events_autoscaling_and_loaders(make, app):
    given = make(task_events=True)
    given.autoscale = (10, 2)
    text = given.startup_info()
    assert ".> task events: ON" in text
    assert ".> concurrency: {min=2, max=10} (solo)" in text

    class Loader(type(app.loader).__mro__[1]):
        """Of the project's own."""

    app.loader = Loader(app=app)
    assert re.search(r"app: +proj:0x[0-9a-f]+ \(.*Loader\)", given.startup_info())


def test_passwords_stay_out_of_the_banner():
    app = Celery("secret", broker="amqp://user:word@host//", set_as_current=False)
    text = app.Worker(pool="solo", hostname="w@h").startup_info()
    assert "amqp://user:**@host:5672//" in text
    assert "word@" not in text


@pytest.mark.parametrize(
    ("level", "shown", "hidden"),
    [
        ("INFO", ["proj.tasks.add"], ["celery.chord"]),
        ("DEBUG", ["proj.tasks.add", "celery.chord"], []),
        ("WARNING", [], ["proj.tasks.add", "[tasks]"]),
    ],
)
def test_the_tasks_are_listed_at_the_talkative_levels(make, level, shown, hidden):
    text = make(loglevel=level).extra_info() or ""
    assert all(f"  . {name}\n" in text for name in shown)
    assert not any(name in text for name in hidden)


def test_the_banner_goes_to_the_real_standard_output(make, monkeypatch):
    real = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "__stdout__", real)
    make(hostname="wörker@h", loglevel="INFO").emit_banner()
    text = real.buffer.getvalue().decode("ascii")
    assert "w?rker@h v5.7.0" in text
    assert "  . proj.tasks.add" in text


# -- the start


def test_receivers_may_change_options_and_settings_before_the_worker_reads_them(app, make):
    told = {}

    def configure(sender, instance, conf, options, **_):
        told.update(sender=sender, instance=instance, options=options)
        conf.worker_prefetch_multiplier = 9

    signals.celeryd_init.connect(configure, sender="w@h")
    try:
        worker = make(loglevel="INFO")
    finally:
        signals.celeryd_init.disconnect(configure, sender="w@h")
    assert (told["sender"], told["instance"], told["options"]["loglevel"]) == ("w@h", worker, "INFO")
    assert worker.prefetch_multiplier == 9


@pytest.mark.skipif(os.geteuid() != 0, reason="only for the superuser")
def test_root_may_not_accept_pickle(app, make, monkeypatch):
    monkeypatch.delenv("C_FORCE_ROOT", raising=False)
    app.conf.accept_content = ["json", "pickle"]
    with pytest.raises(SecurityError, match="pickle is a very bad idea"):
        make()
    monkeypatch.setenv("C_FORCE_ROOT", "1")
    assert make().hostname == "w@h"


def test_a_receiver_of_setup_logging_does_all_of_it(make):
    def own(**_):
        return None

    before = [*logging.getLogger("celery.task").handlers]
    signals.setup_logging.connect(own)
    try:
        assert make()._custom_logging
    finally:
        signals.setup_logging.disconnect(own)
    assert logging.getLogger("celery.task").handlers == before


def test_colours_are_as_asked_for(make):
    assert not make(no_color=True).colored.enabled
    assert not make(no_color=True).colored.enabled


def test_waiting_tasks_are_deleted_on_request(app, make, capsys):
    with app.connection_for_write() as connection:
        app.amqp.queues["celery"](connection.default_channel).declare()
        app.amqp.queues["celery"](connection.default_channel).purge()
        producer = connection.Producer(serializer="json")
        for _ in range(2):
            producer.publish({}, routing_key="celery", exchange="celery")
        make(purge=True).purge_messages()
    assert capsys.readouterr().out == "purge: Erased 2 messages from the queue.\n\n"


def test_a_worker_that_takes_tasks_says_so(app, make, capfd):
    ready = []

    def note(sender, **_):
        ready.append(sender)

    worker = make(loglevel="INFO")
    signals.worker_ready.connect(note)
    try:
        worker.on_consumer_ready(worker.consumer)
    finally:
        signals.worker_ready.disconnect(note)
    assert ready == [worker.consumer]
    assert capfd.readouterr().err.endswith("INFO/MainProcess] w@h ready.\n")


# -- process signals


class Standing:
    """Where a worker stands, as far as the handlers of process signals know."""

    hostname = "w@h"

    def __init__(self, app):
        self.app = app
        self.phase = Phase.RUNNING
        self.nudged = []

    def nudge(self, nudge, exitcode=0):
        from celery_clone.worker.lifecycle import after

        self.nudged.append((nudge, exitcode))
        self.phase = after(self.phase, nudge)
        if self.phase is Phase.SOFT and not self.app.conf.worker_soft_shutdown_timeout:
            self.phase = Phase.COLD
        return self.phase


@pytest.fixture
def said(monkeypatch):
    said = []
    monkeypatch.setattr(program, "safe_say", lambda words, file=None: said.append(words))
    return said


@pytest.fixture
def ends():
    ends = []

    def note(sender, sig, how, exitcode, **_):
        ends.append((sender, sig, how, exitcode))

    signals.worker_shutting_down.connect(note)
    yield ends
    signals.worker_shutting_down.disconnect(note)


def send(worker, *names):
    for name in names:
        shutdown_handler(worker, name, PUSHES[name])(getattr(signal, name), None)


@pytest.mark.parametrize(
    ("names", "words", "told"),
    [
        (["SIGTERM"], [WARM], [("SIGTERM", "Warm", 0)]),
        (["SIGTERM", "SIGTERM"], [WARM, WARM], [("SIGTERM", "Warm", 0)]),
        (["SIGINT"], [AGAIN_FOR_COLD, WARM], [("SIGINT", "Warm", 1)]),
        (
            ["SIGINT", "SIGINT"],
            [AGAIN_FOR_COLD, WARM, AGAIN_FOR_KILL, COLD],
            [("SIGINT", "Warm", 1), ("SIGINT", "Cold", 1)],
        ),
        (["SIGQUIT"], [AGAIN_FOR_KILL, COLD], [("SIGQUIT", "Cold", 1)]),
        (["SIGTERM", "SIGQUIT"], [WARM, AGAIN_FOR_KILL, COLD], [("SIGTERM", "Warm", 0), ("SIGQUIT", "Cold", 1)]),
    ],
    ids=lambda value: " ".join(value) if value and isinstance(value[0], str) and value[0].startswith("SIG") else "",
)
def test_a_process_signal_says_what_happens_and_nudges_the_worker(app, said, ends, names, words, told):
    worker = Standing(app)
    send(worker, *names)
    assert said == words
    assert ends == [("w@h", *each) for each in told]
    assert worker.nudged == [PUSHES[name] for name in names]


def test_with_a_soft_timeout_the_seconds_are_told(app, said, ends):
    app.conf.worker_soft_shutdown_timeout = 2.5
    send(Standing(app), "SIGQUIT")
    assert said[0] == AGAIN_FOR_KILL
    assert "running tasks have 2.5 seconds" in said[1]


def test_the_last_push_ends_the_process_and_its_children_at_once(app, said, monkeypatch):
    killed, left = [], []
    monkeypatch.setattr(os, "kill", lambda pid, signum: killed.append((pid, signum)))
    monkeypatch.setattr(os, "_exit", left.append)
    worker = Standing(app)
    worker.phase = Phase.COLD
    worker.pool = type("Pool", (), {"info": {"processes": [111, os.getpid(), 222]}})()
    send(worker, "SIGINT")
    assert killed == [(111, signal.SIGKILL), (222, signal.SIGKILL)]
    assert left == [1]


def test_a_child_that_was_just_forked_does_not_act_for_its_parent(app, said, monkeypatch):
    worker = Standing(app)
    handler = shutdown_handler(worker, "SIGTERM", Push(Nudge.TERM, 0))
    monkeypatch.setattr(os, "getpid", lambda: 1)
    handler(signal.SIGTERM, None)
    assert not said
    assert not worker.nudged


def test_a_hang_up_ends_warm_and_runs_the_same_command_line_again(app, said, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "-m", "celery_clone", "worker"])
    monkeypatch.setattr(program, "_restart_command", [])
    became = []
    monkeypatch.setattr(os, "execvp", lambda file, argv: became.append((file, argv)))
    monkeypatch.setattr(platforms, "close_open_fds", lambda keep: None)
    worker = Standing(app)
    worker.executable = None

    program._restart_if_asked()
    program.restart_handler(worker)(signal.SIGHUP, None)
    program._restart_if_asked()

    assert worker.nudged == [(Nudge.TERM, 0)]
    assert said[0].startswith("Restarting celery worker (")
    expected = [sys.executable, "-X", "dev", "-m", "celery_clone", "worker"]
    assert became == [(sys.executable, expected)]


def test_who_ends_a_worker_that_restarts_does_not_get_it_back(app, said, monkeypatch):
    monkeypatch.setattr(program, "_restart_command", [])
    became = []
    monkeypatch.setattr(os, "execvp", lambda file, argv: became.append(argv))
    worker = Standing(app)
    worker.executable = None
    program.restart_handler(worker)(signal.SIGHUP, None)
    send(worker, "SIGTERM")
    assert not program._restart_command
    assert not became


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (["SIGTERM"], 0),
        (["SIGINT"], 1),
        (["SIGQUIT"], 0),
        (["SIGINT", "SIGINT"], 1),
        (["SIGINT", "SIGQUIT"], 1),
        (["SIGTERM", "SIGINT"], 0),
        (["SIGTERM", "SIGQUIT"], 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("soft_seconds", [0, 5])
def test_the_first_signal_decides_the_exit_code(app, make, names, code, soft_seconds):
    app.conf.worker_soft_shutdown_timeout = soft_seconds
    worker = make(quiet=True, without_mingle=True, without_gossip=True)
    for name in names:
        worker.nudge(*PUSHES[name])
    worker.start()
    assert (worker.exitcode or 0) == code


def test_a_hang_up_is_obeyed_only_without_a_terminal(make, monkeypatch):
    worker = make()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    worker._isatty = True
    worker.install_platform_tweaks(worker)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    worker._isatty = False
    worker.install_platform_tweaks(worker)
    assert callable(signal.getsignal(signal.SIGHUP))


def test_the_stacks_of_all_threads_can_be_asked_for(said):
    program.say_stacks(signal.SIGUSR1, None)
    assert "MainThread" in said[0]
    assert "test_the_stacks_of_all_threads_can_be_asked_for" in said[0]


def test_the_debugger_is_opened_only_where_that_is_allowed(make, monkeypatch):
    worker = make()
    signal.signal(signal.SIGUSR2, signal.SIG_DFL)
    monkeypatch.delenv("CELERY_RDBSIG", raising=False)
    worker.install_platform_tweaks(worker)
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL


def test_words_are_written_past_buffers(tmp_path):
    path = tmp_path / "out"
    with path.open("w") as file:
        safe_say("worker: words", file)
        assert path.read_text() == "\nworker: words\n"
    safe_say("nobody is there", file)
    safe_say("nowhere", io.StringIO())
