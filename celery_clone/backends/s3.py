"""Results as objects in an S3 bucket.

Chosen by ``result_backend = "s3"`` (or ``s3://``) with the settings that begin with ``s3_``.  Keys and
bytes are Celery's.  Expiry is the bucket's business: give it a lifecycle rule.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kombu.utils.encoding import bytes_to_str, ensure_bytes

from celery_clone.exceptions import ImproperlyConfigured

from .base import KeyValueStoreBackend
from .clients import PerProcess, library_missing

try:
    import boto3
    from botocore.exceptions import ClientError
except ImportError:  # the extra "s3"
    boto3 = None
    ClientError = Exception

__all__ = ("S3Backend",)

NOT_THERE = frozenset({"404", "NoSuchKey"})


class S3Backend(KeyValueStoreBackend):
    """Keeps results in the bucket ``s3_bucket``, below ``s3_base_path``."""

    thread_safe = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if boto3 is None:
            raise library_missing("S3", "boto3", "s3")
        conf = self.app.conf
        self.endpoint_url = conf.get("s3_endpoint_url")
        self.aws_region = conf.get("s3_region")
        self.aws_access_key_id = conf.get("s3_access_key_id")
        self.aws_secret_access_key = conf.get("s3_secret_access_key")
        self.bucket_name = conf.get("s3_bucket")
        if not self.bucket_name:
            raise ImproperlyConfigured("Missing bucket name: set s3_bucket to use the S3 result backend")
        self.base_path = conf.get("s3_base_path") or ""
        self._client = PerProcess(self._connect, lambda client: client.close())
        # Missing credentials are told now, not with the first result.
        self._client()

    def _connect(self) -> Any:
        session = boto3.Session(
            aws_access_key_id=self.aws_access_key_id,
            aws_secret_access_key=self.aws_secret_access_key,
            region_name=self.aws_region,
        )
        if session.get_credentials() is None:
            raise ImproperlyConfigured(
                "Missing aws s3 creds: set s3_access_key_id and s3_secret_access_key, or one of the other places "
                "in which boto3 looks for credentials"
            )
        return session.client("s3", endpoint_url=self.endpoint_url)

    def _place(self, key: Any) -> dict[str, str]:
        return {"Bucket": self.bucket_name, "Key": self.base_path + bytes_to_str(key)}

    def get(self, key: Any) -> Any:
        """The value of a key, or ``None``."""
        try:
            data = self._client().get_object(**self._place(key))["Body"].read()
        except ClientError as exc:
            if exc.response["Error"]["Code"] in NOT_THERE:
                return None
            raise
        return data if self.content_encoding == "binary" else data.decode("utf-8")

    def mget(self, keys: Iterable[Any]) -> Any:
        """The values of several keys."""
        return [self.get(key) for key in keys]

    def set(self, key: Any, value: Any) -> None:
        """Write a value."""
        self._client().put_object(**self._place(key), Body=ensure_bytes(value))

    def delete(self, key: Any) -> None:
        """Remove a key; legal if it is not there."""
        self._client().delete_object(**self._place(key))

    def close(self) -> None:
        """Let go of connections; the next use makes new ones.  Legal twice."""
        self._client.close()
