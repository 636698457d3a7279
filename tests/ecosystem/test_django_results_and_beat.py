"""django-celery-results and django-celery-beat: results and schedule in the database of a Django project."""

from __future__ import annotations

import json
import textwrap

import pytest

from tests.support.wait import wait_until

DJANGO = "import django; django.setup()\n"


class Site:
    """The Django project with its worker and its beat running, asked through its models."""

    def __init__(self, project):
        self.project = project

    def python(self, program):
        """Run Python text with Django set up; returns the JSON value it printed last."""
        out = self.project.run(DJANGO + "import json\n" + textwrap.dedent(program))
        return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def site(open_project):
    with open_project("django_site", path=["django_site"], DJANGO_SETTINGS_MODULE="django_site.settings") as project:
        project.command(str(project.python.with_name("django-admin")), "migrate", "--verbosity", "0")
        project.worker()
        project.program("beat", "-l", "INFO")
        yield Site(project)


def test_results_are_rows_with_all_that_is_known_of_the_task(site):
    row = site.python(
        """
        from orders.tasks import add, fail
        from django_celery_results.models import TaskResult
        sent = add.delay(2, 3)
        assert sent.get(timeout=10) == 5, sent.state
        row = TaskResult.objects.get(task_id=sent.id)
        failed = fail.delay()
        failed.get(timeout=10, propagate=False)
        print(json.dumps([row.status, row.result, row.task_name, row.task_args, row.worker, str(row.date_started),
                          TaskResult.objects.get(task_id=failed.id).traceback[-30:]]))
        """
    )
    assert row[:3] == ["SUCCESS", "5", "orders.tasks.add"]
    assert json.loads(row[3]) in ("(2, 3)", [2, 3])
    assert row[4].startswith("celery@")
    assert row[5] != "None"
    assert "ValueError: as asked" in row[6]


def test_a_chord_counts_its_members_in_the_database(site):
    answer = site.python(
        """
        from celery import chord, group
        from orders.tasks import add, total
        from django_celery_results.models import ChordCounter, GroupResult
        whole = chord((add.s(n, n) for n in range(10)), total.s())()
        saved = group(add.s(n, 1) for n in range(3)).apply_async()
        saved.save()
        print(json.dumps([whole.get(timeout=20), saved.get(timeout=20), ChordCounter.objects.count(),
                          GroupResult.objects.filter(group_id=saved.id).count()]))
        """
    )
    assert answer == [90, [1, 2, 3], 0, 1]


def test_beat_sends_what_the_database_says_and_notices_a_change(site):
    def runs(word):
        return site.python(
            f"""
            from django_celery_results.models import TaskResult
            rows = TaskResult.objects.filter(task_name="orders.tasks.tick", status="SUCCESS")
            print(sum("{word}" in row.task_args for row in rows))
            """
        )

    wait_until(lambda: runs("settings") >= 2, 20, "the entry of the settings to run twice", every=0.5)
    site.python(
        """
        from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask
        from django.utils.timezone import now
        each_second, _ = IntervalSchedule.objects.get_or_create(every=1, period=IntervalSchedule.SECONDS)
        PeriodicTask.objects.create(
            name="from the database", task="orders.tasks.tick", interval=each_second, args='["database"]')
        once, _ = ClockedSchedule.objects.get_or_create(clocked_time=now())
        PeriodicTask.objects.create(
            name="once", task="orders.tasks.tick", clocked=once, one_off=True, args='["clocked"]')
        midnight, _ = CrontabSchedule.objects.get_or_create(minute="0", hour="0", timezone="Europe/Vienna")
        PeriodicTask.objects.create(name="nightly", task="orders.tasks.tick", crontab=midnight, args='["midnight"]')
        print(PeriodicTask.objects.count())
        """
    )
    wait_until(lambda: runs("database") >= 2, 20, "the new entry to run twice", every=0.5)
    wait_until(lambda: runs("clocked") == 1, 20, "the clocked entry to run once", every=0.5)
    assert runs("midnight") == 0


def test_cleaning_up_removes_what_has_expired(site):
    answer = site.python(
        """
        from datetime import timedelta
        from celery import current_app
        from django.utils.timezone import now
        from django_celery_results.models import TaskResult
        from orders.tasks import add
        old = add.delay(1, 1)
        old.get(timeout=10)
        TaskResult.objects.filter(task_id=old.id).update(date_done=now() - timedelta(days=30))
        current_app.tasks["celery.backend_cleanup"].delay().get(timeout=10)
        print(TaskResult.objects.filter(task_id=old.id).count())
        """
    )
    assert answer == 0
