"""Errors and digests of the package ``cryptography``, in our terms.

Called by the other modules of ``security``.  The first to be imported, so it is
the one that says what to install.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery_clone.exceptions import ImproperlyConfigured, SecurityError

CRYPTOGRAPHY_NOT_INSTALLED = (
    "You need to install the cryptography library to use the auth serializer: pip install celery_clone[auth]"
)

try:
    import cryptography.exceptions
    from cryptography.hazmat.primitives import hashes
except ImportError as missing:
    raise ImproperlyConfigured(CRYPTOGRAPHY_NOT_INSTALLED) from missing

__all__ = ("DEFAULT_SECURITY_DIGEST", "get_digest_algorithm", "reraise_errors")

DEFAULT_SECURITY_DIGEST = "sha256"

#: Everything ``cryptography`` raises on its own account.
CRYPTOGRAPHY_ERRORS: tuple[type[Exception], ...] = tuple(
    found
    for found in vars(cryptography.exceptions).values()
    if isinstance(found, type) and issubclass(found, Exception)
)


def get_digest_algorithm(digest: str = DEFAULT_SECURITY_DIGEST) -> Any:
    """Return the hash algorithm called ``digest``.

    Raises :exc:`~celery_clone.exceptions.SecurityError` for an unknown name.
    """
    algorithm = getattr(hashes, digest.upper(), None)
    if algorithm is None:
        raise SecurityError(f"Unknown digest: {digest!r}. Set security_digest to one such as 'sha256'.")
    return algorithm()


@contextmanager
def reraise_errors(msg: str = "{0!r}", errors: tuple[type[BaseException], ...] | None = None) -> Iterator[None]:
    """Raise errors of the body as :exc:`~celery_clone.exceptions.SecurityError`.

    ``msg`` is formatted with the error; ``errors`` says which ones, those of
    ``cryptography`` by default.
    """
    caught = CRYPTOGRAPHY_ERRORS if errors is None else errors
    try:
        yield
    except caught as error:
        raise SecurityError(msg.format(error)) from error


def to_bytes(text: str | bytes) -> bytes:
    """Return ``text`` as bytes; text is UTF-8."""
    return text.encode() if isinstance(text, str) else text
