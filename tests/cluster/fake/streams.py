"""Streamed answers: watches and logs."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from tests.cluster.fake.store import Refused, selected

if TYPE_CHECKING:
    from tests.cluster.fake.cluster import FakeCluster


class Streams(BaseHTTPRequestHandler):
    """What a handler sends in pieces, for as long as its client listens."""

    api: FakeCluster
    protocol_version = "HTTP/1.1"

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
                if kind == plural and selected(obj, query):
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
        since, sent = query.get("sinceTime", ""), 0
        lines = run.lines[-int(query["tailLines"]) :] if "tailLines" in query else run.lines
        while True:
            with self.api.store.changed:
                fresh = list(lines[sent:])
                over = run.over
            for stamp, text in fresh:
                sent += 1
                if stamp[:19] >= since[:19]:
                    self._chunk((f"{stamp} {text}" if query.get("timestamps") == "true" else text).encode() + b"\n")
            if over or query.get("follow") != "true":
                break
            with self.api.store.changed:
                self.api.store.changed.wait(0.05)
            if not self._open():
                return
        self._chunk(b"")
