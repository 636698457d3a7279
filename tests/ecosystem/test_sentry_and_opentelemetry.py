"""What watches tasks from within: sentry-sdk's and OpenTelemetry's integrations of Celery."""

from __future__ import annotations

import json

import pytest

from tests.support.wait import wait_until


@pytest.fixture(scope="module")
def sentry(open_project):
    with open_project("sentry_shop") as project:
        project.worker()
        project.program("beat", "-l", "INFO", "-s", str(project.folder / "schedule"))
        yield project


def sent_to_sentry(project, kind, **wanted):
    """The first item of *kind* whose fields are as *wanted*."""

    def found():
        for item in project.sent():
            if item["kind"] == kind and all(item.get(name) == value for name, value in wanted.items()):
                return item
        return None

    return wait_until(found, 15, lambda: f"{kind} {wanted}; sent were {kinds(project)}")


def kinds(project):
    """What was sent, in short."""
    return [(item["kind"], item.get("transaction") or item.get("monitor_slug")) for item in project.sent()]


def test_sentry_gets_the_failure_with_the_task_that_failed(sentry):
    task_id = sentry.run("from sentry_shop import fail; sent = fail.delay(); sent.get(propagate=False); print(sent.id)")
    event = sent_to_sentry(sentry, "event", transaction="sentry_shop.fail")
    assert event["exception"]["values"][-1]["value"] == "as asked"
    assert event["exception"]["values"][-1]["mechanism"]["type"] == "celery"
    assert event["extra"]["celery-job"]["task_name"] == "sentry_shop.fail"
    assert event["tags"]["celery_task_id"] == task_id.strip()


def test_sentry_follows_a_task_from_its_sender_to_the_worker(sentry):
    sentry.run(
        "import sentry_sdk\n"
        "from sentry_shop import add\n"
        "with sentry_sdk.start_transaction(op='test', name='sender'):\n"
        "    assert add.delay(1, 2).get(timeout=10) == 3\n"
        "sentry_sdk.flush()"
    )
    sender = sent_to_sentry(sentry, "transaction", transaction="sender")
    trace = sender["contexts"]["trace"]["trace_id"]
    assert "queue.submit.celery" in [span["op"] for span in sender["spans"]]

    def of_the_worker():
        for item in sentry.sent():
            is_run = item["kind"] == "transaction" and item["transaction"] == "sentry_shop.add"
            if is_run and item["contexts"]["trace"]["trace_id"] == trace:
                return item
        return None

    run = wait_until(of_the_worker, 15, lambda: f"the worker's side of trace {trace}; sent were {kinds(sentry)}")
    assert run["contexts"]["trace"]["op"] == "queue.task.celery"
    assert "queue.process" in [span["op"] for span in run["spans"]]


def test_sentry_sees_each_run_of_a_periodic_task(sentry):
    begun = sent_to_sentry(sentry, "check_in", monitor_slug="each-minute", status="in_progress")
    done = sent_to_sentry(sentry, "check_in", check_in_id=begun["check_in_id"], status="ok")
    assert done["monitor_slug"] == "each-minute"


def test_opentelemetry_joins_sender_and_worker_in_one_trace(open_project):
    with open_project("traced_shop") as project:
        worker = project.worker("-c", "1")
        ids = json.loads(
            project.run(
                "import json\n"
                "import traced_shop\n"
                "traced_shop.trace_this_process()\n"
                "good, bad = traced_shop.add.delay(1, 2), traced_shop.fail.delay()\n"
                "assert good.get(timeout=10) == 3\n"
                "bad.get(timeout=10, propagate=False)\n"
                "print(json.dumps([good.id, bad.id]))"
            )
        )
        worker.stop()
        spans = project.sent()

    def of(task_id, name):
        return [
            span for span in spans if span["name"] == name and span["attributes"].get("messaging.message.id") == task_id
        ]

    [published] = of(ids[0], "apply_async/traced_shop.add")
    [run] = of(ids[0], "run/traced_shop.add")
    assert run["parent_id"] == published["context"]["span_id"]
    assert run["context"]["trace_id"] == published["context"]["trace_id"]
    assert run["attributes"]["celery.state"] == "SUCCESS"
    tried = of(ids[1], "run/traced_shop.fail")
    assert sorted(span["attributes"]["celery.state"] for span in tried) == ["FAILURE", "RETRY"]
    assert {span["status"]["status_code"] for span in tried} >= {"ERROR"}
