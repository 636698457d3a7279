"""``SentinelBackend``: results in the Redis that sentinels name as the master."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import redis.sentinel
from kombu.utils.url import maybe_sanitize_url

from .store import RedisBackend

__all__ = ("SentinelBackend",)


class SentinelManagedSSLConnection(redis.sentinel.SentinelManagedConnection, redis.SSLConnection):
    """A TLS connection to the master that the sentinels name."""


class SentinelBackend(RedisBackend):
    """Keeps results in the Redis that sentinels name as the master.

    The URL is that of the sentinels, ``sentinel://one:26379/0;sentinel://two:26379/0``; the transport
    options ``master_name``, ``sentinel_kwargs`` and ``min_other_sentinels`` say the rest.
    """

    _SERVER_URI_SEPARATOR = ";"

    #: The module of the client library.
    sentinel: Any = redis.sentinel
    connection_class_ssl: Any = SentinelManagedSSLConnection

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes what :class:`RedisBackend` takes; Celery's signature."""
        super().__init__(*args, **kwargs)

    def as_uri(self, include_password: bool = False) -> str | None:
        """The URLs, with the passwords only if they are asked for."""
        if include_password:
            return self.url
        shown = (maybe_sanitize_url(url) for url in (self.url or "").split(self._SERVER_URI_SEPARATOR))
        return self._SERVER_URI_SEPARATOR.join(url[:-1] if url.endswith(":///") else url for url in shown)

    def _params_from_url(self, url: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
        hosts = [
            super(SentinelBackend, self)._params_from_url(each, defaults)
            for each in url.split(self._SERVER_URI_SEPARATOR)
        ]
        params: dict[str, Any] = {**defaults, "hosts": hosts}
        for name in ("host", "port", "db", "password"):
            params.pop(name, None)
        for name in ("db", "password", "username"):
            if name in hosts[0]:
                params[name] = hosts[0][name]
        return params

    def _get_sentinel_instance(self, **params: Any) -> Any:
        hosts = params.pop("hosts")
        options = self._transport_options
        return self.sentinel.Sentinel(
            [(host["host"], host["port"]) for host in hosts],
            min_other_sentinels=options.get("min_other_sentinels", 0),
            sentinel_kwargs=options.get("sentinel_kwargs") or {},
            **params,
        )

    def _get_pool(self, **params: Any) -> Any:
        credentials = {name: params[name] for name in ("username", "password") if name in params}
        master = self._get_sentinel_instance(**params).master_for(
            service_name=self._transport_options.get("master_name"),
            redis_class=self._get_client(),
            **credentials,
        )
        return master.connection_pool
