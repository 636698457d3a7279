"""A RabbitMQ server of the tests' own.

Used by ``conftest`` (one server per session, one virtual host per test), by recovery tests (a server of
their own that they stop and start) and by the benchmarks.
It shares nothing with a RabbitMQ that may run on the machine: node name, ports, port mapper (epmd), cookie,
configuration, plug-ins and data are its own. It listens on the loopback address only and ends with the
process that started it.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.certificates import make_certificate
from tests.support.folders import own_folder, remove_folder
from tests.support.processes import dies_with_its_parent, end, free_port
from tests.support.servers import program
from tests.support.wait import wait_until

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
# Debian's wrapper in /usr/sbin becomes the user "rabbitmq", who cannot write into a folder of the tests.
UNWRAPPED = "/usr/lib/rabbitmq/bin/rabbitmq-server"


class RabbitServer:
    """One RabbitMQ node on free ports with folders of its own.

    With ``management=True`` (the default) virtual hosts can be made and the broker can be asked what it
    holds, both through its HTTP interface. Without it the node starts and above all stops faster, collects
    no statistics, and has the one virtual host ``/``: right for benchmarks and for recovery tests.
    With *tls* it also listens on ``tls_port``, and ``certificate`` is what clients have to trust.
    *rabbit_settings* are keys of the application ``rabbit`` in its configuration.
    """

    def __init__(
        self, *, management: bool = True, tls: bool = False, rabbit_settings: Mapping[str, int] | None = None
    ) -> None:
        wrapped = program("rabbitmq-server", "rabbitmq-server", "/usr/sbin/rabbitmq-server", UNWRAPPED)
        self._program = UNWRAPPED if Path(UNWRAPPED).exists() else wrapped
        erlang = Path("/usr/lib/erlang")
        self._epmd_program = program("epmd", "rabbitmq-server", *map(str, erlang.glob("*/bin/epmd")))
        self.management = management
        self._settings = dict(rabbit_settings or {})
        self.port = free_port()
        self.http_port = free_port()
        self.folder = own_folder("rabbitmq")
        self.tls_port = free_port() if tls else 0
        self.certificate = make_certificate(self.folder) if tls else None
        self._epmd_port = free_port()
        self._distribution_port = free_port()
        self._node: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        self._virtual_hosts = itertools.count(1)
        self._write_configuration()

    def __enter__(self) -> RabbitServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process id of the running node."""
        assert self._node is not None, "the RabbitMQ server is not running; call start()"
        return self._node.pid

    def url(self, virtual_host: str = "/") -> str:
        """The URL of one virtual host."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{virtual_host}"

    def new_virtual_host(self) -> str:
        """The name of a virtual host that was made just now. Needs ``management=True``."""
        name = f"test-{next(self._virtual_hosts)}"
        self.ask("PUT", f"vhosts/{name}")
        return name

    def drop_virtual_host(self, name: str) -> None:
        """Remove a virtual host with all that is in it; connections to it are closed by the server."""
        self.ask("DELETE", f"vhosts/{name}")

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """One call of the management interface: ``ask("GET", "queues/my-vhost")``."""
        assert self.management, "this server was started without its management interface"
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.http_port}/api/{path}",
            method=method,
            data=json.dumps(body if body is not None else {}).encode() if method != "GET" else None,
            headers={
                "Authorization": "Basic " + base64.b64encode(b"guest:guest").decode(),
                "Content-Type": "application/json",
            },
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def start(self) -> None:
        """Start the node and return when it speaks AMQP (and HTTP, if it has that)."""
        if self._node is not None:
            return
        environment = self._environment()
        if self._epmd is None:
            # Started here, in the foreground, so that it can be ended: Erlang would leave one behind.
            self._epmd = self._spawn(
                [self._epmd_program, "-port", str(self._epmd_port), "-address", "127.0.0.1"], environment
            )
            wait_until(lambda: _accepts(self._epmd_port), 10, "Erlang's port mapper")
        self._node = self._spawn([self._program], environment)
        wait_until(
            self.answers,
            START_TIMEOUT_S,
            lambda: f"RabbitMQ on port {self.port}; its log:\n{self.log()}",
            every=0.05,
        )

    def answers(self) -> bool:
        """Whether the node is fully up."""
        node = self._node
        assert node is None or node.poll() is None, f"rabbitmq-server ended:\n{self.log()}"
        if not _speaks_amqp(self.port):
            return False
        if self.management:
            try:
                self.ask("GET", "vhosts")
            except (urllib.error.URLError, OSError):
                return False
        return True

    def control(self, *words: str) -> str:
        """Run ``rabbitmqctl`` on the node, for what cannot be asked over HTTP; returns what it says."""
        # Not the one on the path: that wants to be another user.
        found = [*map(str, Path("/usr/lib/rabbitmq/lib").glob("*/sbin/rabbitmqctl"))]
        command = [program("rabbitmqctl", "rabbitmq-server", *found) if not found else found[0]]
        command += ["-n", f"celery-clone-{self.port}@localhost", *words]
        ran = subprocess.run(command, env=self._environment(), capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    def log(self) -> str:
        """What the node has written so far, start-up output included."""
        paths = [self.folder / "output.log", *sorted((self.folder / "log").glob("*.log"))]
        return "\n".join(path.read_text(errors="replace") for path in paths if path.exists())

    def stop(self) -> None:
        """Shut the node down in an orderly way; durable queues with their messages stay on disk."""
        node, self._node = self._node, None
        if node is not None:
            end(node, STOP_TIMEOUT_S)

    def kill(self) -> None:
        """End the node with SIGKILL, as a crash would."""
        node, self._node = self._node, None
        if node is not None:
            node.kill()
            node.wait(10)

    def freeze(self) -> None:
        """Stop the node's process without closing its connections: it is there and does not answer."""
        assert self._node is not None
        self._node.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen node go on."""
        assert self._node is not None
        self._node.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End node and port mapper and remove their data. Legal twice."""
        self.kill()
        epmd, self._epmd = self._epmd, None
        if epmd is not None:
            epmd.kill()
            epmd.wait(10)
        remove_folder(self.folder)

    def _spawn(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self.folder / "output.log").open("ab") as output:
            return subprocess.Popen(
                dies_with_its_parent(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=self.folder,
                start_new_session=True,
            )

    def _write_configuration(self) -> None:
        lines = [
            f"listeners.tcp.1 = 127.0.0.1:{self.port}",
            "log.file.level = warning",
            "disk_free_limit.absolute = 50MB",
        ]
        if self.certificate is not None:
            lines += [
                f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}",
                f"ssl_options.cacertfile = {self.certificate.path}",
                f"ssl_options.certfile = {self.certificate.path}",
                f"ssl_options.keyfile = {self.certificate.key}",
                "ssl_options.verify = verify_none",
            ]
        if self.management:
            lines += ["management.tcp.ip = 127.0.0.1", f"management.tcp.port = {self.http_port}"]
        (self.folder / "rabbitmq.conf").write_text("\n".join(lines) + "\n")
        plugins = "[rabbitmq_management]." if self.management else "[]."
        (self.folder / "enabled_plugins").write_text(plugins + "\n")
        (self.folder / "environment.conf").write_text("")
        pairs = ", ".join(f"{{{name}, {value}}}" for name, value in self._settings.items())
        (self.folder / "advanced.config").write_text(f"[{{rabbit, [{pairs}]}}].\n")

    def _environment(self) -> dict[str, str]:
        folder = str(self.folder)
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
        return {
            "LANG": "C.UTF-8",
            **kept,
            "HOME": folder,
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            # The host part is never resolved: the only other node this one speaks to is itself.
            "RABBITMQ_NODENAME": f"celery-clone-{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{folder}/advanced.config",
            "RABBITMQ_CONF_ENV_FILE": f"{folder}/environment.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            # Together these make the script become the Erlang machine instead of guarding it as a child, so
            # that the process id we hold is the node's.
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_SERVER_START_ARGS": "-noinput",
            # Idle schedulers that spin would be counted against whatever is measured beside them.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none",
        }


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1):
            return True
    except OSError:
        return False


def _speaks_amqp(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return bool(connection.recv(1))
    except OSError:
        return False
