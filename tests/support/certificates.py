"""Certificates for servers that speak TLS, made by the program openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

__all__ = ("Certificate", "make_certificate")


class Certificate(NamedTuple):
    """Files of a self-signed certificate for ``localhost``."""

    key: Path
    path: Path


def make_certificate(folder: Path) -> Certificate:
    """A new one, valid for two days."""
    made = Certificate(folder / "key.pem", folder / "cert.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", made.key, "-out", made.path,
         "-days", "2", "-subj", "/CN=localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    return made
