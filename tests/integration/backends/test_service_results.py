"""Results in services on the network: their own client libraries, and something that stands for each service."""

from __future__ import annotations

import importlib
import logging
import queue
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from celery_clone import Celery, states
from celery_clone.backends.clients import PerProcess
from celery_clone.exceptions import ImproperlyConfigured
from celery_clone.execution.context import Context
from celery_clone.utils.ids import uuid
from tests.support import services

# Libraries of others, with habits of theirs.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning"),
]

HOW_TO_GET = "install celery_clone[services]"


def library(name: str) -> Any:
    """A client library, or a skip that says how to get it."""
    return pytest.importorskip(name, reason=f"{name} is missing; {HOW_TO_GET}")


def make_app(url: str, **conf: Any) -> Celery:
    app = Celery("tests", broker="memory://", backend=url, set_as_current=False)
    app.conf.update({"task_default_queue": "tasks", "result_extended": True, **conf})
    app.task(name="sum")(sum)
    return app


@pytest.fixture(scope="module")
def amazon() -> Iterator[str]:
    """The address of something like Amazon's services."""
    library("boto3")
    server = library("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    _, port = server.get_host_and_port()
    yield f"localhost:{port}"
    server.stop()


AMAZON_LOGIN = {"s3_access_key_id": "key", "s3_secret_access_key": "secret", "s3_region": "us-east-1"}


def open_store(name: str, request: pytest.FixtureRequest) -> Iterator[Celery]:
    """An app whose results are in the service *name*."""
    if name == "dynamodb":
        address = request.getfixturevalue("amazon")
        yield make_app(f"dynamodb://key:secret@{address}/results?ttl_seconds=100")
    elif name == "s3":
        address = request.getfixturevalue("amazon")
        app = make_app(
            "s3://", s3_bucket="results", s3_endpoint_url=f"http://{address}", s3_base_path="r/", **AMAZON_LOGIN
        )
        app.backend._client().create_bucket(Bucket="results")
        yield app
    elif name == "mongodb":
        library("pymongo")
        mongomock = library("mongomock")
        app = make_app("mongodb://user:password@localhost/results")
        client = mongomock.MongoClient()
        app.backend._client = PerProcess(lambda: client)
        yield app
    else:
        module, service, url = SERVICES[name]
        library(module)
        with service() as running:
            app = make_app(url.format(port=running.port))
            app.service = running  # type: ignore[attr-defined]
            yield app


SERVICES: dict[str, tuple[str, type[services.Service], str]] = {
    "elasticsearch": (
        "elasticsearch",
        services.Elasticsearch,
        "elasticsearch://user:password@127.0.0.1:{port}/results",
    ),
    "couchdb": ("pycouchdb", services.CouchDB, "couchdb://user:password@127.0.0.1:{port}/results"),
    "consul": ("consul", services.Consul, "consul://127.0.0.1:{port}/results"),
    "arangodb": ("pyArango", services.ArangoDB, "arangodb://root:password@127.0.0.1:{port}/results/tasks"),
    "azureblockblob": (
        "azure.storage.blob",
        services.AzureBlobs,
        "azureblockblob://DefaultEndpointsProtocol=http;AccountName=tests;AccountKey=c2VjcmV0;"
        "BlobEndpoint=http://127.0.0.1:{port}/tests;",
    ),
}
STORES = ("dynamodb", "s3", "mongodb", *SERVICES)


@pytest.fixture(scope="module", params=STORES)
def app(request: pytest.FixtureRequest) -> Iterator[Celery]:
    """An app for each service."""
    opened = open_store(request.param, request)
    app = next(opened)
    yield app
    app.backend.close()
    app.close()
    next(opened, None)


def request_of(task_id: str, **more: Any) -> Context:
    return Context({"id": task_id, "task": "shop.order", "args": ["apples"], "kwargs": {"count": 3}, **more})


def test_a_value_an_error_and_a_state_come_back(app: Celery) -> None:
    done, failed, running, unknown = (app.AsyncResult(uuid()) for _ in range(4))

    app.backend.mark_as_done(done.id, {"answer": [42, None, "ü"]}, request=request_of(done.id))
    app.backend.mark_as_failure(failed.id, KeyError("apples"), "Traceback: there", request=request_of(failed.id))
    app.backend.store_result(running.id, {"at": 1}, "PROGRESS")

    assert done.get(timeout=5) == {"answer": [42, None, "ü"]}
    assert done.name == "shop.order"
    assert done.args == ["apples"]
    with pytest.raises(KeyError):
        failed.get(timeout=5)
    assert failed.traceback == "Traceback: there"
    assert (running.state, running.info) == ("PROGRESS", {"at": 1})
    assert (unknown.state, unknown.exists(), done.exists()) == (states.PENDING, False, True)


def test_a_state_gives_way_to_a_later_one_and_a_success_is_final(app: Celery) -> None:
    task_id = uuid()

    app.backend.mark_as_started(task_id)
    app.backend.mark_as_failure(task_id, KeyError("once"), "")
    app.backend.mark_as_retry(task_id, KeyError("the try before"), "")
    assert app.AsyncResult(task_id).state == states.FAILURE
    app.backend.mark_as_done(task_id, "at last")
    app.backend.mark_as_failure(task_id, KeyError("again"), "")

    assert app.AsyncResult(task_id).get(timeout=5) == "at last"


def test_a_result_that_is_forgotten_is_gone(app: Celery) -> None:
    task_id = uuid()
    app.backend.mark_as_done(task_id, 1)

    app.AsyncResult(task_id).forget()
    app.AsyncResult(task_id).forget()

    assert not app.AsyncResult(task_id).exists()


def test_members_of_a_group_come_in_order_and_the_group_can_be_saved(app: Celery) -> None:
    results = [app.AsyncResult(uuid()) for _ in range(5)]
    for at in reversed(range(5)):
        app.backend.mark_as_done(results[at].id, at)
    group_id = uuid()

    app.GroupResult(group_id, results).save()

    restored = app.GroupResult.restore(group_id)
    assert restored.ready()
    assert restored.get(timeout=5) == [0, 1, 2, 3, 4]
    restored.delete()
    assert app.GroupResult.restore(group_id) is None


def messages(app: Celery) -> list[Any]:
    with app.connection_for_read() as connection, connection.SimpleQueue("tasks", no_ack=True) as waiting:
        found = []
        while True:
            try:
                message = waiting.get(block=False)
            except queue.Empty:
                return found
            found.append((message.headers["task"], message.payload[0]))


def test_a_chord_is_counted_or_looked_for(app: Celery) -> None:
    body = app.signature("sum", app=app)
    body.freeze(uuid())
    members = [app.AsyncResult(uuid()) for _ in range(2)]
    group_id = uuid()
    app.backend.apply_chord((group_id, members), body)
    if not getattr(app.backend, "implements_incr", False):
        assert [name for name, _ in messages(app)] == ["celery.chord_unlock"]
        return

    for at in (1, 0, 1):
        request = request_of(members[at].id, group=group_id, group_index=at, chord=dict(body))
        app.backend.mark_as_done(members[at].id, at + 1, request=request)

    assert messages(app) == [("sum", [[1, 2]])]


def test_what_is_expired_goes(app: Celery) -> None:
    if type(app.backend).__name__ not in ("MongoBackend", "ArangoDbBackend"):
        pytest.skip("the service drops it by itself, or a rule of it does")
    backend = app.backend
    backend.mark_as_done("old", 1)
    kept, backend.expires = backend.expires, -60
    try:
        backend.cleanup()
    finally:
        backend.expires = kept
    assert not app.AsyncResult("old").exists()

    backend.mark_as_done("new", 1)
    backend.cleanup()
    assert app.AsyncResult("new").exists()
    assert backend.expires_delta == timedelta(days=1)


def test_passwords_are_not_shown(app: Celery) -> None:
    shown = str(app.backend.as_uri())

    assert "password" not in shown
    assert "secret" not in shown.replace("secret@", "")
    assert "c2VjcmV0" not in shown


# --- one by one ------------------------------------------------------------------------


def test_keys_in_dynamodb_are_celerys_and_the_table_drops_what_is_expired(amazon: str) -> None:
    app = make_app(f"dynamodb://key:secret@{amazon}/lasting?ttl_seconds=100&read=3&write=4")
    app.backend.mark_as_done("a", 1)

    client = app.backend.client
    item = client.get_item(TableName="lasting", Key={"id": {"S": "b'celery-task-meta-a'"}})["Item"]
    assert sorted(item) == ["id", "result", "timestamp", "ttl"]
    assert float(item["ttl"]["N"]) == pytest.approx(float(item["timestamp"]["N"]) + 100, abs=1)
    table = client.describe_table(TableName="lasting")["Table"]["ProvisionedThroughput"]
    assert (table["ReadCapacityUnits"], table["WriteCapacityUnits"]) == (3, 4)
    expiry = client.describe_time_to_live(TableName="lasting")["TimeToLiveDescription"]
    assert (expiry["TimeToLiveStatus"], expiry["AttributeName"]) == ("ENABLED", "ttl")
    make_app(f"dynamodb://key:secret@{amazon}/lasting?ttl_seconds=-1").backend.client.describe_table(
        TableName="lasting"
    )
    expiry = client.describe_time_to_live(TableName="lasting")["TimeToLiveDescription"]
    assert expiry["TimeToLiveStatus"] == "DISABLED"


def test_objects_in_s3_are_where_celery_puts_them(amazon: str) -> None:
    app = make_app("s3://", s3_bucket="named", s3_endpoint_url=f"http://{amazon}", s3_base_path="shop/", **AMAZON_LOGIN)
    client = app.backend._client()
    client.create_bucket(Bucket="named")

    app.backend.mark_as_done("a", 1)

    assert [each["Key"] for each in client.list_objects(Bucket="named")["Contents"]] == ["shop/celery-task-meta-a"]


def test_elasticsearch_can_keep_the_meta_as_an_object() -> None:
    library("elasticsearch")
    with services.Elasticsearch() as running:
        app = make_app(f"elasticsearch://127.0.0.1:{running.port}/results", elasticsearch_save_meta_as_text=False)
        app.backend.mark_as_done("a", {"x": 1})

        assert running.documents["celery-task-meta-a"][1]["result"]["status"] == "SUCCESS"
        assert app.AsyncResult("a").get(timeout=5) == {"x": 1}
        app.backend.close()


def test_a_key_in_consul_lives_as_long_as_its_session() -> None:
    library("consul")
    with services.Consul() as running:
        app = make_app(f"consul://127.0.0.1:{running.port}/shop", result_expires=3600)
        app.backend.mark_as_started("a")
        app.backend.mark_as_done("a", 1)

        assert list(running.documents) == ["shop/celery-task-meta-a"]
        (session,) = running.sessions.values()
        told = {name.lower(): value for name, value in session.items()}
        assert (told["behavior"], told["ttl"]) == ("delete", "3600s")
        assert app.AsyncResult("a").get(timeout=5) == 1


def test_settings_of_mongodb_stand_over_the_url() -> None:
    library("pymongo")
    settings = {"database": "shop", "taskmeta_collection": "tasks", "max_pool_size": 3, "options": {"tz_aware": True}}
    app = make_app("mongodb://user:p%40ss@one:1,two:2/other?replicaSet=r", mongodb_backend_settings=settings)
    backend = app.backend

    assert (backend.user, backend.password, backend.mongo_host) == ("user", "p@ss", ["one:1", "two:2"])
    assert (backend.database_name, backend.taskmeta_collection) == ("shop", "tasks")
    assert backend.options["tz_aware"] is True
    assert backend.as_uri() == "mongodb://user:**@one:1/,two:2/other?replicaSet=r"


@pytest.mark.parametrize(
    ("url", "module", "conf", "says"),
    [
        ("s3://", "boto3", {}, "s3_bucket"),
        ("dynamodb://key@region/table", "boto3", {}, "both the Access Key ID and Secret"),
        ("azureblockblob://", "azure.storage.blob", {}, "connection string"),
        ("cosmosdbsql://host", "pydocumentdb", {}, "cosmosdbsql://:key@host"),
        ("cosmosdbsql://:key@host", "pydocumentdb", {"cosmosdbsql_consistency_level": "Sesion"}, "Session"),
        ("cassandra://", "cassandra", {}, "cassandra_servers"),
        ("cassandra://", "cassandra", {"cassandra_servers": ["one"]}, "cassandra_keyspace"),
        ("gs://bucket", "google.cloud.storage", {}, "gcs_project"),
        ("couchbase://", "couchbase", {"couchbase_backend_settings": ["host"]}, "grouped in a dict"),
        ("arangodb://", "pyArango", {"arangodb_backend_settings": ["host"]}, "grouped in a dict"),
        ("mongodb://", "pymongo", {"mongodb_backend_settings": ["host"]}, "grouped in a dict"),
    ],
)
def test_a_setting_that_is_missing_or_wrong_is_named(url: str, module: str, conf: dict[str, Any], says: str) -> None:
    library(module)

    with pytest.raises(ImproperlyConfigured, match=says):
        assert make_app(url, **conf).backend


MISSING: dict[str, tuple[str, str]] = {
    "arangodb": ("py_arango_connection", "pyArango"),
    "azureblockblob": ("BlobServiceClient", "azure-storage-blob"),
    "cassandra": ("cassandra", "cassandra-driver"),
    "consul": ("consul", "python-consul2"),
    "cosmosdbsql": ("DocumentClient", "pydocumentdb"),
    "couchbase": ("Cluster", "couchbase"),
    "couchdb": ("pycouchdb", "pycouchdb"),
    "dynamodb": ("boto3", "boto3"),
    "elasticsearch": ("elasticsearch", "elasticsearch"),
    "gcs": ("firestore", "google-cloud-firestore"),
    "mongodb": ("pymongo", "pymongo"),
    "s3": ("boto3", "boto3"),
}


@pytest.mark.parametrize("name", MISSING)
def test_a_library_that_is_missing_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"celery_clone.backends.{name}")
    attribute, package = MISSING[name]
    monkeypatch.setattr(module, attribute, None)
    if name == "consul":
        monkeypatch.setattr(module.ConsulBackend, "consul", None)
    scheme = "gs" if name == "gcs" else name

    with pytest.raises(ImproperlyConfigured, match=rf"install the {package} library .*celery_clone\[{name}\]"):
        assert make_app(f"{scheme}://user:password@host/name").backend


def test_a_client_is_one_for_all_threads_and_ends_with_the_store() -> None:
    made: list[object] = []
    ended: list[object] = []

    def make() -> object:
        made.append(object())
        return made[-1]

    client: Callable[[], object] = PerProcess(make, ended.append)

    assert client() is client()
    client.close()  # type: ignore[attr-defined]
    client.close()  # type: ignore[attr-defined]
    assert ended == made
    assert client() is not made[0]
