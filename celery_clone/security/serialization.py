"""The serializer ``auth``: another serializer's text, signed.

Registered with kombu by :func:`register_auth`; from then on every message with
its content type is verified before anything in it is decoded.
The layout is Celery's, so both sides can be either.
"""

from __future__ import annotations

from typing import Any

from kombu.serialization import dumps, loads, registry

from celery_clone.exceptions import SecurityError
from celery_clone.security.certificate import Certificate, CertStore, FSCertStore
from celery_clone.security.key import PrivateKey
from celery_clone.security.utils import (
    DEFAULT_SECURITY_DIGEST,
    get_digest_algorithm,
    reraise_errors,
    to_bytes,
)
from celery_clone.utils.serialization import b64decode, b64encode

__all__ = ("SecureSerializer", "register_auth")

#: Between the parts of a message; none of those before the body can hold it.
DEFAULT_SEPARATOR = b"\x00\x01"


class SecureSerializer:
    """Signs what ``serializer`` makes, and decodes what a trusted one signed.

    ``key`` and ``cert`` are needed to sign, ``cert_store`` to verify.
    """

    def __init__(
        self,
        key: PrivateKey | None = None,
        cert: Certificate | None = None,
        cert_store: CertStore | None = None,
        digest: str = DEFAULT_SECURITY_DIGEST,
        serializer: str = "json",
    ) -> None:
        self._key = key
        self._cert = cert
        self._cert_store = cert_store
        self._digest = get_digest_algorithm(digest)
        self._serializer = serializer

    def serialize(self, data: Any) -> str:
        """Return ``data`` encoded and signed."""
        if self._key is None or self._cert is None:
            raise SecurityError("Nothing to sign with. Set security_key and security_certificate.")
        with reraise_errors("Unable to serialize: {0!r}", (Exception,)):
            content_type, content_encoding, body = dumps(data, serializer=self._serializer)
            # The encoded text is signed, so that a receiver can verify it
            # before it decodes a single byte.
            body = to_bytes(body)
            signature = self._key.sign(body, self._digest)
            return self._pack(body, content_type, content_encoding, self._cert.get_id(), signature)

    def deserialize(self, data: str | bytes) -> Any:
        """Return what a trusted sender encoded.

        Raises :exc:`~celery_clone.exceptions.SecurityError` if the message is
        damaged, or its sender unknown.
        """
        if self._cert_store is None:
            raise SecurityError("Nobody to trust. Set security_cert_store.")
        with reraise_errors("Unable to deserialize: {0!r}", (Exception,)):
            payload = self._unpack(data)
            body = payload["body"]
            self._cert_store[payload["signer"]].verify(body, payload["signature"], self._digest)
        return loads(body, payload["content_type"], payload["content_encoding"], force=True)

    def _pack(self, body: bytes, content_type: str, content_encoding: str, signer: str, signature: bytes) -> str:
        parts = (b64encode(signer), b64encode(signature), content_type, content_encoding, body)
        return b64encode(DEFAULT_SEPARATOR.join(to_bytes(part) for part in parts))

    def _unpack(self, payload: str | bytes) -> dict[str, Any]:
        parts = b64decode(payload).split(DEFAULT_SEPARATOR, maxsplit=4)
        if len(parts) != 5:
            raise SecurityError("The message is not signed: it does not have the five parts.")
        signer, signature, content_type, content_encoding, body = parts
        return {
            "signer": b64decode(signer),
            "signature": b64decode(signature),
            "content_type": content_type.decode(),
            "content_encoding": content_encoding.decode(),
            "body": body,
        }


def register_auth(
    key: str | bytes | None = None,
    key_password: str | bytes | None = None,
    cert: str | bytes | None = None,
    store: str | None = None,
    digest: str = DEFAULT_SECURITY_DIGEST,
    serializer: str = "json",
) -> None:
    """Make the serializer ``auth`` known.

    ``key`` and ``cert`` are texts in the PEM format, ``store`` is a folder or a
    pattern of file names.
    """
    secure = SecureSerializer(
        PrivateKey(key, password=key_password) if key else None,
        Certificate(cert) if cert else None,
        FSCertStore(store) if store else None,
        digest,
        serializer=serializer,
    )
    registry.register(
        "auth",
        secure.serialize,
        secure.deserialize,
        content_type="application/data",
        content_encoding="utf-8",
    )
