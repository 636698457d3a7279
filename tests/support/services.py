"""What stands for services that nobody can install here: the part of their HTTP interfaces that result stores use.

Used by the tests of those stores, whose client libraries are the real ones.  Written after the services'
own documentation; it keeps documents in memory and checks what a store may not get wrong.
"""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Answer = tuple[int, Any]


class Service:
    """An HTTP server on a free port of the loopback address.  A context manager."""

    headers: dict[str, str] = {}
    more: dict[str, str] = {}
    """Headers of the answer that is being made."""

    def __init__(self) -> None:
        self.documents: dict[str, Any] = {}
        self.requests: list[str] = []
        self.lock = threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                parts = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
                with service.lock:
                    service.requests.append(f"{self.command} {self.path}")
                    service.more = {}
                    status, found = service.answer(self.command, unquote(parts.path), query, body)
                data = found if isinstance(found, bytes) else json.dumps(found).encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **service.headers, **service.more}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do  # noqa: N815

            def log_message(self, *args: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port

    def __enter__(self) -> Any:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> Answer:
        """Status and body of the answer to a request."""
        raise NotImplementedError


class Elasticsearch(Service):
    """Documents with sequence numbers: create, read, change if nobody else did, delete."""

    headers = {
        "X-Elastic-Product": "Elasticsearch",
        "Content-Type": "application/vnd.elasticsearch+json; compatible-with=9",
    }
    number = 0

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> Answer:
        if path.endswith("/_mget"):
            return 200, {"docs": [self._shown(name) for name in json.loads(body)["ids"]]}
        _, _index, action, name = path.split("/", 3)
        there = self.documents.get(name)
        if method == "GET":
            return (200 if there else 404), self._shown(name)
        if method == "DELETE":
            return (200 if self.documents.pop(name, None) else 404), {"result": "deleted"}
        if action == "_update":
            if there is None or (str(there[0]), "1") != (query["if_seq_no"], query["if_primary_term"]):
                return 409, {"error": {"type": "version_conflict_engine_exception"}, "status": 409}
            return self._write(name, {**there[1], **json.loads(body)["doc"]}, "updated")
        if query.get("op_type") == "create" and there is not None:
            return 409, {"error": {"type": "version_conflict_engine_exception"}, "status": 409}
        return self._write(name, json.loads(body), "created")

    def _write(self, name: str, source: Any, result: str) -> Answer:
        self.number += 1
        self.documents[name] = (self.number, source)
        return 200, {"result": result, "_id": name}

    def _shown(self, name: str) -> dict[str, Any]:
        there = self.documents.get(name)
        if there is None:
            return {"_id": name, "found": False}
        return {"_id": name, "found": True, "_seq_no": there[0], "_primary_term": 1, "_source": there[1]}


class CouchDB(Service):
    """Documents with revisions."""

    made = False
    number = 0

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> Answer:
        database, _, name = path.strip("/").partition("/")
        if not name:
            if method == "PUT":
                self.made = True
                return 201, {"ok": True}
            missing = 404, {"error": "not_found", "reason": "no_db_file"}
            return (200, {"db_name": database}) if self.made else missing
        there = self.documents.get(name)
        if method == "PUT":
            document = json.loads(body)
            if there is not None and there["_rev"] != document.get("_rev"):
                return 409, {"error": "conflict", "reason": "Document update conflict."}
            self.number += 1
            self.documents[name] = {**document, "_rev": f"{self.number}-x"}
            return 201, {"ok": True, "id": name, "rev": f"{self.number}-x"}
        if there is None:
            return 404, {"error": "not_found", "reason": "missing"}
        self.more = {"ETag": f'"{there["_rev"]}"'}
        if method == "DELETE":
            del self.documents[name]
            return 200, {"ok": True}
        return 200, there


class Consul(Service):
    """Keys, some of which belong to a session."""

    headers = {"X-Consul-Index": "1"}

    def __init__(self) -> None:
        super().__init__()
        self.sessions: dict[str, Any] = {}
        self.owners: dict[str, str] = {}

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> Answer:
        if path == "/v1/session/create":
            session = f"session-{len(self.sessions)}"
            self.sessions[session] = json.loads(body)
            return 200, {"ID": session}
        if path.startswith("/v1/session/destroy/"):
            self.sessions.pop(path.rsplit("/", 1)[1])
            return 200, True
        name = path.removeprefix("/v1/kv/")
        if method == "PUT":
            owner = query.get("acquire")
            if owner and self.owners.setdefault(name, owner) != owner:
                return 200, False
            self.documents[name] = body
            return 200, True
        if method == "DELETE":
            self.owners.pop(name, None)
            self.documents.pop(name, None)
            return 200, True
        if name not in self.documents:
            return 404, b""
        return 200, [{"Key": name, "Value": base64.b64encode(self.documents[name]).decode()}]


class ArangoDB(Service):
    """The statements that the store makes, by their first word."""

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> Answer:
        if not path.endswith("/cursor"):
            found_there: Any = []
            if path.endswith("/user/root/database"):
                found_there = {"results": "rw"}
            return 200, {"result": found_there, "graphs": [], "error": False}
        asked = json.loads(body)
        statement, bound = asked["query"].strip(), asked["bindVars"]
        assert bound["@collection"] == "tasks"
        found: list[Any] = []
        if statement.startswith("RETURN"):
            found = [self.documents.get(bound["key"])]
        elif statement.startswith("FOR k"):
            found = [self.documents.get(key) for key in bound["keys"]]
        elif statement.startswith("UPSERT"):
            self.documents[bound["key"]] = bound["value"]
        elif statement.startswith("REMOVE"):
            self.documents.pop(bound["key"], None)
        else:
            expired = [
                key
                for key, value in self.documents.items()
                if (json.loads(value).get("date_done") or "9") < bound["checkpoint"]
            ]
            for key in expired:
                del self.documents[key]
        return 201, {"result": found, "hasMore": False, "error": False, "code": 201, "count": len(found)}


class AzureBlobs(Service):
    """A container of blobs."""

    headers = {"x-ms-version": "2021-12-02", "ETag": '"0x1"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
    made = False

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> Answer:
        if query.get("restype") == "container":
            made, self.made = self.made, True
            return (409, b"") if made else (201, b"")
        if method == "PUT":
            self.documents[path] = body
            return 201, b""
        if path not in self.documents:
            return 404, b""
        if method == "DELETE":
            del self.documents[path]
            return 202, b""
        data = self.documents[path]
        self.more = {"Content-Range": f"bytes 0-{len(data) - 1}/{len(data)}"}
        return 206, data
