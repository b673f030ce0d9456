"""A job as a PyTorchJob of Kubeflow's training operator: pods with GPUs, or CPUs alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hanflow.cluster.job import KEPT_SECONDS, JobDescription, Runtime, pod_template


def build(job: JobDescription) -> dict[str, Any]:
    """The `spec` of the PyTorchJob."""

    def replicas(count: int) -> dict[str, Any]:
        # The operator requires the names of the container and of its port.
        template = pod_template(job, container="pytorch", port=("pytorchjob-port", 23456))
        # ExitCode: a status below 128 fails the job; from 128 on, or when a pod is evicted, the pod is made anew.
        return {"replicas": count, "restartPolicy": "ExitCode", "template": template}

    if job.elastic:  # workers only: losing a master would end the job, and torchrun itself chooses rank 0
        roles = {"Worker": replicas(job.nodes)}
    else:
        roles = {"Master": replicas(1)}
        if job.nodes > 1:
            roles["Worker"] = replicas(job.nodes - 1)
    spec: dict[str, Any] = {
        "nprocPerNode": str(job.processes_per_node),
        "runPolicy": {
            # Pods that still run when the job has ended would hold GPUs; pods that ended hold the logs.
            "cleanPodPolicy": "Running",
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            "activeDeadlineSeconds": job.deadline_seconds,
            "backoffLimit": job.max_restarts,
        },
        "pytorchReplicaSpecs": roles,
    }
    if job.elastic:
        spec["elasticPolicy"] = {
            "minReplicas": job.min_nodes,
            "maxReplicas": job.nodes,
            "rdzvBackend": "c10d",
            "maxRestarts": job.max_restarts,
        }
    return spec


def _pods(spec: Mapping[str, Any]) -> list[tuple[dict[str, Any], int]]:
    return [(replica["template"], replica["replicas"]) for replica in spec["pytorchReplicaSpecs"].values()]


RUNTIME = Runtime(
    kind="PyTorchJob",
    api_version="kubeflow.org/v1",
    plural="pytorchjobs",
    operator="Kubeflow's training operator, 1.8 or newer",
    build=build,
    pods=_pods,
    counts_restarts=False,
    elastic=True,
    integration="kubeflow.org/pytorchjob",
)
