"""Rank 0's log as part of the step's own: streamed, resumed after a break, no line twice."""

from __future__ import annotations

import collections
import datetime
import sys
import threading
from collections.abc import Mapping
from typing import Any, TextIO

from hanflow.cluster.client import Cluster, ClusterError, Expired

KEPT_LINES = 30
"""Last lines kept for the message of a failure."""


class LogStream:
    """Streams the log of one pod after another; a pod that was made anew is another pod.

    Args:
        cluster: where the pods are.
        retry_seconds: pause before a broken stream is opened again.
        out: where the lines go; None: standard error.
    """

    def __init__(self, cluster: Cluster, retry_seconds: float, out: TextIO | None = None):
        self._cluster, self._retry_seconds, self._out = cluster, retry_seconds, out
        self._threads: dict[str, threading.Thread] = {}
        self._ended: set[str] = set()
        self._stopped = threading.Event()
        self.last: collections.deque[str] = collections.deque(maxlen=KEPT_LINES)
        """The newest lines."""

    def follow(self, pod: Mapping[str, Any]) -> None:
        """Stream that pod's log unless it is streamed already; to be called again when the pod has changed."""
        uid = pod["metadata"]["uid"]
        if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            self._ended.add(uid)
        if uid not in self._threads:
            name, container = pod["metadata"]["name"], pod["spec"]["containers"][0]["name"]
            thread = threading.Thread(target=self._stream, args=(uid, name, container), name=f"log-{name}", daemon=True)
            self._threads[uid] = thread
            thread.start()

    def finish(self, seconds: float) -> None:
        """Wait until the logs of pods that have ended are printed to their end, at most so long each; then stop."""
        for uid, thread in self._threads.items():
            if uid in self._ended:
                thread.join(seconds)
        self._stopped.set()

    def _stream(self, uid: str, name: str, container: str) -> None:
        path = f"/api/v1/namespaces/{{namespace}}/pods/{name}"
        # `sinceTime` has a resolution of seconds: `printed` lines of the second `since` were printed already.
        since, printed = "", 0
        while not self._stopped.is_set():
            pod_had_ended = uid in self._ended
            query = {"container": container, "follow": "true", "timestamps": "true"}
            if since:
                query["sinceTime"] = since
            try:
                with self._cluster.stream(f"{path}/log", query=query) as lines:
                    if self._cluster.request("GET", path, patience=0.0)["metadata"]["uid"] != uid:
                        return  # made anew under the same name: this log is that of its successor
                    seen = 0
                    for raw in lines:
                        if self._stopped.is_set():
                            return
                        stamp, _, text = raw.decode("utf-8", "replace").partition(" ")
                        second = _second(stamp)
                        if second is None or second < since:  # without a time: a message of the kubelet
                            continue
                        if second > since:
                            since, printed, seen = second, 0, 0
                        seen += 1
                        if seen > printed:
                            printed = seen
                            self._print(text)
                if pod_had_ended:
                    return
            except (ClusterError, Expired):
                if pod_had_ended:
                    return
            self._stopped.wait(0.2 if uid in self._ended else self._retry_seconds)

    def _print(self, text: str) -> None:
        self.last.append(text)
        # Unchanged: a worker's lines have their own time and level.
        print(f"[rank 0] {text}", file=self._out or sys.stderr, flush=True)


def _second(stamp: str) -> str | None:
    """The whole second of a log line's time (RFC 3339), as `sinceTime` takes it; None: not a time."""
    try:
        time = datetime.datetime.fromisoformat(f"{stamp[:19]}+00:00")
    except ValueError:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")
