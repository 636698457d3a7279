"""The distribution called ``celery``, installed as a project would install it."""

from __future__ import annotations

import json
import subprocess

import pytest


@pytest.fixture(scope="module")
def project(open_project):
    with open_project("shop") as project:
        yield project


def test_what_asks_for_the_distribution_finds_celery_5_7(project):
    said = project.run(
        "import json\n"
        "from importlib.metadata import distribution, entry_points\n"
        "scripts = {e.value for e in entry_points(group='console_scripts') if e.name == 'celery'}\n"
        "print(json.dumps([distribution('celery').version, sorted(scripts)]))"
    )
    assert json.loads(said) == ["5.7.0", ["celery.__main__:main", "celery_clone.__main__:main"]]


def test_every_requirement_is_met_but_the_one_that_no_celery_5_7_meets(project):
    checked = subprocess.run([project.python, "-m", "pip", "check"], capture_output=True, text=True, timeout=60)
    assert checked.stdout.splitlines() == [
        "celery-batches 0.11 has requirement celery<5.7,>=5.0, but you have celery 5.7.0."
    ]


def test_every_module_is_the_same_under_both_names(project):
    said = project.run(
        "import importlib, json, pkgutil\n"
        "import celery\n"
        "from celery.exceptions import ImproperlyConfigured\n"
        "same, other, missing = 0, [], set()\n"
        "for found in pkgutil.walk_packages(celery.__path__, 'celery.', onerror=lambda name: None):\n"
        "    if found.name == 'celery.alias':\n"
        "        continue\n"
        "    try:\n"
        "        module = importlib.import_module(found.name)\n"
        "    except ModuleNotFoundError as error:\n"
        "        missing.add(error.name.partition('.')[0])\n"
        "    except ImproperlyConfigured:\n"
        "        missing.add('store')\n"
        "    else:\n"
        "        ours = importlib.import_module(found.name.replace('celery', 'celery_clone', 1))\n"
        "        same += module is ours\n"
        "        other += [] if module is ours else [found.name]\n"
        "print(json.dumps([same, other, 'celery' in missing or 'celery_clone' in missing]))"
    )
    same, other, ours_is_missing = json.loads(said)
    assert same > 200
    assert other == []
    assert not ours_is_missing


@pytest.mark.parametrize("command", [["-m", "celery"], ["-m", "celery_clone"]], ids=" ".join)
def test_it_is_a_program_under_both_names(project, command):
    assert project.command(str(project.python), *command, "--version") == "5.7.0 (collider)\n"
    assert project.command(str(project.python.with_name("celery")), "--version") == "5.7.0 (collider)\n"


def test_the_program_lists_the_commands_that_other_packages_add(project):
    assert "flower" in project.command(str(project.python.with_name("celery")), "--help")


def test_what_real_celery_pickled_can_be_read_and_the_other_way_round(project, celery_python):
    write = (
        "import pickle, sys\n"
        "from celery import signature\n"
        "from celery.exceptions import Ignore, Retry\n"
        "values = [Ignore('x'), Retry('again', ValueError('why')), dict(signature('t', args=(1,)))]\n"
        "sys.stdout.write(pickle.dumps(values).hex())"
    )
    read = (
        "import pickle, sys\n"
        "ignore, retry, task = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "print(type(ignore).__name__, retry.message, repr(retry.exc), task['args'])"
    )

    def run(python, *words):
        return subprocess.run([python, "-c", *words], capture_output=True, text=True, timeout=60, check=True).stdout

    expected = "Ignore again ValueError('why') [1]\n", "Ignore again ValueError('why') (1,)\n"
    assert run(project.python, read, run(celery_python, write)) in expected
    assert run(celery_python, read, run(project.python, write)) in expected
