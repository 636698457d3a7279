"""The private key messages are signed with.

Made by ``security.serialization`` from the file the setting ``security_key``
names; the key stays in memory and is never shown.
"""

from __future__ import annotations

from typing import Any

from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from celery_clone.security.utils import reraise_errors, to_bytes

__all__ = ("PrivateKey",)


class PrivateKey:
    """An RSA key in the PEM format, with a password if it is encrypted."""

    def __init__(self, key: str | bytes, password: str | bytes | None = None) -> None:
        # A password too many or missing is a TypeError of the library.
        with reraise_errors("Invalid private key: {0!r}", errors=(ValueError, TypeError)):
            loaded = load_pem_private_key(to_bytes(key), password=None if password is None else to_bytes(password))
            if not isinstance(loaded, rsa.RSAPrivateKey):
                raise ValueError("Non-RSA keys are not supported. Make an RSA key.")
        self._key = loaded

    def sign(self, data: str | bytes, digest: Any) -> bytes:
        """Return the signature of ``data``, whose hash is made with ``digest``."""
        with reraise_errors("Unable to sign data: {0!r}"):
            return self._key.sign(to_bytes(data), signature_padding(digest), digest)


def signature_padding(digest: Any) -> padding.PSS:
    """Return how signatures are padded; signer and verifier must agree on it."""
    return padding.PSS(mgf=padding.MGF1(digest), salt_length=padding.PSS.MAX_LENGTH)
