"""Finding modules and symbols, and naming tasks."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import types
from types import SimpleNamespace

import pytest

from celery_clone.utils import imports
from celery_clone.utils.imports import (
    NotAPackage,
    cwd_in_path,
    find_module,
    gen_task_name,
    import_from_cwd,
    instantiate,
    load_extension_class_names,
    load_extension_classes,
    module_file,
    qualname,
    reload_from_cwd,
    symbol_by_name,
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current directory that is not on ``sys.path`` and holds the module ``modulehere``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    (tmp_path / "modulehere.py").write_text("VALUE = 1\n")
    yield tmp_path
    sys.modules.pop("modulehere", None)


# -- symbols


@pytest.mark.parametrize("name", ["collections.OrderedDict", "collections:OrderedDict"])
def test_a_symbol_is_found_by_its_name(name):
    assert symbol_by_name(name).__name__ == "OrderedDict"


def test_after_a_colon_the_module_name_may_be_dotted():
    assert symbol_by_name("os.path:join") is os.path.join


def test_a_name_without_separator_is_a_module():
    assert symbol_by_name("json").__name__ == "json"
    assert symbol_by_name("anything", package="json").__name__ == "json"


def test_what_is_no_text_is_returned_as_it_is():
    assert symbol_by_name(dict) is dict
    assert symbol_by_name("short", {"short": dict}) is dict


def test_an_alias_stands_for_a_full_name():
    assert symbol_by_name("join", {"join": "os.path:join"}) is os.path.join
    assert symbol_by_name("os.path:join", {"os.path:join": None}) is os.path.join


@pytest.mark.parametrize(
    ("name", "error"), [("no_such_module:x", ImportError), ("json:no_such_symbol", AttributeError)]
)
def test_what_is_not_found_raises_unless_there_is_a_default(name, error):
    with pytest.raises(error):
        symbol_by_name(name)
    assert symbol_by_name(name, default=3) == 3


def test_a_name_no_module_can_have_is_a_value_error_that_shows_it():
    def refuse(name, package=None):
        raise ValueError("Empty module name")

    with pytest.raises(ValueError, match="Couldn't import 'a:b': Empty module name"):
        symbol_by_name("a:b", imp=refuse)


def test_the_importer_may_be_replaced():
    asked = []

    def load(name, **kwargs):
        asked.append((name, kwargs))
        return SimpleNamespace(b=1)

    assert symbol_by_name("a.b", imp=load, x=2) == 1
    assert asked == [("a", {"package": None, "x": 2})]


def test_an_object_is_made_of_the_class_of_this_name():
    assert instantiate("collections:Counter", "aab", c=1) == {"a": 2, "b": 1, "c": 1}
    assert instantiate(dict, a=1) == {"a": 1}


def function():
    """Has a name."""


class Outer:
    class Inner:
        """Has a dotted name."""


@pytest.mark.parametrize(
    ("obj", "name"),
    [
        (function, f"{__name__}.function"),
        (Outer, f"{__name__}.Outer"),
        (Outer(), f"{__name__}.Outer"),
        (Outer.Inner, "Outer.Inner"),
        (ValueError("x"), "builtins.ValueError"),
    ],
)
def test_the_qualified_name_is_that_of_the_class_or_function(obj, name):
    assert qualname(obj) == name


# -- modules


def test_modules_of_the_current_directory_can_be_imported(here):
    assert import_from_cwd("modulehere").VALUE == 1
    assert find_module("modulehere").VALUE == 1
    assert str(here) not in sys.path


def test_a_module_is_loaded_anew(here, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = import_from_cwd("modulehere")
    (here / "modulehere.py").write_text("VALUE = 22\n")
    assert reload_from_cwd(module).VALUE == 22
    assert reload_from_cwd(module, reloader=lambda module: "mine") == "mine"


def test_the_current_directory_is_on_the_path_only_inside(here):
    with cwd_in_path() as added:
        assert added == str(here)
        assert sys.path[0] == str(here)
        with cwd_in_path() as again:
            assert again is None
            assert sys.path.count(str(here)) == 1
    assert str(here) not in sys.path


def test_somebody_else_may_take_the_directory_off_the_path(here):
    with cwd_in_path():
        sys.path.remove(str(here))
    assert str(here) not in sys.path


def test_a_current_directory_that_is_gone_is_left_alone(monkeypatch):
    def gone():
        raise FileNotFoundError

    monkeypatch.setattr(os, "getcwd", gone)
    before = list(sys.path)
    with cwd_in_path() as added:
        assert added is None
        assert sys.path == before


def test_a_name_through_a_module_that_is_no_package_says_which():
    with pytest.raises(NotAPackage) as caught:
        find_module("json.decoder.nonsense")
    assert caught.value.args == ("json.decoder",)


@pytest.mark.parametrize("name", ["no_such_module", "no_such_module.child.grandchild", "json.nonsense"])
def test_a_module_that_is_missing_is_an_import_error_of_its_name(name):
    with pytest.raises(ModuleNotFoundError, match=name.partition(".")[0]):
        find_module(name)


def test_the_source_file_of_a_module():
    assert module_file(imports).endswith("imports.py")
    assert module_file(SimpleNamespace(__file__="/x/y.pyc")) == "/x/y.py"


# -- task names


def app(main=None):
    return SimpleNamespace(main=main)


def test_a_task_is_named_after_its_module():
    assert gen_task_name(app("proj"), "add", "proj.tasks") == "proj.tasks.add"
    assert gen_task_name(app(), "add", __name__) == f"{__name__}.add"


def test_a_task_of_the_program_itself_is_named_after_the_app():
    assert gen_task_name(app("proj"), "add", "__main__") == "proj.add"
    assert gen_task_name(app("proj"), "add", None) == "proj.add"
    assert gen_task_name(app(), "add", "__main__") == "__main__.add"


def test_a_task_keeps_its_name_in_a_process_started_afresh(monkeypatch):
    module = types.ModuleType("__mp_main__")
    module.__file__ = "/proj/program.py"
    monkeypatch.setitem(sys.modules, "__mp_main__", module)
    monkeypatch.setattr(imports, "MP_MAIN_FILE", "/proj/program.py")
    assert gen_task_name(app("proj"), "add", "__mp_main__") == "proj.add"


# -- extensions


@pytest.fixture
def entry_points(monkeypatch):
    """Entry points of the group ``celery.commands``."""
    found = [
        SimpleNamespace(name="good", value="collections:Counter"),
        SimpleNamespace(name="bad", value="no_such_module:Command"),
    ]
    scans = []
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: scans.append(group) or found[: len(scans) * 2]
    )
    load_extension_class_names.cache_clear()
    yield scans
    load_extension_class_names.cache_clear()


def test_extensions_are_scanned_for_once(entry_points):
    names = load_extension_class_names("celery.commands")
    assert names == (("good", "collections:Counter"), ("bad", "no_such_module:Command"))
    assert load_extension_class_names("celery.commands") is names
    assert entry_points == ["celery.commands"]


def test_an_extension_that_cannot_be_loaded_is_warned_of_and_left_out(entry_points):
    with pytest.warns(UserWarning, match="Cannot load celery.commands extension 'no_such_module:Command'"):
        loaded = dict(load_extension_classes("celery.commands"))
    assert list(loaded) == ["good"]
    assert loaded["good"]("aa") == {"a": 2}
