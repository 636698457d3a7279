"""Reading settings and importing task modules."""

from __future__ import annotations

import sys
from datetime import timezone
from types import SimpleNamespace

import pytest

from celery_clone import signals
from celery_clone.app.defaults import find
from celery_clone.loaders import get_loader_cls
from celery_clone.loaders.app import AppLoader
from celery_clone.loaders.base import BaseLoader, autodiscover_tasks, find_related_module
from celery_clone.loaders.default import Loader
from celery_clone.utils.imports import NotAPackage


class Conf(SimpleNamespace):
    """The part of the settings a loader asks for."""

    imports = ()
    include = ()

    def find_option(self, name, namespace=""):
        return find(name, namespace)


@pytest.fixture
def app():
    return SimpleNamespace(conf=Conf())


@pytest.fixture
def loader(app):
    return BaseLoader(app)


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """``modules({"shop/tasks.py": text})``: files in the current directory, forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)

    def write(files: dict[str, str]) -> None:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    yield write
    for name in set(sys.modules) - before:
        if name.partition(".")[0].startswith("own_"):
            del sys.modules[name]


@pytest.fixture
def importable(modules, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    return modules


# -- by name


def test_loaders_have_short_names():
    assert get_loader_cls("app") is AppLoader
    assert get_loader_cls("default") is Loader
    assert get_loader_cls("celery_clone.loaders.app:AppLoader") is AppLoader
    assert get_loader_cls(AppLoader) is AppLoader


# -- stages


def test_the_stages_of_a_worker_are_told_once(app):
    told = []

    class Telling(BaseLoader):
        def on_worker_init(self):
            told.append("init")

        def on_worker_shutdown(self):
            told.append("shutdown")

        def on_worker_process_init(self):
            told.append("process")

    loader = Telling(app)
    loader.init_worker()
    loader.init_worker()
    loader.init_worker_process()
    loader.shutdown_worker()
    assert told == ["init", "process", "shutdown"]


def test_hooks_do_nothing_by_default(loader):
    assert loader.on_task_init("id", None) is None
    assert loader.on_process_cleanup() is None
    loader.init_worker()
    loader.init_worker_process()
    loader.shutdown_worker()


def test_a_loader_has_a_clock(loader):
    assert loader.now().tzinfo is timezone.utc
    assert loader.now(utc=False).tzinfo is None


# -- task modules


def test_task_modules_are_imported_from_the_current_directory(modules, app):
    modules({"own_one.py": "x = 1", "own_two.py": "", "own_three.py": ""})
    app.conf.imports = ("own_one",)
    app.conf.include = ["own_two"]

    class WithMore(BaseLoader):
        builtin_modules = frozenset({"own_three"})

    loader = WithMore(app)
    imported = loader.import_default_modules()
    assert [module.__name__ for module in imported] == ["own_three", "own_one", "own_two"]
    assert loader.task_modules == {"own_one", "own_two", "own_three"}


def test_an_error_of_a_receiver_is_not_lost_before_there_is_a_log(loader, app):
    def fail(**kwargs):
        raise KeyError("broken tasks")

    signals.import_modules.connect(fail, sender=app)
    try:
        with pytest.raises(KeyError, match="broken tasks"):
            loader.import_default_modules()
    finally:
        signals.import_modules.disconnect(fail, sender=app)


def test_packages_are_searched_for_tasks(importable, loader):
    importable(
        {
            "own_shop/__init__.py": "",
            "own_shop/tasks.py": "",
            "own_empty/__init__.py": "",
            "own_jobs/__init__.py": "",
            "own_jobs/jobs.py": "",
        }
    )
    loader.autodiscover_tasks(["own_shop", "own_empty"])
    assert loader.task_modules == {"own_shop.tasks"}
    loader.autodiscover_tasks(["own_jobs"], related_name="jobs")
    loader.autodiscover_tasks(["own_empty"], related_name=None)
    loader.autodiscover_tasks(None)
    assert loader.task_modules == {"own_shop.tasks", "own_jobs.jobs", "own_empty"}


def test_a_name_inside_a_package_means_the_package(importable):
    importable({"own_site/__init__.py": "", "own_site/tasks.py": ""})
    assert find_related_module("own_site.Config", "tasks").__name__ == "own_site.tasks"


def test_a_package_that_does_not_exist_is_an_error(importable):
    with pytest.raises(ModuleNotFoundError, match="own_missing"):
        find_related_module("own_missing", "tasks")


def test_a_task_module_that_misses_an_import_is_an_error(importable):
    importable({"own_shop2/__init__.py": "", "own_shop2/tasks.py": "import own_not_installed"})
    with pytest.raises(ModuleNotFoundError, match="own_not_installed"):
        find_related_module("own_shop2", "tasks")


def test_discovery_inside_discovery_finds_nothing(importable):
    importable(
        {
            "own_outer/__init__.py": "",
            "own_outer/tasks.py": (
                "from celery_clone.loaders.base import autodiscover_tasks\nfound = autodiscover_tasks(['own_inner'])"
            ),
            "own_inner/__init__.py": "",
            "own_inner/tasks.py": "",
        }
    )
    outer, inner = autodiscover_tasks(["own_outer", "own_inner"])
    assert outer.found == ()
    assert inner.__name__ == "own_inner.tasks"


# -- settings


def test_settings_may_be_an_object_or_its_address(modules, loader):
    modules({"own_settings.py": "size = 3\nclass Big:\n    size = 30\n"})
    for source in ({"size": 3}, SimpleNamespace(size=3), "own_settings"):
        assert loader.config_from_object(source)
        assert loader.conf["size"] == 3
    for source in ("own_settings:Big", "own_settings.Big"):
        assert loader.config_from_object(source)
        assert loader.conf["size"] == 30


def test_an_address_that_leads_nowhere_is_an_error_unless_silent(loader):
    with pytest.raises(ImportError):
        loader.config_from_object("own_nowhere")
    assert loader.config_from_object("own_nowhere", silent=True) is False
    assert loader.config_from_object("os:no_such_name", silent=True) is False


def test_settings_may_bring_result_stores(loader):
    loader.config_from_object({"override_backends": {"db": "shop.backends:Store"}})
    assert loader.override_backends == {"db": "shop.backends:Store"}
    assert BaseLoader.override_backends == {}


def test_without_a_module_in_the_environment_there_are_no_settings(loader, monkeypatch):
    monkeypatch.delenv("CELERY_CONFIG_MODULE", raising=False)
    assert loader.conf is None
    monkeypatch.setenv("CELERY_CONFIG_MODULE", "")
    assert loader.read_configuration() is None


def test_the_environment_names_the_settings(modules, loader, monkeypatch):
    modules({"own_config.py": "size = 5"})
    monkeypatch.setenv("CELERY_CONFIG_MODULE", "own_config")
    assert loader.conf["size"] == 5
    monkeypatch.setenv("OWN_VARIABLE", "own_config")
    assert loader.read_configuration("OWN_VARIABLE").size == 5


@pytest.mark.parametrize(
    ("name", "hint"), [("own_config2.py", "Did you mean 'own_config2'"), ("own_config2.x", "not a valid")]
)
def test_a_file_name_is_no_module_name(modules, loader, name, hint):
    modules({"own_config2.py": ""})
    with pytest.raises(NotAPackage, match=hint):
        loader._import_config_module(name)


# -- the command line


@pytest.mark.parametrize(
    ("argument", "setting"),
    [
        ("worker.prefetch_multiplier=4", {"worker_prefetch_multiplier": 4}),
        ("WORKER_PREFETCH_MULTIPLIER=4", {"worker_prefetch_multiplier": 4}),
        ("task.always_eager=yes", {"task_always_eager": True}),
        ("broker.url=redis://a/1?x=y", {"broker_url": "redis://a/1?x=y"}),
        ("worker.concurrency=(float)3.5", {"worker_concurrency": 3.5}),
        ('task.routes=(dict){"a": "b"}', {"task_routes": {"a": "b"}}),
        ("worker.pool=(string)solo", {"worker_pool": "solo"}),
        ("foo.bar=(any)x", {"foo_bar": "x"}),
        ("foo.list=(list)[1, 2]", {"foo_list": [1, 2]}),
        ("foo.yes=(bool)on", {"foo_yes": True}),
    ],
)
def test_settings_of_the_command_line(loader, argument, setting):
    assert loader.cmdline_config_parser([argument]) == setting


def test_a_key_without_namespace_takes_the_default_one(loader):
    assert loader.cmdline_config_parser([".pool=solo"], namespace="Worker") == {"worker_pool": "solo"}
    assert loader.cmdline_config_parser(["_own=(int)4"], namespace="") == {"own": 4}


def test_types_can_be_added_and_renamed(loader):
    parsed = loader.cmdline_config_parser(
        ["a.b=(twice)x", "a.c=(list)y"],
        extra_types={"twice": lambda text: text * 2},
        override_types={"list": "twice"},
    )
    assert parsed == {"a_b": "xx", "a_c": "yy"}


def test_values_that_do_not_fit_are_refused_with_their_key(loader):
    with pytest.raises(ValueError, match="'worker_prefetch_multiplier'"):
        loader.cmdline_config_parser(["worker.prefetch_multiplier=many"])
    with pytest.raises(ValueError, match="Write it as key=value"):
        loader.cmdline_config_parser(["worker.concurrency"])


@pytest.mark.parametrize("argument", ["worker.concurency=4", "beat.concurrency=4", "worker.concurrency=(snake)4"])
def test_settings_and_types_that_do_not_exist_are_refused(loader, argument):
    with pytest.raises(KeyError, match="concur|beat_|snake"):
        loader.cmdline_config_parser([argument])


# -- the default app


def test_the_default_app_reads_celeryconfig(modules, app, monkeypatch):
    monkeypatch.delenv("CELERY_CONFIG_MODULE", raising=False)
    modules({"own_celeryconfig.py": "size = 7"})
    monkeypatch.setenv("CELERY_CONFIG_MODULE", "own_celeryconfig")
    loader = Loader(app)
    assert loader.read_configuration()["size"] == 7
    assert loader.configured


def test_the_default_app_works_without_settings(app, monkeypatch):
    monkeypatch.setenv("CELERY_CONFIG_MODULE", "own_none")
    loader = Loader(app)
    assert dict(loader.read_configuration()) == {}
    assert not loader.configured
    with pytest.raises(ImportError):
        loader.read_configuration(fail_silently=False)


def test_missing_settings_are_told_if_asked(app, monkeypatch):
    monkeypatch.setenv("CELERY_CONFIG_MODULE", "own_none")
    monkeypatch.delenv("FORKED_BY_MULTIPROCESSING", raising=False)
    monkeypatch.setattr("celery_clone.loaders.default.C_WNOCONF", True)
    with pytest.warns(UserWarning, match="No own_none module found"):
        Loader(app).read_configuration()
    monkeypatch.setenv("FORKED_BY_MULTIPROCESSING", "1")
    Loader(app).read_configuration()
