"""What the operators share: conditions of a job, and its pods."""

from __future__ import annotations

import copy
from typing import Any

from hanflow.cluster.job import JOB_LABEL
from tests.cluster.fake.store import Store, now


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
