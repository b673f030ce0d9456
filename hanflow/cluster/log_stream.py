"""Rank 0's log as the step's own: streamed, taken up again after a break, no line twice."""

from __future__ import annotations

import collections
import datetime
import sys
import threading
from collections.abc import Mapping
from typing import Any, TextIO

from hanflow.cluster.client import Cluster, ClusterError, Gone

KEPT_LINES = 30
"""Last lines kept for the message of a failure."""
RETRY_SECONDS = 2.0


class LogFollower:
    """Streams the log of one pod after another; a pod that was made anew is another pod.

    Args:
        cluster: where the pods are.
        out: where the lines go; None: standard error.
    """

    def __init__(self, cluster: Cluster, out: TextIO | None = None):
        self._cluster, self._out = cluster, out
        self._threads: dict[str, threading.Thread] = {}
        self._ended: set[str] = set()
        self._stopped = threading.Event()
        self.last: collections.deque[str] = collections.deque(maxlen=KEPT_LINES)
        """The newest lines."""

    def follow(self, pod: Mapping[str, Any]) -> None:
        """Stream that pod's log, unless it is streamed already; to be called again when the pod has changed."""
        uid = pod["metadata"]["uid"]
        if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            self._ended.add(uid)
        if uid not in self._threads:
            name, container = pod["metadata"]["name"], pod["spec"]["containers"][0]["name"]
            thread = threading.Thread(target=self._stream, args=(uid, name, container), name=f"log-{name}", daemon=True)
            self._threads[uid] = thread
            thread.start()

    def drain(self, seconds: float) -> None:
        """Wait until everything that ended pods said has been told, at most so long; then stop."""
        for uid, thread in self._threads.items():
            if uid in self._ended:
                thread.join(seconds)
        self._stopped.set()

    def _stream(self, uid: str, name: str, container: str) -> None:
        since, told = "", 0
        path = f"/api/v1/namespaces/{{namespace}}/pods/{name}/log"
        while not self._stopped.is_set():
            was_over = uid in self._ended
            query = {"container": container, "follow": "true", "timestamps": "true"}
            if since:
                query["sinceTime"] = since
            try:
                with self._cluster.stream(path, query=query) as lines:
                    if self._uid(name) != uid:
                        return  # made anew under the same name: the log is its successor's, who has a thread of its own
                    # `sinceTime` counts in seconds: of its second, so many lines were told already.
                    seen = 0
                    for raw in lines:
                        if self._stopped.is_set():
                            return
                        stamp, _, text = raw.decode("utf-8", "replace").partition(" ")
                        second = _second(stamp)
                        if second is None:  # the kubelet speaks, not the container
                            continue
                        if second < since:
                            continue
                        if second == since:
                            seen += 1
                            if seen <= told:
                                continue
                            told = seen
                        else:
                            since, told, seen = second, 1, 1
                        self._tell(text)
                if was_over:
                    return
            except (ClusterError, Gone):
                if was_over:
                    return
            self._stopped.wait(0.2 if uid in self._ended else RETRY_SECONDS)

    def _uid(self, name: str) -> str:
        return self._cluster.request("GET", f"/api/v1/namespaces/{{namespace}}/pods/{name}", patience=0.0)["metadata"][
            "uid"
        ]

    def _tell(self, text: str) -> None:
        self.last.append(text)
        # Raw: a worker's lines carry their own time and level.
        print(f"[rank 0] {text}", file=self._out or sys.stderr, flush=True)


def _second(stamp: str) -> str | None:
    """The whole second of a log line's time (RFC 3339), as `sinceTime` wants it; None: no time."""
    try:
        time = datetime.datetime.fromisoformat(f"{stamp[:19]}+00:00")
    except ValueError:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")
