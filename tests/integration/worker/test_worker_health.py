"""Probes of a worker: what they say when the broker goes away, when processes hang, and when the loop does."""

from __future__ import annotations

import json
import os
import signal
import urllib.error
import urllib.request

import pytest

from celery_clone import Celery
from celery_clone.exceptions import ImproperlyConfigured
from celery_clone.worker.health import Facts, Judgement, judge, listen, parse_address, response
from tests.support.processes import children_of, free_port
from tests.support.wait import wait_until

PROJECT = """
import os, time
from celery_clone import Celery

app = Celery("project", broker=os.environ["BROKER"])
app.conf.worker_health_stall = 1.5
app.conf.broker_transport_options = {"socket_timeout": 2}

@app.task(shared=False)
def note():
    with open(os.environ["NOTES"], "a") as file:
        file.write("x")

@app.task(shared=False)
def sleep(seconds):
    time.sleep(seconds)
"""


@pytest.fixture
def started(tmp_path, start_worker):
    """``started(broker, *options)``: a worker with probes; gives it, its address and its file."""
    (tmp_path / "project.py").write_text(PROJECT)

    def started(broker, *options):
        address = f"127.0.0.1:{free_port()}"
        probes = ("--health-address", address, "--health-file", str(tmp_path / "%n.health"))
        environment = {"BROKER": broker, "NOTES": str(tmp_path / "notes")}
        worker = start_worker("project", "-n", "w1@here", *probes, *options, environment=environment)
        return worker, address, tmp_path / "w1.health"

    return started


def ask(address, path):
    """Status and answer of a probe."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def standing(address):
    """(is it live?, is it ready?)"""
    return tuple(ask(address, path)[0] == 200 for path in ("/live", "/ready"))


@pytest.mark.redis
def test_a_worker_whose_broker_goes_away_is_live_but_not_ready_until_it_is_back(started, own_redis_server, tmp_path):
    worker, address, file = started(own_redis_server.url(), "-c", "1")
    ready = file.with_name("w1.health.ready")
    wait_until(lambda: standing(address) == (True, True), describe=worker.log)
    wait_until(lambda: file.exists() and ready.exists(), describe="both files")

    own_redis_server.kill()
    wait_until(lambda: standing(address) == (True, False), timeout=15, describe=worker.log)
    assert ask(address, "/ready")[1]["reason"] == "the worker is not connected to the broker"
    wait_until(lambda: not ready.exists(), describe="the end of the file")
    touched = file.stat().st_mtime_ns
    wait_until(lambda: file.stat().st_mtime_ns > touched, describe="the file to be touched")

    own_redis_server.start()
    wait_until(lambda: standing(address) == (True, True), timeout=20, describe=worker.log)
    app = Celery("client", broker=own_redis_server.url(), set_as_current=False)
    app.send_task("project.note")
    wait_until(lambda: (tmp_path / "notes").exists(), describe=worker.log)
    app.close()
    assert worker.stop() == 0
    assert not file.exists() and not ready.exists()


def test_a_worker_whose_processes_take_nothing_is_dead(started, sqlite_url):
    worker, address, file = started(sqlite_url, "-c", "1")
    app = Celery("client", broker=sqlite_url, set_as_current=False)
    (child,) = children_of(worker.pid)
    os.kill(child, signal.SIGSTOP)

    app.send_task("project.note")

    wait_until(lambda: standing(address) == (False, False), describe=worker.log)
    assert "no process has begun one" in ask(address, "/live")[1]["reason"]
    wait_until(lambda: not file.exists(), describe="the end of the file")
    os.kill(child, signal.SIGCONT)
    wait_until(lambda: standing(address) == (True, True), describe=worker.log)
    app.close()


def test_a_busy_worker_is_well_also_where_the_task_runs_in_the_loop(started, sqlite_url):
    worker, address, _ = started(sqlite_url, "-P", "solo")
    app = Celery("client", broker=sqlite_url, set_as_current=False)
    app.send_task("project.sleep", (2,))
    wait_until(lambda: "project.sleep[" in worker.log(), describe=worker.log)

    wait_until(lambda: standing(address) == (True, True), describe=worker.log)

    assert "succeeded" not in worker.log()
    app.close()


def test_a_worker_whose_loop_stands_still_is_dead():
    facts = Facts(turned_at=100.0, consumes=True)

    assert judge(facts, 110.0, 60.0, None) == Judgement(True, True, "the worker consumes")
    assert judge(facts, 120.0, 60.0, None) == Judgement(False, False, "the loop has not turned for 20 s")
    assert judge(Facts(100.0, consumes=True, in_loop=True), 900.0, 60.0, None).ready
    assert judge(Facts(100.0), 900.0, 60.0, None) == Judgement(True, False, "the worker is not connected to the broker")
    assert judge(Facts(100.0, consumes=True, ending=True), 101.0, 60.0, None) == Judgement(
        True, False, "the worker ends"
    )


def test_a_task_that_runs_for_too_long_makes_a_worker_dead_only_if_a_limit_was_set():
    facts = Facts(turned_at=1000.0, consumes=True, began_at=100.0)

    assert judge(facts, 1001.0, 60.0, None).live
    assert not judge(facts, 1001.0, 60.0, 600.0).live


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET /live HTTP/1.1", b"200 OK"),
        (b"GET /ready?x=1 HTTP/1.1", b"503 Service Unavailable"),
        (b"HEAD / HTTP/1.0", b"503 Service Unavailable"),
        (b"GET /other HTTP/1.1", b"404 Not Found"),
        (b"POST /live HTTP/1.1", b"404 Not Found"),
        (b"\x16\x03\x01", b"404 Not Found"),
        (b"", b"404 Not Found"),
    ],
)
def test_probes_are_answered_over_http(request_line, status):
    answer = response(request_line + b"\r\nHost: x\r\n\r\n", Judgement(True, False, "why"))

    assert answer.startswith(b"HTTP/1.1 " + status)
    assert answer.endswith(b"\r\n\r\n") == (request_line[:4] == b"HEAD")


def test_an_address_that_cannot_be_used_is_refused():
    assert parse_address("0.0.0.0:80") == ("0.0.0.0", 80)
    assert parse_address(":80") == ("", 80) and parse_address("80") == ("127.0.0.1", 80)
    assert parse_address("[::1]:80") == ("::1", 80) and parse_address(None) is None
    for wrong in ("nowhere", "host:", ":99999"):
        with pytest.raises(ImproperlyConfigured, match="host:port"):
            parse_address(wrong)
    with listen("127.0.0.1", 0) as taken, pytest.raises(ImproperlyConfigured, match="Another worker may use it"):
        listen("127.0.0.1", taken.getsockname()[1])
