"""Annotations, the registry, the table of parts, backends by name and ``app.events``."""

from __future__ import annotations

import types

import pytest

from celery_clone import Celery
from celery_clone.app.annotations import MapAnnotation, prepare, resolve_all
from celery_clone.app.backends import BACKEND_ALIASES, by_name, by_url
from celery_clone.app.components import COMPONENTS
from celery_clone.app.events import Events
from celery_clone.app.registry import TaskRegistry, _unpickle_task, _unpickle_task_v2
from celery_clone.exceptions import ImproperlyConfigured, InvalidTaskError, NotRegistered


class Add:
    name = "tasks.add"


class Other:
    name = "tasks.other"


class Annotator:
    """An annotation that a project names by its path."""

    def annotate(self, task):
        return {"rate_limit": "1/s"} if task.name.startswith("tasks.") else None


# -- annotations


def test_annotations_by_name_come_before_those_for_all():
    prepared = prepare(
        [{"tasks.add": {"rate_limit": "3/s"}}, {"*": {"priority": 1}, "tasks.add": {"priority": 2}}]
    )

    assert list(resolve_all(prepared, Add)) == [{"rate_limit": "3/s"}, {"priority": 1}]
    assert list(resolve_all(prepared, Other)) == [{"priority": 1}]


def test_an_annotation_may_be_an_object_or_the_path_of_its_class():
    path = f"{__name__}:Annotator"
    module = types.ModuleType(__name__)
    module.Annotator = Annotator
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, __name__, module)
        for setting in (Annotator(), path, [path]):
            assert list(resolve_all(prepare(setting), Add)) == [{"rate_limit": "1/s"}]


def test_without_annotations_nothing_applies():
    assert prepare(None) == ()
    assert list(resolve_all(prepare({"*": {}}), Add)) == []
    assert MapAnnotation({}).annotate_any() is None


# -- registry


def test_a_registry_keeps_tasks_by_name_and_makes_instances_of_classes():
    registry = TaskRegistry()
    task = Other()
    registry.register(Add)
    registry.register(task)

    assert isinstance(registry["tasks.add"], Add)
    assert registry["tasks.other"] is task
    assert registry.regular() == dict(registry)
    assert registry.periodic() == {}


def test_tasks_are_taken_out_by_name_or_by_themselves():
    registry = TaskRegistry()
    task = Add()
    registry.register(task)
    registry.unregister(task)
    registry.register(task)
    registry.unregister("tasks.add")

    assert registry == {}
    with pytest.raises(NotRegistered, match=r"tasks\.add"):
        registry.unregister(task)
    with pytest.raises(registry.NotRegistered):
        registry["tasks.add"]


def test_a_task_without_a_name_is_refused_with_a_remedy():
    class Nameless:
        name = None

    for task in (Nameless, Nameless()):
        with pytest.raises(InvalidTaskError, match=r"'Nameless' must specify \.name.*register_task"):
            TaskRegistry().register(task)


def test_pickled_tasks_are_those_of_the_current_app():
    app = Celery("small parts", broker="memory://")
    task = app.task(name="small.parts")(lambda: None)

    assert _unpickle_task("small.parts") == task
    assert _unpickle_task_v2("small.parts", "json") == task


# -- backends


class Loader:
    override_backends: dict[str, str] = {}


def test_a_url_names_the_backend_by_its_scheme_and_keeps_the_rest():
    class Store:
        pass

    class Overriding:
        override_backends = {"store": Store}

    assert by_url("store://host/x", Overriding) == (Store, "store://host/x")
    assert by_url("store+postgresql://host/x", Overriding) == (Store, "postgresql://host/x")
    assert by_url("store", Overriding) == (Store, None)
    assert by_url(Store, Overriding) == (Store, None)


def test_a_class_may_be_named_outright():
    assert by_name("collections:OrderedDict", Loader).__name__ == "OrderedDict"


def test_an_unknown_backend_is_refused_with_the_nearest_name():
    with pytest.raises(
        ImproperlyConfigured, match="Unknown result backend: 'rediss2'.*Did you mean 'rediss'"
    ):
        by_name("rediss2", Loader)


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("postgresql://u@h/d", r"Write db\+postgresql:// for that"),
        ("amqp://", "Write rpc:// for that"),
        ("memcached://h", r"Write cache\+memcached:// for that"),
        ("zzz://h", "Known are: arangodb, .*sqlite; and any class, as module:Class"),
        ("no_such_package.stores:Store", "Known are"),
        ("celery_clone.backends.filesystem:Folders", "Known are"),
    ],
)
def test_a_url_that_means_no_backend_is_refused_with_what_to_write(url, remedy):
    with pytest.raises(ImproperlyConfigured, match=f"Unknown result backend: '{url.partition('://')[0]}'.*{remedy}"):
        by_url(url, Loader)


@pytest.mark.parametrize(
    ("store", "client"),
    [
        ("arangodb", "py_arango_connection"),
        ("azureblockblob", "BlobServiceClient"),
        ("cassandra", "cassandra"),
        ("couchdb", "pycouchdb"),
        ("dynamodb", "boto3"),
        ("elasticsearch", "elasticsearch"),
        ("mongodb", "pymongo"),
        ("s3", "boto3"),
    ],
)
def test_a_store_without_its_library_says_what_to_install(store, client, monkeypatch):
    backend, _ = by_url(f"{store}://x", Loader)
    monkeypatch.setattr(f"{backend.__module__}.{client}", None)
    app = Celery("tests", broker="memory://", backend=f"{store}://x", set_as_current=False)
    with pytest.raises(ImproperlyConfigured, match=rf"pip install celery_clone\[{store}\]"):
        _ = app.backend


def test_a_module_is_no_backend():
    with pytest.raises(ImproperlyConfigured, match="is a Python module, not a backend class"):
        by_name("json", Loader)


def test_what_a_backend_itself_cannot_import_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "broken_store.py").write_text("import no_such_driver\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_driver"):
        by_name("broken_store:Store", Loader)


def test_every_alias_names_a_class_of_this_package():
    assert all(path.startswith("celery_clone.backends.") and ":" in path for path in BACKEND_ALIASES.values())


# -- parts


def test_parts_are_named_by_module_and_class():
    assert all(path.startswith("celery_clone.") and path.count(":") == 1 for path in COMPONENTS.values())
    with pytest.raises(TypeError):
        COMPONENTS["amqp"] = "other"  # type: ignore[index]


# -- events


class RecordingDispatcher:
    """Keeps what it was made with, and whether it was closed."""

    def __init__(self, *args):
        self.args, self.closed = args, False

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.closed = True


class RecordingEvents(Events):
    dispatcher_cls = RecordingDispatcher


def test_event_classes_know_the_app_and_are_made_once():
    app = Celery("small parts", broker="memory://", set_as_current=False)
    events = RecordingEvents(app)

    assert events.Dispatcher is events.Dispatcher
    assert events.Dispatcher.app is app
    assert issubclass(events.Dispatcher, RecordingDispatcher)


def test_the_default_dispatcher_borrows_a_connection_and_is_closed():
    app = Celery("small parts", broker="memory://", set_as_current=False)

    with RecordingEvents(app).default_dispatcher("node@host", buffer_while_offline=True) as dispatcher:
        connection, hostname, enabled, channel, buffer_while_offline = dispatcher.args
        assert connection.as_uri().startswith("memory://")
        assert channel.connection is not None
        assert (hostname, enabled, buffer_while_offline) == ("node@host", True, True)
    assert dispatcher.closed
