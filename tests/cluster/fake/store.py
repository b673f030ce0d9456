"""The objects of the cluster, their versions, and the history that watches are served from."""

from __future__ import annotations

import copy
import datetime
import threading
import uuid
from collections.abc import Callable
from typing import Any

NAMESPACE = "training"


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


def selected(obj: dict[str, Any], query: dict[str, str]) -> bool:
    """Whether a query's field and label selectors mean the object."""
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
