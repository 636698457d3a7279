"""Results as rows in Apache Cassandra, or in Astra DB.

Chosen by ``result_backend = "cassandra://"`` with the settings that begin with ``cassandra_``.  Table and
columns are Celery's; rows expire by ``cassandra_entry_ttl``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from kombu.utils.encoding import ensure_bytes

from celery_clone import states
from celery_clone.exceptions import ImproperlyConfigured
from celery_clone.utils.suggest import hint

from .backend import stays
from .base import BaseBackend
from .clients import PerProcess, library_missing

try:
    import cassandra
    import cassandra.auth
    import cassandra.cluster
    import cassandra.query
except ImportError:  # the extra "cassandra"
    cassandra = None

__all__ = ("CassandraBackend",)

DEFAULT_PORT = 9042
DEFAULT_CONSISTENCY = "LOCAL_QUORUM"

TABLE_NAME = re.compile(r'[A-Za-z0-9_."]+')
"""What may stand in a statement, where no parameter can."""

CREATE = """
CREATE TABLE IF NOT EXISTS {table} (
    task_id text,
    status text,
    result blob,
    date_done timestamp,
    traceback blob,
    children blob,
    PRIMARY KEY ((task_id), date_done)
) WITH CLUSTERING ORDER BY (date_done DESC)
"""
READ = "SELECT status, result, date_done, traceback, children FROM {table} WHERE task_id=%s LIMIT 1"
WRITE = (
    "INSERT INTO {table} (task_id, status, result, date_done, traceback, children)"
    " VALUES (%s, %s, %s, %s, %s, %s){expires}"
)
REMOVE = "DELETE FROM {table} WHERE task_id=%s"


class Connected(NamedTuple):
    """A session of the driver, and the statements of the store."""

    cluster: Any
    session: Any
    read: Any
    write: Any
    remove: Any


class CassandraBackend(BaseBackend):
    """Keeps results in one table, which is made if it is not there.

    The arguments stand before the settings of the same names.  Exactly one of *servers* (names of hosts)
    and *bundle_path* (of a secure connect bundle) says where the cluster is.
    """

    servers: Any = None
    bundle_path: str | None = None
    supports_autoexpire = True
    supports_result_compression = True
    thread_safe = True

    def __init__(
        self,
        servers: Any = None,
        keyspace: str | None = None,
        table: str | None = None,
        entry_ttl: float | None = None,
        port: int | None = None,
        bundle_path: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if cassandra is None:
            raise library_missing("Cassandra", "cassandra-driver", "cassandra")
        conf = self.app.conf
        self.servers = servers or conf.get("cassandra_servers")
        self.bundle_path = bundle_path or conf.get("cassandra_secure_bundle_path") or conf.get("cassandra_bundle_path")
        self.port = port or conf.get("cassandra_port") or DEFAULT_PORT
        self.keyspace = keyspace or conf.get("cassandra_keyspace")
        self.table = table or conf.get("cassandra_table")
        self.cassandra_options = conf.get("cassandra_options") or {}
        self._check()
        lifetime = entry_ttl or conf.get("cassandra_entry_ttl")
        self.cqlexpires = "" if lifetime is None else f" USING TTL {int(lifetime)}"
        self.read_consistency = consistency_of(conf.get("cassandra_read_consistency"))
        self.write_consistency = consistency_of(conf.get("cassandra_write_consistency"))
        self.auth_provider = self._login(conf.get("cassandra_auth_provider"), conf.get("cassandra_auth_kwargs"))
        self._client = PerProcess(self._connect, lambda connected: connected.cluster.shutdown())

    def _check(self) -> None:
        if bool(self.servers) == bool(self.bundle_path):
            raise ImproperlyConfigured(
                "Cassandra backend improperly configured: set exactly one of cassandra_servers and "
                "cassandra_secure_bundle_path."
            )
        if not self.keyspace or not self.table:
            raise ImproperlyConfigured(
                "Cassandra backend not configured: set cassandra_keyspace and cassandra_table to the names of "
                "an existing keyspace and of the table for results."
            )
        if not TABLE_NAME.fullmatch(self.table):
            raise ImproperlyConfigured(f"cassandra_table {self.table!r} is not the name of a table.")

    @staticmethod
    def _login(provider: str | None, arguments: Mapping[str, Any] | None) -> Any:
        if not provider or not arguments:
            return None
        found = getattr(cassandra.auth, provider, None)
        if found is None:
            raise ImproperlyConfigured(
                f"cassandra_auth_provider {provider!r} is not a class of cassandra.auth."
                f"{hint(provider, vars(cassandra.auth))}"
            )
        return found(**arguments)

    def _connect(self) -> Connected:
        options = {"auth_provider": self.auth_provider, **self.cassandra_options}
        if self.servers:
            cluster = cassandra.cluster.Cluster(self.servers, port=self.port, **options)
        else:
            cluster = cassandra.cluster.Cluster(cloud={"secure_connect_bundle": self.bundle_path}, **options)
        try:
            session = cluster.connect(self.keyspace)
            session.execute(self._statement(CREATE, self.write_consistency))
        except BaseException:
            cluster.shutdown()
            raise
        return Connected(
            cluster,
            session,
            self._statement(READ, self.read_consistency),
            self._statement(WRITE, self.write_consistency),
            self._statement(REMOVE, self.write_consistency),
        )

    def _statement(self, text: str, consistency: Any) -> Any:
        text = text.format(table=self.table, expires=self.cqlexpires)
        return cassandra.query.SimpleStatement(text, consistency_level=consistency)

    # --- tasks ------------------------------------------------------------------------

    def _store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: str | None = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        connected = self._client()
        row = connected.session.execute(connected.read, (task_id,)).one()
        if row is None or not stays(row[0], state):
            values = (result, traceback, self.current_task_children(request))
            encoded = [ensure_bytes(self.encode(value)) for value in values]
            columns = (task_id, state, encoded[0], self.app.now(), encoded[1], encoded[2])
            connected.session.execute(connected.write, columns)
        return result

    def _get_task_meta_for(self, task_id: str) -> Any:
        connected = self._client()
        row = connected.session.execute(connected.read, (task_id,)).one()
        if not row:
            return {"status": states.PENDING, "result": None}
        status, result, date_done, traceback, children = row
        return self.meta_from_decoded(
            {
                "task_id": task_id,
                "status": status,
                "result": self.decode(result),
                "date_done": date_done,
                "traceback": self.decode(traceback),
                "children": self.decode(children),
            }
        )

    def _forget(self, task_id: str) -> None:
        connected = self._client()
        connected.session.execute(connected.remove, (task_id,))

    # --- the life of the store ----------------------------------------------------------

    def close(self) -> None:
        """Let go of connections; the next use makes new ones.  Legal twice."""
        self._client.close()

    def as_uri(self, include_password: bool = True) -> str:
        """``cassandra://``; what says more is in the settings."""
        return "cassandra://"

    def __reduce__(self, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        own = {"servers": self.servers, "keyspace": self.keyspace, "table": self.table}
        return super().__reduce__(args, {**(kwargs or {}), **own, "bundle_path": self.bundle_path})


def consistency_of(name: str | None) -> Any:
    """The driver's value for the name of a consistency level."""
    levels = cassandra.ConsistencyLevel
    found = getattr(levels, name or DEFAULT_CONSISTENCY, None)
    if found is None:
        known = sorted(levels.name_to_value)
        raise ImproperlyConfigured(f"Unknown Cassandra consistency level {name!r}.{hint(str(name), known)}")
    return found
