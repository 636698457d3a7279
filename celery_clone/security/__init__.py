"""Signed messages: only what a known sender signed is executed.

Called by ``app.setup_security()``.  Changes kombu's table of serializers, for
the whole process.
"""

from __future__ import annotations

from typing import Any

from kombu.serialization import disable_insecure_serializers, registry

from celery_clone._state import get_current_app
from celery_clone.exceptions import ImproperlyConfigured
from celery_clone.security.serialization import register_auth

__all__ = ("disable_untrusted_serializers", "setup_security")

SECURITY_SETTING_MISSING = """\
Sorry, but you have to configure the
    * security_key
    * security_certificate, and the
    * security_cert_store
configuration settings to use the auth serializer.

Each is the path of a file, the last one a folder or a pattern of paths.
"""

SETTING_MISSING = """\
You have to configure a special task serializer
for signing and verifying tasks:
    * task_serializer = 'auth'

You have to accept only tasks which are serialized with 'auth'.
There is no point in signing messages if they are not verified.
    * accept_content = ['auth']
"""


def setup_security(
    allowed_serializers: Any = None,
    key: str | None = None,
    key_password: str | bytes | None = None,
    cert: str | None = None,
    store: str | None = None,
    digest: str | None = None,
    serializer: str = "json",
    app: Any = None,
) -> None:
    """Sign what is sent and accept only what is signed.

    ``key`` and ``cert`` are paths of files, ``store`` is a folder or a pattern
    of paths; what is not given is read from the settings of ``app``.
    ``allowed_serializers`` stay usable beside ``auth``.
    Raises :exc:`~celery_clone.exceptions.ImproperlyConfigured` if settings are
    missing or would let unsigned messages in.
    """
    conf = (get_current_app() if app is None else app).conf
    disable_insecure_serializers(allowed_serializers)
    if conf.task_serializer != "auth" or list(conf.accept_content or ()) != ["auth"]:
        raise ImproperlyConfigured(SETTING_MISSING)
    key = key or conf.security_key
    cert = cert or conf.security_certificate
    store = store or conf.security_cert_store
    if not (key and cert and store):
        raise ImproperlyConfigured(SECURITY_SETTING_MISSING)
    register_auth(
        _read("security_key", key),
        key_password or conf.security_key_password,
        _read("security_certificate", cert),
        store,
        digest or conf.security_digest,
        serializer,
    )
    registry._set_default_serializer("auth")


def _read(setting: str, path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not in the PEM format"
        raise ImproperlyConfigured(
            f"{setting} names the file {path!r}, which cannot be read: {reason}. Correct the path, or let the user of "
            "this process read the file."
        ) from exc


def disable_untrusted_serializers(whitelist: Any = None) -> None:
    """Refuse all serializers that can run code, except those in ``whitelist``."""
    disable_insecure_serializers(allowed=whitelist)
