"""Old names of the process pool, for code that imports them from here.

Used by nobody inside.  ``PROC_ALIVE_TIMEOUT`` is the default of ``worker_proc_alive_timeout``.
"""

from __future__ import annotations

from .procpool import ProcessPool
from .procpool.child import Child
from .procpool.parent import START_TIMEOUT as PROC_ALIVE_TIMEOUT

__all__ = ("PROC_ALIVE_TIMEOUT", "AsynPool", "Worker")

AsynPool = ProcessPool
Worker = Child
