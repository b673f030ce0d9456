"""The API server: routes, and the answers to requests."""

from __future__ import annotations

import copy
import json
import re
import socketserver
from typing import Any
from urllib.parse import parse_qs, urlsplit

from hanflow.cluster import runtimes
from hanflow.cluster.job import QUEUE_LABEL
from tests.cluster.fake.store import NAMESPACE, Refused, now, selected
from tests.cluster.fake.streams import Streams
from tests.cluster.schemas import problems

JOBS = ("trainjobs", "pytorchjobs", "jobsets")
KINDS = {
    **{kind.plural: kind.kind for kind in runtimes.KINDS.values()},
    "pods": "Pod",
    "secrets": "Secret",
    "events": "Event",
}
ROUTE = re.compile(
    r"/(?:api|apis/(?:kubeflow\.org|trainer\.kubeflow\.org|jobset\.x-k8s\.io))/v1\w*/namespaces/(?P<namespace>[^/]+)"
    r"/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+)(?:/(?P<sub>log|eviction))?)?"
)


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 50

    def handle_error(self, *_: Any) -> None:
        pass  # clients that disconnect are expected


class Handler(Streams):
    """One connection; `api` is the cluster that it asks."""

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        if self.api.is_away():
            self.api.turned_away += 1
            self.close_connection = True
            self.connection.close()
            return
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        try:
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if token not in self.api.tokens:
                raise Refused(401, "Unauthorized", "Unauthorized")
            if url.path.count("/") == 3 and url.path.startswith("/apis/"):
                self._send(200, {"resources": self._served(url.path)})
                return
            if url.path.endswith("/selfsubjectaccessreviews"):
                plural = body["spec"]["resourceAttributes"]["resource"]
                self._send(200, {"status": {"allowed": ("POST", plural) not in self.api.forbidden}})
                return
            found = ROUTE.fullmatch(url.path)
            if not found or found["plural"] in self.api.missing or found["plural"] not in KINDS:
                raise Refused(404, "NotFound", "the server could not find the requested resource")
            if found["namespace"] != NAMESPACE or (method, found["plural"]) in self.api.forbidden:
                raise Refused(403, "Forbidden", f"{found['plural']} is forbidden: User cannot {method} them")
            if method == "DELETE" and self.api.before_delete:
                self.api.before_delete.pop(0)()
            result = self._route(method, found["plural"], found["name"], found["sub"], query, body)
        except Refused as refused:
            self.api.requests.append((method, self.path, refused.status["code"]))
            self._send(refused.status["code"], refused.status)
            return
        if result is not None:
            self.api.requests.append((method, self.path, 200))
            if method == "POST" and self.api.swallowed_posts:
                self.api.swallowed_posts -= 1
                self.close_connection = True
                self.connection.close()
                return
            self._send(200, result)

    def _served(self, path: str) -> list[dict[str, str]]:
        kinds = [kind for kind in runtimes.KINDS.values() if f"/apis/{kind.api_version}" == path]
        served = [{"name": kind.plural} for kind in kinds if kind.plural not in self.api.missing]
        if not served:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        return served

    def _admitted(self, plural: str, body: dict[str, Any], query: dict[str, str]) -> dict[str, Any]:
        """The object as the webhooks leave it; stored unless this is a dry run."""
        body = copy.deepcopy(body)
        if plural == "trainjobs" and self.api.runtimes_unnoticed:
            self.api.runtimes_unnoticed -= 1
            message = "denied the request: specified trainingRuntime must be created before the TrainJob is created"
            raise Refused(403, "Forbidden", f'admission webhook "validator.trainjob.trainer.kubeflow.org" {message}')
        if self.api.kueue and QUEUE_LABEL in body["metadata"].get("labels", {}):
            body["spec"].get("runPolicy", body["spec"])["suspend"] = True
        return body if query.get("dryRun") == "All" else self.api.store.create(plural, body)

    def _route(
        self, method: str, plural: str, name: str | None, sub: str | None, query: dict[str, str], body: Any
    ) -> dict[str, Any] | None:
        store = self.api.store
        if method == "POST" and sub == "eviction":
            with store.changed:
                self.api.kubelet.evict(store.get("pods", name or ""))
            return {"kind": "Status", "status": "Success"}
        if method == "POST" and name is None:
            self._check_fields(body, query)
            found = problems(body) if body.get("kind") in runtimes.KINDS else []
            if found:
                raise Refused(422, "Invalid", f"{plural} is invalid: {'; '.join(found)}")
            return self._admitted(plural, body, query)
        if method == "GET" and sub == "log":
            self._log(store.get("pods", name or ""), query)
            return None
        if method == "GET" and name is not None:
            return store.get(plural, name)
        if method == "GET" and query.get("watch") == "true":
            self._watch(plural, query)
            return None
        if method == "GET":
            with store.changed:
                items = [obj for obj in store.all(plural) if selected(obj, query)]
                return {"kind": "List", "metadata": {"resourceVersion": str(store.version)}, "items": items}
        if method == "DELETE" and name is not None:
            with store.changed:
                obj = store.get(plural, name)
                wanted = ((body or {}).get("preconditions") or {}).get("uid")
                if wanted not in (None, obj["metadata"]["uid"]):
                    raise Refused(409, "Conflict", f"the UID in the precondition ({wanted}) does not match")
                if plural == "pods":
                    self.api.kubelet.take_away(obj)
                elif obj["metadata"].get("finalizers"):
                    store.update(plural, name, lambda o: o["metadata"].setdefault("deletionTimestamp", now()))
                else:
                    store.delete(plural, name)
            return {"kind": "Status", "status": "Success"}
        raise Refused(405, "MethodNotAllowed", f"{method} is not served here")

    def _check_fields(self, body: dict[str, Any], query: dict[str, str]) -> None:
        """As strict field validation does; without it a real server would drop unknown fields."""
        if query.get("fieldValidation") != "Strict":
            raise Refused(400, "BadRequest", "every create request must carry fieldValidation=Strict")
        for field in self.api.unknown_fields:
            if f'"{field}"' in json.dumps(body):
                message = f'{body["kind"]} cannot be handled: strict decoding error: unknown field "spec.{field}"'
                raise Refused(400, "BadRequest", message)

    def _send(self, code: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for warning in self.api.warnings:
            quoted = warning.replace('"', '\\"')
            self.send_header("Warning", f'299 - "{quoted}"')
        self.end_headers()
        if self.command == "GET" and code == 200 and self.api.cut_answers:
            self.api.cut_answers -= 1
            self._break_off(data)
            return
        self.wfile.write(data)
