"""A proxy in front of a real API server: counts the launcher's requests, and makes the faults that no server can be asked for.

Plain HTTP on this machine; its own kubeconfig names it. The launcher's token is one of the proxy's, which puts that of the
real server in its place.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import urllib3
import yaml
from kubernetes import client, config

NOT_PASSED = ("accept-encoding", "authorization", "connection", "content-length", "host", "transfer-encoding")
"""Headers that belong to one connection, or that are this proxy's own."""


@dataclass
class Fault:
    """What happens to the next requests that it fits."""

    kind: str
    """answer: in the server's place, with `status`. lose: the server does it, and its answer is lost. cut: the answer, or the
    next event or line of a stream, breaks off in the middle. slow: the same comes `seconds` later."""
    where: str = ""
    """Regular expression for method, path and query, such as `POST .*/pytorchjobs`."""
    times: float = 1
    status: int = 0
    message: str = "a fault of the tests"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    """Of an answer; None: an error with `message`."""
    seconds: float = 0.0
    happened: int = 0


def status_of(code: int, message: str) -> dict[str, Any]:
    """As the API server answers an error."""
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message}


class Proxy:
    """Use as a context manager.

    Args:
        upstream: kubeconfig of the real server, with a token.
        folder: for `kubeconfig` and the token in it.
    """

    def __init__(self, upstream: Path, folder: Path):
        self._settings = client.Configuration()
        config.load_kube_config(str(upstream), client_configuration=self._settings)
        self.pool: urllib3.PoolManager = client.ApiClient(self._settings).rest_client.pool_manager
        self.kubeconfig, self._token = folder / "proxy.kubeconfig", folder / "token"
        self.requests: list[tuple[str, int]] = []
        """Method with path and query, and status, of every request; status 0: it got no answer."""
        self.warnings: list[str] = []
        """Sent in the header of every answer."""
        self.accepted = "token-1"
        self.gone = threading.Event()
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self.connections: set[_Connection] = set()
        self._server = _Server(("127.0.0.1", 0), _Connection)
        self._server.proxy = self
        settings = yaml.safe_load(upstream.read_text(encoding="utf-8"))
        for each in settings["clusters"]:
            each["cluster"] = {"server": f"http://127.0.0.1:{self._server.server_port}"}
        for each in settings["users"]:
            each["user"] = {"tokenFile": str(self._token)}
        self._token.write_text(self.accepted, encoding="utf-8")
        self.kubeconfig.write_text(json.dumps(settings), encoding="utf-8")

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.break_connections()

    # What tests do.

    def inject(self, kind: str, where: str = "", **options: Any) -> Fault:
        self._faults.append(Fault(kind, where, **options))
        return self._faults[-1]

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Answer nothing in the block, and break what is open."""
        self.gone.set()
        self.break_connections()
        try:
            yield
        finally:
            self.gone.clear()

    def break_connections(self) -> None:
        for connection in list(self.connections):
            connection.break_off()

    def watches(self) -> list[_Connection]:
        """Those that are open."""
        return [each for each in list(self.connections) if each.streaming and "watch=true" in each.path]

    def expire_watches(self) -> None:
        """End open watches as the server does when it has forgotten their version."""
        event = json.dumps({"type": "ERROR", "object": status_of(410, "too old resource version")}).encode()
        for watch in self.watches():
            with contextlib.suppress(OSError):
                watch.chunk(event + b"\n")
            watch.break_off()

    def rotate_token(self) -> None:
        """From now on only a new token is valid; it is in the file that the kubeconfig names."""
        self.accepted = f"token-{time.monotonic_ns()}"
        self._token.write_text(self.accepted, encoding="utf-8")
        self.break_connections()

    def count(self, where: str, status: int | None = None) -> int:
        """How many requests (method, path and query fit `where`) there were."""
        return sum(bool(re.search(where, each)) and status in (None, code) for each, code in list(self.requests))

    # What connections ask.

    def take(self, request: str, *kinds: str) -> Fault | None:
        """The fault of one of these kinds that happens to the request now."""
        with self._lock:
            for fault in self._faults:
                if fault.kind in kinds and fault.happened < fault.times and re.search(fault.where, request):
                    fault.happened += 1
                    return fault
        return None

    def forward(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> urllib3.BaseHTTPResponse:
        passed = {name: value for name, value in headers.items() if name.lower() not in NOT_PASSED}
        passed["Authorization"] = self._settings.api_key["authorization"]
        return self.pool.request(
            method, self._settings.host + path, headers=passed, body=body or None, preload_content=False, retries=False
        )


class _Server(ThreadingHTTPServer):
    proxy: Proxy
    request_queue_size = 50

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # clients that disconnect are expected
            super().handle_error(request, client_address)


class _Connection(BaseHTTPRequestHandler):
    """One connection of the launcher."""

    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    command = path = ""
    streaming = False

    def setup(self) -> None:
        super().setup()
        self.proxy = self.server.proxy
        self.proxy.connections.add(self)

    def finish(self) -> None:
        self.proxy.connections.discard(self)
        super().finish()

    def log_message(self, *_: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        if self.proxy.gone.is_set():
            self._done(0)
            self.break_off()
        else:
            super().handle_one_request()

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = f"{self.command} {self.path}"
        if self.headers.get("Authorization") != f"Bearer {self.proxy.accepted}":
            self._answer(401, json.dumps(status_of(401, "Unauthorized")).encode())
        elif (fault := self.proxy.take(request, "answer")) is not None:
            answer = fault.body or status_of(fault.status, fault.message)
            self._answer(fault.status, json.dumps(answer).encode(), fault.headers)
        else:
            self._pass_on(request, self.proxy.forward(self.command, self.path, self.headers, body))

    do_POST = do_DELETE = do_PATCH = do_PUT = do_GET

    def _pass_on(self, request: str, answer: urllib3.BaseHTTPResponse) -> None:
        if answer.headers.get("Transfer-Encoding") == "chunked" and ("watch=true" in self.path or "/log" in self.path):
            self._stream(request, answer)
            return
        data = answer.data
        self._wait(request)
        if self.proxy.take(request, "lose"):
            self._done(0)
            self.break_off()
            return
        half = len(data) // 2 if self.proxy.take(request, "cut") else None
        self._answer(answer.status, data, answer.headers, only=half)

    def _wait(self, request: str) -> None:
        slow = self.proxy.take(request, "slow")
        if slow is not None:
            time.sleep(slow.seconds)

    def _answer(
        self, status: int, data: bytes, headers: Mapping[str, str] | None = None, only: int | None = None
    ) -> None:
        self._begin(status, headers or {}, "Content-Length", str(len(data)))
        self.wfile.write(data[:only])
        if only is not None:
            self.break_off()

    def _stream(self, request: str, answer: urllib3.BaseHTTPResponse) -> None:
        self._begin(answer.status, answer.headers, "Transfer-Encoding", "chunked")
        self.streaming = True
        try:
            for data in answer.read_chunked(decode_content=False):
                self._wait(request)
                if self.proxy.take(request, "cut"):
                    self.chunk(data[: len(data) // 2])
                    self.break_off()
                    return
                self.chunk(data)
            self.chunk(b"")  # the last, empty one
        finally:
            self.streaming = False
            answer.close()

    def _begin(self, status: int, headers: Mapping[str, str], framing: str, value: str) -> None:
        self._done(status)
        self.send_response_only(status)
        self.send_header(framing, value)
        for name, each in headers.items():
            if name.lower() not in NOT_PASSED:
                self.send_header(name, each)
        for warning in self.proxy.warnings:
            quoted = warning.replace('"', '\\"')
            self.send_header("Warning", f'299 - "{quoted}"')
        self.end_headers()

    def _done(self, status: int) -> None:
        self.proxy.requests.append((f"{self.command} {self.path}", status))

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def break_off(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
