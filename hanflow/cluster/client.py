"""The Kubernetes API as the launcher uses it: requests that are retried, streams, and watches. Nothing else imports kubernetes."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from hanflow.errors import UserError
from hanflow.progress import log

PATIENCE_SECONDS = 600.0
"""How long a request is retried while the API server is away (an upgrade of a control plane takes minutes)."""
PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds between attempts; the last one repeats."""
TIMEOUT_SECONDS = 30.0
WATCH_SECONDS = 60
"""After that time the server ends a watch, and it is opened again."""
_RETRIED = (429, 500, 502, 503, 504)
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_WARNING = re.compile(r'\b299 \S+ "((?:[^"\\]|\\.)*)"')
"""A warning of the API server, as the HTTP header `Warning` carries it (RFC 7234, section 5.5)."""


class ClusterError(UserError):
    """The API server refuses a request, or cannot be reached."""


class NotFound(ClusterError):
    """No such object."""


class Conflict(ClusterError):
    """An object of that name exists already, or it is not the one that was meant."""


class Unavailable(ClusterError):
    """The API server cannot be reached, or the connection broke."""


class Expired(Exception):
    """The resource version of a watch is too old: list again."""


class Cluster:
    """One namespace of a cluster; safe to share between threads.

    Args:
        namespace: empty: that of this pod, or of the kubeconfig's current context.
        patience: seconds for which a request is retried while the API server is away.
        pauses: seconds between attempts; the last one repeats.

    Raises:
        ClusterError: neither inside a cluster nor with a usable kubeconfig.
    """

    def __init__(
        self, namespace: str = "", *, patience: float = PATIENCE_SECONDS, pauses: Sequence[float] = PAUSES
    ) -> None:
        self.patience, self._pauses = patience, pauses
        self.inside = "KUBERNETES_SERVICE_HOST" in os.environ and not os.environ.get("KUBECONFIG")
        self._lock = threading.Lock()
        self._generation = 0
        self._warnings: set[str] = set()
        self._api = self._connect()
        self.own_namespace = self._own_namespace()
        self.namespace = namespace or self.own_namespace

    def _connect(self) -> client.ApiClient:
        """A client with the present credentials: tokens change while training runs for days."""
        settings = client.Configuration()
        try:
            if self.inside:
                config.load_incluster_config(client_configuration=settings)
            else:
                config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=settings)
        except config.ConfigException as error:
            raise ClusterError(f"no Kubernetes cluster: {error}; set KUBECONFIG, or run inside a cluster") from None
        settings.retries = False  # retried here, where SIGTERM and the patience of each request are known
        return client.ApiClient(settings)

    def _own_namespace(self) -> str:
        if self.inside:
            return _NAMESPACE_FILE.read_text(encoding="utf-8").strip()
        return config.list_kube_config_contexts(os.environ.get("KUBECONFIG"))[1]["context"].get("namespace", "default")

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        patience: float | None = None,
    ) -> Any:
        """One request, retried while the server is away or overloaded, or after the credentials have changed.

        The server validates what is created strictly: a field that it does not know is an error. Without that it would
        drop the field, and the job would run without what the field asks for.

        Args:
            method: GET, POST, DELETE.
            path: with `{namespace}` for the namespace.
            query: of the URL.
            body: plain data, sent as JSON.
            patience: seconds to keep trying (None: the cluster's); also bounds a single attempt.

        Returns:
            The answer, parsed from JSON.

        Raises:
            NotFound, Conflict: as the server answers.
            ClusterError: it refuses for another reason, or stayed away for too long.
        """
        patience = self.patience if patience is None else patience
        strict = {"fieldValidation": "Strict"} if method == "POST" else {}
        with self._retried(method, path, {**strict, **(query or {})}, body, patience, stream=False) as answer:
            return json.loads(answer.data)

    @contextlib.contextmanager
    def stream(self, path: str, *, query: Mapping[str, Any], patience: float = 0.0) -> Iterator[Iterator[bytes]]:
        """The lines of an answer as they come (a watch, a log).

        Raises:
            Expired: the resource version is too old.
            ClusterError: as `request`; also when the connection breaks.
        """
        with self._retried("GET", path, query, None, patience, stream=True) as answer:
            yield lines_of(answer.stream(amt=None, decode_content=False))

    @contextlib.contextmanager
    def _retried(
        self, method: str, path: str, query: Mapping[str, Any], body: Any, patience: float, *, stream: bool
    ) -> Iterator[urllib3.HTTPResponse]:
        until = time.monotonic() + patience
        timeout = min(TIMEOUT_SECONDS, patience or TIMEOUT_SECONDS)
        for attempt in itertools.count():
            generation, asked = self._generation, 0.0
            try:
                answer = self._once(method, path, query, body, timeout, stream)
                break
            except ApiException as error:
                self._log_warnings(error.headers)
                if error.status == 410:
                    raise Expired from None
                if error.status == 401:
                    self._refresh(generation)
                elif error.status not in _RETRIED:
                    raise refusal(method, path, error) from None
                problem, asked = f"it answered {error.status} {error.reason}", retry_after(error.headers or {})
            except (urllib3.exceptions.HTTPError, OSError) as error:
                problem = _short(error)
            pause = max(self._pauses[min(attempt, len(self._pauses) - 1)], asked)
            if time.monotonic() + pause > until:
                raise Unavailable(f"the API server cannot be used: {problem} ({method} {path})") from None
            if attempt == 3:
                log.warning("the API server does not answer (%s); retrying for up to %.0f s", problem, patience)
            time.sleep(pause)
        try:
            yield answer
        finally:
            if stream:
                answer.close()
            answer.release_conn()

    def _once(
        self, method: str, path: str, query: Mapping[str, Any], body: Any, timeout: float, stream: bool
    ) -> urllib3.HTTPResponse:
        api = self._api
        headers = {"Accept": "*/*" if path.endswith("/log") else "application/json", "Content-Type": "application/json"}
        answer = api.call_api(
            path.replace("{namespace}", self.namespace),
            method,
            query_params=list(query.items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
            _preload_content=False,
            _return_http_data_only=True,
            # A log or watch may be quiet for long without being broken; the server ends a watch in time.
            _request_timeout=(min(timeout, 5.0), WATCH_SECONDS + TIMEOUT_SECONDS if stream else timeout),
        )
        if not stream:
            _ = answer.data  # read here, so that a connection that breaks is retried; the answer keeps it
        self._log_warnings(answer.headers)
        return answer

    def _log_warnings(self, headers: Mapping[str, str] | None) -> None:
        """Log what the API server warns of, each text once."""
        for text in warnings_in(headers or {}):
            if text not in self._warnings:
                self._warnings.add(text)
                log.warning("warning of the API server: %s", text)

    def _refresh(self, generation: int) -> None:
        """Read the credentials again, unless another thread has done so since they were refused."""
        with self._lock:
            if generation == self._generation:
                self._api = self._connect()
                self._generation += 1


def warnings_in(headers: Mapping[str, str]) -> list[str]:
    """What the API server warns of in the headers of an answer."""
    return [re.sub(r"\\(.)", r"\1", text) for text in _WARNING.findall(headers.get("Warning", ""))]


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds for which an overloaded API server asks to be left alone; at most `TIMEOUT_SECONDS`."""
    seconds = headers.get("Retry-After", "")
    return min(float(seconds), TIMEOUT_SECONDS) if seconds.isdecimal() else 0.0


def lines_of(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of an answer, however it is cut into chunks.

    Raises:
        Unavailable: the connection breaks.
    """
    rest = b""
    try:
        for chunk in chunks:
            *whole, rest = (rest + chunk).split(b"\n")
            yield from whole
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise Unavailable(f"the connection broke: {_short(error)}") from None
    if rest:
        yield rest


def refusal(method: str, path: str, error: ApiException) -> ClusterError:
    try:
        message = json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        message = error.reason
    hint = ""
    if error.status == 403 and "denied the request" not in message:  # the latter: a webhook
        hint = "; the service account lacks a permission: apply manifests/"
    elif "strict decoding error" in message:
        hint = "; the installed version of that kind does not have this field: update its operator"
    kind = {404: NotFound, 409: Conflict}.get(error.status, ClusterError)
    return kind(f"the cluster refuses {method} {path} ({error.status}): {message}{hint}")


def _short(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or error
    return f"{type(reason).__name__}: {reason}"[:300]


@dataclass(frozen=True)
class Change:
    """What a watch reports."""

    source: str
    """Name of the watch."""
    kind: str
    """LIST (`objects` is all there is), ADDED, MODIFIED, DELETED, or BROKEN (the watch has ended for good)."""
    objects: tuple[dict[str, Any], ...] = ()
    error: ClusterError | None = None


class Watch(threading.Thread):
    """Lists, then watches, and puts every change into a queue; after any gap it lists again.

    (kubernetes' own Watch neither retries nor lists again; polling would miss pods that an operator replaces at once.)

    Args:
        cluster: where.
        path: of the collection, with `{namespace}`.
        selector: `fieldSelector` or `labelSelector` of the query.
        changes: receives the `Change`s.
        name: their source.
        retry_seconds: how long after a watch broke the objects are listed again.
    """

    def __init__(
        self,
        cluster: Cluster,
        path: str,
        selector: Mapping[str, str],
        changes: queue.Queue[Change],
        *,
        name: str,
        retry_seconds: float,
    ):
        super().__init__(name=f"watch-{name}", daemon=True)
        self._cluster, self._path, self._selector = cluster, path, dict(selector)
        self._changes, self._source, self._retry_seconds = changes, name, retry_seconds
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        try:
            while not self._stopped.is_set():
                with contextlib.suppress(Expired):
                    self._list_and_watch()
        except ClusterError as error:  # `request` has retried already
            self._put("BROKEN", error=error)
        except Exception as error:  # unreported it would let the launcher wait for ever
            message = f"watching the {self._source} failed: {type(error).__name__}: {error}"
            self._put("BROKEN", error=ClusterError(message))

    def _list_and_watch(self) -> None:
        listed = self._cluster.request("GET", self._path, query=self._selector)
        self._put("LIST", *listed["items"])
        version = listed["metadata"]["resourceVersion"]
        while not self._stopped.is_set():
            try:
                version = self._watch(version)
            except Unavailable:
                self._stopped.wait(self._retry_seconds)
                return

    def _watch(self, version: str) -> str:
        query = {
            **self._selector,
            "watch": "true",
            "resourceVersion": version,
            "timeoutSeconds": WATCH_SECONDS,
            "allowWatchBookmarks": "true",
        }
        with self._cluster.stream(self._path, query=query) as lines:
            for line in lines:
                if self._stopped.is_set():
                    break
                try:
                    event = json.loads(line)
                except ValueError:
                    raise Unavailable("the connection broke in the middle of an event") from None
                if event["type"] == "ERROR":
                    if event["object"].get("code") == 410:
                        raise Expired
                    raise ClusterError(f"the watch failed: {event['object'].get('message')}")
                version = event["object"]["metadata"]["resourceVersion"]
                if event["type"] != "BOOKMARK":
                    self._put(event["type"], event["object"])
        return version

    def _put(self, kind: str, *objects: dict[str, Any], error: ClusterError | None = None) -> None:
        self._changes.put(Change(self._source, kind, objects, error))
