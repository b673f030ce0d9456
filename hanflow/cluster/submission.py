"""A job on the cluster: found, created or adopted, replaced, removed. It is known by its name, which a retried step gives anew."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from hanflow.cluster import status as pods
from hanflow.cluster.client import Cluster, ClusterError, Conflict, NotFound
from hanflow.cluster.job import DIGEST_ANNOTATION, RUN_LABEL, pod_count
from hanflow.progress import log

LOOK_SECONDS = 1.0
"""How often a job that is being removed is looked for."""
GONE_SECONDS = 180.0
"""How long a job that is being deleted may take to go (its pods get their grace period)."""

PATHS = {
    "PyTorchJob": "/apis/kubeflow.org/v1/namespaces/{namespace}/pytorchjobs",
    "JobSet": "/apis/jobset.x-k8s.io/v1alpha2/namespaces/{namespace}/jobsets",
}
_OPERATORS = {"PyTorchJob": "Kubeflow's training operator", "JobSet": "the JobSet controller"}


def submit(cluster: Cluster, body: Mapping[str, Any]) -> dict[str, Any]:
    """Create the job, or adopt the one that an earlier attempt left; returns it as the cluster has it.

    Raises:
        ClusterError: the cluster refuses; a job of that name is another run's, or is not going away.
    """
    kind, name = body["kind"], body["metadata"]["name"]
    until = time.monotonic() + GONE_SECONDS
    while True:
        found = find(cluster, body)
        if found is None:
            with contextlib.suppress(Conflict):  # somebody was faster: look again
                try:
                    created = cluster.request("POST", PATHS[kind], body=body)
                except NotFound:
                    raise ClusterError(f"the cluster knows no {kind}: install {_OPERATORS[kind]}") from None
                log.info(
                    "submitted %s %s to namespace %s: %d pods; kubectl describe %s %s",
                    kind, name, cluster.namespace, pod_count(body), kind.lower(), name,
                )  # fmt: skip
                return created
        elif found["metadata"].get("deletionTimestamp"):
            log.info("job %s of an earlier attempt is being removed; waiting", name)
        else:
            why = _why_not(found, body)
            if why is None:
                log.info("adopted job %s of an earlier attempt: it is %s", name, pods.phase(found).name)
                return found
            log.info("replacing job %s of an earlier attempt: %s", name, why)
            _delete(cluster, {**found, "kind": kind})
        if time.monotonic() > until:
            raise ClusterError(
                f"job {name} of an earlier attempt does not go away; look at its finalizers: "
                f"kubectl get {kind.lower()} {name} -o yaml"
            )
        time.sleep(LOOK_SECONDS)


def _why_not(found: Mapping[str, Any], body: Mapping[str, Any]) -> str | None:
    """Why an existing job cannot be adopted; None: it can."""
    metadata = found["metadata"]
    if not _same_run(found, body):
        raise ClusterError(f"a job {metadata['name']} that is not of this run exists already; rename or remove it")
    if pods.phase(found).name == "failed":
        return "it failed"
    if (metadata.get("annotations") or {}).get(DIGEST_ANNOTATION) != body["metadata"]["annotations"][DIGEST_ANNOTATION]:
        return "it was made from other settings"
    return None


def _same_run(found: Mapping[str, Any], body: Mapping[str, Any]) -> bool:
    return (found["metadata"].get("labels") or {}).get(RUN_LABEL) == body["metadata"]["labels"][RUN_LABEL]


def find(cluster: Cluster, body: Mapping[str, Any], patience: float | None = None) -> dict[str, Any] | None:
    """The job of that kind and name; None: there is none."""
    path = f"{PATHS[body['kind']]}/{body['metadata']['name']}"
    try:
        return cluster.request("GET", path, patience=patience)
    except NotFound:
        return None


def _delete(cluster: Cluster, found: Mapping[str, Any], patience: float | None = None) -> None:
    """Delete that very job (not one of the same name that was made since)."""
    options = {"propagationPolicy": "Background", "preconditions": {"uid": found["metadata"]["uid"]}}
    with contextlib.suppress(NotFound, Conflict):
        path = f"{PATHS[found['kind']]}/{found['metadata']['name']}"
        cluster.request("DELETE", path, body=options, patience=patience)


def remove(cluster: Cluster, body: Mapping[str, Any], job: Mapping[str, Any] | None, patience: float) -> None:
    """Remove the job, if it is there; an error is told, the way the step ends stays what it was.

    Args:
        body: the job as it was to be created.
        job: as the cluster has it; None: it is not known whether it was created.
        patience: seconds to keep trying while the API server is away.
    """
    name = body["metadata"]["name"]
    try:
        if job is None:  # submitting ended in between: it may be there, and it may be somebody else's
            job = find(cluster, body, patience)
            if job is None or not _same_run(job, body):
                return
        _delete(cluster, {**job, "kind": body["kind"]}, patience)
        log.info("removed job %s", name)
    except ClusterError as error:
        log.error(
            "job %s could not be removed (%s); it goes with its Workflow, or: kubectl delete %s %s",
            name, error, body["kind"].lower(), name,
        )  # fmt: skip
