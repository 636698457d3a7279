"""The parts of an app that can be swapped, each as ``module:name``.

``app.base`` looks here for the default of every ``*_cls`` attribute and for the programs
it can make.  Naming them as text is what keeps ``import celery_clone`` small, and lets a
part stand on a floor above the app that makes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ("COMPONENTS",)

COMPONENTS: Mapping[str, str] = MappingProxyType(
    {
        # Parts of the app; attributes `<name>_cls` of Celery replace them.
        "amqp": "celery_clone.app.amqp:AMQP",
        "control": "celery_clone.app.control:Control",
        "events": "celery_clone.app.events:Events",
        "log": "celery_clone.app.log:Logging",
        "registry": "celery_clone.app.registry:TaskRegistry",
        "task": "celery_clone.app.task:Task",
        # Classes that are subclassed with the app as an attribute.
        "AsyncResult": "celery_clone.result:AsyncResult",
        "GroupResult": "celery_clone.result:GroupResult",
        "ResultSet": "celery_clone.result:ResultSet",
        "Beat": "celery_clone.apps.beat:Beat",
        "Worker": "celery_clone.apps.worker:Worker",
        "WorkController": "celery_clone.worker:WorkController",
        # Loaded when they are needed, since they bring kombu's serializers along.
        "builtins": "celery_clone.app.builtins:add_all",
        "pydantic": "celery_clone.app.models:pydantic_wrapper",
        "run_eagerly": "celery_clone.app.trace:run_eagerly",
        # Functions of floors above.
        "command": "celery_clone.bin.celery:main",
        "security": "celery_clone.security:setup_security",
    }
)
