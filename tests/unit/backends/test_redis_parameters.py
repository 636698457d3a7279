"""Settings and URLs as parameters of connections to Redis."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from redis.credentials import UsernamePasswordCredentialProvider

from celery_clone import Celery
from celery_clone.backends.redis import RedisBackend, SentinelBackend
from celery_clone.backends.redis.parameters import additional_errors
from celery_clone.exceptions import BackendStoreError


class Provider(UsernamePasswordCredentialProvider):
    """Gives user name and password from somewhere else."""


@pytest.fixture
def make() -> Iterator[Callable[..., Any]]:
    apps: list[Celery] = []

    def make(url: str | None = None, kind: type = RedisBackend, **conf: Any) -> Any:
        app = Celery("tests", broker="memory://", set_as_current=False)
        app.conf.update(conf)
        apps.append(app)
        return kind(app=app, url=url)

    yield make
    for app in apps:
        app.close()


def test_without_a_url_the_settings_say_where(make: Callable[..., Any]) -> None:
    params = make(
        redis_host="h", redis_port=1, redis_db=2, redis_username="u", redis_password="p", redis_max_connections=9
    ).connparams

    assert (params["host"], params["port"], params["db"]) == ("h", 1, 2)
    assert (params["username"], params["password"], params["max_connections"]) == ("u", "p", 9)


def test_without_anything_it_is_the_server_of_this_machine(make: Callable[..., Any]) -> None:
    params = make().connparams

    assert (params["host"], params["port"], params["db"], params["password"]) == ("localhost", 6379, 0, None)


def test_the_url_goes_before_the_settings(make: Callable[..., Any]) -> None:
    params = make("redis://u:p@h:1/3?socket_timeout=4.5", redis_host="other", redis_db=9).connparams

    assert (params["host"], params["port"], params["db"]) == ("h", 1, 3)
    assert (params["username"], params["password"], params["socket_timeout"]) == ("u", "p", 4.5)


def test_settings_of_the_connection_are_handed_on(make: Callable[..., Any]) -> None:
    params = make(
        redis_socket_timeout=5,
        redis_socket_connect_timeout=2,
        redis_retry_on_timeout=True,
        redis_socket_keepalive=True,
        redis_backend_health_check_interval=7,
        redis_client_name="shop",
    ).connparams

    assert (params["socket_timeout"], params["socket_connect_timeout"]) == (5.0, 2.0)
    assert params["retry_on_timeout"] is True
    assert params["socket_keepalive"] is True
    assert params["health_check_interval"] == 7
    assert params["client_name"] == "shop"


def test_a_socket_file_has_neither_host_nor_port(make: Callable[..., Any]) -> None:
    params = make("socket:///var/run/redis.sock?virtual_host=4").connparams

    assert params["path"] == "/var/run/redis.sock"
    assert params["db"] == 4
    assert params["connection_class"] is redis.UnixDomainSocketConnection
    assert not {"host", "port"} & set(params)


def test_tls_is_told_by_the_scheme(make: Callable[..., Any]) -> None:
    params = make("rediss://h:1/0?ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs=%2Fetc%2Fca.pem").connparams

    assert params["connection_class"] is redis.SSLConnection
    assert params["ssl_cert_reqs"] == ssl.CERT_REQUIRED
    assert params["ssl_ca_certs"] == "/etc/ca.pem"


@pytest.mark.parametrize("url", ["rediss://h:1/0", "rediss://h:1/0?ssl_cert_reqs=perhaps"])
def test_tls_must_say_who_is_trusted(url: str, make: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="must have parameter ssl_cert_reqs"):
        make(url)


@pytest.mark.parametrize("wanted", ["none", "CERT_OPTIONAL"])
def test_tls_that_trusts_anybody_is_warned_of(
    wanted: str, make: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        make(f"rediss://h:1/0?ssl_cert_reqs={wanted}")

    assert "man in the middle" in caplog.text


def test_tls_by_setting_works_with_a_plain_url(make: Callable[..., Any]) -> None:
    params = make("redis://h:1/0", redis_backend_use_ssl={"ssl_cert_reqs": ssl.CERT_REQUIRED}).connparams

    assert params["connection_class"] is redis.SSLConnection


def test_tls_parameters_in_a_plain_url_are_a_mistake(make: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="should use the scheme rediss://"):
        make("redis://h:1/0?ssl_cert_reqs=none")


@pytest.mark.parametrize("given", [Provider("u", "p"), f"{__name__}.Provider"], ids=["object", "path"])
def test_a_credential_provider_takes_the_place_of_user_and_password(
    given: Any, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or type(sys)(__name__))
    monkeypatch.setattr(sys.modules[__name__], "Provider", Provider, raising=False)

    params = make(redis_backend_credential_provider=given, redis_password="ignored").connparams

    assert isinstance(params["credential_provider"], Provider)
    assert "password" not in params


def test_what_is_no_credential_provider_is_refused(make: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="Credential provider"):
        make(redis_backend_credential_provider=object())


def test_passwords_are_not_shown(make: Callable[..., Any]) -> None:
    assert make("redis://u:secret@h:1/0").as_uri() == "redis://u:**@h:1/0"
    assert make("redis://u:secret@h:1/0").as_uri(include_password=True) == "redis://u:secret@h:1/0"


def test_sentinels_are_several_and_the_database_is_that_of_the_first(make: Callable[..., Any]) -> None:
    backend = make("sentinel://:p@a:1/3;sentinel://b:2/3", SentinelBackend)

    assert [(host["host"], host["port"]) for host in backend.connparams["hosts"]] == [("a", 1), ("b", 2)]
    assert (backend.connparams["db"], backend.connparams["password"]) == (3, "p")
    assert "host" not in backend.connparams
    assert backend.as_uri() == "sentinel://:**@a:1/3;sentinel://b:2/3"


def test_the_pool_of_sentinels_asks_for_the_master_of_the_options(make: Callable[..., Any]) -> None:
    backend = make(
        "sentinel://a:1/3;sentinel://b:2/3",
        SentinelBackend,
        result_backend_transport_options={"master_name": "shop", "sentinel_kwargs": {"password": "s"}},
    )

    pool = backend.client.connection_pool

    assert pool.service_name == "shop"
    assert pool.is_master


def test_the_retry_policy_may_be_set(make: Callable[..., Any]) -> None:
    backend = make(result_backend_transport_options={"retry_policy": {"max_retries": 3}})

    assert backend.retry_policy == {
        "max_retries": 3, "interval_start": 0, "interval_step": 1, "interval_max": 1,
    }  # fmt: skip


def test_further_errors_may_mean_a_lost_connection(make: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    backend = make(
        result_backend_transport_options={"additional_connection_errors": ["builtins.LookupError", "no.such"]}
    )

    assert backend.exception_safe_to_retry(LookupError())
    assert backend.exception_safe_to_retry(redis.ConnectionError())
    assert not backend.exception_safe_to_retry(ValueError())
    assert "no.such" in caplog.text
    assert additional_errors(KeyError) == [KeyError]
    assert additional_errors(None) == []


def test_decoded_responses_cannot_be_compressed(make: Callable[..., Any]) -> None:
    with pytest.warns(UserWarning, match="decode_responses"):
        backend = make("redis://h:1/0?decode_responses=true", result_compression="gzip")

    assert backend.compression is None


def test_a_value_larger_than_redis_takes_is_refused(make: Callable[..., Any]) -> None:
    backend = make()
    backend._MAX_STR_VALUE_SIZE = 10

    with pytest.raises(BackendStoreError, match="too large"):
        backend.mark_as_done("t", "x" * 20)


def test_one_instance_serves_all_threads(make: Callable[..., Any]) -> None:
    assert make().thread_safe is True
