"""Where calls go: to one worker, to all, by topic, by headers, by alias, by urgency; and what a worker leaves alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_clone.exceptions import QueueNotFound
from celery_clone.utils.nodenames import worker_direct
from tests.support.brokers import AMQP, EACH, EACH_WITH_TEXTS, Arena, load_project, open_arena, start_server
from tests.support.wait import wait_until
from tests.support.worker import WorkerProcess

PROJECT = """
import json, os, time
from pathlib import Path
from celery_clone import Celery
from kombu import Exchange, Queue
from kombu.common import Broadcast

app = Celery("project", broker=os.environ["BROKER"], backend=os.environ["RESULTS"], set_as_current=False)
app.conf.broker_transport_options = json.loads(os.environ["BROKER_OPTIONS"])
app.conf.update(worker_direct=True, task_create_missing_queues=False)
topics = Exchange("topics", type="topic")
app.conf.task_queues = [
    Queue("celery"),
    Queue("video", topics, routing_key="video.#"),
    Queue("images", topics, routing_key="image.*", alias="pictures"),
    Broadcast("everybody"),
]
if app.conf.broker_url.startswith("amqp"):
    by_headers = Exchange("by_headers", type="headers")
    urgent = {"x-match": "all", "urgent": "yes"}
    app.conf.task_queues.append(Queue("urgent", by_headers, binding_arguments=urgent))
app.conf.task_routes = ({"project.video_*": "video"}, lambda name, *_, **__: {"queue": "images"} if "image" in name else None)

@app.task(bind=True)
def who(self):
    return self.request.hostname, self.request.delivery_info["routing_key"]

@app.task(bind=True, name="project.video_cut")
def video_cut(self):
    return self.request.hostname, "cut"

@app.task(bind=True, name="project.image_cut")
def image_cut(self):
    return self.request.hostname, "cut"

@app.task
def nap(seconds):
    time.sleep(seconds)
    return seconds

@app.task
def nap_until(gate):
    here = Path(__file__).parent
    (here / (gate + ".awaited")).touch()
    while not (here / gate).exists():
        time.sleep(0.005)
    return gate

@app.task(ignore_result=True)
def note(name):
    with open(Path(__file__).parent / "noted", "a") as file:
        file.write(f"{name}\\n")
"""


class Town:
    """A project on one broker."""

    def __init__(self, arena: Arena, folder: Path) -> None:
        self.arena, self.folder = arena, folder
        (folder / "project.py").write_text(PROJECT)
        self.tasks: Any = load_project(folder / "project.py", arena.environment)
        self.app = self.tasks.app
        self.workers: list[WorkerProcess] = []

    def worker(self, name: str, *options: str) -> WorkerProcess:
        worker = WorkerProcess(
            "project", ["-n", name, *options], folder=self.folder, environment=self.arena.environment
        )
        self.workers.append(worker)
        return worker.start()

    def noted(self) -> list[str]:
        path = self.folder / "noted"
        return path.read_text().split() if path.exists() else []

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        self.app.close()


@pytest.fixture(scope="module", params=EACH)
def broker(request: pytest.FixtureRequest) -> str:
    """The name of each broker, whose server runs."""
    start_server(request.param, request.getfixturevalue)
    return str(request.param)


with_texts = pytest.mark.parametrize("broker", EACH_WITH_TEXTS, indirect=True)


@pytest.fixture
def town(request: pytest.FixtureRequest, broker: str, tmp_path: Path) -> Iterator[Town]:
    with open_arena(broker, request.getfixturevalue, tmp_path) as arena:
        one = Town(arena, tmp_path)
        yield one
        one.close()


def test_a_call_finds_its_worker(town):
    a, b = town.worker("a@here", "-c", "1"), town.worker("b@here", "-c", "1", "-X", "images")
    who = town.tasks.who

    def where(result: Any) -> list[str]:
        return list(result.get(timeout=10))

    for name in ("a@here", "b@here"):
        assert where(who.apply_async(queue=worker_direct(name))) == [name, f"{name}.dq2"]
    assert where(who.apply_async(exchange="topics", routing_key="video.mp4.cut"))[1] == "video.mp4.cut"
    assert where(who.apply_async(exchange="topics", routing_key="image.png")) == ["a@here", "image.png"]
    assert where(who.apply_async(queue="pictures"))[0] == "a@here"
    assert where(town.tasks.image_cut.delay())[0] == "a@here"
    assert town.tasks.video_cut.delay().get(timeout=10)
    told = who.apply_async(queue="everybody")
    for worker in (a, b):
        worker.wait_for_log(rf"who\[{told.id}\] succeeded")
    with pytest.raises(QueueNotFound, match="'vidoe'.*Did you mean 'video'"):
        who.apply_async(queue="vidoe")
    consumed = town.app.control.inspect(timeout=10, destination=["b@here"]).active_queues()["b@here"]
    names = {queue["name"] for queue in consumed}
    assert {"celery", "video", "b@here.dq2"} <= names and "images" not in names
    assert [worker.stop(10) for worker in (a, b)] == [0, 0]


@pytest.mark.parametrize("broker", [AMQP], indirect=True)
def test_a_call_finds_its_queue_by_its_headers(town):
    town.worker("a@here", "-c", "1", "-Q", "urgent")
    other = town.tasks.who.apply_async()
    result = town.tasks.who.apply_async(exchange="by_headers", routing_key="any", headers={"urgent": "yes"})
    assert result.get(timeout=10)[0] == "a@here"
    assert other.state == "PENDING" and town.arena.waiting("celery") == 1


def test_waiting_tasks_are_thrown_away_when_a_worker_is_told_so(town):
    for number in range(3):
        town.tasks.note.delay(f"old-{number}")
    worker = town.worker("a@here", "-c", "1", "--purge")
    town.tasks.note.delay("new")
    wait_until(town.noted, 10, worker.log)
    assert town.noted() == ["new"]
    assert "Erased 3 messages" in worker.log() or "3" in worker.log()


@with_texts
def test_urgent_tasks_come_first_by_the_steps_of_the_broker(town):
    """Redis and SQLite serve 9 first among what AMQP would; Redis, as kombu has it, 0 before 9."""
    for priority in (0, 3, 6, 9, 0, 9):
        town.tasks.note.apply_async((priority,), priority=priority)
    town.worker("a@here", "-c", "1", "--prefetch-multiplier", "1")
    wait_until(lambda: len(town.noted()) == 6, 10, town.workers[-1].log)
    wanted = ["0", "0", "3", "6", "9", "9"]
    assert town.noted() == (wanted if town.arena.name == "redis" else wanted[::-1])


def test_short_tasks_pass_a_long_one_and_a_worker_takes_no_more_than_it_can_run(town):
    patient = town.worker("a@here", "-c", "2")
    running = town.tasks.nap_until.delay("gate")
    wait_until((town.folder / "gate.awaited").exists, 10, patient.log)
    for result in [town.tasks.nap.delay(0.02) for _ in range(10)]:
        result.get(timeout=10)
    assert not running.ready()
    (town.folder / "gate").touch()
    assert running.get(timeout=10) == "gate"
    assert patient.stop(10) == 0


@pytest.mark.parametrize("multiplier", ["late", "disabled"])
def test_no_task_waits_in_a_worker_that_shall_not_fetch_ahead(town, multiplier):
    (town.folder / "project.py").write_text(PROJECT.replace("@app.task\ndef nap", "@app.task(acks_late=True)\ndef nap"))
    options = ["--prefetch-multiplier", "1"] if multiplier == "late" else ["--disable-prefetch"]
    worker = town.worker("a@here", "-c", "2", *options)
    inspect = town.app.control.inspect(timeout=10, destination=["a@here"])
    for _ in range(5):
        town.tasks.nap_until.delay("gate")
    wait_until(lambda: len(inspect.active()["a@here"]) == 2, 10, worker.log)
    assert inspect.reserved()["a@here"] == []
    assert town.arena.waiting("celery") == 3
