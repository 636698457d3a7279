"""Which Celery this package stands for, and who it says it is on the wire.

Read by the front door (``celery_clone.__version__``) and by ``worker.state`` for the worker's
identity.  Holds constants only and may import nothing.

The numbers are those of the Celery release whose interface is kept: client libraries compare
``celery.__version__`` with what they support, and fleet tools read ``sw_ident`` and ``sw_ver``
from every worker heartbeat.  The release number of this distribution itself is package metadata.
"""

from __future__ import annotations

from collections import namedtuple

__all__ = (
    "SERIES",
    "SOFTWARE_IDENT",
    "VERSION",
    "VERSION_BANNER",
    "__version__",
    "version_info",
    "version_info_t",
)

SERIES = "collider"
__version__ = "5.7.0"
VERSION_BANNER = f"{__version__} ({SERIES})"

# The classic form, because callers compare the values by position and pickle them by this name.
version_info_t = namedtuple("version_info_t", ("major", "minor", "micro", "releaselevel", "serial"))

VERSION = version_info = version_info_t(5, 7, 0, "", "")

#: What a worker calls its software in heartbeats and in ``inspect`` replies.
SOFTWARE_IDENT = "py-celery"
