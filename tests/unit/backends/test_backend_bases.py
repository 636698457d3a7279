"""What all stores share: what is stored, how an operation is tried again, what the settings say."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from celery_clone import Celery, states
from celery_clone.backends import cache
from celery_clone.backends.base import (
    BaseBackend,
    DisabledBackend,
    KeyValueStoreBackend,
)
from celery_clone.backends.cache import CacheBackend, DummyClient, MemoryStore
from celery_clone.backends.filesystem import FilesystemBackend
from celery_clone.canvas import group
from celery_clone.exceptions import (
    BackendGetMetaError,
    BackendStoreError,
    ImproperlyConfigured,
    TimeoutError,
)
from celery_clone.execution.context import Context


class Passing(Exception):
    """An error that passes."""


class MemoryBackend(KeyValueStoreBackend):
    """The least a key/value store must be; can be told to fail."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.values: dict[bytes, Any] = {}
        self.failures: list[Exception] = []
        self.naps: list[float] = []

    def _attempt(self) -> None:
        if self.failures:
            raise self.failures.pop(0)

    def get(self, key: bytes) -> Any:
        self._attempt()
        return self.values.get(key)

    def mget(self, keys: Any) -> Any:
        return [self.values.get(key) for key in keys]

    def set(self, key: bytes, value: Any) -> None:
        self.values[key] = value

    def delete(self, key: bytes) -> None:
        self.values.pop(key, None)

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        return isinstance(exc, Passing)

    def _sleep(self, amount: float) -> None:
        self.naps.append(amount)


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("tests", broker="memory://", set_as_current=False)
    yield app
    app.close()


# --- no store --------------------------------------------------------------------------


def test_without_a_store_asking_says_what_to_set(app: Celery) -> None:
    assert isinstance(app.backend, DisabledBackend)
    for ask in (
        lambda: app.AsyncResult("t").state,
        lambda: app.AsyncResult("t").get(timeout=1),
        lambda: app.AsyncResult("t").forget(),
        lambda: app.GroupResult("g", []).save(),
    ):
        with pytest.raises(NotImplementedError, match="No result backend is configured(.|\n)*result_backend"):
            ask()
    with pytest.raises(NotImplementedError, match="Starting chords requires a result backend"):
        app.backend.ensure_chords_allowed()


def test_without_a_store_a_chord_is_refused_before_anything_is_sent(app: Celery) -> None:
    member, body = app.signature("tests.member"), app.signature("tests.body")
    with pytest.raises(NotImplementedError, match="requires a result backend(.|\n)*Set result_backend, for instance"):
        (group(member, member) | body).apply_async()
    with app.connection_for_read() as connection:
        assert connection.SimpleQueue("celery").qsize() == 0


def test_without_a_store_storing_is_no_error(app: Celery) -> None:
    app.backend.mark_as_done("t", 1)
    app.backend.mark_as_failure("t", KeyError())

    assert app.backend.as_uri() == "disabled://"


# --- settings ------------------------------------------------------------------------------


def test_an_unknown_serializer_is_refused_with_a_hint(app: Celery) -> None:
    app.conf.result_serializer = "jsn"

    with pytest.raises(ImproperlyConfigured, match="'jsn'.*json"):
        BaseBackend(app)


def test_an_unknown_compression_is_refused(app: Celery, tmp_path: Path) -> None:
    app.conf.result_compression = "squeeze"

    with pytest.raises(ImproperlyConfigured, match="Unknown compression method 'squeeze'"):
        FilesystemBackend(app=app, url=f"file://{tmp_path}")


def test_compression_is_left_out_where_it_cannot_be_kept(app: Celery) -> None:
    app.conf.result_compression = "gzip"

    with pytest.warns(UserWarning, match="cannot store compressed payloads"):
        backend = MemoryBackend(app)

    assert backend.compression is None


def test_a_store_that_cannot_keep_failures_for_another_time_says_so(app: Celery) -> None:
    app.conf.result_failure_expires = 10

    with pytest.warns(UserWarning, match="does not support result_failure_expires"):
        MemoryBackend(app)


def test_times_of_expiry_are_seconds_whatever_they_were_given_as(app: Celery) -> None:
    backend = MemoryBackend(app, expires=timedelta(minutes=1))

    assert backend.expires == 60.0
    assert backend.prepare_expires(timedelta(seconds=5), type=int) == 5
    assert backend.prepare_expires(None) == 86400.0
    assert backend.prepare_expires(0) == 0


def test_chords_are_kept_for_a_time_of_their_own(app: Celery) -> None:
    app.conf.update(result_expires=10, result_chord_expires=100)
    backend = MemoryBackend(app)
    assert (backend.chord_expires, backend._chord_result_expires) == (100, 100)

    app.conf.result_expires = 0
    assert MemoryBackend(app)._chord_result_expires == 0


def test_the_cache_keeps_what_was_read_and_no_more_than_it_may(app: Celery) -> None:
    backend = MemoryBackend(app, max_cached_results=2)
    for task_id in "abc":
        backend.mark_as_done(task_id, task_id)
        backend.get_task_meta(task_id)

    assert [backend.is_cached(task_id) for task_id in "abc"] == [False, True, True]
    assert not MemoryBackend(app).is_cached("a")


def test_a_backend_is_pickled_as_how_to_make_it(app: Celery, tmp_path: Path) -> None:
    app.set_current()
    backend = FilesystemBackend(app=app, url=f"file://{tmp_path}")

    copy = pickle.loads(pickle.dumps(backend))

    assert copy.url == backend.url
    assert copy.app is app


# --- trying again ------------------------------------------------------------------------------


def test_errors_that_pass_are_raised_unless_the_setting_says_otherwise(app: Celery) -> None:
    backend = MemoryBackend(app)
    backend.failures = [Passing()]

    with pytest.raises(Passing):
        backend.get_task_meta("t")


def test_an_operation_is_tried_again_with_growing_pauses(app: Celery) -> None:
    app.conf.update(
        result_backend_always_retry=True,
        result_backend_base_sleep_between_retries_ms=100,
        result_backend_max_sleep_between_retries_ms=400,
    )
    backend = MemoryBackend(app)
    backend.failures = [Passing() for _ in range(6)]

    assert backend.get_task_meta("t")["status"] == states.PENDING

    assert len(backend.naps) == 6
    assert all(0 <= nap <= 0.4 for nap in backend.naps)


def test_after_so_many_attempts_reading_fails_with_the_id(app: Celery) -> None:
    app.conf.update(result_backend_always_retry=True, result_backend_max_retries=2)
    backend = MemoryBackend(app)
    backend.failures = [Passing() for _ in range(3)]

    with pytest.raises(BackendGetMetaError) as raised:
        backend.get_task_meta("t")

    assert raised.value.task_id == "t"
    assert isinstance(raised.value.__cause__, Passing)


def test_after_so_many_attempts_storing_fails_with_the_id_and_the_state(app: Celery) -> None:
    app.conf.update(result_backend_always_retry=True, result_backend_max_retries=1)
    backend = MemoryBackend(app)
    backend.failures = [Passing() for _ in range(2)]

    with pytest.raises(BackendStoreError) as raised:
        backend.mark_as_done("t", 1)

    assert (raised.value.task_id, raised.value.state) == ("t", states.SUCCESS)


def test_errors_that_do_not_pass_are_raised_at_once(app: Celery) -> None:
    app.conf.result_backend_always_retry = True
    backend = MemoryBackend(app)
    backend.failures = [KeyError("broken")]

    with pytest.raises(KeyError):
        backend.get_task_meta("t")


# --- keys ----------------------------------------------------------------------------------------


def test_keys_are_celerys(app: Celery) -> None:
    backend = MemoryBackend(app)

    assert backend.get_key_for_task("t") == b"celery-task-meta-t"
    assert backend.get_key_for_group("g", ".j") == b"celery-taskset-meta-g.j"
    assert backend.get_key_for_chord("g") == b"chord-unlock-g"
    assert backend.get_key_for_task(UUID(int=1)) == b"celery-task-meta-00000000-0000-0000-0000-000000000001"
    assert backend._strip_prefix(b"celery-task-meta-t") == "t"


@pytest.mark.parametrize(("prefix", "start"), [("shop", b"shop_"), ("shop:", b"shop:"), ("shop-", b"shop-")])
def test_a_prefix_for_all_keys_is_set_apart(prefix: str, start: bytes, app: Celery) -> None:
    app.conf.result_backend_transport_options = {"global_keyprefix": prefix}

    assert MemoryBackend(app).get_key_for_task("t") == start + b"celery-task-meta-t"


def test_a_key_needs_an_id(app: Celery) -> None:
    for make in (
        MemoryBackend(app).get_key_for_task,
        MemoryBackend(app).get_key_for_group,
        MemoryBackend(app).get_key_for_chord,
    ):
        with pytest.raises(ValueError, match="must not be empty"):
            make(None)


# --- many ------------------------------------------------------------------------------------------


def test_many_are_given_as_they_end_and_the_others_after_their_time_not_at_all(app: Celery) -> None:
    backend = MemoryBackend(app)
    backend.mark_as_done("a", 1)
    got: list[str] = []

    with pytest.raises(TimeoutError):
        got.extend(task_id for task_id, _ in backend.get_many(["a", "b"], timeout=0.01, interval=0.001))

    assert list(backend.get_many(["a", "b"], max_iterations=1, interval=0)) == [("a", backend.get_task_meta("a"))]


def test_a_store_that_is_asked_cannot_tell_of_states_on_the_way(app: Celery) -> None:
    backend = MemoryBackend(app)

    with pytest.raises(ImproperlyConfigured, match="on_message"):
        app.AsyncResult("t", backend=backend).get(on_message=print)


# --- what is stored -----------------------------------------------------------------------------------


def test_what_is_stored_has_the_fields_in_celerys_order(app: Celery) -> None:
    backend = MemoryBackend(app)
    backend.mark_as_done("t", 1, request=Context(id="t", group="g", parent_id="p"))

    meta = backend.decode(backend.values[b"celery-task-meta-t"])

    assert list(meta) == [
        "status", "result", "traceback", "children", "date_done", "group_id", "parent_id", "task_id",
    ]  # fmt: skip


def test_a_state_that_is_no_end_has_no_time_of_its_end(app: Celery) -> None:
    backend = MemoryBackend(app)
    backend.mark_as_started("t", pid=1, hostname="w@h")

    meta = backend.get_task_meta("t")

    assert meta["date_done"] is None
    assert meta["result"] == {"pid": 1, "hostname": "w@h"}


def test_a_result_that_is_a_result_is_stored_as_its_id(app: Celery) -> None:
    backend = MemoryBackend(app)

    backend.mark_as_done("t", app.AsyncResult("other"))

    assert backend.get_result("t") == [["other", None], None]


def test_nothing_is_stored_for_who_wants_no_result(app: Celery) -> None:
    backend = MemoryBackend(app)

    backend.mark_as_done("t", 1, request=Context(id="t", ignore_result=True))

    assert backend.values == {}


def test_the_current_error_is_stored_with_its_traceback(app: Celery) -> None:
    backend = MemoryBackend(app)
    try:
        raise KeyError("k")
    except KeyError:
        backend.fail_from_current_stack("t")

    assert backend.get_state("t") == states.FAILURE
    assert "raise KeyError" in (backend.get_traceback("t") or "")


def test_an_error_may_be_stored_where_none_is_being_handled(app: Celery) -> None:
    backend = MemoryBackend(app)

    backend.fail_from_current_stack("t", exc=KeyError("k"))

    assert repr(backend.get_result("t")) == "KeyError('k')"


# --- memory and files ------------------------------------------------------------------------------------


def test_values_in_memory_expire_and_the_oldest_make_room() -> None:
    now = [0.0]
    store = MemoryStore(most=2, clock=lambda: now[0])
    store.write("short", 1, 10)
    assert store.read("short") == 1
    now[0] = 10
    assert store.read("short") is None

    for key in "abc":
        store.write(key, key, 0)

    assert [store.read(key) for key in "abc"] == [None, "b", "c"]


def test_a_counter_in_memory_counts_what_is_there_and_nothing_else() -> None:
    client = DummyClient()

    assert client.incr("no such counter") is None
    client.set("counter", 0)
    assert [client.incr("counter"), client.incr("counter")] == [1, 2]
    assert not client.add("counter", 5)
    assert client.delete("counter")
    assert client.add("counter", 5)
    client.delete("counter")


def test_an_unknown_cache_is_refused_with_the_known_ones(app: Celery) -> None:
    with pytest.raises(ImproperlyConfigured, match="'memori' is unknown(.|\n)*memory"):
        CacheBackend(app, url="memori://")


def test_memcached_needs_its_library(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "Client", None)

    with pytest.raises(ImproperlyConfigured, match=r"pymemcache.*pip install celery_clone\[memcache\]"):
        CacheBackend(app, url="memcached://127.0.0.1:11211/").get("key")


def test_a_long_time_to_live_is_not_taken_for_a_date_by_memcached(app: Celery) -> None:
    backend = CacheBackend(app, url="memcached://127.0.0.1:11211/")

    assert backend._time_to_live(60) == 60
    assert backend._time_to_live(None) == 0
    assert backend._time_to_live(40 * 86400) > time.time()


def test_servers_are_shown_in_the_url(app: Celery) -> None:
    assert CacheBackend(app, url="memcached://a:1;b:2/").as_uri() == "memcached://a:1;b:2/"


@pytest.mark.parametrize("start", ["file://", "file://localhost"])
def test_results_are_files_in_the_folder_of_the_url(start: str, app: Celery, tmp_path: Path) -> None:
    backend = FilesystemBackend(app=app, url=f"{start}{tmp_path}")

    backend.mark_as_done("t", 1)

    assert [path.name for path in tmp_path.iterdir()] == ["celery-task-meta-t"]


@pytest.mark.parametrize("url", [None, "/no/scheme", "file:///no/such/folder"])
def test_a_folder_that_does_not_work_is_refused(url: str | None, app: Celery) -> None:
    with pytest.raises(ImproperlyConfigured, match="file-system backend"):
        FilesystemBackend(app=app, url=url)


def test_an_id_leads_nowhere_out_of_the_folder(app: Celery, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    backend = FilesystemBackend(app=app, url=f"file://{folder}")

    backend.mark_as_done("../../../escaped", 1)

    assert app.AsyncResult("../../../escaped", backend=backend).get(timeout=1) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_cleaning_removes_what_expired_and_what_was_never_finished(app: Celery, tmp_path: Path) -> None:
    import os

    app.conf.result_expires = 100
    backend = FilesystemBackend(app=app, url=f"file://{tmp_path}")
    long_ago = time.time() - 2 * 3600
    for name in ("celery-task-meta-old", "chord-unlock-old", ".new-torn", "something of yours"):
        (tmp_path / name).write_text("x")
        os.utime(tmp_path / name, (long_ago, long_ago))
    backend.mark_as_done("fresh", 1)

    backend.cleanup()

    assert {path.name for path in tmp_path.iterdir()} == {"celery-task-meta-fresh", "something of yours"}


# --- chords on stores with a counter ---------------------------------------------


@pytest.mark.parametrize(("counted", "reads"), [(True, 1), (False, 4)], ids=["counted by the caller", "not counted"])
def test_the_stored_header_of_a_chord_is_read_once_if_the_caller_counted_it(
    app: Celery, counted: bool, reads: int
) -> None:
    class Store(CacheBackend):
        headers_read = 0

        def restore_group(self, group_id: str, cache: bool = True) -> Any:
            self.headers_read += 1
            return super().restore_group(group_id, cache)

    store = Store(app, url="memory")
    members = [app.AsyncResult(f"m{number}", backend=store) for number in range(4)]
    store.apply_chord(("g", members), app.signature("body"))
    body = {**app.signature("body"), "chord_size": 4 if counted else None}
    for at, member in enumerate(members):
        request = Context({"id": member.id, "group": "g", "group_index": at, "chord": dict(body)})
        store.mark_as_done(member.id, at, request=request)
    assert store.headers_read == reads
    assert store.get(store.get_key_for_chord("g")) is None
