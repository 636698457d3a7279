"""A Django project whose database is PostgreSQL: what becomes of its connections around tasks.

A server tells what a file cannot: who is connected, whether a connection is used again, and what happens to one that
it has dropped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.databases import PostgresServer
from tests.support.worker import WorkerProcess, clean_environment

pytest.importorskip("django")

PROJECT = {
    "settings.py": """
import os

SECRET_KEY = "of the tests"
INSTALLED_APPS = ["stock"]
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": os.environ["DATABASE"],
        "USER": "tests",
        "HOST": "127.0.0.1",
        "PORT": os.environ["PORT"],
        "CONN_MAX_AGE": 600,
        "OPTIONS": {"application_name": "shop"},
    }
}
CELERY_BROKER_URL = CELERY_RESULT_BACKEND = os.environ["BROKER"]
if os.environ.get("REUSE"):
    CELERY_DB_REUSE_MAX = int(os.environ["REUSE"])
""",
    "shop.py": """
import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")

from celery_clone import Celery

app = Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
""",
    "stock/__init__.py": "",
    "stock/models.py": """
from django.db import models


class Item(models.Model):
    name = models.CharField(max_length=50)
""",
    "stock/tasks.py": """
from celery_clone import shared_task
from django.db import connection, transaction

from stock.models import Item

# As projects do that read a table when they are imported: this one is the parent's, and its children get a copy.
with connection.cursor() as cursor:
    cursor.execute("SELECT pg_backend_pid()")
    (OF_THE_PARENT,) = cursor.fetchone()


@shared_task
def session():
    "Who serves this task at the database, and who served the import."
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return [*cursor.fetchone(), OF_THE_PARENT]


@shared_task
def store(name):
    return Item.objects.create(name=name).pk


@shared_task
def leave_half(name):
    with transaction.atomic():
        Item.objects.create(name=name)
        raise ValueError("as asked")
""",
}

SETUP = """
import json, time
import shop, django
django.setup()
from django.db import connection, transaction
from stock import tasks
from stock.models import Item

def at_the_server():
    with connection.cursor() as cursor:
        cursor.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'shop' AND pid <> pg_backend_pid()")
        return [pid for pid, in cursor.fetchall()]

def wait_until(condition):
    end = time.monotonic() + 10
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found

def get(task, *args):
    return task.delay(*args).get(timeout=10)
"""

World = Callable[..., Any]


@pytest.fixture(scope="module")
def database(
    postgresql_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("shop")
    for name, text in PROJECT.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    name = postgresql_server.new_database_url().rpartition("/")[2]
    environment = {
        "DATABASE": name,
        "PORT": str(postgresql_server.port),
        "BROKER": f"sqlite:///{folder}/broker.db",
        "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]),
    }
    run(folder, environment, "with connection.schema_editor() as editor: editor.create_model(Item)\nprint(0)")
    return folder, environment


def run(folder: Path, environment: dict[str, str], program: str) -> Any:
    """Run *program* in the project, and return the JSON value it printed last."""
    ended = subprocess.run(
        [sys.executable, "-c", SETUP + program],
        cwd=folder,
        env=clean_environment(environment),
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.fixture
def world(request: pytest.FixtureRequest, database: tuple[Path, dict[str, str]]) -> Iterator[World]:
    """``world(program)`` beside a worker of the project with one process; parameters are its environment."""
    folder, environment = database
    environment = {**environment, **getattr(request, "param", {})}
    with WorkerProcess("shop", ["-c", "1"], folder=folder, environment=environment):
        yield lambda program: run(folder, environment, program)


def test_no_connection_outlives_its_task_and_none_is_the_parents(world: World) -> None:
    first, second, of_the_parent = world("""
first, of_the_parent = get(tasks.session)
wait_until(lambda: not at_the_server())
second, _ = get(tasks.session)
wait_until(lambda: not at_the_server())

# Sent when the transaction is over, and not if it is rolled back.
with transaction.atomic():
    tasks.store.delay_on_commit("committed")
    Item.objects.create(name="seen before")
try:
    with transaction.atomic():
        tasks.store.delay_on_commit("rolled back")
        raise ValueError
except ValueError:
    pass
wait_until(lambda: Item.objects.filter(name="committed").exists())
assert repr(tasks.leave_half.delay("half").get(timeout=10, propagate=False)) == "ValueError('as asked')"
assert sorted(Item.objects.values_list("name", flat=True)) == ["committed", "seen before"]
print(json.dumps([first, second, of_the_parent]))
""")
    assert len({first, second, of_the_parent}) == 3


@pytest.mark.parametrize("world", [{"REUSE": "100"}], indirect=True, ids=["CELERY_DB_REUSE_MAX"])
def test_a_connection_is_used_again_if_asked_for_and_made_anew_when_the_server_drops_it(world: World) -> None:
    before, of_the_parent, after = world("""
before, of_the_parent = get(tasks.session)
assert {get(tasks.session)[0] for _ in range(5)} == {before}
with connection.cursor() as cursor:
    cursor.execute("SELECT pg_terminate_backend(%s)", [before])
wait_until(lambda: before not in at_the_server())
# The task that finds it gone fails, as it would in a view; Django lets go of it then.
tasks.session.delay().get(timeout=10, propagate=False)
after, _ = get(tasks.session)
print(json.dumps([before, of_the_parent, after]))
""")
    assert len({before, of_the_parent, after}) == 3
