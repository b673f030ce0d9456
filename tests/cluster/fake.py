"""A cluster in the test process: an API server over real HTTP, the operators' control loops, and a kubelet.

Only what the launcher uses, and that as the real ones do it: resource versions, watches that end, 404, 409, 410, 401 and
422, preconditions, cascading deletion. Containers really run, as processes of this machine: a job's life is played by the
script that is its command, here as on a real cluster. The operators follow kubeflow/training-operator v1.9
(pkg/controller.v1/common/pod.go) and kubernetes-sigs/jobset v0.12 in what a job's status and restarts are.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import json
import os
import re
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from components.train.jobs import JOB_LABEL
from tests.cluster.schemas import ROOT, problems

NAMESPACE = "training"
TICK_SECONDS = 0.02
GRACE_SECONDS = 2.0
"""Instead of a pod's own grace period, if the test sets no other: tests are in a hurry."""
JOBS = ("pytorchjobs", "jobsets")
KINDS = {"pytorchjobs": "PyTorchJob", "jobsets": "JobSet", "pods": "Pod", "secrets": "Secret", "events": "Event"}
ROUTE = re.compile(
    r"/(?:api/v1|apis/(?:kubeflow\.org/v1|jobset\.x-k8s\.io/v1alpha2))/namespaces/(?P<namespace>[^/]+)"
    r"/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+)(?:/(?P<sub>log|eviction))?)?"
)


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, code: int, reason: str, message: str):
        self.status = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "code": code,
            "reason": reason,
            "message": message,
        }
        super().__init__(message)


class Store:
    """The objects, their versions, and the history that watches are served from."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.version = 100
        self.history: list[tuple[int, str, str, dict[str, Any]]] = []
        self.forgotten = 0

    def all(self, plural: str) -> list[dict[str, Any]]:
        with self.changed:
            return [obj for (kind, _), obj in sorted(self.objects.items()) if kind == plural]

    def get(self, plural: str, name: str) -> dict[str, Any]:
        with self.changed:
            if (plural, name) not in self.objects:
                raise Refused(404, "NotFound", f'{plural} "{name}" not found')
            return self.objects[plural, name]

    def create(self, plural: str, body: dict[str, Any]) -> dict[str, Any]:
        with self.changed:
            body = copy.deepcopy(body)
            name = body["metadata"]["name"]
            if (plural, name) in self.objects:
                raise Refused(409, "AlreadyExists", f'{plural} "{name}" already exists')
            body["metadata"].update(uid=str(uuid.uuid4()), creationTimestamp=now(), namespace=NAMESPACE)
            self.objects[plural, name] = body
            self._record(plural, "ADDED", body)
            return body

    def update(self, plural: str, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
        """Apply a change; no event if it changes nothing."""
        with self.changed:
            if (plural, name) not in self.objects:
                return
            obj = copy.deepcopy(self.objects[plural, name])
            change(obj)
            if obj != self.objects[plural, name]:
                self.objects[plural, name] = obj
                self._record(plural, "MODIFIED", obj)

    def delete(self, plural: str, name: str) -> dict[str, Any]:
        with self.changed:
            obj = self.get(plural, name)
            del self.objects[plural, name]
            obj = copy.deepcopy(obj)
            self._record(plural, "DELETED", obj)
            return obj

    def forget(self) -> None:
        """Compact the history, as etcd does: older watches get 410 Gone."""
        with self.changed:
            self.history.clear()
            self.version += 1
            self.forgotten = self.version
            self.changed.notify_all()

    def _record(self, plural: str, event: str, obj: dict[str, Any]) -> None:
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        self.history.append((self.version, plural, event, copy.deepcopy(obj)))
        self.changed.notify_all()


class FakeCluster:
    """Use as a context manager; `kubeconfig` is the file to reach it by.

    Args:
        folder: for the kubeconfig and the token.
    """

    namespace = NAMESPACE

    def __init__(self, folder: Path):
        self.store = Store()
        self.kubelet = Kubelet(self.store)
        self.folder, self.kubeconfig = folder, folder / "kubeconfig"
        self.tokens = {"first"}
        self.requests: list[tuple[str, str, int]] = []
        """(method, path with query, status) of every answered request."""
        self.away_until = 0.0
        self.turned_away = 0
        self.swallowed_posts = 0
        """Next so many POSTs are carried out and their answers lost."""
        self.cut_answers = self.cut_events = 0
        """Next so many answers to GET, and events of watches, break off in the middle."""
        self.cuts = 0
        self.pods_lag = 0.0
        """How many seconds the pods' watch is behind."""
        self.forbidden: set[tuple[str, str]] = set()
        """(method, plural) that the service account may not do."""
        self.missing: set[str] = set()
        """Plurals whose CRD is not installed."""
        self.watches_gone = "event"
        """How a watch that is too old is refused: by an ERROR event, or by an HTTP `status`."""
        self.admit = True
        """False: jobs stay suspended, as in a full Kueue queue."""
        self._stop = threading.Event()

    def __enter__(self) -> FakeCluster:
        cluster = self

        class Handler(_Handler):
            api = cluster

        self._server = _Server(("127.0.0.1", 0), Handler)
        (self.folder / "token").write_text("first", encoding="utf-8")
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": f"http://127.0.0.1:{self._server.server_address[1]}"}}],
            "users": [{"name": "me", "user": {"tokenFile": str(self.folder / "token")}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "me", "namespace": NAMESPACE}}],
        }
        self.kubeconfig.write_text(yaml.safe_dump(config), encoding="utf-8")
        self._threads = [
            threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True),
            threading.Thread(target=self._reconcile, daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()
        self.kubelet.stop()
        for thread in self._threads:
            thread.join(5)

    def _reconcile(self) -> None:
        while not self._stop.wait(TICK_SECONDS):
            with self.store.changed:
                for plural, operate in (("pytorchjobs", operate_pytorch_job), ("jobsets", operate_job_set)):
                    for job in self.store.all(plural):
                        operate(self.store, job, self.admit)
                names = {job["metadata"]["name"] for plural in JOBS for job in self.store.all(plural)}
                for pod in self.store.all("pods"):
                    owner = pod["metadata"].get("labels", {}).get(JOB_LABEL)
                    if owner is not None and owner not in names:
                        self.kubelet.take_away(pod)  # garbage collection
                    else:
                        self.kubelet.look_after(pod)

    # What a test does to the cluster itself; no real one can be asked for that.

    def be_away(self, seconds: float) -> None:
        """Answer nothing for so long, and break what is open."""
        self.away_until = time.monotonic() + seconds
        with self.store.changed:
            self.store.changed.notify_all()

    def is_away(self) -> bool:
        return time.monotonic() < self.away_until

    def rotate_token(self) -> None:
        """Only a new token is good from now on; it is where the kubeconfig says."""
        self.tokens = {"second"}
        (self.folder / "token").write_text("second", encoding="utf-8")
        with self.store.changed:
            self.store.changed.notify_all()

    def count(self, method: str, part: str = "", status: int | None = None) -> int:
        """Answered requests of a method whose path contains `part`."""
        return sum(m == method and part in path and status in (None, code) for m, path, code in list(self.requests))


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 50

    def handle_error(self, *_: Any) -> None:
        pass  # clients that go away are no news


class _Handler(BaseHTTPRequestHandler):
    api: FakeCluster
    protocol_version = "HTTP/1.1"

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
            found = ROUTE.fullmatch(url.path)
            if not found or found["plural"] in self.api.missing or found["plural"] not in KINDS:
                raise Refused(404, "NotFound", "the server could not find the requested resource")
            if found["namespace"] != NAMESPACE or (method, found["plural"]) in self.api.forbidden:
                raise Refused(403, "Forbidden", f"{found['plural']} is forbidden: User cannot {method} them")
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

    def _route(
        self, method: str, plural: str, name: str | None, sub: str | None, query: dict[str, str], body: Any
    ) -> dict[str, Any] | None:
        store = self.api.store
        if method == "POST" and sub == "eviction":
            with store.changed:
                self.api.kubelet.evict(store.get("pods", name or ""))
            return {"kind": "Status", "status": "Success"}
        if method == "POST" and name is None:
            found = problems(body) if plural in JOBS else []
            if found:
                raise Refused(422, "Invalid", f"{plural} is invalid: {'; '.join(found)}")
            return store.create(plural, body)
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
                items = [obj for obj in store.all(plural) if _selected(obj, query)]
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

    def _send(self, code: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET" and code == 200 and self.api.cut_answers:
            self.api.cut_answers -= 1
            self._break_off(data)
            return
        self.wfile.write(data)

    def _break_off(self, data: bytes) -> None:
        self.api.cuts += 1
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _begin(self) -> None:
        self.api.requests.append(("GET", self.path, 200))
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _open(self) -> bool:
        """Whether a stream may go on."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if self.api.is_away() or token not in self.api.tokens:
            self.close_connection = True
            self.connection.close()
            return False
        return True

    def _watch(self, plural: str, query: dict[str, str]) -> None:
        store = self.api.store
        seen = int(query["resourceVersion"])
        gone = Refused(410, "Expired", f"too old resource version: {seen} ({store.forgotten})")
        if seen < store.forgotten and self.api.watches_gone == "status":
            raise gone
        self._begin()
        until = time.monotonic() + min(float(query.get("timeoutSeconds", 60)), 60)
        while time.monotonic() < until:
            with store.changed:
                if seen < store.forgotten:
                    self.api.requests.append(("GET", self.path, 410))
                    self._chunk(json.dumps({"type": "ERROR", "object": gone.status}).encode() + b"\n")
                    break
                fresh = [entry for entry in store.history if entry[0] > seen]
                if not fresh:
                    store.changed.wait(0.1)
            if not self._open():
                return
            if fresh and plural == "pods":
                time.sleep(self.api.pods_lag)
            for version, kind, event, obj in fresh:
                seen = version
                if kind == plural and _selected(obj, query):
                    line = json.dumps({"type": event, "object": obj}).encode() + b"\n"
                    if self.api.cut_events:
                        self.api.cut_events -= 1
                        self._break_off(b"%x\r\n%s" % (len(line), line))
                        return
                    self._chunk(line)
        with contextlib.suppress(OSError):
            self._chunk(b"")  # the last, empty one

    def _log(self, pod: dict[str, Any], query: dict[str, str]) -> None:
        run = self.api.kubelet.runs.get(pod["metadata"]["uid"])
        if run is None:
            raise Refused(400, "BadRequest", "container is waiting to start")
        self._begin()
        since, told = query.get("sinceTime", ""), 0
        lines = run.lines[-int(query["tailLines"]) :] if "tailLines" in query else run.lines
        while True:
            with self.api.store.changed:
                fresh = list(lines[told:])
                over = run.over
            for stamp, text in fresh:
                told += 1
                if stamp[:19] >= since[:19]:
                    self._chunk((f"{stamp} {text}" if query.get("timestamps") == "true" else text).encode() + b"\n")
            if over or query.get("follow") != "true":
                break
            with self.api.store.changed:
                self.api.store.changed.wait(0.05)
            if not self._open():
                return
        self._chunk(b"")


def _selected(obj: dict[str, Any], query: dict[str, str]) -> bool:
    for part in filter(None, query.get("fieldSelector", "").split(",")):
        path, _, value = part.partition("=")
        found: Any = obj
        for key in path.split("."):
            found = (found or {}).get(key)
        if found != value:
            return False
    labels = obj["metadata"].get("labels") or {}
    return all(
        labels.get(part.partition("=")[0]) == part.partition("=")[2]
        for part in filter(None, query.get("labelSelector", "").split(","))
    )


class Run:
    """A container that runs as a process here."""

    def __init__(self, command: list[str], environment: dict[str, str], changed: threading.Condition):
        self.lines: list[tuple[str, str]] = []
        self.over = False
        self.deadline = float("inf")
        self._changed = changed
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            stamp = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
            with self._changed:
                self.lines.append((stamp, line.rstrip("\n")))
                self._changed.notify_all()

    def ended(self) -> int | None:
        """The exit status as containers have it; None: it runs."""
        status = self.process.poll()
        if status is None:
            if time.monotonic() > self.deadline:
                self.signal(signal.SIGKILL)
            return None
        self._reader.join(0.5)
        self.over = True
        return status if status >= 0 else 128 - status

    def signal(self, signum: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signum) if signum == signal.SIGTERM else os.killpg(self.process.pid, signum)

    def terminate(self, grace: float) -> None:
        if self.deadline == float("inf"):
            self.deadline = time.monotonic() + grace
            self.signal(signal.SIGTERM)


class Kubelet:
    """Starts, ends and reports the containers of pods."""

    def __init__(self, store: Store):
        self.store = store
        self.runs: dict[str, Run] = {}
        self.evicted: set[str] = set()
        self.grace = GRACE_SECONDS
        self.port = 23456
        """MASTER_PORT of pods that share one machine here."""

    def stop(self) -> None:
        for run in self.runs.values():
            run.signal(signal.SIGKILL)
            run.process.wait()
            run._reader.join(2)

    def look_after(self, pod: dict[str, Any]) -> None:
        name, uid, status = pod["metadata"]["name"], pod["metadata"]["uid"], pod.get("status", {})
        if pod["metadata"].get("deletionTimestamp"):
            self.take_away(pod)
            return
        if status.get("phase") in ("Succeeded", "Failed"):
            return
        run = self.runs.get(uid)
        if run is None:
            waiting = self._obstacle(pod)
            if waiting is None:
                run = self.runs[uid] = self._start(pod)
                waiting = {
                    "phase": "Running",
                    "containerStatuses": [self._container(pod, {"running": {"startedAt": now()}})],
                }
            self.store.update("pods", name, lambda p: p.update(status=waiting))
            return
        code = run.ended()
        if code is not None:
            self._report(pod, code)

    def _obstacle(self, pod: dict[str, Any]) -> dict[str, Any] | None:
        """The status of a pod that cannot start; None: it can."""
        spec = pod["spec"]
        if "hanflow.test/nowhere" in spec.get("nodeSelector", {}):
            message = "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
            return {"phase": "Pending", "conditions": [condition]}
        container = spec["containers"][0]
        reason = message = ""
        if container["image"] != container["image"].lower():
            reason, message = "InvalidImageName", f'Failed to apply default image tag "{container["image"]}"'
        elif ".invalid/" in container["image"]:
            reason, message = "ErrImagePull", f'failed to pull image "{container["image"]}": no such host'
        for variable in container.get("env", ()):
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            if reference and ("secrets", reference["name"]) not in self.store.objects:
                reason, message = "CreateContainerConfigError", f'secret "{reference["name"]}" not found'
        if not reason:
            return None
        state = {"waiting": {"reason": reason, "message": message}}
        return {"phase": "Pending", "containerStatuses": [self._container(pod, state)]}

    def _start(self, pod: dict[str, Any]) -> Run:
        container = pod["spec"]["containers"][0]
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PET_MASTER_PORT": str(self.port),
            "OMP_NUM_THREADS": "1",
        }
        for variable in container.get("env", ()):
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            if reference:
                secret = self.store.get("secrets", reference["name"])
                environment[variable["name"]] = secret["stringData"][reference["key"]]
            else:
                environment[variable["name"]] = variable["value"]
        command = [_expanded(argument, environment) for argument in container["command"]]
        return Run(command, environment, self.store.changed)

    @staticmethod
    def _container(pod: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
        return {
            "name": pod["spec"]["containers"][0]["name"],
            "restartCount": 0,
            "ready": "running" in state,
            "state": state,
        }

    def _report(self, pod: dict[str, Any], code: int) -> None:
        run = self.runs[pod["metadata"]["uid"]]
        words = "\n".join(text for _, text in run.lines[-5:]) if code else ""
        terminated = {"exitCode": code, "reason": "Error" if code else "Completed", "message": words}
        status: dict[str, Any] = {
            "phase": "Failed" if code else "Succeeded",
            "containerStatuses": [self._container(pod, {"terminated": terminated})],
        }
        if pod["metadata"]["uid"] in self.evicted:
            message = "Eviction API: evicting"
            status.update(phase="Failed", reason="Evicted", message="The node was low on resource: memory.")
            status["conditions"] = [
                {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": message}
            ]
        self.store.update("pods", pod["metadata"]["name"], lambda p: p.update(status=status))

    def evict(self, pod: dict[str, Any]) -> None:
        self.evicted.add(pod["metadata"]["uid"])
        run = self.runs.get(pod["metadata"]["uid"])
        if run is not None:
            run.terminate(self.grace)

    def take_away(self, pod: dict[str, Any]) -> None:
        """Delete a pod: SIGTERM, then it goes with its processes."""
        name, run = pod["metadata"]["name"], self.runs.get(pod["metadata"]["uid"])
        if run is not None and run.ended() is None:
            self.store.update("pods", name, lambda p: p["metadata"].setdefault("deletionTimestamp", now()))
            run.terminate(self.grace)
            return
        if run is not None and pod.get("status", {}).get("phase") == "Running":
            self._report(pod, run.ended() or 0)
        with contextlib.suppress(Refused):
            self.store.delete("pods", name)


def _expanded(argument: str, environment: dict[str, str]) -> str:
    """$(NAME) by the variable of that name, if there is one; $$ by $."""

    def replacement(found: re.Match[str]) -> str:
        return "$" if found[0] == "$$" else environment.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", replacement, argument)


def set_condition(job: dict[str, Any], kind: str, reason: str, message: str) -> None:
    """As the training operator: Running and Restarting exclude each other, an end ends Running."""
    conditions = job.setdefault("status", {}).setdefault("conditions", [])
    if any(c["type"] == kind and c["status"] == "True" for c in conditions):
        return
    drop = {"Running": ("Restarting", "Suspended"), "Restarting": ("Running",)}.get(kind, ())
    conditions[:] = [c for c in conditions if c["type"] not in (kind, *drop)]
    if kind in ("Succeeded", "Failed"):
        for condition in conditions:
            if condition["type"] in ("Running", "Restarting"):
                condition["status"] = "False"
    conditions.append(
        {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now()}
    )


def held(job: dict[str, Any], kind: str) -> bool:
    return any(c["type"] == kind and c["status"] == "True" for c in job.get("status", {}).get("conditions", ()))


def make_pod(store: Store, job: dict[str, Any], name: str, template: dict[str, Any], labels: dict[str, str]) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**copy.deepcopy(template.get("metadata", {})), "name": name},
        "spec": copy.deepcopy(template["spec"]),
        "status": {"phase": "Pending"},
    }
    pod["metadata"]["labels"] = {**pod["metadata"].get("labels", {}), **labels}
    store.create("pods", pod)


def pods_of(store: Store, job: dict[str, Any]) -> list[dict[str, Any]]:
    return [p for p in store.all("pods") if p["metadata"]["labels"].get(JOB_LABEL) == job["metadata"]["name"]]


def operate_pytorch_job(store: Store, job: dict[str, Any], admit: bool) -> None:
    """One turn of the training operator."""
    name, spec = job["metadata"]["name"], job["spec"]

    def change(kind: str, message: str) -> None:
        store.update("pytorchjobs", name, lambda j: set_condition(j, kind, f"PyTorchJob{kind}", message))

    pods = {pod["metadata"]["name"]: pod for pod in pods_of(store, job)}
    if held(job, "Succeeded") or held(job, "Failed"):
        if spec["runPolicy"].get("cleanPodPolicy") == "Running":
            for pod in pods.values():
                if pod["status"]["phase"] in ("Running", "Pending"):
                    store.update(
                        "pods", pod["metadata"]["name"], lambda p: p["metadata"].setdefault("deletionTimestamp", now())
                    )
        return
    change("Created", f"PyTorchJob {name} is created.")
    if not admit and not pods:
        change("Suspended", f"PyTorchJob {name} is suspended.")
        return
    nodes = [
        (role, index)
        for role in ("Master", "Worker")
        for index in range(spec["pytorchReplicaSpecs"].get(role, {}).get("replicas", 0))
    ]
    for rank, (role, index) in enumerate(nodes):
        pod_name = f"{name}-{role.lower()}-{index}"
        pod = pods.get(pod_name)
        replica = spec["pytorchReplicaSpecs"][role]
        if pod is None:
            labels = {
                "training.kubeflow.org/job-name": name,
                "training.kubeflow.org/replica-type": role.lower(),
                "training.kubeflow.org/replica-index": str(index),
                **({"training.kubeflow.org/job-role": "master"} if role == "Master" else {}),
            }
            make_pod(
                store, job, pod_name, _with_torchrun_environment(replica["template"], spec, rank, len(nodes)), labels
            )
            continue
        if pod["status"]["phase"] != "Failed":
            continue
        code = 0xBEEF
        for container in pod["status"].get("containerStatuses", ()):
            code = container["state"].get("terminated", {}).get("exitCode", code)
        if replica["restartPolicy"] != "ExitCode" or code >= 128:
            store.delete("pods", pod_name)
            change("Restarting", f"job {name} is restarting because {role} replica(s) failed.")
        else:
            change("Failed", f'job "{name}" is failing because "{role}" replica(s) failed.')
    first = pods.get(f"{name}-{nodes[0][0].lower()}-0", {}).get("status", {}).get("phase")
    if first == "Succeeded":
        change("Succeeded", f"PyTorchJob {name} is successfully completed.")
    elif first == "Running" and not held(job, "Failed"):
        change("Running", f"PyTorchJob {name} is running.")


def _with_torchrun_environment(template: dict[str, Any], spec: dict[str, Any], rank: int, nodes: int) -> dict[str, Any]:
    template = copy.deepcopy(template)
    template["spec"]["containers"][0]["env"] += [
        {"name": "MASTER_ADDR", "value": "127.0.0.1"},
        {"name": "PET_MASTER_ADDR", "value": "127.0.0.1"},
        {"name": "PET_NNODES", "value": str(nodes)},
        {"name": "PET_NPROC_PER_NODE", "value": spec["nprocPerNode"]},
        {"name": "PET_NODE_RANK", "value": str(rank)},
        {"name": "RANK", "value": str(rank)},
        {"name": "WORLD_SIZE", "value": str(nodes)},
    ]
    return template


def operate_job_set(store: Store, job: dict[str, Any], admit: bool) -> None:
    """One turn of the JobSet and the Job controllers."""
    name, spec = job["metadata"]["name"], job["spec"]
    pods = pods_of(store, job)
    if job.get("status", {}).get("terminalState"):
        return

    def end(state: str, kind: str, reason: str, message: str) -> None:
        def change(j: dict[str, Any]) -> None:
            set_condition(j, kind, reason, message)
            j["status"]["terminalState"] = state

        store.update("jobsets", name, change)

    (replicated,) = spec["replicatedJobs"]
    batch = replicated["template"]["spec"]
    wanted = [(s, h) for s in range(replicated["replicas"]) for h in range(batch["completions"])]
    if any(pod["metadata"].get("deletionTimestamp") for pod in pods):
        return  # a restart under way
    failed = [pod for pod in pods if pod["status"]["phase"] == "Failed"]
    if failed:
        reason, message = _job_failure(batch, failed[0])
        rule = next(
            (r for r in spec["failurePolicy"]["rules"] if _applies(r, reason, message)), {"action": "RestartJobSet"}
        )
        restarts = job.get("status", {}).get("restartsCountTowardsMax", 0)
        counted = rule["action"] == "RestartJobSet"
        if rule["action"] == "FailJobSet" or (counted and restarts >= spec["failurePolicy"]["maxRestarts"]):
            end("Failed", "Failed", "FailedJobs" if not counted else "ReachedMaxRestarts", f"jobset failed: {message}")
            return
        for pod in pods:
            store.update(
                "pods", pod["metadata"]["name"], lambda p: p["metadata"].setdefault("deletionTimestamp", now())
            )
        store.update(
            "jobsets",
            name,
            lambda j: j.setdefault("status", {}).update(
                restarts=j["status"].get("restarts", 0) + 1, restartsCountTowardsMax=restarts + counted
            ),
        )
        return
    if not pods:
        for s, h in wanted:
            labels = {
                "jobset.sigs.k8s.io/jobset-name": name,
                "jobset.sigs.k8s.io/job-index": str(s),
                "batch.kubernetes.io/job-completion-index": str(h),
            }
            template = copy.deepcopy(batch["template"])
            template["spec"]["containers"][0]["env"].append({"name": "JOB_COMPLETION_INDEX", "value": str(h)})
            make_pod(store, job, f"{name}-slice-{s}-{h}-{uuid.uuid4().hex[:5]}", template, labels)
        return
    ready = sum(pod["status"]["phase"] == "Running" for pod in pods)
    if len(pods) == len(wanted) and all(pod["status"]["phase"] == "Succeeded" for pod in pods):
        end("Completed", "Completed", "AllJobsCompleted", "jobset completed successfully")
    else:
        status = [{"name": replicated["name"], "ready": int(ready == len(wanted))}]
        store.update("jobsets", name, lambda j: j.setdefault("status", {}).update(replicatedJobsStatus=status))


def _job_failure(batch: dict[str, Any], pod: dict[str, Any]) -> tuple[str, str]:
    where = f"pod {NAMESPACE}/{pod['metadata']['name']}"
    code = pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"]
    conditions = {c["type"] for c in pod["status"].get("conditions", ())}
    for index, rule in enumerate(batch["podFailurePolicy"]["rules"]):
        if code in rule.get("onExitCodes", {}).get("values", ()):
            container = rule["onExitCodes"]["containerName"]
            said = (
                f"Container {container} for {where} failed with exit code {code} matching FailJob rule at index {index}"
            )
            return "PodFailurePolicy", said
        if any(pattern["type"] in conditions for pattern in rule.get("onPodConditions", ())):
            return (
                "PodFailurePolicy",
                f"P{where[1:]} has condition DisruptionTarget matching FailJob rule at index {index}",
            )
    return "BackoffLimitExceeded", "Job has reached the specified backoff limit"


def _applies(rule: dict[str, Any], reason: str, message: str) -> bool:
    patterns = rule.get("onJobFailureMessagePatterns") or [""]
    reasons = rule.get("onJobFailureReasons") or [reason]
    return reason in reasons and any(re.search(pattern, message) for pattern in patterns)


@contextlib.contextmanager
def fake_cluster(folder: Path) -> Iterator[FakeCluster]:
    folder.mkdir(parents=True, exist_ok=True)
    with FakeCluster(folder) as cluster:
        yield cluster
