"""The layers of the configuration, and the names by which they are read."""

from __future__ import annotations

import threading
import types
import warnings
from collections import UserDict

import pytest

from celery_clone.app.defaults import DEFAULTS
from celery_clone.app.settings import (
    Settings,
    detect_settings,
    filter_hidden_settings,
    find_deprecated_settings,
    nearest_setting,
    parse_assignment,
    sanitize_url,
    settings_page,
)
from celery_clone.exceptions import (
    CDeprecationWarning,
    CeleryWarning,
    CPendingDeprecationWarning,
    ImproperlyConfigured,
)
from celery_clone.utils.collections import ConfigurationView, DictAttribute


class Pending(UserDict):
    """What an app puts in place of the changes until its configuration is loaded."""

    def __init__(self, preconf, callback):
        self._data, self.callback = preconf, callback

    def __setitem__(self, key, value):
        self._data[key] = value

    def setdefault(self, key, default=None):
        return self._data.setdefault(key, default)

    @property
    def data(self):
        return self.callback()


# -- names


@pytest.mark.parametrize("name", ["task_acks_late", "CELERY_ACKS_LATE"])
def test_a_setting_written_in_either_way_is_read_in_both_ways(name):
    conf = detect_settings({name: True})

    assert conf.task_acks_late is True
    assert conf.CELERY_ACKS_LATE is True
    assert conf["task_acks_late"] is conf["CELERY_ACKS_LATE"] is conf.get("CELERY_ACKS_LATE") is True
    assert "CELERY_ACKS_LATE" in conf


@pytest.mark.parametrize("namespace", ["CELERY", "CELERY_"])
def test_with_a_namespace_the_prefixed_name_wins_over_the_old_one(namespace):
    conf = detect_settings(
        {"CELERY_WORKER_CONCURRENCY": 4, "CELERYD_CONCURRENCY": 3, "OTHER": 1}, prefix=namespace
    )

    assert conf.worker_concurrency == 4
    assert conf["CELERY_WORKER_CONCURRENCY"] == 4
    assert conf.OTHER == 1
    assert conf.prefix == "CELERY_"


def test_a_namespace_in_lower_case_is_looked_for_in_lower_case():
    assert detect_settings({"my_task_acks_late": True}, prefix="my").task_acks_late is True


def test_unknown_names_are_kept_and_missing_ones_are_errors():
    conf = detect_settings({"my_own_thing": 5})

    assert conf.my_own_thing == 5
    assert conf.get("nothing_like_it", 3) == 3
    assert "nothing_like_it" not in conf
    with pytest.raises(KeyError):
        conf["nothing_like_it"]
    with pytest.raises(AttributeError, match="nothing_like_it"):
        conf.nothing_like_it  # noqa: B018


def test_names_in_upper_case_without_a_namespace_are_nobodys():
    conf = detect_settings({"TASK_ACKS_LATE": True})
    assert conf.task_acks_late is False


# -- layers


def test_what_was_set_wins_over_the_loaded_object_and_that_over_defaults_of_the_app():
    conf = detect_settings({"worker_pool": "threads", "worker_concurrency": 2}, {"worker_concurrency": 1})
    conf.add_defaults({"worker_pool": "solo", "worker_state_db": "added", "worker_concurrency": 9})

    assert conf.worker_concurrency == 1
    assert conf.worker_state_db == "added"
    assert conf.worker_prefetch_multiplier == DEFAULTS["worker_prefetch_multiplier"]


def test_setting_a_value_by_its_old_name_sets_the_setting():
    conf = detect_settings({})
    conf.CELERY_ACKS_LATE = True
    conf.update(CELERY_TRACK_STARTED=True)

    assert conf.task_acks_late is True
    assert conf.task_track_started is True
    assert conf.changes == {"task_acks_late": True, "task_track_started": True}


def test_what_was_set_can_be_taken_back():
    conf = detect_settings({"worker_pool": "threads"})
    conf.worker_pool = "solo"
    del conf["CELERYD_POOL"]

    assert conf.worker_pool == "threads"
    with pytest.raises(KeyError):
        del conf["worker_pool"]


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("CELERY_BROKER_URL", "broker_url"),
        ("CELERY_BROKER_READ_URL", "broker_read_url"),
        ("CELERY_BROKER_WRITE_URL", "broker_write_url"),
        ("CELERY_RESULT_BACKEND", "result_backend"),
    ],
)
def test_the_environment_wins_over_everything(monkeypatch, variable, name):
    conf = detect_settings({}, {name: "redis://set"})
    monkeypatch.setenv(variable, "redis://environment")

    assert getattr(conf, name) == conf[name] == conf.get(name) == "redis://environment"
    monkeypatch.setenv(variable, "")
    assert getattr(conf, name) == "redis://set"


def test_read_and_write_urls_fall_back_to_the_broker_url_as_attributes_only():
    conf = detect_settings({"broker_url": "redis://both"})

    assert conf.broker_read_url == conf.broker_write_url == "redis://both"
    assert conf["broker_read_url"] is None


def test_names_of_the_default_exchange_and_key_follow_the_default_queue():
    conf = detect_settings({"task_default_queue": "q"})

    assert (conf.task_default_exchange, conf.task_default_routing_key) == ("q", "q")
    assert conf["task_default_exchange"] is None


def test_the_zone_falls_back_to_that_of_django():
    assert detect_settings({"TIME_ZONE": "Europe/Paris"}).timezone == "Europe/Paris"


def test_an_object_is_read_when_asked_not_copied():
    class Config:
        task_always_eager = False

    conf = detect_settings(DictAttribute(Config))
    assert conf.task_always_eager is False
    Config.task_always_eager = True
    assert conf.task_always_eager is True


def test_mutable_defaults_belong_to_one_configuration():
    one, other = detect_settings({}), detect_settings({})
    one.beat_schedule["entry"] = {}
    one.broker_transport_options["option"] = 1

    assert other.beat_schedule == {}
    assert DEFAULTS["broker_transport_options"] == {}


def test_whoever_is_bound_learns_of_changes_under_their_names_of_today():
    conf = detect_settings({})
    told = []
    conf.bind_to(told.append)
    conf.CELERY_ROUTES = {"a": "b"}
    conf.update({"task_serializer": "pickle"})

    assert told == [{"task_routes": {"a": "b"}}, {"task_serializer": "pickle"}]


# -- mixing


def test_a_few_old_names_among_new_ones_are_refused_with_their_new_names():
    with pytest.raises(ImproperlyConfigured, match="Cannot mix new and old") as caught:
        detect_settings({"task_acks_late": True, "worker_pool": "solo", "CELERY_TRACK_STARTED": True})

    assert "CELERY_TRACK_STARTED -> task_track_started" in str(caught.value)


def test_a_few_new_names_among_old_ones_are_refused_with_their_old_names():
    with pytest.raises(ImproperlyConfigured) as caught:
        detect_settings({"task_acks_late": True, "BROKER_URL": "x", "CELERY_TRACK_STARTED": True})

    assert "task_acks_late -> CELERY_ACKS_LATE" in str(caught.value)


def test_a_setting_given_in_both_styles_is_no_mixture():
    both = {"timezone": "UTC", "CELERY_TIMEZONE": "UTC"}
    assert detect_settings(both).timezone == "UTC"


def test_arguments_of_the_app_and_what_was_set_do_not_count_as_mixing():
    loaded = {"CELERY_ACKS_LATE": 1, "broker_url": "redis://loaded"}
    conf = detect_settings(
        loaded, {"broker_url": "redis://", "task_track_started": 1}, ignore_keys={"broker_url"}
    )
    assert conf.broker_url == "redis://"
    assert conf.task_acks_late == conf.task_track_started == 1


def test_a_namespace_allows_both_styles():
    conf = detect_settings({"CELERY_TASK_ACKS_LATE": 1, "CELERY_TRACK_STARTED": 1}, prefix="CELERY")
    assert conf.task_track_started == 1


# -- warnings


def test_old_names_are_reported_as_deprecated_with_the_new_name():
    conf = detect_settings({"CELERY_ACKS_LATE": True})

    with pytest.warns(CDeprecationWarning, match="'CELERY_ACKS_LATE' setting.*task_acks_late instead"):
        assert conf.maybe_warn_deprecated_settings() is True


def test_new_names_under_the_namespace_celery_are_not_taken_for_old_ones():
    conf = detect_settings({"CELERY_TIMEZONE": "UTC", "CELERY_ACCEPT_CONTENT": ["json"]}, prefix="CELERY")
    assert conf.maybe_warn_deprecated_settings() is False


def test_a_setting_that_is_going_away_is_reported_with_what_replaces_it():
    with pytest.warns(CPendingDeprecationWarning, match="task_acks_on_failure and task_acks_on_timeout"):
        find_deprecated_settings({"task_acks_on_failure_or_timeout": False})


@pytest.mark.parametrize(
    ("key", "prefix", "near"),
    [
        ("task_route", "", "task_routes"),
        ("worker_concurency", "", "worker_concurrency"),
        ("CELERY_ROUTE", "", "CELERY_ROUTES"),
        ("CELERY_TASK_ROUTE", "CELERY_", "task_routes"),
        ("task_routes", "", None),
        ("worker_logfile", "", None),
        ("redis_client_name", "", None),
        ("CELERY_RESULT_EXPIRES", "CELERY_", None),
        ("my_own_thing", "", None),
        ("INSTALLED_APPS", "", None),
        ("DATABASE_ROUTERS", "CELERY_", None),
    ],
)
def test_a_misspelt_name_is_compared_with_the_settings(key, prefix, near):
    assert nearest_setting(key, prefix) == near


def test_a_misspelt_name_is_kept_with_a_warning_that_names_the_setting():
    with pytest.warns(CeleryWarning, match="no setting 'task_alway_eager'. Did you mean 'task_always_eager'"):
        conf = detect_settings({"task_alway_eager": True})
    assert conf["task_alway_eager"] is True

    with pytest.warns(CeleryWarning, match="'task_always_eager'"):
        conf.task_always_eagerly = True


def test_what_a_configuration_module_imports_is_not_taken_for_a_setting():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detect_settings({"include_": types, "imports_": types.ModuleType, "include__": lambda: None})


# -- loading


def test_the_first_reading_loads_once_and_writing_does_not():
    loads = []

    def load():
        loads.append(1)
        conf.swap_with(detect_settings({"worker_pool": "threads"}, preconf))
        return conf

    preconf = {}
    conf = Settings(Pending(preconf, load))
    conf.task_acks_late = True
    conf.update(worker_concurrency=2)
    assert conf.setdefault("worker_state_db", "state") == "state"
    assert loads == []

    assert conf.worker_pool == "threads"
    assert conf.task_acks_late is True
    assert conf["worker_concurrency"] == 2
    assert "worker_state_db" in conf
    assert len(conf) == len(DEFAULTS)
    assert loads == [1]


def test_the_very_first_reading_knows_the_namespace_that_loading_brings():
    conf = Settings(Pending({}, lambda: detect_settings({"CELERY_BROKER_URL": "redis://"}, prefix="CELERY")))
    assert conf.broker_url == "redis://"


def test_deprecated_names_are_known_before_anything_else_was_read():
    conf = Settings(Pending({}, lambda: detect_settings({"CELERY_ACKS_LATE": True})))
    with pytest.warns(CDeprecationWarning):
        assert conf.maybe_warn_deprecated_settings()


def test_reading_while_loading_sees_what_was_set_so_far():
    seen = []

    def load():
        seen.extend([conf.worker_concurrency, conf.worker_pool])
        return detect_settings({"worker_pool": "threads"}, preconf)

    preconf = {"worker_concurrency": 7}
    conf = Settings(Pending(preconf, load))

    assert conf.worker_pool == "threads"
    assert seen == [7, "prefork"]


def test_a_configuration_that_cannot_be_loaded_is_tried_again():
    answers = [ValueError("broken"), detect_settings({"worker_pool": "solo"})]

    def load():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    conf = Settings(Pending({}, load))
    with pytest.raises(ValueError, match="broken"):
        conf.finalize()
    assert conf.worker_pool == "solo"


def test_threads_that_read_at_once_load_once_and_see_the_same():
    loads, seen = [], []
    loading, go_on = threading.Event(), threading.Event()

    def load():
        loads.append(1)
        loading.set()
        assert go_on.wait(10)
        return detect_settings({"worker_pool": "threads"})

    conf = Settings(Pending({}, load))
    readers = [threading.Thread(target=lambda: seen.append(conf.worker_pool)) for _ in range(3)]
    for reader in readers:
        reader.start()
    assert loading.wait(10)
    go_on.set()
    for reader in readers:
        reader.join(10)

    assert loads == [1]
    assert seen == ["threads"] * 3


# -- looking at the whole


def test_without_defaults_there_is_what_somebody_decided():
    conf = detect_settings({"CELERY_ACKS_LATE": True}, {"CELERYD_POOL": "solo"})

    decided = conf.without_defaults()
    assert isinstance(decided, Settings)
    assert isinstance(decided, ConfigurationView)
    assert dict(decided.items()) == {"task_acks_late": True, "worker_pool": "solo"}
    assert conf.value_set_for("task_acks_late")
    assert not conf.value_set_for("task_track_started")


def test_a_copy_keeps_its_changes_to_itself():
    conf = detect_settings({"worker_pool": "threads"})
    copied = conf.copy()
    copied.worker_pool = "solo"

    assert (conf.worker_pool, copied.worker_pool) == ("threads", "solo")


def test_settings_are_found_by_parts_of_their_names():
    conf = detect_settings({"task_acks_late": True})

    assert conf.find_option("acks_late").namespace == "task"
    assert conf.find_value_for_key("acks_late") is True
    assert conf.get_by_parts("task", "", "acks", "late") is True
    assert conf.first("nothing_like_it", "task_acks_late") is True


def test_tables_and_texts_hide_secrets_unless_asked_not_to():
    conf = detect_settings(
        {"broker_url": "amqp://user:secret@host//", "security_key": "secret", "worker_pool": "x"}
    )

    assert conf.table() == {
        "broker_url": "amqp://user:********@host//",
        "security_key": "********",
        "worker_pool": "x",
    }
    assert "secret" not in conf.humanize()
    assert "secret@host" in conf.humanize(censored=False)
    assert "task_acks_late: False" in conf.humanize(with_defaults=True)


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("redis_password", "p", "********"),
        ("BROKER_PASSWORD", "p", "********"),
        ("MY_API_TOKEN", "t", "********"),
        ("task_default_routing_key", "key", "key"),
        ("s3_access_key_id", None, None),
        (
            "broker_transport_options",
            {"sentinel_kwargs": {"password": "p", "x": 1}},
            {"sentinel_kwargs": {"password": "********", "x": 1}},
        ),
        ("hosts", ["redis://:p@h", {"secret": 1}], ["redis://:********@h", {"secret": "********"}]),
        ("worker_concurrency", 3, 3),
    ],
)
def test_secrets_are_hidden_at_any_depth(key, value, shown):
    assert filter_hidden_settings({key: value}) == {key: shown}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://u:p@h//", "amqp://u:********@h//"),
        ("redis://:p@h/0", "redis://:********@h/0"),
        ("redis://:p@h;redis://:q@i", "redis://:********@h;redis://:********@i"),
        ("amqp://u:p/a@ss@h//", "amqp://u:********@h//"),
        ("db+postgresql://u:p@h/d", "db+postgresql://u:********@h/d"),
        (
            "azureblockblob://AccountName=n;AccountKey=k==;S=x",
            "azureblockblob://AccountName=n;AccountKey=********;S=x",
        ),
        ("https://h/?token=t&a=b", "https://h/?token=********&a=b"),
        ("amqp://h:5672//", "amqp://h:5672//"),
        ("plain words", "plain words"),
        (None, None),
    ],
)
def test_addresses_are_shown_without_passwords_and_keys(url, shown):
    assert sanitize_url(url) == shown


# -- the command line


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("worker.prefetch_multiplier=3", ("worker_prefetch_multiplier", 3)),
        ("WORKER.POOL=solo", ("worker_pool", "solo")),
        ("task_time_limit=3.5", ("task_time_limit", 3.5)),
        ("task.always_eager=yes", ("task_always_eager", True)),
        ("broker.url=amqp://h?a=b", ("broker_url", "amqp://h?a=b")),
        ("timezone=UTC", ("timezone", "UTC")),
        (".pool=solo", ("worker_pool", "solo")),
        ('task.routes=(json){"a": "b"}', ("task_routes", {"a": "b"})),
        ("my.own=(int)3", ("my_own", 3)),
        ("my.own=(tuple)[1, 2]", ("my_own", (1, 2))),
        ("broker.heartbeat=(string)5", ("broker_heartbeat", "5")),
    ],
)
def test_words_of_the_command_line_are_converted_to_the_type_of_the_setting(text, setting):
    assert parse_assignment(text, namespace="worker") == setting


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("worker.concurency=3", KeyError, "worker_concurrency"),
        ("worker.pool", ValueError, "namespace.key=value"),
        ("task.time_limit=long", ValueError, "long"),
        ("worker.pool=(shape)3", KeyError, "'shape' is not one of"),
    ],
)
def test_words_that_cannot_be_read_are_refused_with_a_reason(text, error, words):
    with pytest.raises(error, match=words):
        parse_assignment(text)


# -- the reference page


def test_the_reference_page_describes_every_setting():
    page = settings_page()

    for name in DEFAULTS:
        assert f"### `{name}`" in page
    assert "### `redis_client_name`" in page
    assert "Environment: `CELERY_BROKER_URL`" in page
    assert "Old name: `CELERYD_POOL`" in page
