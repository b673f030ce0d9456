"""The pod that a step runs in: which run it is of, and which Workflow owns it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from hanflow.cluster.client import Cluster, ClusterError
from hanflow.progress import log


def own_pod(cluster: Cluster) -> dict[str, Any] | None:
    """The pod that this process runs in; None: none, or its service account may not read pods."""
    if not cluster.inside:
        return None
    name = next((os.environ[key] for key in ("KFP_POD_NAME", "POD_NAME", "HOSTNAME") if os.environ.get(key)), "")
    try:
        # Its own namespace, which may be another than the job's.
        return cluster.request("GET", f"/api/v1/namespaces/{cluster.own_namespace}/pods/{name}", patience=30.0)
    except ClusterError as error:
        log.warning("the step's own pod cannot be read, the job gets no owner: %s", error)
        return None


def run_of(pod: Mapping[str, Any] | None) -> str:
    """The run's id: of Kubeflow Pipelines, else the name of Argo's Workflow."""
    labels = (pod or {}).get("metadata", {}).get("labels") or {}
    return labels.get("pipeline/runid") or labels.get("workflows.argoproj.io/workflow") or ""


def workflow_of(pod: Mapping[str, Any] | None, cluster: Cluster) -> dict[str, Any] | None:
    """An owner reference to the Workflow of the step's pod: a pod outlives a terminated run, a Workflow is removed."""
    metadata = (pod or {}).get("metadata", {})
    if metadata.get("namespace") != cluster.namespace:
        return None  # owners and what they own share a namespace
    for owner in metadata.get("ownerReferences") or ():
        if owner["kind"] == "Workflow":
            return {key: owner[key] for key in ("apiVersion", "kind", "name", "uid")}
    return None
