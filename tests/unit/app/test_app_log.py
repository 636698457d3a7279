"""Logging is set up from the settings."""

from __future__ import annotations

import io
import logging
import os
import sys
import types
import warnings

import pytest

from celery_clone import Celery, signals
from celery_clone._state import pop_current_task, push_current_task
from celery_clone.app.log import Logging, TaskFormatter
from celery_clone.utils.log import LoggingProxy, get_task_logger
from tests.support.loggers import loggers_restored

LOGGERS = (None, "celery", "celery.task", "celery.redirected", "multiprocessing", "project", "project_tasks")
VARIABLES = (
    "CELERY_LOG_LEVEL",
    "CELERY_LOG_FILE",
    "CELERY_LOG_REDIRECT",
    "CELERY_LOG_REDIRECT_LEVEL",
    "_MP_FORK_LOGLEVEL_",
    "_MP_FORK_LOGFILE_",
    "_MP_FORK_LOGFORMAT_",
)


@pytest.fixture(autouse=True)
def loggers_as_in_a_new_process(monkeypatch):
    """The loggers, the environment and the standard files are put back after each test."""
    for variable in VARIABLES:
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    monkeypatch.setattr(Logging, "_setup", False)
    with loggers_restored(*LOGGERS), warnings.catch_warnings():
        for logger in map(logging.getLogger, LOGGERS):
            logger.handlers = [logging.NullHandler()] if logger.name in ("celery", "celery.task") else []
            logger.setLevel(logging.NOTSET)
            logger.propagate = True
        yield
    logging.captureWarnings(False)


@pytest.fixture
def make():
    def make(**settings):
        app = Celery("log", set_as_current=False)
        app.conf.update(settings)
        return app.log

    return make


def lines(stream):
    return stream.getvalue().splitlines()


def test_records_look_as_those_of_celery(make):
    stream = io.StringIO()
    make().setup("INFO", stream)
    logging.getLogger("celery.worker").info("hello %s", "world")
    logging.getLogger("celery.worker").debug("not this")

    (line,) = lines(stream)
    assert line[0] == "["
    assert line.endswith(": INFO/MainProcess] hello world")


def test_task_records_name_the_task(make):
    stream = io.StringIO()
    make().setup("INFO", stream)
    task = types.SimpleNamespace(name="tasks.add", request=types.SimpleNamespace(id="the-id"))
    push_current_task(task)
    try:
        get_task_logger("project_tasks").warning("inside")
    finally:
        pop_current_task()
    get_task_logger("project_tasks").warning("outside")

    inside, outside = lines(stream)
    assert inside.endswith("WARNING/MainProcess] tasks.add[the-id]: inside")
    assert outside.endswith("WARNING/MainProcess] ???[???]: outside")


def test_formats_and_levels_come_from_the_settings(make):
    stream = io.StringIO()
    log = make(
        worker_log_format="W %(message)s",
        worker_task_log_format="T %(task_name)s %(message)s",
        worker_log_datefmt="%H",
        worker_task_log_datefmt="%M",
    )
    log.setup(logging.DEBUG, stream)
    logging.getLogger("celery.worker").debug("a")
    get_task_logger("project_tasks").debug("b")

    assert lines(stream) == ["W a", "T ??? b"]
    assert logging.getLogger().handlers[0].formatter.datefmt == "%H"
    assert logging.getLogger("celery.task").handlers[-1].formatter.datefmt == "%M"


def test_a_name_and_id_already_in_the_record_are_kept():
    formatter = TaskFormatter("%(task_name)s[%(task_id)s] %(message)s", use_color=False)
    record = logging.LogRecord("n", logging.INFO, "p", 1, "message", (), None)
    record.task_name, record.task_id = "kept", "id"
    assert formatter.format(record) == "kept[id] message"


def test_the_file_name_is_filled_in_for_the_node_and_left_open_for_its_children(make, tmp_path):
    make().setup("INFO", f"{tmp_path}/%n%I.log", hostname="w1@host")
    logging.getLogger("celery.worker").info("hello")

    assert (tmp_path / "w1.log").read_text(encoding="utf-8").endswith("hello\n")
    assert os.environ["CELERY_LOG_FILE"] == f"{tmp_path}/%n%I.log"
    assert os.environ["CELERY_LOG_LEVEL"] == "20"


def test_logging_is_set_up_once(make):
    first, second = io.StringIO(), io.StringIO()
    log = make()
    assert log.setup("INFO", first) == []
    assert log.already_setup is True
    assert make().setup("INFO", second) is None
    logging.getLogger("celery.worker").info("x")
    assert len(lines(first)) == 1
    assert lines(second) == []

    log.already_setup = False
    assert Logging.already_setup is False


def test_a_hijacked_root_logger_has_our_handler_alone(make):
    theirs, ours = io.StringIO(), io.StringIO()
    logging.getLogger().addHandler(logging.StreamHandler(theirs))
    make().setup("INFO", ours)
    logging.getLogger("project").info("x")

    assert (len(lines(theirs)), len(lines(ours))) == (0, 1)


def test_a_root_logger_that_is_not_to_be_hijacked_keeps_handlers_and_level(make):
    theirs, ours = io.StringIO(), io.StringIO()
    root = logging.getLogger()
    root.addHandler(logging.StreamHandler(theirs))
    root.setLevel(logging.ERROR)
    make(worker_hijack_root_logger=False).setup("INFO", ours)
    logging.getLogger("celery.worker").info("ours is let through")
    logging.getLogger("project").info("theirs is not")

    assert root.level == logging.ERROR
    assert lines(theirs) == ["ours is let through"]
    assert lines(ours) == []


def test_a_root_logger_without_handlers_is_set_up_even_if_it_is_not_to_be_hijacked(make):
    stream = io.StringIO()
    logging.getLogger().handlers = []
    make(worker_hijack_root_logger=False).setup("INFO", stream)
    logging.getLogger("project").info("x")
    assert len(lines(stream)) == 1


def test_a_receiver_of_setup_logging_does_all_the_work(make):
    told = []

    def set_up(**facts):
        told.append(facts)

    handlers = list(logging.getLogger().handlers)
    signals.setup_logging.connect(set_up)
    try:
        assert make().setup("INFO", redirect_stdouts=True)
    finally:
        signals.setup_logging.disconnect(set_up)

    assert told[0]["loglevel"] == logging.INFO
    assert told[0]["format"] == "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s"
    assert logging.getLogger().handlers == handlers
    assert not isinstance(sys.stdout, LoggingProxy)


def test_loggers_are_announced_after_they_were_set_up(make):
    told = []

    def announced(logger, loglevel, **facts):
        told.append((logger.name, loglevel))

    signals.after_setup_logger.connect(announced)
    signals.after_setup_task_logger.connect(announced)
    try:
        make().setup("INFO", io.StringIO())
    finally:
        signals.after_setup_logger.disconnect(announced)
        signals.after_setup_task_logger.disconnect(announced)

    assert told == [("root", logging.INFO), ("celery.task", logging.INFO)]


def test_what_is_printed_becomes_a_record_and_children_are_told(make):
    stream = io.StringIO()
    make().setup("INFO", stream, redirect_stdouts=True, redirect_level="ERROR")
    print("printed")

    assert lines(stream)[0].endswith("ERROR/MainProcess] printed")
    assert os.environ["CELERY_LOG_REDIRECT"] == "1"
    assert os.environ["CELERY_LOG_REDIRECT_LEVEL"] == "ERROR"


def test_one_of_the_standard_files_may_be_redirected_alone(make):
    before = sys.stderr
    proxy = make().redirect_stdouts_to_logger(logging.getLogger("project"), "ERROR", stderr=False)
    assert sys.stdout is proxy
    assert sys.stderr is before


def test_the_process_library_logs_errors_only_unless_asked(make, monkeypatch):
    log = make()
    log.setup("INFO", io.StringIO())
    assert logging.getLogger("multiprocessing").level == logging.ERROR

    monkeypatch.setenv("MP_LOG", "1")
    log.already_setup = False
    log.setup("INFO", io.StringIO())
    assert logging.getLogger("multiprocessing").level == logging.INFO


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("setting", "asked", "logfile", "terminal", "colours"),
    [
        (None, None, None, True, True),
        (None, None, None, False, False),
        (None, None, "a file", True, False),
        (None, True, None, False, False),
        (None, False, None, True, False),
        (False, None, None, True, False),
        (False, True, None, True, True),
    ],
)
def test_colours_are_for_terminals_and_can_be_refused(
    make, monkeypatch, setting, asked, logfile, terminal, colours
):
    monkeypatch.setattr(sys, "stderr", Terminal() if terminal else io.StringIO())
    log = make(worker_log_color=setting)
    assert log.supports_color(asked, logfile) is colours
    assert log.colored(logfile, asked).enabled is colours


def test_a_logger_keeps_the_handler_it_has(make):
    logger = logging.getLogger("project")
    log = make()
    assert log.setup_handlers(logger, io.StringIO(), "%(message)s", False) is logger
    (handler,) = logger.handlers
    log.setup_handlers(logger, io.StringIO(), "other %(message)s", False)
    assert logger.handlers == [handler]


def test_the_default_logger_is_that_of_celery(make):
    assert make().get_default_logger() is logging.getLogger("celery")
    assert make().get_default_logger("project").name == "project"
