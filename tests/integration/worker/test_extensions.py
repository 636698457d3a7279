"""What projects add to a worker: steps, options, requests, signals, signatures on messages, another user."""

from __future__ import annotations

import datetime
import grp
import os
import pwd
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from celery_clone import states
from tests.support.brokers import load_project
from tests.support.redis import RedisServer
from tests.support.wait import wait_until
from tests.support.worker import WorkerProcess, clean_environment

PROJECT = """
import json, os
from pathlib import Path
import click
from celery_clone import Celery, Task, bootsteps, signals
from celery_clone.worker.request import Request

app = Celery("project", broker=os.environ["BROKER"], backend=os.environ["RESULTS"], set_as_current=False)
HERE = Path(__file__).parent

def note(*words):
    with open(HERE / "noted", "a") as file:
        file.write(" ".join(map(str, words)) + "\\n")

app.user_options["worker"].add(click.Option(("--colour",), default="grey", help="How it is painted."))

class Painted(bootsteps.Step):
    def __init__(self, parent, colour="none", **options):
        note("step", "init", colour)

class Guard(bootsteps.StartStopStep):
    requires = {"celery.worker.components:Pool"}
    def start(self, parent): note("step", "worker-start", parent.pool is not None)
    def stop(self, parent): note("step", "worker-stop")

class Neighbour(bootsteps.StartStopStep):
    requires = ("celery_clone.worker.consumer.tasks:Tasks",)
    def start(self, parent): note("step", "consumer-start", parent.task_consumer is not None)
    def stop(self, parent): note("step", "consumer-stop")

app.steps["worker"].update((Painted, Guard))
app.steps["consumer"].add(Neighbour)

WANTED = {
    "celeryd_init": ("instance", "conf", "options"),
    "celeryd_after_setup": ("instance", "conf"),
    "worker_init": (),
    "worker_before_create_process": (),
    "worker_ready": (),
    "worker_shutting_down": ("sig", "how", "exitcode"),
    "worker_shutdown": (),
    "worker_process_init": (),
    "worker_process_shutdown": ("pid", "exitcode"),
    "task_received": ("request",),
    "task_prerun": ("task_id", "task", "args", "kwargs"),
    "task_postrun": ("task_id", "task", "args", "kwargs", "retval", "state"),
    "task_success": ("result",),
    "task_failure": ("task_id", "exception", "args", "kwargs", "traceback", "einfo"),
    "task_retry": ("request", "reason", "einfo"),
    "task_revoked": ("request", "terminated", "signum", "expired"),
    "task_unknown": ("name", "id", "message", "exc"),
    "task_rejected": ("message", "exc"),
    "task_internal_error": ("task_id", "args", "kwargs", "request", "einfo"),
}

def listen(name, wanted):
    def told(sender=None, signal=None, **given):
        missing = [each for each in wanted if each not in given]
        note("signal", name, "without " + ",".join(missing) if missing else "complete", sender is not None)
    getattr(signals, name).connect(told, weak=False)

for name, wanted in WANTED.items():
    listen(name, wanted)

class Watchful(Request):
    def on_success(self, failed__retval__runtime, **kwargs):
        note("request", "success", self.name)
        return super().on_success(failed__retval__runtime, **kwargs)

class Watched(Task):
    Request = Watchful

@app.task(base=Watched)
def watched(): return "seen"

@app.task
def add(x, y): return x + y

@app.task(bind=True, max_retries=1, default_retry_delay=0)
def again(self):
    if not self.request.retries:
        raise self.retry()
    raise ValueError("as asked")

@app.task
def owner():
    return os.getuid(), os.getgid(), os.umask(0o022)
"""


class Project:
    """A project and what was noted of its worker."""

    def __init__(self, folder: Path, source: str, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        (folder / "project.py").write_text(source)
        self.tasks: Any = load_project(folder / "project.py", environment)

    def worker(self, *options: str) -> WorkerProcess:
        words = ["-c", "1", "-n", "w@here", *options]
        return WorkerProcess("project", words, folder=self.folder, environment=self.environment)

    def noted(self, kind: str) -> list[str]:
        path = self.folder / "noted"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.removeprefix(f"{kind} ") for line in lines if line.startswith(f"{kind} ")]


@pytest.fixture
def make_project(tmp_path: Path) -> Iterator[Callable[..., Project]]:
    """``make_project(source)``: a project on the embedded broker, or on the one of the environment given."""
    made: list[Project] = []

    def make(source: str = PROJECT, **environment: str) -> Project:
        url = f"sqlite:///{tmp_path}/broker.db"
        made.append(Project(tmp_path, source, {"BROKER": url, "RESULTS": url, **environment}))
        return made[-1]

    yield make
    for project in made:
        project.tasks.app.close()


def test_steps_options_requests_and_signals_of_a_project_are_heard(make_project):
    project = make_project()
    app, tasks = project.tasks.app, project.tasks
    revoked = tasks.add.apply_async((1, 1), countdown=0.5)
    revoked.revoke()
    with project.worker("--colour", "green") as worker:
        assert tasks.watched.delay().get(timeout=10) == "seen"
        assert tasks.add.delay(1, 2).get(timeout=10) == 3
        with pytest.raises(ValueError, match="as asked"):
            tasks.again.delay().get(timeout=10)
        app.send_task("project.nosuch")
        with app.connection_for_write() as connection:
            connection.Producer().publish(b"no call", routing_key="celery", content_type="text/plain")
        wait_until(lambda: revoked.state == states.REVOKED, 10, worker.log)
        wait_until(lambda: any("task_rejected" in line for line in project.noted("signal")), 10, worker.log)
        assert worker.stop(10) == 0
    assert project.noted("step") == [
        "init green",
        "worker-start True",
        "consumer-start True",
        "consumer-stop",
        "worker-stop",
    ]
    assert project.noted("request") == ["success project.watched"]
    heard = {line.partition(" ")[0] for line in project.noted("signal")}
    # Nothing has gone wrong inside of the worker itself.
    assert heard == {*project.tasks.WANTED} - {"task_internal_error"}
    assert not [line for line in project.noted("signal") if "without" in line], project.noted("signal")


# -- signed messages


def make_certificate(folder: Path, name: str) -> tuple[str, str]:
    """Paths of a new key and of its certificate."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.PrivateFormat.TraditionalOpenSSL
    (folder / f"{name}.key").write_bytes(key.private_bytes(pem, plain, serialization.NoEncryption()))
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(pem))
    return str(folder / f"{name}.key"), str(folder / f"{name}.pem")


SIGNED = """
import os
from celery_clone import Celery

app = Celery("project", broker=os.environ["BROKER"], backend=os.environ["RESULTS"], set_as_current=False)
app.conf.update(
    security_key=os.environ["KEY"], security_certificate=os.environ["CERTIFICATE"],
    security_cert_store=os.environ["STORE"], task_serializer="auth", event_serializer="auth",
    accept_content=["auth"], result_serializer="json", result_accept_content=["json"],
)
if os.environ.get("SIGNS"):
    app.setup_security()

@app.task
def add(x, y): return x + y
"""

SEND = """
import sys, os
from project import app
try:
    result = app.send_task("project.add", (1, 2), **eval(sys.argv[1]))
    print(result.get(timeout=float(sys.argv[2])))
except Exception as exc:
    print(type(exc).__name__)
"""


def test_only_what_a_known_sender_signed_is_run(make_project, tmp_path):
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    key, certificate = make_certificate(trusted, "worker")
    strange_key, strange_certificate = make_certificate(tmp_path, "stranger")
    paths = {"KEY": key, "CERTIFICATE": certificate, "STORE": f"{trusted}/*.pem"}
    # Serializers are registered for a whole process: this one stays as it is.
    project = make_project(SIGNED, **paths)
    (tmp_path / "send.py").write_text(SEND)

    def send(options: str, timeout: float, **more: str) -> str:
        environment = clean_environment({**project.environment, "SIGNS": "1", **more})
        words = [sys.executable, "send.py", options, str(timeout)]
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=30).stdout

    project.environment["SIGNS"] = "1"
    with project.worker() as worker:
        assert send("{}", 10) == "3\n"
        strangers = {"KEY": strange_key, "CERTIFICATE": strange_certificate}
        # Refused, and its caller told so.
        assert send("{}", 5, **strangers) in ("DecodeError\n", "SecurityError\n", "TimeoutError\n")
        worker.wait_for_log("cannot be run|could not be", 10)
        assert send("{'serializer': 'json'}", 5) != "3\n"
        assert send("{}", 10) == "3\n"
        assert worker.log().count("succeeded in") == 2
        assert worker.stop(10) == 0


# -- another user


def can_use_python(user: str) -> bool:
    """May *user* read the interpreter that runs these tests?"""
    try:
        return subprocess.run([sys.executable, "-c", "import glob"], user=user, capture_output=True).returncode == 0
    except PermissionError:
        return False


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_a_worker_becomes_another_user_with_other_rights_for_new_files(make_project, tmp_path):
    if not can_use_python("nobody"):
        pytest.skip("this Python is for root alone")
    nobody = pwd.getpwnam("nobody")
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o777)
    project = make_project()
    project.tasks.app.backend  # noqa: B018 makes the file
    project.tasks.add.delay(0, 0)
    for each in tmp_path.iterdir():
        os.chown(each, nobody.pw_uid, nobody.pw_gid)
        each.chmod(0o666)
    with project.worker("--uid", "nobody", "--umask", "077", "--pidfile", str(tmp_path / "w.pid")) as worker:
        uid, gid, _ = project.tasks.owner.delay().get(timeout=10)
        assert (uid, gid) == (nobody.pw_uid, nobody.pw_gid)
        assert stat.S_IMODE((tmp_path / "w.pid").stat().st_mode) & 0o077 == 0
        assert "superuser" not in worker.log()
        assert worker.stop(10) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change its group")
def test_a_worker_changes_its_group_and_the_rights_of_new_files(make_project, tmp_path):
    project = make_project()
    pidfile = tmp_path / "w.pid"
    with project.worker("--gid", "nogroup", "--umask", "077", "--pidfile", str(pidfile)) as worker:
        _, gid, _ = project.tasks.owner.delay().get(timeout=10)
        assert gid == grp.getgrnam("nogroup").gr_gid
        assert stat.S_IMODE(pidfile.stat().st_mode) & 0o077 == 0
        assert worker.stop(10) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="is about root")
def test_root_does_not_run_what_is_pickled(make_project):
    project = make_project(PROJECT.replace("HERE =", "app.conf.accept_content = ['pickle']\nHERE ="))
    worker = project.worker().spawn()
    try:
        wait_until(lambda: worker.exit_code is not None, 15, worker.log)
        assert worker.exit_code == 1
        assert "--uid" in worker.log() and "C_FORCE_ROOT" in worker.log()
    finally:
        worker.close()


# -- a user of Redis with few rights

GUEST = """
import os
from celery_clone import Celery
from redis.credentials import CredentialProvider

class Credentials(CredentialProvider):
    def get_credentials(self):
        return "guest", os.environ["SECRET"]

app = Celery("project", broker=os.environ["BROKER"], backend=os.environ["RESULTS"], set_as_current=False)
app.conf.broker_transport_options = {"global_keyprefix": "ours:"}
app.conf.result_backend_transport_options = {"global_keyprefix": "ours:"}
if os.environ["HOW"] == "provider":
    app.conf.broker_transport_options["credential_provider"] = Credentials()

@app.task
def add(x, y): return x + y
"""


@pytest.mark.redis
@pytest.mark.parametrize("how", ["url", "provider"])
def test_a_user_of_redis_with_rights_to_one_prefix_is_enough(make_project, redis_server: RedisServer, how, tmp_path):
    url = redis_server.new_database_url()
    with redis.Redis.from_url(url) as client:
        client.acl_setuser(
            "guest", enabled=True, passwords=["+s3cret"], keys=["ours:*"], channels=["*"], commands=["+@all", "-@admin"]
        )
        named = url.replace("redis://", "redis://guest:s3cret@")
        results = named if how == "url" else f"sqlite:///{tmp_path}/results.db"
        project = make_project(GUEST, BROKER=named if how == "url" else url, RESULTS=results, HOW=how, SECRET="s3cret")
        later = project.tasks.add.apply_async((1, 1), countdown=1.5)
        with project.worker() as worker:
            assert project.tasks.add.delay(1, 2).get(timeout=10) == 3
            assert later.get(timeout=10) == 2
            assert project.tasks.app.control.inspect(timeout=10, destination=["w@here"]).ping()
            assert worker.stop(10) == 0
        assert "s3cret" not in worker.log()
        strange = [key for key in client.keys("*") if not key.startswith(b"ours:")]
        client.acl_deluser("guest")
        assert strange == []
