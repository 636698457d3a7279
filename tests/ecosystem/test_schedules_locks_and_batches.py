"""celery-redbeat, celery-once and celery-batches: their beat and their task classes on our worker."""

from __future__ import annotations

import json


def test_redbeat_sends_from_redis_and_notices_entries_that_others_write(open_project):
    with open_project("redbeat_shop") as project:
        worker = project.worker()
        project.program("beat", "-S", "redbeat.RedBeatScheduler", "-l", "DEBUG")
        worker.wait_for_log("TICK conf", count=2, timeout=20)
        project.run(
            "from redbeat import RedBeatSchedulerEntry\n"
            "from celery.schedules import schedule\n"
            "from redbeat_shop import app\n"
            "RedBeatSchedulerEntry('added', 'redbeat_shop.tick', schedule(run_every=1, app=app), args=['redis'],\n"
            "                      app=app).save()"
        )
        worker.wait_for_log("TICK redis", count=2, timeout=20)
        runs = project.run(
            "from redbeat import RedBeatSchedulerEntry\n"
            "from redbeat_shop import app\n"
            "entry = RedBeatSchedulerEntry.from_key('redbeat:added', app=app)\n"
            "print(entry.total_run_count, entry.last_run_at.year > 2020)\n"
            "entry.delete()"
        ).split()
        assert int(runs[0]) >= 2
        assert runs[1] == "True"
        first = project.folder / "beat.log"
        assert "beat: Acquiring lock" in first.read_text()


def test_a_task_of_celery_once_is_queued_once(open_project):
    with open_project("once_shop") as project:
        worker = project.worker()
        said = project.run(
            "import json\n"
            "from celery_once import AlreadyQueued\n"
            "from once_shop import ship\n"
            "first = ship.delay(7, 2)\n"
            "said = []\n"
            "try:\n"
            "    ship.delay(7, 0)\n"
            "except AlreadyQueued as refusal:\n"
            "    said.append(type(refusal).__name__)\n"
            "said.append(ship.delay(8, 0).get(timeout=10))\n"
            "said.append(first.get(timeout=10))\n"
            "said.append(ship.delay(7, 0).get(timeout=10))\n"
            "print(json.dumps(said))"
        )
        assert json.loads(said) == ["AlreadyQueued", 8, 7, 7]
        worker.wait_for_log("succeeded", count=3)


def test_a_task_of_celery_batches_gets_its_calls_together(open_project):
    with open_project("batches_shop") as project:
        worker = project.worker("-c", "1")
        said = project.run(
            "import json\n"
            "from batches_shop import total\n"
            "sent = [total.delay(n) for n in range(5)]\n"
            "late = total.delay(100)\n"
            "print(json.dumps([[one.get(timeout=10) for one in sent], late.get(timeout=10)]))"
        )
        assert json.loads(said) == [[10] * 5, 100]
        worker.wait_for_log(r"BATCH \[0, 1, 2, 3, 4\]")
        worker.wait_for_log(r"BATCH \[100\]")
        # All of them were acknowledged: nothing comes back when the worker ends.
        assert worker.stop() == 0
        left = project.run(
            "from batches_shop import app\n"
            "with app.connection_for_read() as connection:\n"
            "    print(connection.default_channel._size('celery'))"
        )
        assert left.strip() == "0"
