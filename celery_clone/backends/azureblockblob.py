"""Results as block blobs in Azure Storage.

Chosen by ``result_backend = "azureblockblob://CONNECTION_STRING"``, or with
``DefaultAzureCredential@URL`` or ``ManagedIdentityCredential@URL`` in the place of the connection
string, and the settings that begin with ``azureblockblob_``.  The container is made if it is not there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from kombu.utils.encoding import bytes_to_str, ensure_bytes

from celery_clone.exceptions import ImproperlyConfigured
from celery_clone.utils.log import get_logger

from .base import KeyValueStoreBackend
from .clients import PerProcess, library_missing

try:
    from azure.core.exceptions import ResourceExistsError, ResourceNotFoundError
    from azure.storage.blob import BlobServiceClient, ExponentialRetry
except ImportError:  # the extra "azureblockblob"
    BlobServiceClient = ExponentialRetry = None
    ResourceExistsError = ResourceNotFoundError = Exception

try:
    from azure import identity
except ImportError:
    identity = None

__all__ = ("AzureBlockBlobBackend",)

logger = get_logger(__name__)

AZURE_BLOCK_BLOB_CONNECTION_PREFIX = "azureblockblob://"

SECRETS = re.compile(r"(AccountKey|SharedAccessSignature)=[^;]*", re.IGNORECASE)
"""The parts of a connection string that nobody should see."""

CREDENTIALS = ("DefaultAzureCredential", "ManagedIdentityCredential")
"""Classes of ``azure.identity`` that may stand before the address of the account."""


class AzureBlockBlobBackend(KeyValueStoreBackend):
    """Keeps results in one container."""

    thread_safe = True

    def __init__(self, url: str | None = None, container_name: str | None = None, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if BlobServiceClient is None:
            raise library_missing("AzureBlockBlob", "azure-storage-blob", "azureblockblob")
        conf = self.app.conf
        self.url = url
        self._connection_string = self._parse_url(url or "")
        self._container_name = container_name or conf["azureblockblob_container_name"]
        self.base_path: str = conf.get("azureblockblob_base_path") or ""
        self._connection_timeout = conf.get("azureblockblob_connection_timeout", 20)
        self._read_timeout = conf.get("azureblockblob_read_timeout", 120)
        self._client = PerProcess(self._connect, lambda client: client.close())

    @classmethod
    def _parse_url(cls, url: str, prefix: str = AZURE_BLOCK_BLOB_CONNECTION_PREFIX) -> str:
        connection_string = url[len(prefix) :]
        if not connection_string:
            raise ImproperlyConfigured(
                "Invalid URL: the result backend is azureblockblob:// followed by the connection string of the account"
            )
        return connection_string

    @property
    def _blob_service_client(self) -> Any:
        return self._client()

    def _connect(self) -> Any:
        conf = self.app.conf
        options = {
            "connection_timeout": self._connection_timeout,
            "read_timeout": self._read_timeout,
            "retry_policy": ExponentialRetry(
                initial_backoff=conf.azureblockblob_retry_initial_backoff_sec,
                increment_base=conf.azureblockblob_retry_increment_base,
                retry_total=conf.azureblockblob_retry_max_attempts,
            ),
        }
        kind, at, address = self._connection_string.partition("@")
        if at and kind in CREDENTIALS:
            if identity is None:
                raise library_missing("AzureBlockBlob", "azure-identity", "azureblockblob")
            client = BlobServiceClient(account_url=address, credential=getattr(identity, kind)(), **options)
        else:
            client = BlobServiceClient.from_connection_string(self._connection_string, **options)
        try:
            client.create_container(name=self._container_name)
        except ResourceExistsError:
            pass  # by an earlier run, or another process
        else:
            logger.info("Container %s was made.", self._container_name)
        return client

    def _blob(self, key: Any) -> Any:
        return self._client().get_blob_client(
            container=self._container_name, blob=f"{self.base_path}{bytes_to_str(key)}"
        )

    def get(self, key: Any) -> Any:
        """The value of a key, or ``None``."""
        try:
            data: bytes = self._blob(key).download_blob().readall()
        except ResourceNotFoundError:
            return None
        return data if self.content_encoding == "binary" else data.decode()

    def mget(self, keys: Iterable[Any]) -> Any:
        """The values of several keys."""
        return [self.get(key) for key in keys]

    def set(self, key: Any, value: Any) -> None:
        """Write a value."""
        self._blob(key).upload_blob(ensure_bytes(value), overwrite=True)

    def delete(self, key: Any) -> None:
        """Remove a key; legal if it is not there."""
        try:
            self._blob(key).delete_blob()
        except ResourceNotFoundError:
            pass  # gone is what was wanted

    def close(self) -> None:
        """Let go of connections; the next use makes new ones.  Legal twice."""
        self._client.close()

    def as_uri(self, include_password: bool = False) -> str:
        """The URL, with the keys of the account only if they are asked for."""
        text = self._connection_string
        shown = text if include_password else SECRETS.sub(r"\1=**", text)
        return f"{AZURE_BLOCK_BLOB_CONNECTION_PREFIX}{shown}"

    def __reduce__(self, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        own = {"expires": self.expires, "url": self.as_uri(include_password=True)}
        return super().__reduce__(args, {**(kwargs or {}), **own, "container_name": self._container_name})
