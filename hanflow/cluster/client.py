"""The Kubernetes API for the launcher: plain requests, and streams, with patience."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from hanflow.errors import UserError
from hanflow.progress import log

PATIENCE_SECONDS = 600.0
"""How long the API server may be away (an upgrade of a control plane takes minutes) before the launcher gives up."""
TIMEOUT_SECONDS = 30.0
WATCH_SECONDS = 60
"""After that time the server ends a watch, and it is asked for anew."""
_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_PASSING = (429, 500, 502, 503, 504)
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class ClusterError(UserError):
    """The cluster refuses, or cannot be reached."""


class NotFound(ClusterError):
    """No such object."""


class Conflict(ClusterError):
    """An object of that name exists already."""


class Away(ClusterError):
    """The API server cannot be reached, or the connection broke."""


class Gone(Exception):
    """A watch's resource version is too old: list again."""


class Cluster:
    """One namespace of a cluster; safe to share between threads.

    Args:
        namespace: empty: that of this pod, or of the kubeconfig's current context.

    Raises:
        ClusterError: neither inside a cluster nor with a usable kubeconfig.
    """

    def __init__(self, namespace: str = ""):
        self.inside = "KUBERNETES_SERVICE_HOST" in os.environ and not os.environ.get("KUBECONFIG")
        self._lock = threading.Lock()
        self._generation = 0
        self._api = self._connect()
        self.own_namespace = self._own_namespace()
        self.namespace = namespace or self.own_namespace

    def _connect(self) -> client.ApiClient:
        """A client with the credentials of this moment: tokens change while training runs for days."""
        settings = client.Configuration()
        try:
            if self.inside:
                config.load_incluster_config(client_configuration=settings)
            else:
                config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=settings)
        except config.ConfigException as error:
            raise ClusterError(f"no Kubernetes cluster: {error}; set KUBECONFIG, or run inside a cluster") from None
        settings.retries = False  # tried again here, where SIGTERM and patience are known
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
        """One request, tried again while the server is away, overloaded or does not know us any more.

        Args:
            method: GET, POST, DELETE.
            path: with `{namespace}` for the namespace.
            query: of the URL.
            body: plain data, sent as JSON.
            patience: seconds to keep trying (None: PATIENCE_SECONDS); also bounds a single request.

        Returns:
            The answer, parsed from JSON.

        Raises:
            NotFound, Conflict: as the server says.
            ClusterError: it refuses for another reason, or stayed away for too long.
        """
        patience = PATIENCE_SECONDS if patience is None else patience
        with self._patiently(method, path, query, body, patience, stream=False) as answer:
            return json.loads(answer.data)

    @contextlib.contextmanager
    def stream(self, path: str, *, query: Mapping[str, Any], patience: float = 0.0) -> Iterator[Iterator[bytes]]:
        """The lines of an answer as they come (a watch, a log).

        Raises:
            Gone: the resource version is too old.
            ClusterError: as `request`; also when the connection breaks.
        """
        with self._patiently("GET", path, query, None, patience, stream=True) as answer:
            yield _lines(answer)

    @contextlib.contextmanager
    def _patiently(
        self, method: str, path: str, query: Mapping[str, Any] | None, body: Any, patience: float, *, stream: bool
    ) -> Iterator[urllib3.HTTPResponse]:
        until = time.monotonic() + patience
        for attempt in itertools.count():
            generation = self._generation
            try:
                answer = self._once(
                    method, path, query, body, min(TIMEOUT_SECONDS, patience or TIMEOUT_SECONDS), stream
                )
                break
            except ApiException as error:
                if error.status == 410:
                    raise Gone from None
                if error.status == 401:
                    self._refresh(generation)
                elif error.status not in _PASSING:
                    raise _refusal(method, path, error) from None
                problem = f"it answered {error.status} {error.reason}"
            except (urllib3.exceptions.HTTPError, OSError) as error:
                problem = _short(error)
            pause = _PAUSES[min(attempt, len(_PAUSES) - 1)]
            if time.monotonic() + pause > until:
                raise Away(f"the API server cannot be used: {problem} ({method} {path})") from None
            if attempt == 3:
                log.warning("the API server does not answer (%s); trying for %.0f s", problem, patience)
            time.sleep(pause)
        try:
            yield answer
        finally:
            if stream:
                answer.close()
            answer.release_conn()

    def _once(
        self, method: str, path: str, query: Mapping[str, Any] | None, body: Any, timeout: float, stream: bool
    ) -> urllib3.HTTPResponse:
        api = self._api
        headers = {"Accept": "*/*" if path.endswith("/log") else "application/json", "Content-Type": "application/json"}
        answer = api.call_api(
            path.replace("{namespace}", self.namespace),
            method,
            query_params=list((query or {}).items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
            _preload_content=False,
            _return_http_data_only=True,
            # A quiet log or watch is no broken one; a watch is ended by the server in time.
            _request_timeout=(min(timeout, 5.0), WATCH_SECONDS + TIMEOUT_SECONDS if stream else timeout),
        )
        if not stream:
            _ = answer.data  # read here, where a connection that breaks is tried again; the answer keeps it
        return answer

    def _refresh(self, generation: int) -> None:
        """Read the credentials anew, unless another thread has since they were refused."""
        with self._lock:
            if generation == self._generation:
                self._api = self._connect()
                self._generation += 1


def _lines(answer: urllib3.HTTPResponse) -> Iterator[bytes]:
    rest = b""
    try:
        for chunk in answer.stream(amt=None, decode_content=False):
            *whole, rest = (rest + chunk).split(b"\n")
            yield from whole
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise Away(f"the connection broke: {_short(error)}") from None
    if rest:
        yield rest


def _refusal(method: str, path: str, error: ApiException) -> ClusterError:
    try:
        said = json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        said = error.reason
    kind = {404: NotFound, 409: Conflict}.get(error.status, ClusterError)
    hint = "; the service account lacks a permission: apply manifests/" if error.status == 403 else ""
    return kind(f"the cluster refuses {method} {path} ({error.status}): {said}{hint}")


def _short(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or error
    return f"{type(reason).__name__}: {reason}"[:300]
