"""The certificates of those whose messages are trusted.

Made by ``security.serialization`` from the files the settings
``security_certificate`` and ``security_cert_store`` name.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509 import load_pem_x509_certificate

from celery_clone.exceptions import SecurityError
from celery_clone.security.key import signature_padding
from celery_clone.security.utils import reraise_errors, to_bytes

__all__ = ("CertStore", "Certificate", "FSCertStore")


class Certificate:
    """An X.509 certificate of an RSA key, in the PEM format."""

    def __init__(self, cert: str | bytes) -> None:
        with reraise_errors("Invalid certificate: {0!r}", errors=(ValueError,)):
            self._cert = load_pem_x509_certificate(to_bytes(cert))
            key = self._cert.public_key()
            if not isinstance(key, rsa.RSAPublicKey):
                raise ValueError("Non-RSA certificates are not supported. Make one of an RSA key.")
        self._key = key

    def has_expired(self) -> bool:
        """Return true if the certificate is no longer valid."""
        return datetime.now(timezone.utc) >= self._cert.not_valid_after_utc

    def get_pubkey(self) -> rsa.RSAPublicKey:
        """Return the public key."""
        return self._key

    def get_serial_number(self) -> int:
        """Return the number its issuer gave it."""
        return self._cert.serial_number

    def get_issuer(self) -> str:
        """Return who issued it, as a text."""
        return " ".join(str(part.value) for part in self._cert.issuer)

    def get_id(self) -> str:
        """Return issuer and number, which together are unique; sent with every message."""
        return f"{self.get_issuer()} {self.get_serial_number()}"

    def verify(self, data: str | bytes, signature: bytes, digest: Any) -> None:
        """Raise :exc:`~celery_clone.exceptions.SecurityError` unless the signature is that of ``data``."""
        if self.has_expired():
            raise SecurityError(f"Expired certificate: {self.get_id()!r}. Put a new one into the store.")
        with reraise_errors("Bad signature: {0!r}"):
            self._key.verify(signature, to_bytes(data), signature_padding(digest), digest)


class CertStore:
    """Certificates by their id."""

    def __init__(self) -> None:
        self._certs: dict[str, Certificate] = {}

    def itercerts(self) -> Iterator[Certificate]:
        """Yield all certificates."""
        yield from self._certs.values()

    def __getitem__(self, id: str | bytes) -> Certificate:
        name = id.decode() if isinstance(id, bytes) else id
        try:
            return self._certs[name]
        except KeyError:
            raise SecurityError(
                f"Unknown certificate: {name!r}. Put the sender's certificate into the store to trust it."
            ) from None

    def add_cert(self, cert: Certificate) -> None:
        """Trust one more certificate; raise if there is one of the same id."""
        name = cert.get_id()
        if name in self._certs:
            raise SecurityError(f"Duplicate certificate: {name!r}. Remove one of the two from the store.")
        self._certs[name] = cert


class FSCertStore(CertStore):
    """The certificates in a folder, or in the files a pattern such as ``/certs/*.pem`` matches."""

    def __init__(self, path: str) -> None:
        super().__init__()
        if os.path.isdir(path):
            path = os.path.join(path, "*")
        for name in sorted(glob.glob(path)):
            with open(name) as file:
                cert = Certificate(file.read())
            if cert.has_expired():
                raise SecurityError(f"Expired certificate: {cert.get_id()!r} in {name}. Remove or renew it.")
            self.add_cert(cert)
