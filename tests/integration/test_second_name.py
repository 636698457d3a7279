"""``import celery_clone.alias``: one package, two names.  Each test is a Python of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


@pytest.fixture
def python(tmp_path):
    """Run a program in a new interpreter; returns what it printed, and its errors."""

    def python(text):
        program = tmp_path / "program.py"
        program.write_text(textwrap.dedent(text))
        ended = subprocess.run(
            [sys.executable, "-W", "error", program], capture_output=True, text=True, timeout=30, cwd=tmp_path
        )
        return ended.stdout, ended.stderr

    return python


def test_both_names_are_the_same_modules_whichever_is_imported_first(python):
    out, errors = python(
        """
        import celery_clone.result
        import celery_clone.alias
        import celery, celery.result, celery.app.base, celery.utils.log
        import celery_clone, celery_clone.app.base, celery_clone.utils.log, celery_clone.schedules
        import sys
        print(celery is celery_clone, celery.result is celery_clone.result,
              celery.app.base is celery_clone.app.base, celery.utils.log is celery_clone.utils.log,
              sys.modules["celery.schedules"] is celery_clone.schedules)
        """
    )
    assert (out, errors) == ("True True True True True\n", "")


def test_what_is_pickled_names_the_module_that_real_celery_has(python):
    out, errors = python(
        """
        import celery_clone.alias
        import pickle
        from celery import Celery, signature
        from celery.exceptions import Ignore
        app = Celery("pickled", broker="memory://", set_as_current=False)
        for value in (Ignore("x"), app.AsyncResult("some-id"), Ignore, signature):
            data = pickle.dumps(value)
            print(b"celery_clone" in data, b"celery" in data)
        print(repr(pickle.loads(pickle.dumps(Ignore("x")))))
        """
    )
    assert (out, errors) == ("False True\n" * 4 + "Ignore('x')\n", "")


def test_the_module_keeps_its_own_spec_and_can_be_inspected_and_reloaded(python):
    out, errors = python(
        """
        import celery_clone.alias
        import celery.states, importlib, inspect
        from celery.app.base import Celery
        print(celery.states.__name__, celery.states.__spec__.name, importlib.reload(celery.states) is celery.states)
        print(inspect.getsource(Celery).splitlines()[0])
        """
    )
    assert (out, errors) == ("celery_clone.states celery_clone.states True\nclass Celery:\n", "")


def test_a_module_that_does_not_exist_is_not_found(python):
    out, errors = python(
        """
        import celery_clone.alias
        import importlib.util
        print(importlib.util.find_spec("celery.nonsense"))
        try:
            import celery.nonsense
        except ModuleNotFoundError as error:
            print(error.name)
        """
    )
    assert (out, errors) == ("None\ncelery.nonsense\n", "")


def test_a_module_that_cannot_be_loaded_is_loaded_anew_the_next_time(python):
    out, errors = python(
        """
        import celery_clone.alias
        import sys
        sys.modules["kombu.clocks"] = None
        try:
            import celery.app.base
        except ImportError as error:
            print("celery.app.base" in sys.modules, "celery_clone.app.base" in sys.modules)
        del sys.modules["kombu.clocks"]
        import celery.app.base
        print(celery.app.base.Celery.__name__)
        """
    )
    assert (out, errors) == ("False False\nCelery\n", "")


def test_it_refuses_when_real_celery_was_imported_before(python):
    out, errors = python(
        """
        import sys, types
        sys.modules["celery"] = types.ModuleType("celery")
        import celery_clone.alias
        """
    )
    assert "ImportError" in errors
    assert "real Celery" in errors
    assert "Put `import celery_clone.alias` before every import of 'celery'" in errors


def test_a_task_behaves_the_same_under_the_second_name(python):
    out, errors = python(
        """
        import celery_clone.alias
        from celery import Celery, chain, shared_task
        app = Celery("second", broker="memory://")

        @shared_task
        def add(x, y):
            return x + y

        @app.task(bind=True, max_retries=2, default_retry_delay=0)
        def flaky(self):
            if self.request.retries < 2:
                raise self.retry(exc=ValueError("again"))
            return self.request.retries

        app.conf.task_always_eager = True
        print(add.delay(2, 2).get(), chain(add.s(1, 1), add.s(3))().get(), flaky.delay().get(), add.name)
        """
    )
    assert (out, errors) == ("4 5 2 second.add\n", "")


def test_no_app_is_made_by_giving_modules_their_second_name(python):
    out, errors = python(
        """
        import celery_clone.alias
        import celery.result
        from celery import _state
        import celery._state
        print(_state.default_app)
        """
    )
    assert (out, errors) == ("None\n", "")


COMPAT = Path(__file__).parents[2] / "compat"


@pytest.fixture
def named_celery(tmp_path):
    """Run a command in an environment that has the distribution called ``celery``; returns what it printed."""

    def named_celery(*command):
        ended = subprocess.run(
            [sys.executable, "-W", "error", *command],
            capture_output=True,
            text=True,
            timeout=30,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{COMPAT}:{COMPAT.parent}"},
        )
        return ended.stdout, ended.stderr

    return named_celery


def test_the_package_called_celery_is_this_one_and_nothing_of_it_stays(named_celery):
    out, errors = named_celery(
        "-c",
        "import celery, celery.bin.celery, sys\n"
        "from celery import Celery\n"
        "import celery_clone.bin.celery\n"
        "print(celery is celery_clone, celery.bin.celery is celery_clone.bin.celery, Celery.__module__)\n"
        "print([name for name, module in sys.modules.items() if '/compat/' in str(getattr(module, '__file__', ''))])",
    )
    assert (out, errors) == ("True True celery.app.base\n[]\n", "")


def test_the_package_called_celery_is_a_program_too(named_celery):
    assert named_celery("-m", "celery", "--version") == ("5.7.0 (collider)\n", "")


def test_each_extra_of_the_package_called_celery_is_an_extra_of_this_one():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read TOML")
    with (COMPAT / "pyproject.toml").open("rb") as given:
        compat = tomllib.load(given)["project"]
    with (COMPAT.parent / "pyproject.toml").open("rb") as given:
        ours = tomllib.load(given)["project"]
    for_development = {"dev", "services", "test"}
    assert compat["optional-dependencies"] == {
        extra: [f"celery-clone[{extra}] @ {{root:parent:uri}}"]
        for extra in ours["optional-dependencies"].keys() - for_development
    }
    assert compat["requires-python"] == ours["requires-python"]
