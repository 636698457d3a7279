"""Files that come with the package.

Called by the worker's banner, on terminals that show pictures, and by the
documentation.
"""

from __future__ import annotations

import os

__all__ = ("get_file", "logo")


def get_file(*args: str) -> str:
    """Return the path of a file below the folder of this module."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), *args)


def logo() -> str:
    """Return the path of the logo, a PNG of 128 by 128 points."""
    return get_file("logo_128.png")
