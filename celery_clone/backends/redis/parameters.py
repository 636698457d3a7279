"""How to connect to Redis, from settings and URLs: parameters for redis-py's connections.

Used by the store when it is made.  Connects to nothing.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import redis
from kombu.utils.url import _parse_url
from redis.credentials import CredentialProvider

from celery_clone._version import __version__
from celery_clone.utils.functional import dictfilter
from celery_clone.utils.imports import symbol_by_name
from celery_clone.utils.log import get_logger

__all__ = ("additional_errors", "check_certificates", "driver_info", "from_settings", "from_url")

logger = get_logger("celery.backends.redis")

E_MISSING_CERT_REQS = (
    "A rediss:// URL must have parameter ssl_cert_reqs and this must be set to CERT_REQUIRED, CERT_OPTIONAL, "
    "or CERT_NONE, as in rediss://host:6380/0?ssl_cert_reqs=CERT_REQUIRED"
)
E_SCHEME_MISMATCH = (
    "SSL connection parameters have been provided but the specified URL scheme is redis://. A Redis SSL "
    "connection URL should use the scheme rediss://."
)
W_CERTIFICATE = (
    "Setting ssl_cert_reqs=%s when connecting to redis means that the identity of the redis server %s be "
    "validated. This leaves you vulnerable to man in the middle attacks."
)

CERT_REQS = {
    "CERT_REQUIRED": ssl.CERT_REQUIRED,
    "CERT_OPTIONAL": ssl.CERT_OPTIONAL,
    "CERT_NONE": ssl.CERT_NONE,
    "required": ssl.CERT_REQUIRED,
    "optional": ssl.CERT_OPTIONAL,
    "none": ssl.CERT_NONE,
}
SSL_PARAMETERS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs")


def from_settings(conf: Any, max_connections: int | None, ssl_class: Any) -> dict[str, Any]:
    """What the settings ``redis_*`` say."""
    setting = conf.get
    timeout, connect_timeout = setting("redis_socket_timeout"), setting("redis_socket_connect_timeout")
    params: dict[str, Any] = {
        "host": setting("redis_host") or "localhost",
        "port": setting("redis_port") or 6379,
        "db": setting("redis_db") or 0,
        "password": setting("redis_password"),
        "max_connections": max_connections,
        "socket_timeout": timeout and float(timeout),
        "retry_on_timeout": setting("redis_retry_on_timeout") or False,
        "socket_connect_timeout": connect_timeout and float(connect_timeout),
        "client_name": setting("redis_client_name"),
    }
    # Older servers and sockets of files refuse some of these, so they are given only if they are set.
    optional = {
        "username": setting("redis_username"),
        "health_check_interval": setting("redis_backend_health_check_interval"),
        "socket_keepalive": setting("redis_socket_keepalive"),
    }
    params.update((name, value) for name, value in optional.items() if value)
    provider = setting("redis_backend_credential_provider")
    if provider:
        use_credential_provider(params, provider)
    encryption = setting("redis_backend_use_ssl")
    if encryption:
        params.update(encryption)
        params["connection_class"] = ssl_class
    return params


def from_url(url: str, defaults: Mapping[str, Any], ssl_class: Any) -> dict[str, Any]:
    """*defaults* with what *url* says over them.

    Raises:
        ValueError: ``redis://`` with parameters of TLS.
    """
    scheme, host, port, username, password, path, given_query = _parse_url(url)
    query = dict(given_query)
    db: Any = query.pop("virtual_host", None)
    params = {
        **defaults,
        **dictfilter({"host": host, "port": port, "username": username, "password": password}),
    }
    if scheme == "socket":
        # What stands for the database elsewhere is the path of the socket here.
        params.update(connection_class=redis.UnixDomainSocketConnection, path=f"/{path}")
        for name in ("host", "port", "socket_connect_timeout", "socket_keepalive"):
            params.pop(name, None)
        db = defaults.get("db") if db is None else db
    else:
        db = path
    db = db or 0
    params["db"] = int(db.strip("/") or 0) if isinstance(db, str) else int(db)
    if scheme == "redis" and any(name in query for name in SSL_PARAMETERS):
        raise ValueError(E_SCHEME_MISMATCH)
    if scheme == "rediss":
        params["connection_class"] = ssl_class
        for name in SSL_PARAMETERS:
            value = query.pop(name, None)
            if value:
                params[name] = unquote(value)
    provider = query.pop("credential_provider", None)
    if provider:
        use_credential_provider(params, provider)
    parsers: Any = redis.connection.URL_QUERY_ARGUMENT_PARSERS
    for name, value in query.items():
        params[name] = parsers[name](value) if name in parsers else value
    return params


def check_certificates(params: dict[str, Any]) -> None:
    """Refuse TLS that does not say whether the server must prove who it is; warn if it need not.

    Raises:
        ValueError: ``ssl_cert_reqs`` is missing or unknown.
    """
    connection_class = params.get("connection_class")
    if connection_class is None or not issubclass(connection_class, redis.SSLConnection):
        return
    given = params.get("ssl_cert_reqs")
    wanted = CERT_REQS.get(given) if isinstance(given, str) else given
    if wanted not in CERT_REQS.values():
        raise ValueError(E_MISSING_CERT_REQS)
    if wanted == ssl.CERT_OPTIONAL:
        logger.warning(W_CERTIFICATE, "CERT_OPTIONAL", "might not")
    elif wanted == ssl.CERT_NONE:
        logger.warning(W_CERTIFICATE, "CERT_NONE", "will not")
    params["ssl_cert_reqs"] = wanted


def use_credential_provider(params: dict[str, Any], provider: Any) -> None:
    """Have *provider* (an instance, or the path of a class) give user name and password."""
    if isinstance(provider, str):
        provider = symbol_by_name(provider)()
    if not isinstance(provider, CredentialProvider):
        raise ValueError("Credential provider is not an instance of a redis.CredentialProvider or a subclass")
    params["credential_provider"] = provider
    for name in ("username", "password"):
        params.pop(name, None)


def driver_info() -> dict[str, Any]:
    """What the client tells the server about itself."""
    if hasattr(redis, "DriverInfo"):
        return {"driver_info": redis.DriverInfo().add_upstream_driver("celery-clone", __version__)}
    return {"lib_name": f"redis-py(celery-clone_v{__version__})"}


def additional_errors(given: Any) -> list[type[Exception]]:
    """Error classes of the transport option ``additional_connection_errors``: classes or their paths."""
    found: list[type[Exception]] = []
    for entry in (given,) if isinstance(given, (str, type)) else given or ():
        try:
            resolved = symbol_by_name(entry) if isinstance(entry, str) else entry
        except (ImportError, AttributeError, ValueError) as exc:
            logger.warning("Ignoring unresolvable additional_connection_errors entry %r: %r", entry, exc)
            continue
        if isinstance(resolved, type) and issubclass(resolved, Exception):
            found.append(resolved)
        else:
            logger.warning(
                "Ignoring invalid additional_connection_errors entry %r (resolved: %r): expected an exception "
                "class or dotted path to one.",
                entry,
                resolved,
            )
    return found
