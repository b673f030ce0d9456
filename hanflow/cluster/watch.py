"""Watches of a cluster's objects that survive what clusters do."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hanflow.cluster.client import WATCH_SECONDS, Away, Cluster, ClusterError, Gone

RETRY_SECONDS = 1.0
"""How long after a watch broke the objects are listed again."""


@dataclass(frozen=True)
class Change:
    """What a watch tells."""

    source: str
    """Name of the watch."""
    kind: str
    """LIST (`objects` is all there is), ADDED, MODIFIED, DELETED, or BROKEN (the API server stayed away)."""
    objects: tuple[dict[str, Any], ...] = ()
    error: ClusterError | None = None


class Watch(threading.Thread):
    """Lists, then watches, and puts every change into an inbox; after any gap it lists again.

    Args:
        cluster: where.
        path: of the collection, with `{namespace}`.
        selector: `fieldSelector` or `labelSelector` of the query.
        inbox: gets `Change`s.
        name: their source.
    """

    def __init__(
        self, cluster: Cluster, path: str, selector: Mapping[str, str], inbox: queue.Queue[Change], *, name: str
    ):
        super().__init__(name=f"watch-{name}", daemon=True)
        self._cluster, self._path, self._selector = cluster, path, dict(selector)
        self._inbox, self._source = inbox, name
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        try:
            while not self._stopped.is_set():
                with contextlib.suppress(Gone):
                    self._list_and_watch()
        except ClusterError as error:  # `request` was patient already
            self._put("BROKEN", error=error)
        except Exception as error:  # nobody would hear of it: the launcher would wait for ever
            self._put("BROKEN", error=ClusterError(f"watching {self._source} failed: {type(error).__name__}: {error}"))

    def _list_and_watch(self) -> None:
        listed = self._cluster.request("GET", self._path, query=self._selector)
        self._put("LIST", *listed["items"])
        version = listed["metadata"]["resourceVersion"]
        while not self._stopped.is_set():
            try:
                version = self._watch(version)
            except Away:
                self._stopped.wait(RETRY_SECONDS)
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
                    raise Away("the connection broke in the middle of an event") from None
                if event["type"] == "ERROR":
                    if event["object"].get("code") == 410:
                        raise Gone
                    raise ClusterError(f"the watch failed: {event['object'].get('message')}")
                version = event["object"]["metadata"]["resourceVersion"]
                if event["type"] != "BOOKMARK":
                    self._put(event["type"], event["object"])
        return version

    def _put(self, kind: str, *objects: dict[str, Any], error: ClusterError | None = None) -> None:
        self._inbox.put(Change(self._source, kind, objects, error))
