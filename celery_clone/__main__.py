"""``python -m celery_clone`` and the console scripts: where a process of ours begins.

Called by the interpreter.  Green pools are patched in before anything else is imported.
"""

from __future__ import annotations

import sys
from importlib import import_module

from celery_clone import maybe_patch_concurrency

__all__ = ("main",)


def main() -> None:
    """Run the ``celery`` command line and end the process with its exit code."""
    # `celery multi` names the pool of other processes.
    if "multi" not in sys.argv:
        maybe_patch_concurrency()
    sys.exit(import_module("celery_clone.bin.celery").main())


if __name__ == "__main__":
    main()
