"""Tasks in Django's transactions, and in the documentation of a project."""

from __future__ import annotations

import pytest

from celery_clone import Celery


@pytest.fixture
def django(tmp_path):
    """Django with a database."""
    module = pytest.importorskip("django")
    from django.conf import settings

    if not settings.configured:
        engine = "django.db.backends.sqlite3"
        settings.configure(
            INSTALLED_APPS=["django.contrib.contenttypes"],
            DATABASES={"default": {"ENGINE": engine, "NAME": str(tmp_path / "db")}},
        )
        module.setup()
    from django.db import connections

    yield module
    connections.close_all()


def test_calls_wait_for_the_end_of_the_transaction_and_are_undone_with_it(django):
    from django.db import transaction

    from celery_clone.contrib.django.task import DjangoTask

    app = Celery("proj", broker="memory://", task_cls=DjangoTask, set_as_current=False)
    app.conf.task_always_eager = True
    seen = []

    @app.task(shared=False)
    def note(what):
        seen.append(what)

    with transaction.atomic():
        note.delay_on_commit("a")
        note.apply_async_on_commit(("b",))
        assert seen == []
    assert seen == ["a", "b"]
    with pytest.raises(ValueError, match="undo"), transaction.atomic():
        note.delay_on_commit("c")
        raise ValueError("undo")
    assert seen == ["a", "b"]


TASKS = '''
"""Tasks."""

from celery_clone import Celery, shared_task

app = Celery("documented", broker="memory://", set_as_current=False)


@app.task(bind=True, shared=False)
def add(self, x: int, y: int = 2) -> int:
    """Add numbers."""


@app.task(shared=False)
def undocumented_arguments(**kwargs):
    """Anything."""


def function(self):
    """No task."""
'''

PAGE = """
Page
====

.. automodule:: documented_tasks
   :members:

See :py:task:`documented_tasks.add`.
"""


def test_tasks_are_documented_as_their_functions(tmp_path, monkeypatch):
    pytest.importorskip("sphinx")
    from sphinx.application import Sphinx

    (tmp_path / "documented_tasks.py").write_text(TASKS)
    (tmp_path / "index.rst").write_text(PAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "out"
    settings = {
        "extensions": ["sphinx.ext.autodoc", "celery_clone.contrib.sphinx"],
        "autodoc_use_legacy_class_based": True,
        "celery_task_prefix": "<task> ",
    }
    Sphinx(str(tmp_path), None, str(out), str(out / "trees"), "text", settings, status=None).build()
    page = (out / "index.txt").read_text()
    assert "<task> documented_tasks.add(x: int, y: int = 2) -> int\n\n   Add numbers." in page
    assert "<task> documented_tasks.undocumented_arguments(**kwargs)" in page
    assert "\ndocumented_tasks.function(self)" in page
