"""A Django project with a database of its own, and nothing for Celery but Celery's guide: the fixup at work."""

from __future__ import annotations

import json
import textwrap

import pytest

SETUP = "import django, json; django.setup()\nfrom stock import tasks\nfrom stock.models import Item\n"


@pytest.fixture(scope="module")
def shop(open_project):
    """``shop(text)``: run Python text with Django set up; returns the JSON value it printed last."""
    with open_project("django_shop", path=["django_shop"], DJANGO_SETTINGS_MODULE="django_shop.settings") as project:
        project.command(str(project.python.with_name("django-admin")), "migrate", "--verbosity", "0")
        worker = project.worker("-c", "2")

        def run(program):
            out = project.run(SETUP + textwrap.dedent(program))
            assert out, worker.log()
            return json.loads(out.splitlines()[-1])

        yield run


def test_tasks_of_installed_applications_are_found_and_write_to_the_database(shop):
    names, pids, counted = shop(
        """
        sent = [tasks.store.delay(f"a{number}") for number in range(20)]
        stored = [one.get(timeout=20) for one in sent]
        rows = Item.objects.filter(pk__in=stored)
        print(json.dumps([sorted(row.name for row in rows), len({row.pid for row in rows}),
                          tasks.count.delay().get(timeout=10)]))
        """
    )
    assert len(names) == 20 and counted >= 20
    assert pids == 2, "both processes have connections of their own"


def test_a_task_begins_without_the_connections_of_the_one_before(shop):
    assert shop(
        """
        before = [tasks.count.delay().get(timeout=10) for _ in range(4)]
        print(json.dumps([tasks.open_connections.delay().get(timeout=10) for _ in range(4)]))
        """
    ) == [0, 0, 0, 0]


def test_what_fails_in_a_transaction_leaves_nothing(shop):
    assert shop(
        """
        error = tasks.fail_in_transaction.delay("half").get(timeout=10, propagate=False)
        print(json.dumps([repr(error), Item.objects.filter(name="half").count()]))
        """
    ) == ["ValueError('as asked')", 0]


def test_a_task_is_sent_on_commit_and_not_after_a_rollback(shop):
    assert shop(
        """
        import time
        from django.db import transaction
        with transaction.atomic():
            Item.objects.create(name="committed")
            tasks.store.delay_on_commit("after commit")
            tasks.store.apply_async_on_commit(("after commit, too",))
        try:
            with transaction.atomic():
                tasks.store.delay_on_commit("after rollback")
                raise ValueError
        except ValueError:
            pass
        end = time.monotonic() + 10
        while Item.objects.filter(name__startswith="after commit").count() < 2 and time.monotonic() < end:
            time.sleep(0.05)
        tasks.count.delay().get(timeout=10)
        print(json.dumps(sorted(Item.objects.filter(name__startswith="after").values_list("name", flat=True))))
        """
    ) == ["after commit", "after commit, too"]


def test_the_time_is_that_of_django(shop):
    zone, now = shop("print(json.dumps(tasks.now_in.delay().get(timeout=10)))")
    assert zone == "Europe/Vienna" and now.endswith("+00:00")
