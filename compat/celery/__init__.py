"""The name ``celery``, which means ``celery_clone`` from the first import on.

Imported by whoever writes ``import celery``.  Once it ran it is gone: ``sys.modules["celery"]`` is then the
package ``celery_clone`` itself, and every ``celery.x`` the module ``celery_clone.x``.
It may hold nothing else.
"""

import sys

# The import system has put this module there; the alias refuses to take a name that is in use.
del sys.modules[__name__]

import celery_clone.alias  # noqa: E402, F401
