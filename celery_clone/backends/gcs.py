"""Results as objects in Google Cloud Storage; chords are counted in Firestore.

Chosen by ``result_backend = "gs://bucket/base/path?gcs_project=name"``, or with the settings that begin
with ``gcs_``.  The collection ``celery`` of Firestore needs a policy that drops documents by their
field ``expires_at``; a bucket for results with ``gcs_ttl`` needs a rule that deletes by custom time.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any

from kombu.utils.encoding import bytes_to_str
from kombu.utils.url import url_to_parts

from celery_clone.exceptions import ImproperlyConfigured

from .base import KeyValueStoreBackend
from .clients import PerProcess, library_missing

try:
    import requests.adapters
    from google.api_core.exceptions import AlreadyExists, Conflict, NotFound
    from google.api_core.retry import Retry, if_exception_type
    from google.cloud import storage
    from google.cloud.storage.retry import DEFAULT_RETRY
except ImportError:  # the extra "gcs"
    storage = None

try:
    from google.cloud import firestore, firestore_admin_v1
except ImportError:  # the extra "gcs"
    firestore = firestore_admin_v1 = None

__all__ = ("GCSBackend",)

COLLECTION = "celery"
COUNT = "chord_count"
EXPIRES = "expires_at"

CHORD_LIFETIME_S = 86400.0


class GCSBackendBase(KeyValueStoreBackend):
    """Keeps results in a bucket."""

    thread_safe = True

    def __init__(self, **kwargs: Any) -> None:
        if storage is None:
            raise library_missing("GCS", "google-cloud-storage", "gcs")
        super().__init__(**kwargs)
        conf = self.app.conf
        if self.url:
            parts = url_to_parts(self.url)
            found = {"gcs_bucket": parts.hostname, "gcs_base_path": parts.path, **parts.query}
            conf.update({name: value for name, value in found.items() if value is not None})
        self.bucket_name = conf.get("gcs_bucket")
        if not self.bucket_name:
            raise ImproperlyConfigured("Missing bucket name: specify gcs_bucket to use gcs backend")
        self.project = conf.get("gcs_project")
        if not self.project:
            raise ImproperlyConfigured("Missing project: specify gcs_project to use gcs backend")
        self.base_path = (conf.get("gcs_base_path") or "").strip("/")
        self._threadpool_maxsize = int(conf.get("gcs_threadpool_maxsize", 10))
        self._client = PerProcess(self._connect, lambda client: client.close())
        self.ttl = float(conf.get("gcs_ttl") or 0)
        if self.ttl < 0:
            raise ImproperlyConfigured(f"Invalid ttl: gcs_ttl {self.ttl} must be greater than or equal to 0")
        if self.ttl and not self._is_bucket_lifecycle_rule_exists():
            raise ImproperlyConfigured(
                f"Missing lifecycle rule to use gcs backend with ttl on bucket {self.bucket_name!r}: give it one that "
                "deletes by custom time, or leave gcs_ttl unset"
            )

    def _connect(self) -> Any:
        client = storage.Client(project=self.project)
        size = self._threadpool_maxsize
        adapter = requests.adapters.HTTPAdapter(pool_connections=size, pool_maxsize=size, max_retries=3)
        client._http.mount("https://", adapter)
        login = getattr(client._http, "_auth_request", None)
        if login is not None:
            login.session.mount("https://", adapter)
        return client

    @property
    def client(self) -> Any:
        """The client of this process."""
        return self._client()

    @property
    def bucket(self) -> Any:
        """The bucket of results."""
        return self.client.bucket(self.bucket_name)

    def _is_bucket_lifecycle_rule_exists(self) -> bool:
        bucket = self.bucket
        bucket.reload()
        return any(rule["action"]["type"] == "Delete" for rule in bucket.lifecycle_rules)

    def _get_blob(self, key: Any) -> Any:
        name = bytes_to_str(key)
        return self.bucket.blob(f"{self.base_path}/{name}" if self.base_path else name)

    def get(self, key: Any) -> Any:
        """The value of a key, or ``None``."""
        try:
            return self._get_blob(key).download_as_bytes(retry=DEFAULT_RETRY)
        except NotFound:
            return None

    def mget(self, keys: Iterable[Any]) -> Any:
        """The values of several keys, read together."""
        with ThreadPoolExecutor(self._threadpool_maxsize) as pool:
            return list(pool.map(self.get, keys))

    def set(self, key: Any, value: Any) -> None:
        """Write a value."""
        blob = self._get_blob(key)
        if self.ttl:
            blob.custom_time = datetime.now(timezone.utc) + timedelta(seconds=self.ttl)
        blob.upload_from_string(value, retry=DEFAULT_RETRY)

    def delete(self, key: Any) -> None:
        """Remove a key; legal if it is not there."""
        try:
            self._get_blob(key).delete(retry=DEFAULT_RETRY)
        except NotFound:
            pass  # gone is what was wanted

    def close(self) -> None:
        """Let go of connections; the next use makes new ones.  Legal twice."""
        self._client.close()


class GCSBackend(GCSBackendBase):
    """Keeps results in a bucket, and counts chords in Firestore."""

    implements_incr = True
    supports_native_join = True
    supports_result_compression = True

    def __init__(self, **kwargs: Any) -> None:
        if firestore is None:
            raise library_missing("GCS", "google-cloud-firestore", "gcs")
        super().__init__(**kwargs)
        self.firestore_project = self.app.conf.get("firestore_project", self.project)
        self._firestore = PerProcess(
            lambda: firestore.Client(project=self.firestore_project), lambda client: client.close()
        )
        if not self._is_firestore_ttl_policy_enabled():
            raise ImproperlyConfigured(
                f"Missing TTL policy to use gcs backend: make one for the field {EXPIRES!r} of the Firestore "
                f"collection {COLLECTION!r} of project {self.firestore_project!r}"
            )

    @property
    def firestore_client(self) -> Any:
        """The client of this process."""
        return self._firestore()

    def _is_firestore_ttl_policy_enabled(self) -> bool:
        place = f"projects/{self.firestore_project}/databases/(default)/collectionGroups/{COLLECTION}/fields/{EXPIRES}"
        request = firestore_admin_v1.GetFieldRequest(name=place)
        policy = firestore_admin_v1.FirestoreAdminClient().get_field(request=request).ttl_config
        good = firestore_admin_v1.Field.TtlConfig.State
        return bool(policy and policy.state in {good.ACTIVE, good.CREATING})

    def _document(self, key: Any) -> Any:
        return self.firestore_client.collection(COLLECTION).document(bytes_to_str(key))

    def incr(self, key: Any) -> int:
        """Add one to a counter; its new value."""
        patience = Retry(
            predicate=if_exception_type(Conflict), initial=1.0, maximum=180.0, multiplier=2.0, timeout=180.0
        )
        written = self._document(key).set({COUNT: firestore.Increment(1)}, merge=True, retry=patience)
        count: int = written.transform_results[0].integer_value
        return count

    def _expire_chord_key(self, key: Any, expires: float) -> None:
        until = datetime.now(timezone.utc) + timedelta(seconds=expires)
        self._document(key).set({EXPIRES: until}, merge=True)

    def _apply_chord_incr(self, header_result_args: Any, body: Any, **kwargs: Any) -> None:
        self._expire_chord_key(self.get_key_for_chord(header_result_args[0]), CHORD_LIFETIME_S)
        super()._apply_chord_incr(header_result_args, body, **kwargs)

    def _is_new_chord_part(self, request: Any) -> bool:
        key = self.get_key_for_chord(request.group, f".{request.id}:{request.group_index}")
        until = datetime.now(timezone.utc) + timedelta(seconds=CHORD_LIFETIME_S)
        try:
            self._document(key).create({EXPIRES: until})
        except AlreadyExists:
            return False
        return True

    def delete(self, key: Any) -> None:
        """Remove a key, or a counter; legal if it is not there."""
        if self.key_t(key).startswith(self.chord_keyprefix):
            self._document(key).delete()
        else:
            super().delete(key)

    def close(self) -> None:
        """Let go of connections; the next use makes new ones.  Legal twice."""
        super().close()
        self._firestore.close()
