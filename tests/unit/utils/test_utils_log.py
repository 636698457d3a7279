"""The logger tree, and the stream that turns prints into records."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from celery_clone.utils import log
from celery_clone.utils.log import (
    LOG_LEVELS,
    ColorFormatter,
    LoggingProxy,
    base_logger,
    current_process_index,
    get_logger,
    get_multiprocessing_logger,
    get_task_logger,
    in_sighandler,
    iter_open_logger_fds,
    logger_isa,
    mlevel,
    reset_multiprocessing_logger,
)


@pytest.fixture
def heard():
    """A logger of its own, with a list of what it was told."""
    records: list[logging.LogRecord] = []

    class Ear(logging.Handler):
        def emit(self, record):
            records.append(record)

    logger = logging.getLogger("test.utils.log.heard")
    logger.setLevel(logging.DEBUG)
    ear = Ear()
    logger.addHandler(ear)
    yield logger, records
    logger.removeHandler(ear)
    logger.setLevel(logging.NOTSET)


# -- the tree


def test_task_loggers_inherit_from_celery_task():
    logger = get_task_logger("test.shop.tasks")
    assert logger.parent is logging.getLogger("celery.task")
    assert logger_isa(logger, base_logger)
    assert get_task_logger("test.shop.tasks") is logger


@pytest.mark.parametrize("name", ["celery", "celery.task"])
def test_the_names_of_the_house_are_not_for_tasks(name):
    with pytest.raises(RuntimeError, match="reserved.*__name__"):
        get_task_logger(name)


def test_loggers_of_the_house_inherit_from_celery():
    assert base_logger.name == "celery"
    assert get_logger("celery.worker.strategy").parent.name == "celery.worker"
    assert logger_isa(get_logger("celery.app.trace"), base_logger)


def test_a_logger_of_the_top_level_stays_where_it_is():
    assert get_logger("test_top_level_of_its_own").parent is logging.root


def test_a_logger_below_the_top_level_inherits_from_celery():
    logging.getLogger("test_package")
    assert get_logger("test_package.module").parent is base_logger


def test_modules_of_this_package_log_under_the_names_people_configure():
    assert get_logger("celery_clone.transport.redis_source") is logging.getLogger("celery.transport.redis_source")
    assert get_logger("celery_clone") is logging.getLogger("celery_clone")
    assert get_logger("celery_clone_of_mine.module").name == "celery_clone_of_mine.module"


def test_a_logger_is_silent_until_logging_is_set_up():
    assert any(isinstance(handler, logging.NullHandler) for handler in get_logger("test.utils.log.new").handlers)


def test_parents_in_a_circle_are_noticed():
    one, other = logging.Logger("one"), logging.Logger("other")
    one.parent, other.parent = other, one
    with pytest.raises(RuntimeError, match="'one' is its own ancestor"):
        logger_isa(one, base_logger)


# -- levels


def test_levels_by_name_and_by_number():
    assert mlevel("info") == logging.INFO
    assert mlevel("WARN") == mlevel("warning") == logging.WARNING
    assert mlevel(15) == 15
    assert mlevel(None) is None
    assert mlevel(0) == 0
    assert LOG_LEVELS[logging.ERROR] == "ERROR"
    with pytest.raises(KeyError, match="LOUD"):
        mlevel("loud")


# -- formatting


def record_of(level: int, message: object, **more: object) -> logging.LogRecord:
    return logging.LogRecord("name", level, "path", 1, message, (), more.get("exc_info"))


def test_levels_have_colours():
    formatter = ColorFormatter("%(message)s")
    assert formatter.format(record_of(logging.ERROR, "bad")) == "\033[1;31mbad\033[0m"
    assert formatter.format(record_of(logging.INFO, "fine")) == "fine"


def test_colours_can_be_off():
    assert ColorFormatter("%(message)s", use_color=False).format(record_of(logging.ERROR, "bad")) == "bad"


def test_the_exception_in_hand_can_be_formatted():
    try:
        raise KeyError("lost")
    except KeyError:
        text = ColorFormatter().formatException(True)
        from_tuple = ColorFormatter().formatException(sys.exc_info())
    assert text == from_tuple
    assert text.endswith("KeyError: 'lost'")


# -- prints


def test_what_is_printed_is_logged(heard):
    logger, records = heard
    proxy = LoggingProxy(logger, "INFO")
    print("100% done", file=proxy)
    proxy.writelines(["one\n", b"two", "\n"])
    assert [record.getMessage() for record in records] == ["100% done", "one", "two"]
    assert {record.levelno for record in records} == {logging.INFO}


def test_the_level_is_that_of_the_logger_unless_given(heard):
    logger, _ = heard
    assert LoggingProxy(logger).loglevel == logging.DEBUG
    assert LoggingProxy(logging.Logger("none")).loglevel == logging.ERROR


def test_a_handler_that_prints_does_not_feed_itself(heard):
    logger, records = heard
    proxy = LoggingProxy(logger, "INFO")

    class Printing(logging.Handler):
        def emit(self, record):
            print("again", file=proxy)

    printing = Printing()
    logger.addHandler(printing)
    try:
        print("once", file=proxy)
    finally:
        logger.removeHandler(printing)
    assert [record.getMessage() for record in records] == ["once"]


def test_a_handler_that_fails_tells_the_real_standard_error(heard, monkeypatch):
    logger, _ = heard

    class Failing(logging.Handler):
        def emit(self, record):
            try:
                raise OSError("disk full")
            except OSError:
                self.handleError(record)

    failing = Failing()
    logger.addHandler(failing)
    real = io.StringIO()
    monkeypatch.setattr(sys, "__stderr__", real)
    try:
        LoggingProxy(logger, "INFO").write("hello")
    finally:
        logger.removeHandler(failing)
    assert "disk full" in real.getvalue()


def test_nothing_is_logged_after_close(heard):
    logger, records = heard
    proxy = LoggingProxy(logger)
    proxy.close()
    assert proxy.write("late") == 0
    assert not records


def test_inside_a_signal_handler_prints_go_to_the_real_standard_error(heard, monkeypatch):
    logger, records = heard
    real = io.StringIO()
    monkeypatch.setattr(sys, "__stderr__", real)
    with in_sighandler():
        assert LoggingProxy(logger).write("stopping") == 8
    assert real.getvalue() == "stopping\n"
    assert not records
    assert not log._in_sighandler


def test_a_log_is_a_file_but_no_terminal(heard):
    proxy = LoggingProxy(heard[0])
    proxy.flush()
    assert not proxy.isatty()
    assert proxy.mode == "w"
    assert proxy.name is None


def test_open_log_files_are_found_once(heard):
    logger, _ = heard
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    other = logging.getLogger("test.utils.log.other")
    logger.addHandler(handler)
    other.addHandler(handler)
    try:
        assert [found for found in iter_open_logger_fds() if found is stream] == [stream]
    finally:
        logger.removeHandler(handler)
        other.removeHandler(handler)


# -- processes


def test_the_logger_of_the_process_library_can_be_set_up_again():
    first = get_multiprocessing_logger()
    reset_multiprocessing_logger()
    assert get_multiprocessing_logger() is first


def test_the_parent_has_no_index(monkeypatch):
    assert current_process_index() is None
    monkeypatch.setattr(log.current_process(), "index", 2, raising=False)
    assert current_process_index() == 3
    assert current_process_index(base=0) == 2
