"""Flower shows our workers and tasks, and what is done in it is done."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.support.processes import free_port
from tests.support.wait import wait_until
from tests.support.worker import WorkerProcess

NODE = "w1@flower.test"


class Flower(NamedTuple):
    """A running Flower, and the worker that it looks at."""

    url: str
    worker: WorkerProcess
    project: Any

    def get(self, path: str) -> Any:
        """The answer of Flower's HTTP API to a GET."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=20) as answer:
            return json.load(answer)

    def page(self, path: str) -> str:
        """A page as a browser gets it."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=20) as answer:
            return answer.read().decode()

    def post(self, path: str, **form: str) -> Any:
        """The answer of Flower's HTTP API to a form that was sent."""
        data = urllib.parse.urlencode(form).encode()
        with urllib.request.urlopen(f"{self.url}{path}", data=data, timeout=20) as answer:
            return json.load(answer)

    def call(self, path: str, *args: object) -> Any:
        """The answer to a task that was called through Flower."""
        data = json.dumps({"args": args}).encode()
        with urllib.request.urlopen(f"{self.url}{path}", data=data, timeout=20) as answer:
            return json.load(answer)

    def task(self, task_id: str, state: str) -> dict[str, Any]:
        """What Flower knows about a task, as soon as it is in *state*."""
        return wait_until(
            lambda: seen if (seen := self.get("/api/tasks").get(task_id, {})).get("state") == state else {},
            10,
            lambda: f"{task_id} in {state}; Flower knows {self.get('/api/tasks').get(task_id)}",
        )

    def node(self) -> dict[str, Any]:
        """What the worker says about itself, asked anew."""
        return self.get(f"/api/workers?refresh=1&workername={NODE}")[NODE]

    def pool_size(self) -> int:
        """How many processes the worker's pool has, as Flower knows it."""
        return len(self.node()["stats"]["pool"]["processes"])


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def flower(request: pytest.FixtureRequest, open_project: Any) -> Iterator[Flower]:
    settings = {"FLOWER_UNAUTHENTICATED_API": "true"}
    if request.param == "rabbitmq":
        rabbitmq = request.getfixturevalue("rabbitmq_server")
        settings["BROKER"] = rabbitmq.url(rabbitmq.new_virtual_host())
    with open_project("shop", **settings) as project:
        worker = project.worker("-c", "2", "-n", NODE)
        port = free_port()
        project.program("flower", "--address=127.0.0.1", f"--port={port}", "--inspect_timeout=5000")
        flower = Flower(f"http://127.0.0.1:{port}", worker, project)

        def knows_the_worker() -> bool:
            try:
                # By its events, which have begun to arrive, and by its answers, which it needs for its buttons.
                return flower.get("/api/workers?status=1").get(NODE, False) and NODE in flower.get("/api/workers")
            except urllib.error.URLError:
                return False

        wait_until(knows_the_worker, 20, f"Flower to see {NODE}")
        yield flower


def test_a_worker_is_shown_with_its_pool_its_queues_and_its_tasks(flower):
    shown = flower.node()
    assert shown["stats"]["pool"]["max-concurrency"] >= 2
    assert [queue["name"] for queue in shown["active_queues"]] == ["celery"]
    assert {"shop.add", "shop.nap", "shop.fail"} <= {task.partition(" ")[0] for task in shown["registered"]}
    assert NODE in flower.page("/workers")
    assert "shop.add" in flower.page(f"/worker/{NODE}")


def test_a_task_that_flower_sends_is_shown_from_sending_to_its_end(flower):
    answer = flower.call("/api/task/apply/shop.add", 2, 3)
    assert (answer["state"], answer["result"]) == ("SUCCESS", 5)
    seen = flower.task(answer["task-id"], "SUCCESS")
    assert (seen["name"], seen["args"], seen["result"], seen["worker"]) == ("shop.add", "[2, 3]", "5", NODE)
    assert seen["sent"] and seen["received"] <= seen["started"] <= seen["succeeded"]
    assert "shop.add" in flower.page(f"/task/{answer['task-id']}")


def test_a_failure_is_shown_with_its_traceback(flower):
    sent = flower.call("/api/task/async-apply/shop.fail")
    seen = flower.task(sent["task-id"], "FAILURE")
    assert seen["exception"] == "ValueError('as asked')"
    assert 'raise ValueError("as asked")' in seen["traceback"]


def test_a_running_task_is_revoked_and_ended_from_flower(flower):
    sent = flower.call("/api/task/async-apply/shop.nap", 600)
    flower.task(sent["task-id"], "STARTED")
    flower.post(f"/api/task/revoke/{sent['task-id']}", terminate="true", signal="SIGTERM")
    flower.task(sent["task-id"], "REVOKED")
    assert flower.get(f"/api/task/result/{sent['task-id']}")["state"] == "REVOKED"


def test_the_pool_grows_and_shrinks_by_flowers_buttons(flower):
    before = flower.pool_size()
    flower.post(f"/api/worker/pool/grow/{NODE}", n="1")
    assert flower.pool_size() == before + 1
    flower.post(f"/api/worker/pool/shrink/{NODE}", n="1")
    wait_until(lambda: flower.pool_size() == before, 10, f"a pool of {before}")


def test_limits_of_rate_and_time_are_set_from_flower(flower):
    assert "message" in flower.post("/api/task/rate-limit/shop.add", workername=NODE, ratelimit="30/m")
    assert "message" in flower.post("/api/task/timeout/shop.fail", workername=NODE, soft="10", hard="20")
    flower.worker.wait_for_log(r"New rate limit for tasks of type shop.add: 30/m\.")
    flower.worker.wait_for_log(r"New time limits for tasks of type shop.fail: soft=10.0 hard=20.0")
    flower.post("/api/task/rate-limit/shop.add", workername=NODE, ratelimit="0")


def test_a_queue_is_added_and_left_from_flower(flower):
    def queues():
        return {queue["name"] for queue in flower.node()["active_queues"]}

    flower.post(f"/api/worker/queue/add-consumer/{NODE}", queue="extra")
    wait_until(lambda: queues() == {"celery", "extra"}, 10, "the worker to consume from extra")
    flower.post(f"/api/worker/queue/cancel-consumer/{NODE}", queue="extra")
    wait_until(lambda: queues() == {"celery"}, 10, "the worker to leave extra")


def test_the_metrics_for_prometheus_count_what_the_worker_did(flower):
    flower.call("/api/task/apply/shop.add", 1, 1)
    words = f'flower_events_total{{task="shop.add",type="task-succeeded",worker="{NODE}"}}'
    wait_until(lambda: words in flower.page("/metrics"), 10, f"{words} in Flower's metrics")
    assert f'flower_worker_online{{worker="{NODE}"}} 1.0' in flower.page("/metrics")


def test_flower_shows_a_worker_that_ended_as_offline(flower):
    name = "w2@flower.test"
    second = flower.project.worker("-c", "1", "-n", name)
    wait_until(lambda: flower.get("/api/workers?status=1").get(name), 10, f"{name} to be shown")
    second.stop()
    wait_until(lambda: flower.get("/api/workers?status=1")[name] is False, 10, f"{name} to be shown as offline")
