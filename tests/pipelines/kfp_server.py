"""A server in the test's process that plays the part of Kubeflow Pipelines' v2beta1 API that hanflow uses, over HTTP.

It checks what the real one checks: the token, that the package is one that Kubeflow can run, that parameters exist, have
their type and are all there. A run lives through a script of states, one further with every look at it.
"""

from __future__ import annotations

import contextlib
import json
import threading
import urllib.parse
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.pipelines.kubeflow_rules import problems

KINDS = {
    "STRING": str,
    "NUMBER_INTEGER": int,
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": bool,
    "LIST": list,
    "STRUCT": dict,
}


def task(name: str, state: str, seconds: int = 0, error: str = "") -> dict[str, Any]:
    """A task as the server lists it."""
    reported: dict[str, Any] = {
        "display_name": name,
        "state": state,
        "create_time": "2026-11-21T10:00:00Z",
        "start_time": "2026-11-21T10:00:00Z",
    }
    if seconds:
        reported["end_time"] = f"2026-11-21T10:{seconds // 60:02d}:{seconds % 60:02d}Z"
    return reported | ({"error": {"code": 2, "message": error}} if error else {})


@dataclass
class Look:
    """What the server answers to one look at a run."""

    state: str = "RUNNING"
    tasks: tuple[dict[str, Any], ...] = ()
    error: str = ""
    status: int = 200
    """Of the answer; another one is a failure of the server."""


SUCCESS = (
    Look("PENDING"),
    Look(
        "RUNNING",
        (task("root", "RUNNING"), task("exit-handler-1-driver", "SUCCEEDED", 1), task("preprocess", "RUNNING")),
    ),
    Look(
        "RUNNING", (task("preprocess", "SUCCEEDED", 63), task("executor", "SUCCEEDED", 60), task("tokenize", "SKIPPED"))
    ),
    Look(
        "SUCCEEDED", (task("preprocess", "SUCCEEDED", 63), task("tokenize", "SKIPPED"), task("train", "SUCCEEDED", 5))
    ),
)
FAILURE = (
    Look("RUNNING", (task("preprocess", "RUNNING"),)),
    Look("FAILED", (task("preprocess", "FAILED", 4, "raw.csv: no such\nfile"),), "a step failed"),
)


@dataclass
class KfpServer:
    """Kubeflow Pipelines.

    Attributes:
        token: what has to be in the Authorization header; empty: nobody is asked.
        script: what the next run lives through; the last look stays.
        cancelled: what a run lives through that is asked to end.
        retried: what a run lives through that is asked to continue.
        multi_user: whether experiments belong to namespaces.
        login_page: answer everything with a page for people, as an identity proxy does.
    """

    token: str = ""
    script: tuple[Look, ...] = SUCCESS
    cancelled: tuple[Look, ...] = (Look("CANCELING"), Look("CANCELED", (task("train", "CANCELED", 9),)))
    retried: tuple[Look, ...] = SUCCESS
    multi_user: bool = False
    login_page: bool = False
    url: str = ""
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    scripts: dict[str, list[Look]] = field(default_factory=dict)
    experiments: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        """Status and body of the answer to a request."""
        self.requests.append(f"{method} {path}")
        parts = path.removeprefix("/apis/v2beta1/").split("/")
        if parts[0] == "healthz":
            return 200, {"multi_user": self.multi_user}
        if parts[0] == "experiments":
            return self._experiments(method, query, body)
        if parts == ["runs"] and method == "POST":
            return self._create(body)
        run, _, verb = parts[1].partition(":")
        if run not in self.runs:
            return 404, {"code": 5, "message": f"Failed to get run {run}: ResourceNotFoundError"}
        if verb == "terminate":
            self.scripts[run] = list(self.cancelled)
            return 200, {}
        if verb == "retry":
            self.scripts[run] = list(self.retried)
            return 200, {}
        looks = self.scripts[run]
        look = looks.pop(0) if len(looks) > 1 else looks[0]
        if look.status != 200:
            return look.status, {"code": 14, "message": "upstream connect error"}
        reported = {**self.runs[run], "state": look.state, "run_details": {"task_details": list(look.tasks)}}
        return 200, reported | ({"error": {"code": 2, "message": look.error}} if look.error else {})

    def add_run(self, *looks: Look) -> str:
        """A run that somebody started; returns its id."""
        run = str(uuid.uuid4())
        self.runs[run] = {"run_id": run, "display_name": "somebody's"}
        self.scripts[run] = list(looks)
        return run

    def _experiments(self, method: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        namespace = (query if method == "GET" else body).get("namespace", "")
        if bool(namespace) != self.multi_user:
            reported = "Invalid input error: In single-user mode, experiments have no namespace"
            return 400, {"code": 3, "message": "namespace is missing" if self.multi_user else reported}
        if method == "POST":
            made = {**body, "experiment_id": str(uuid.uuid4())}
            self.experiments[made["display_name"]] = made
            return 200, made
        wanted = json.loads(query["filter"])["predicates"][0]["stringValue"]
        found = self.experiments.get(wanted)
        return 200, {"experiments": [found] if found else [], "total_size": int(bool(found))}

    def _create(self, body: dict[str, Any]) -> tuple[int, Any]:
        if body["experiment_id"] not in {e["experiment_id"] for e in self.experiments.values()}:
            return 404, {"code": 5, "message": "experiment not found"}
        package = body["pipeline_spec"]
        spec = package.get("pipeline_spec", package)
        found = problems(spec, package.get("platform_spec", {}))
        if found:
            return 400, {"code": 3, "message": f"Failed to compile job: {'; '.join(found)}"}
        wanted = spec["root"]["inputDefinitions"]["parameters"]
        given = body["runtime_config"].get("parameters", {})
        for name, value in given.items():
            if name not in wanted:
                return 400, {"code": 3, "message": f"parameter {name} is not a pipeline input"}
            kind = KINDS[wanted[name]["parameterType"]]
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                return 400, {
                    "code": 3,
                    "message": f"input parameter {name} requires type {wanted[name]['parameterType']}",
                }
        missing = [n for n, p in wanted.items() if not p.get("isOptional") and n not in given]
        if missing:
            return 400, {"code": 3, "message": f"parameter {missing[0]} is required but is missing"}
        run = str(uuid.uuid4())
        self.runs[run] = {**body, "run_id": run, "created_at": "2026-11-21T10:00:00Z"}
        self.scripts[run] = list(self.script)
        return 200, self.runs[run]


@contextlib.contextmanager
def serve(server: KfpServer) -> Iterator[KfpServer]:
    """Serve until the block ends; sets `server.url`."""

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            sent = self.rfile.read(length)
            where = urllib.parse.urlsplit(self.path)
            if server.login_page:
                self._send(200, b"<html><form action='/login'></form></html>", "text/html")
            elif server.token and self.headers.get("Authorization") != f"Bearer {server.token}":
                server.requests.append(f"refused {self.command} {where.path}")
                self._send(401, json.dumps({"code": 16, "message": "Request header error: no valid user"}).encode())
            else:
                query = dict(urllib.parse.parse_qsl(where.query))
                status, reported = server.answer(self.command, where.path, query, json.loads(sent) if sent else None)
                self._send(status, json.dumps(reported).encode())

        def _send(self, status: int, body: bytes, kind: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = _handle

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
