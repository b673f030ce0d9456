"""gcp-storage-emulator as a process of its own, with what it lacks: generation preconditions, and faults to order.

Run as a script it is the server; `Emulator` starts, commands and asks it. A fault is a mapping:

- `kind`: `503` (refused), `drop` (connection closed, nothing done), `lost` (done, connection closed before the answer),
  `truncate` (the body ends in the middle), `short` (half of the body, with the right length in the header), `flip` (one bit differs),
  `hold` (waits for `release`), `kill` (SIGKILL to the process that `pid_file` names, nothing done), `deny` (403);
- `match`: regular expression that must be found in the event, e.g. `^upload .*train.arrow$`; an event is one of list, stat,
  download, start (of a resumable upload), upload, compose, delete, and the object's name;
- `skip`: events that match and pass (0); `times`: events that it happens to (1).
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.storage import Storage


class Emulator:
    """Use as a context manager.

    Args:
        address: of this machine, where it listens.
    """

    def __init__(self, address: str = "127.0.0.1"):
        self._address = address

    def __enter__(self) -> Emulator:
        with socket.socket() as probe:
            probe.bind((self._address, 0))
            port = probe.getsockname()[1]
        self.host = f"http://{self._address}:{port}"
        self._process = subprocess.Popen([sys.executable, __file__, self._address, str(port)])
        for _ in range(200):
            try:
                self._ask("/_control")
                return self
            except OSError:
                time.sleep(0.05)
        raise RuntimeError("the emulator does not start")

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def _ask(self, path: str, content: Any = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.host + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    def make_bucket(self, name: str) -> None:
        self._ask("/storage/v1/b", {"name": name})

    def order(self, *faults: dict[str, Any]) -> None:
        """Forget all faults and events; from now on, these faults happen."""
        self._ask("/_control", {"faults": faults})

    def release(self) -> None:
        """Let what is held go on."""
        self._ask("/_control", {"release": True})

    @property
    def fired(self) -> list[int]:
        """How often each ordered fault has happened."""
        return self._ask("/_control")["fired"]

    @property
    def events(self) -> list[str]:
        """What has been asked of the server since `order`."""
        return self._ask("/_control")["events"]


class _State:
    def __init__(self) -> None:
        self.order([])

    def order(self, faults: list[dict[str, Any]]) -> None:
        self.faults, self.fired, self.seen, self.events = faults, [0] * len(faults), [0] * len(faults), []
        self.released = threading.Event()

    def fault(self, event: str) -> dict[str, Any] | None:
        self.events.append(event)
        for place, fault in enumerate(self.faults):
            if re.search(fault.get("match", ""), event):
                self.seen[place] += 1
                skip = fault.get("skip", 0)
                if skip < self.seen[place] <= skip + fault.get("times", 1):
                    self.fired[place] += 1
                    return fault
        return None


_state = _State()
_lock = threading.Lock()


def _route(request: server.Request) -> Any:
    for regex, handlers in server.HANDLERS:
        match = re.fullmatch(regex, request.path)
        if match:
            request.set_match(match)
            return handlers.get(request.method)
    return None


def _name(request: server.Request, storage: Storage) -> str:
    if "upload_id" in request.query:
        try:
            return storage.get_resumable_file_obj(request.query["upload_id"][0])["name"]
        except NotFound:
            return ""
    if request.path.startswith("/upload/"):
        reported = request.data or {}
        return request.query.get("name", [reported.get("meta", reported).get("name", "")])[0]
    return request.params.get("object_id", "")


def _kind(request: server.Request) -> str:
    if request.path.startswith("/upload/"):
        resumable = request.query["uploadType"] == ["resumable"] and "upload_id" not in request.query
        return "start" if resumable else "upload"
    if request.path.endswith("/compose"):
        return "compose"
    if request.method == "DELETE":
        return "delete"
    if request.path.endswith("/o"):
        return "list"
    return "download" if request.path.startswith("/download/") or "alt" in request.query else "stat"


def _refusal(request: server.Request, storage: Storage, name: str) -> int:
    """412 or 404 where a precondition does not hold; 0: all do."""
    try:
        current = int(storage.get_file_obj(request.params["bucket_name"], name)["generation"])
    except NotFound:
        current = 0
    wanted = request.query.get("ifGenerationMatch")
    if wanted and int(wanted[0]) != current:
        return 412
    version = request.query.get("generation")
    return 404 if version and int(version[0]) != current else 0


def _handle(self: server.Router, method: str) -> None:
    handler = self._request_handler
    request, response = server.Request(handler, method), server.Response(handler)
    handler.close_connection = True
    if request.path == "/_control":
        _control(request, response)
        return
    action = _route(request)
    storage = handler.storage
    if "/o" not in request.path:
        with _lock:
            action(request, response, storage)
        response.close()
        return
    _ = request.data
    with _lock:
        name = _name(request, storage)
        fault = _state.fault(f"{_kind(request)} {name}") or {"kind": ""}
    kind = fault["kind"]
    if kind == "kill":
        os.kill(int(Path(fault["pid_file"]).read_text()), signal.SIGKILL)
    if kind == "hold":
        _state.released.wait(120)
    if kind in ("drop", "kill"):
        handler.connection.shutdown(socket.SHUT_RDWR)
        return
    if kind in ("503", "deny"):
        _refuse(response, 503 if kind == "503" else 403)
        return
    with _lock:
        refused = _refusal(request, storage, name) if name else 0
        if not refused:
            action(request, response, storage)
    if kind == "lost":
        handler.connection.shutdown(socket.SHUT_RDWR)
    elif refused:
        _refuse(response, refused)
    else:
        _answer(response, handler, kind)


def _refuse(response: server.Response, status: int) -> None:
    response.status = server.HTTPStatus(status)
    response.json({"error": {"code": status, "message": f"ordered or not met: {status}"}})
    response.close()


def _answer(response: server.Response, handler: Any, kind: str) -> None:
    body = response._content
    body = body.encode() if isinstance(body, str) else body
    if kind == "flip":
        body = bytearray(body)
        body[len(body) // 2] ^= 1
        body = bytes(body)
    elif kind == "short":
        body = body[: len(body) // 2]
    response._content = body
    if kind != "truncate":
        response.close()
        return
    handler.send_response(response.status.value)
    for key, value in response._headers.items():
        handler.send_header(key, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)


def _control(request: server.Request, response: server.Response) -> None:
    reported = request.data if request.method == "POST" else {}
    with _lock:
        if "faults" in reported:
            _state.released.set()
            _state.order(reported["faults"])
        if "release" in reported:
            _state.released.set()
        response.json({"fired": _state.fired, "events": _state.events})
    response.close()


def _serve(address: str, port: int) -> None:
    server.Router.handle = _handle
    server.logger.disabled = True
    ThreadingHTTPServer.request_queue_size = 64
    storage = Storage(use_memory_fs=True)
    with ThreadingHTTPServer((address, port), partial(server.RequestHandler, storage)) as httpd:
        httpd.serve_forever()


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
