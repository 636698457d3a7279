"""Documents tasks with Sphinx: put ``"celery_clone.contrib.sphinx"`` into ``extensions`` of ``conf.py``.

``automodule`` and its relatives then find tasks, with the arguments of their functions; ``.. autotask::`` documents
one, ``:task:`proj.tasks.add``` refers to it.  ``celery_task_prefix`` is what stands before their names, ``"(task)"``
if it is not set.

The documenter is of the older kind, which Sphinx 9 has behind ``autodoc_use_legacy_class_based``; it is turned on.
"""

from __future__ import annotations

import warnings
from inspect import signature
from typing import Any

import sphinx
from docutils import nodes
from sphinx.domains.python import PyFunction, PyXRefRole
from sphinx.ext.autodoc import FunctionDocumenter

from celery_clone.app.task import BaseTask

__all__ = ("TaskDirective", "TaskDocumenter", "autodoc_skip_member_handler", "setup")

LEGACY_SETTING = "autodoc_use_legacy_class_based"
LEGACY_NEEDED = (
    f"Sphinx {sphinx.__version__} documents tasks only with {LEGACY_SETTING} = True, which was turned on. "
    "Set it in conf.py to be rid of this warning."
)


def _function_of(member: Any) -> Any:
    """The function that became a task; ``None`` for everything else."""
    return getattr(member, "__wrapped__", None) if isinstance(member, BaseTask) else None


class TaskDocumenter(FunctionDocumenter):
    """Documents a task as the function it was made of."""

    objtype = "task"
    member_order = 11

    @classmethod
    def can_document_member(cls, member: Any, membername: str, isattr: bool, parent: Any) -> bool:
        """Is this a task that was made of a function?"""
        return _function_of(member) is not None

    def format_args(self, **kwargs: Any) -> str:
        """The arguments, as a caller sees them."""
        function = getattr(self.object, "__wrapped__", None)
        if function is None:
            return ""
        found = signature(function)
        parameters = list(found.parameters.values())
        if parameters and parameters[0].name in ("self", "cls"):
            found = found.replace(parameters=parameters[1:])
        return str(found)

    def document_members(self, all_members: bool = False) -> None:
        """A task is documented as a whole."""

    def check_module(self) -> bool:
        """Is the task from the module that is documented?  It is where its function is."""
        function = getattr(self.object, "__wrapped__", None)
        return getattr(function, "__module__", None) == self.modname or bool(super().check_module())


class TaskDirective(PyFunction):
    """``.. py:task::``"""

    def get_signature_prefix(self, sig: str) -> list[Any]:
        """What stands before the name."""
        return [nodes.Text(self.env.config.celery_task_prefix)]


def autodoc_skip_member_handler(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Keep tasks: autodoc takes their documentation for that of their class, and would leave them out."""
    return False if skip and _function_of(obj) is not None else None


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx."""
    app.setup_extension("sphinx.ext.autodoc")
    if sphinx.version_info >= (9, 0) and not getattr(app.config, LEGACY_SETTING, False):
        warnings.warn(LEGACY_NEEDED, UserWarning, stacklevel=2)
        setattr(app.config, LEGACY_SETTING, True)
    app.add_autodocumenter(TaskDocumenter)
    app.add_directive_to_domain("py", "task", TaskDirective)
    app.add_role_to_domain("py", "task", PyXRefRole(fix_parens=True))
    app.add_config_value("celery_task_prefix", "(task)", True)
    app.connect("autodoc-skip-member", autodoc_skip_member_handler)
    return {"parallel_read_safe": True}
