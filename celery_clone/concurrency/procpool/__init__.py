"""Names the process pool.  Used by ``concurrency.prefork`` and ``concurrency.asynpool``."""

from .child import Plan
from .parent import ProcessPool

__all__ = ("Plan", "ProcessPool")
