"""Results in services whose clients speak no HTTP: what the stores ask of the libraries' own classes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest

from celery_clone import Celery, states
from celery_clone.exceptions import ImproperlyConfigured
from celery_clone.execution.context import Context

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

HOW_TO_GET = "it is an extra of celery_clone"


def make_app(url: str, **conf: Any) -> Celery:
    app = Celery("tests", broker="memory://", backend=url, set_as_current=False)
    app.conf.update({"task_default_queue": "tasks", **conf})
    return app


def keeps_its_promises(app: Celery) -> None:
    """What all stores promise, as far as one thread sees it."""
    backend = app.backend
    backend.mark_as_started("a")
    assert app.AsyncResult("a").state == states.STARTED
    backend.mark_as_done("a", {"x": [1, "ü"]}, request=Context({"id": "a"}))
    backend.mark_as_failure("a", KeyError("late"), "")
    backend.mark_as_failure("f", KeyError("apples"), "there")
    assert app.AsyncResult("a").get(timeout=1) == {"x": [1, "ü"]}
    assert isinstance(app.AsyncResult("f").result, KeyError)
    assert app.AsyncResult("f").traceback == "there"
    assert app.AsyncResult("none").state == states.PENDING
    app.AsyncResult("a").forget()
    assert not app.AsyncResult("a").exists()
    backend.close()


# --- Cassandra ---------------------------------------------------------------------------


class FakeCluster:
    """Keeps rows, and understands the four statements of the store."""

    def __init__(self, servers: Any = None, **options: Any) -> None:
        self.servers, self.options = servers, options
        self.rows: dict[str, list[Any]] = {}
        self.statements: list[Any] = []

    def connect(self, keyspace: str) -> Any:
        self.keyspace = keyspace
        return self

    def execute(self, statement: Any, values: Any = ()) -> Any:
        self.statements.append(statement)
        text = statement.query_string.strip()
        if text.startswith("INSERT"):
            self.rows.setdefault(values[0], []).append(values[1:])
        elif text.startswith("DELETE"):
            self.rows.pop(values[0], None)
        elif text.startswith("SELECT"):
            rows = sorted(self.rows.get(values[0], ()), key=lambda row: row[2])
            return SimpleNamespace(one=lambda: rows[-1] if rows else None)
        return None

    def shutdown(self) -> None:
        self.ended = True


@pytest.fixture
def cassandra_app(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    cluster_module = pytest.importorskip("cassandra.cluster", reason=HOW_TO_GET)
    made: list[FakeCluster] = []

    def make(*args: Any, **kwargs: Any) -> FakeCluster:
        made.append(FakeCluster(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(cluster_module, "Cluster", make)

    def open_app(**conf: Any) -> tuple[Celery, list[FakeCluster]]:
        return make_app("cassandra://", **{"cassandra_keyspace": "shop", "cassandra_table": "results", **conf}), made

    yield open_app


def test_rows_in_cassandra(cassandra_app: Any) -> None:
    app, made = cassandra_app(
        cassandra_servers=["one", "two"], cassandra_entry_ttl=60, cassandra_write_consistency="ONE"
    )

    keeps_its_promises(app)

    (cluster,) = made
    assert (cluster.servers, cluster.keyspace, cluster.options["port"]) == (["one", "two"], "shop", 9042)
    texts = {statement.query_string.strip().split()[0]: statement for statement in cluster.statements}
    assert texts["INSERT"].query_string.endswith("USING TTL 60")
    assert texts["INSERT"].consistency_level == 1
    assert texts["SELECT"].consistency_level == 6
    assert cluster.ended


def test_astra_db_is_reached_by_its_bundle(cassandra_app: Any) -> None:
    app, made = cassandra_app(cassandra_secure_bundle_path="/bundle.zip")

    app.backend.mark_as_done("a", 1)

    assert made[0].options["cloud"] == {"secure_connect_bundle": "/bundle.zip"}
    app.backend.close()


@pytest.mark.parametrize(
    ("conf", "says"),
    [
        ({"cassandra_servers": ["one"], "cassandra_secure_bundle_path": "/b"}, "exactly one"),
        ({"cassandra_servers": ["one"], "cassandra_table": "a; DROP"}, "not the name of a table"),
        ({"cassandra_servers": ["one"], "cassandra_read_consistency": "QUORUMM"}, "Did you mean 'QUORUM'"),
        (
            {
                "cassandra_servers": ["one"],
                "cassandra_auth_provider": "PlainAuthProvider",
                "cassandra_auth_kwargs": {"username": "u"},
            },
            "Did you mean 'PlainTextAuthProvider'",
        ),
    ],
)
def test_settings_of_cassandra_that_are_wrong_are_named(cassandra_app: Any, conf: dict[str, Any], says: str) -> None:
    app, _ = cassandra_app(**conf)

    with pytest.raises(ImproperlyConfigured, match=says):
        assert app.backend


# --- Couchbase ----------------------------------------------------------------------------


def test_documents_in_couchbase(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("couchbase", reason=HOW_TO_GET)
    from celery_clone.backends import couchbase

    class Bucket:
        values: dict[str, Any] = {}
        options: list[Any] = []

        def get(self, key: str) -> Any:
            if key not in self.values:
                raise couchbase.DocumentNotFoundException
            return SimpleNamespace(value=self.values[key])

        def get_multi(self, keys: list[str], options: Any) -> Any:
            there = {key: self.get(key) for key in keys if key in self.values}
            missing = {key: couchbase.DocumentNotFoundException() for key in keys if key not in self.values}
            return SimpleNamespace(results=there, exceptions=missing)

        def upsert(self, key: str, value: Any, options: Any = None) -> None:
            self.values[key] = value
            self.options.append(options)

        def remove(self, key: str) -> None:
            self.get(key)
            del self.values[key]

    bucket, asked = Bucket(), []

    def cluster(*args: Any) -> Any:
        asked.append(args)
        opened = SimpleNamespace(default_collection=lambda: bucket)
        return SimpleNamespace(bucket=lambda name: asked.append((name,)) or opened)

    monkeypatch.setattr(couchbase, "Cluster", cluster)
    app = make_app("couchbase://user:password@host:8092/results", result_expires=60)
    keeps_its_promises(app)

    assert (asked[0][0], asked[1]) == ("couchbase://host:8092", ("results",))
    assert bucket.options[0]["expiry"] == timedelta(seconds=60)
    assert list(app.backend.mget(["celery-task-meta-f", "none"]).values())[1] is None


# --- Cosmos DB ----------------------------------------------------------------------------


def test_documents_in_cosmos_db(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pydocumentdb", reason=HOW_TO_GET)
    from celery_clone.backends import cosmosdbsql

    def failure(status: int) -> Exception:
        return cosmosdbsql.HTTPFailure(status, "said no", {})  # type: ignore[call-arg]

    class Client:
        documents: dict[str, Any] = {}

        def __init__(self, endpoint: str, login: Any, **options: Any) -> None:
            assert (endpoint, login) == ("https://host:443", {"masterKey": "key"})
            assert options["consistency_level"] == "Session"

        def CreateDatabase(self, database: Any) -> None:
            raise failure(409)

        def CreateCollection(self, link: str, collection: Any) -> None:
            assert (link, collection["id"]) == ("dbs/celerydb", "celerycol")

        def ReadDocument(self, link: str, options: Any) -> Any:
            if link not in self.documents:
                raise failure(404)
            return self.documents[link]

        def UpsertDocument(self, link: str, document: Any, options: Any) -> None:
            assert options == {"partitionKey": document["id"]}
            self.documents[f"{link}/docs/{document['id']}"] = document

        def DeleteDocument(self, link: str, options: Any) -> None:
            self.ReadDocument(link, options)
            del self.documents[link]

    monkeypatch.setattr(cosmosdbsql, "DocumentClient", Client)
    keeps_its_promises(make_app("cosmosdbsql://:key@host"))

    assert list(Client.documents) == ["dbs/celerydb/colls/celerycol/docs/celery-task-meta-f"]


# --- Google Cloud Storage -------------------------------------------------------------------


class FakeCloud:
    """Blobs of a bucket, and documents that count."""

    def __init__(self, gcs: Any) -> None:
        self.gcs = gcs
        self.blobs: dict[str, Any] = {}
        self.documents: dict[str, dict[str, Any]] = {}
        self._http = SimpleNamespace(mount=lambda *args: None)
        self.lifecycle_rules: list[Any] = []

    def client(self, project: str) -> FakeCloud:
        assert project == "shop"
        return self

    def bucket(self, name: str) -> FakeCloud:
        assert name == "results"
        return self

    def reload(self) -> None:
        """The rules are there."""

    def close(self) -> None:
        """Nothing is open."""

    def blob(self, name: str) -> Any:
        blob = SimpleNamespace(custom_time=None)

        def read(retry: Any) -> bytes:
            if name not in self.blobs:
                raise self.gcs.NotFound("no such blob")
            found: bytes = self.blobs[name][0]
            return found

        def write(value: Any, retry: Any) -> None:
            self.blobs[name] = (value.encode() if isinstance(value, str) else value, blob.custom_time)

        def delete(retry: Any) -> None:
            read(retry)
            del self.blobs[name]

        blob.download_as_bytes, blob.upload_from_string, blob.delete = read, write, delete
        return blob

    def collection(self, name: str) -> FakeCloud:
        assert name == "celery"
        return self

    def document(self, name: str) -> Any:
        def write(fields: dict[str, Any], merge: bool, retry: Any = None) -> Any:
            there = self.documents.setdefault(name, {})
            for field, value in fields.items():
                there[field] = there.get(field, 0) + value.value if hasattr(value, "value") else value
            return SimpleNamespace(transform_results=[SimpleNamespace(integer_value=there.get("chord_count"))])

        def create(fields: dict[str, Any]) -> None:
            if name in self.documents:
                raise self.gcs.AlreadyExists("there")
            self.documents[name] = fields

        return SimpleNamespace(set=write, create=create, delete=lambda: self.documents.pop(name, None))


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> FakeCloud:
    pytest.importorskip("google.cloud.storage", reason=HOW_TO_GET)
    pytest.importorskip("google.cloud.firestore", reason=HOW_TO_GET)
    from celery_clone.backends import gcs

    cloud = FakeCloud(gcs)
    monkeypatch.setattr(gcs.storage, "Client", cloud.client)
    monkeypatch.setattr(gcs.firestore, "Client", cloud.client)
    monkeypatch.setattr(gcs.GCSBackend, "_is_firestore_ttl_policy_enabled", lambda self: True)
    return cloud


def test_objects_in_google_cloud_storage(cloud: FakeCloud) -> None:
    keeps_its_promises(make_app("gs://results/base/path?gcs_project=shop"))

    assert list(cloud.blobs) == ["base/path/celery-task-meta-f"]


def test_objects_with_a_lifetime_need_a_rule_of_the_bucket(cloud: FakeCloud) -> None:
    with pytest.raises(ImproperlyConfigured, match="lifecycle rule"):
        assert make_app("gs://results?gcs_project=shop&gcs_ttl=60").backend

    cloud.lifecycle_rules = [{"action": {"type": "Delete"}}]
    app = make_app("gs://results?gcs_project=shop&gcs_ttl=60")
    app.backend.mark_as_done("a", 1)

    until = cloud.blobs["celery-task-meta-a"][1]
    assert timedelta(seconds=50) < until - datetime.now(timezone.utc) < timedelta(seconds=70)


def test_a_chord_is_counted_in_firestore(cloud: FakeCloud) -> None:
    app = make_app("gs://results?gcs_project=shop")
    sent: list[Any] = []
    app.task(name="sum")(sum)
    app.tasks["sum"].apply_async = lambda args=None, *more, **options: sent.append(args)
    body = app.signature("sum", app=app)
    body.freeze("body")
    members = [app.AsyncResult(name) for name in ("a", "b")]
    app.backend.apply_chord(("g", members), body)

    for at in (0, 1, 1):
        request = Context({"id": members[at].id, "group": "g", "group_index": at, "chord": dict(body)})
        app.backend.mark_as_done(members[at].id, at + 1, request=request)

    assert [list(args) for args in sent] == [[[1, 2]]]
    assert "chord-unlock-g" not in cloud.documents
    assert "celery-taskset-meta-g" not in cloud.blobs
