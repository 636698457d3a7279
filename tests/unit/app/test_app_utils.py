"""Finding the app of ``--app``, and describing apps."""

from __future__ import annotations

import sys

import pytest

from celery_clone import Celery
from celery_clone.app.utils import AppPickler, appstr, bugreport, find_app

IMPORT = "from celery_clone import Celery\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Writes modules into a directory that the program was started in."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)

    def write(**sources):
        for name, source in sources.items():
            path = tmp_path.joinpath(*name.split("__in__")[::-1])
            path.parent.mkdir(exist_ok=True)
            path.with_suffix(".py").write_text(source)

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def app_called(name, attribute="app"):
    return f"{IMPORT}{attribute} = Celery({name!r}, set_as_current=False)\n"


@pytest.mark.parametrize(
    ("package", "submodule"),
    [
        (app_called("right"), None),
        (app_called("right", "celery"), None),
        (app_called("right", "anything"), None),
        (app_called("wrong", "celery") + app_called("right"), None),
        (app_called("wrong", "anything") + app_called("right", "celery"), None),
        ("", app_called("right")),
        ("", app_called("right", "celery")),
        ("", app_called("right", "anything")),
        ("", app_called("wrong", "anything") + app_called("right", "celery")),
        (app_called("right", "anything"), app_called("wrong")),
        ("from .celery import app as celery_app\n", app_called("right")),
        ("from . import celery\n", app_called("right", "anything")),
        ("app = 'of another framework'\n" + app_called("right", "celery"), None),
        ("from celery_clone import current_app\n" + app_called("right", "mine"), None),
    ],
)
def test_a_package_is_searched_in_the_order_of_the_documentation(project, package, submodule):
    project(__init____in__findproj=package)
    if submodule is not None:
        project(celery__in__findproj=submodule)

    assert find_app("findproj").main == "right"


def test_a_package_without_an_init_file_is_searched_too(project):
    project(celery__in__findbare=app_called("right"))
    assert find_app("findbare").main == "right"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("findmod", "app"),
        ("findmod:app", "app"),
        ("findmod.app", "app"),
        ("findmod:other", "other"),
        ("findmod.other", "other"),
        ("findmod:Factory.made", "made"),
        ("findmod:", "app"),
    ],
)
def test_an_app_may_be_named_outright(project, name, found):
    source = app_called("app") + app_called("other", "other")
    project(findmod=source + "class Factory:\n    made = Celery('made', set_as_current=False)\n")

    assert find_app(name).main == found


@pytest.mark.parametrize("name", ["finddeep.celery", "finddeep:celery", "finddeep.celery:app"])
def test_a_module_inside_a_package_may_be_named(project, name):
    project(__init____in__finddeep="from . import celery\n", celery__in__finddeep=app_called("right"))
    assert find_app(name).main == "right"


def test_when_nothing_is_found_the_error_lists_what_was_tried(project):
    project(__init____in__findnone="x = 1\n", celery__in__findnone="y = 2\n")

    with pytest.raises(AttributeError, match="module 'findnone' has no attribute 'celery'") as caught:
        find_app("findnone")
    for tried in (
        "findnone.app",
        "findnone.celery",
        "findnone.celery.app",
        "any attribute of findnone.celery",
    ):
        assert tried in str(caught.value)
    assert "module.path:attribute" in str(caught.value)


def test_a_misspelt_attribute_is_answered_with_the_nearest_name(project):
    project(findnear=app_called("x", "celery_app"))
    with pytest.raises(AttributeError, match="no attribute 'celery_ap'. Did you mean 'celery_app'"):
        find_app("findnear:celery_ap")


def test_a_missing_module_is_named_by_the_error():
    with pytest.raises(ModuleNotFoundError) as caught:
        find_app("no_such_project")
    assert caught.value.name == "no_such_project"


def test_a_broken_import_inside_the_project_is_not_taken_for_a_missing_app(project):
    project(__init____in__findbroken="", celery__in__findbroken="import no_such_dependency\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        find_app("findbroken")


def test_an_app_is_found_by_itself():
    app = Celery("itself", set_as_current=False)
    assert find_app(app) is app


# -- descriptions


def test_apps_are_described_by_name_and_address():
    app = Celery("described", set_as_current=False)
    assert appstr(app) == f"described at {id(app):#x}"
    assert appstr(Celery(set_as_current=False)).startswith("__main__ at 0x")


def test_a_bug_report_has_versions_and_settings_and_no_secrets():
    app = Celery("r", set_as_current=False, broker="memory://u:secret@h", backend="redis://:secret@host")
    report = bugreport(app)

    for part in ("celery:5.7", "kombu:", "billiard:", "py:3.", "transport:memory", "AppLoader"):
        assert part in report
    assert "results:redis://:********@host" in report
    assert "broker_url: 'memory://u:********@h'" in report
    assert "secret" not in report


def test_a_bug_report_is_possible_with_a_broken_broker_setting():
    app = Celery("r", set_as_current=False, broker="nosuchtransport://host")
    assert "driver unknown" in bugreport(app)


def test_a_pickler_makes_apps_that_do_not_become_current():
    class Thing:
        def __init__(self, **kwargs):
            self.kwargs = kwargs

    assert AppPickler()(Thing, {"main": "x"}).kwargs == {"main": "x", "set_as_current": False}
