"""A worker that cannot start says why in one line, with what to do, and ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kombu.exceptions import OperationalError

from celery_clone import Celery
from celery_clone.exceptions import ImproperlyConfigured
from tests.support.processes import free_port
from tests.support.wait import wait_until
from tests.support.worker import WorkerProcess, clean_environment

PROJECT = """
import os
from celery_clone import Celery

app = Celery("project", broker=os.environ.get("BROKER", "memory://"), set_as_current=False)
app.conf.update(eval(os.environ.get("SETTINGS", "{}")))
if os.environ.get("SECURED"):
    app.setup_security()

@app.task(rate_limit=os.environ.get("RATE"))
def add(x, y):
    return x + y
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "project.py").write_text(PROJECT)
    for library in ("gevent", "eventlet"):
        (folder / "without" / library).mkdir(parents=True)
        (folder / "without" / library / "__init__.py").write_text(
            f"raise ModuleNotFoundError('No module named {library}', name={library!r})"
        )
    return folder


def start(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    surroundings = clean_environment(environment)
    if "PYTHONPATH" in environment and "PYTHONPATH" in os.environ:
        surroundings["PYTHONPATH"] = f"{environment['PYTHONPATH']}:{os.environ['PYTHONPATH']}"
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "celery_clone", "-A", "project", "worker", *options],
        cwd=folder,
        env=surroundings,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_an_unknown_result_backend_is_named_without_a_traceback(folder):
    settings = {"SETTINGS": "{'result_backend': 'nosuch://host'}"}
    worker = WorkerProcess("project", ["-c", "1"], folder=folder, environment=settings).spawn()
    try:
        wait_until(lambda: worker.exit_code is not None, 15, worker.log)
        assert worker.exit_code == 1
        assert "Unknown result backend: 'nosuch'" in worker.log()
        assert "Traceback" not in worker.log()
        assert worker.tree() == []
    finally:
        worker.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-c", "-1"], "'-1'"),
        (["-c", "many"], "'many'"),
        (["--autoscale", "3,10,x"], "'3,10,x'"),
        (["--autoscale", "-3"], "'-3'"),
        (["-P", "nosuch"], "'nosuch' is not one of 'prefork'"),
        (["--prefetch-multiplier", "-4"], "from 0 up, got -4"),
        (["--max-tasks-per-child", "-2"], "from 0 up, got -2"),
        (["--max-memory-per-child", "-2"], "from 0 up, got -2"),
        (["--time-limit", "-1.5"], "from 0 up, got -1.5"),
        (["--soft-time-limit", "-1"], "from 0 up, got -1"),
        (["--heartbeat-interval", "-1"], "from 0 up, got -1"),
        (["--umask", "zz"], "'zz'"),
        (["-l", "NOPE"], "'NOPE'"),
        (["--nosuch"], "--nosuch"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_impossible_option_ends_the_program_with_2_and_is_named(folder, options, said):
    ended = start(folder, *options)
    assert ended.returncode == 2
    assert said in ended.stderr and options[0] in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_a_pool_without_its_library_is_named_with_what_to_install(folder, pool):
    ended = start(folder, "-P", pool, PYTHONPATH=str(folder / "without"))
    assert ended.returncode == 2
    assert f"No module named {pool}" in ended.stderr and "pip install" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("options", "environment", "said"),
    [
        (["-Q", "celry"], {"SETTINGS": "{'task_create_missing_queues': False}"}, ("celry", "'celery'")),
        ([], {"RATE": "10/x"}, ("'10/x'", "project.add", "10/m")),
        ([], {"SETTINGS": "{'worker_concurrency': -1}"}, ("worker_concurrency is -1", "from 1 up")),
        ([], {"SETTINGS": "{'worker_prefetch_multiplier': 'x'}"}, ("worker_prefetch_multiplier is 'x'", "from 0 up")),
        ([], {"SETTINGS": "{'worker_pool': 'nosuch'}"}, ("'nosuch'", "prefork")),
        ([], {"SETTINGS": "{'worker_pool_start_method': 'x'}"}, ("worker_pool_start_method", "'x'")),
        ([], {"SETTINGS": "{'accept_content': ['nosuch']}"}, ("accept_content", "nosuch", "'json'")),
        (
            [],
            {"SETTINGS": "{'broker_use_ssl': {'ca_certs': '/nonexistent/ca.pem'}}", "BROKER": "amqps://127.0.0.1:1"},
            ("broker_use_ssl['ca_certs']", "/nonexistent/ca.pem", "Correct the path"),
        ),
        (["--pidfile", "/nonexistent/w.pid"], {}, ("/nonexistent/w.pid", "--pidfile")),
        (["-S", "/nonexistent/w.db"], {}, ("'/nonexistent/w.db",)),
        (["-f", "/nonexistent/w.log"], {}, ("'/nonexistent/w.log'",)),
        (["--uid", "nosuchuser"], {}, ("nosuchuser",)),
        (["-B", "--scheduler", "nosuch:X"], {}, ("'nosuch:X'", "module:Class", "--scheduler")),
        (["-B", "--scheduler", "celery.beat:Nosuch"], {}, ("'celery.beat:Nosuch'", "beat_scheduler")),
        ([], {"BROKER": "redis://me:secret@h:notaport"}, ("redis://me:**@h:notaport", "broker_url")),
    ],
    ids=lambda value: next(iter(value.values())) if isinstance(value, dict) and value else "",
)
def test_what_no_worker_can_work_with_is_named_without_a_traceback(folder, options, environment, said):
    ended = start(folder, *options, **environment)
    assert ended.returncode in (1, 2)
    told = ended.stderr + ended.stdout
    assert all(words in told for words in said), told
    assert "Traceback" not in told and "secret" not in told


def test_a_queue_to_exclude_that_nobody_declared_is_named_with_the_nearest(folder):
    with WorkerProcess("project", ["-c", "1", "-X", "celry"], folder=folder, log_level="INFO") as worker:
        worker.wait_for_log("--exclude-queues names the queue 'celry'.*Did you mean 'celery'")
        assert worker.stop() == 0


def test_a_key_that_cannot_be_read_is_named(folder):
    """The traceback is that of the project, whose own line it is."""
    settings = (
        "{'task_serializer': 'auth', 'accept_content': ['auth'], 'security_key': '/nonexistent/key.pem',"
        " 'security_certificate': '/nonexistent/cert.pem', 'security_cert_store': '/nonexistent/*.pem'}"
    )
    ended = start(folder, SETTINGS=settings, SECURED="1")
    assert ended.returncode == 2
    assert "security_key names the file '/nonexistent/key.pem'" in ended.stderr and "Correct the path" in ended.stderr


# -- the same at the call


def test_a_broker_url_that_cannot_be_read_is_named_without_its_password():
    app = Celery("project", broker="redis://me:secret@h:notaport", set_as_current=False)
    with pytest.raises(ImproperlyConfigured, match=r"redis://me:\*\*@h:notaport.*broker_url"):
        app.send_task("project.add")
    app.close()


@pytest.mark.parametrize("option", ["link", "link_error"])
def test_a_callback_that_is_no_signature_is_refused_at_the_call(option):
    with Celery("project", broker="memory://", set_as_current=False) as app:

        @app.task(shared=False)
        def add(x, y):
            return x + y

        for call in (add.apply_async, add.apply):
            with pytest.raises(TypeError, match=rf"{option} takes signatures, but got 5"):
                call((1, 2), **{option: 5})
            with pytest.raises(TypeError, match=rf"{option} takes signatures.*add\.s"):
                call((1, 2), **{option: [add.s(1), add]})


def test_the_index_of_an_accumulated_result_that_is_not_there_is_named():
    app = Celery("project", broker="memory://", set_as_current=False)
    with pytest.raises(IndexError, match=r"asked for argument 3 .* got 2"):
        app.tasks["celery.accumulate"].apply((1, 2), {"index": 3}, throw=True)
    app.close()


def test_results_as_messages_do_not_make_a_call_wait_longer_for_a_broker_that_is_away():
    with Celery("p", broker=f"amqp://127.0.0.1:{free_port()}", backend="rpc://", set_as_current=False) as app:
        started = time.monotonic()
        with pytest.raises(OperationalError):
            app.send_task("project.add", retry=False)
        assert time.monotonic() - started < 2
