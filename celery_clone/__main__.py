"""``python -m celery_clone`` and the console scripts: where a process of ours begins.

Called by the interpreter.  Green pools are patched in before anything else is imported.
"""

from __future__ import annotations

import sys
from importlib import import_module

from celery_clone import maybe_patch_concurrency

__all__ = ("main",)

NO_LIBRARY = """\
Error: the pool that was asked for cannot be loaded: {}.
Install its library (pip install "celery_clone[gevent]" or "celery_clone[eventlet]"), or choose another pool (-P).\
"""


def main() -> None:
    """Run the ``celery`` command line and end the process with its exit code."""
    # `celery multi` names the pool of other processes.
    if "multi" not in sys.argv:
        try:
            maybe_patch_concurrency()
        except ImportError as exc:
            print(NO_LIBRARY.format(exc), file=sys.stderr)
            sys.exit(2)
    sys.exit(import_module("celery_clone.bin.celery").main())


if __name__ == "__main__":
    main()
