"""A job as a TrainJob of Kubeflow Trainer (2.1 or newer): pods with GPUs, or CPUs alone.

The job has a TrainingRuntime of its own, which holds the pods as a JobSet would; the TrainJob names it and says how many nodes
and processes there are, which is when Trainer sets torchrun's PET_… variables. (A TrainJob alone cannot set a pod's restart
policy, failure policy or priority, and what it can set differs from version to version.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hanflow.cluster import jobset
from hanflow.cluster.job import JobDescription, Kind, Runtime, pod_template

API_VERSION = "trainer.kubeflow.org/v1alpha1"
_NODE = "node"
"""The name that Trainer requires of the container, and from which it makes the address of rank 0."""


def build_runtime(job: JobDescription) -> dict[str, Any]:
    """The `spec` of the TrainingRuntime."""
    # No port: Trainer adds that of torchrun.
    nodes = jobset.indexed_job(job, pod_template(job, container=_NODE))
    labels = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    replicated = {"name": _NODE, "replicas": 1, "template": {"metadata": {"labels": labels}, "spec": nodes}}
    return {
        "mlPolicy": {"numNodes": job.nodes, "torch": {}},
        # No ttlSecondsAfterFinished: Trainer would run the job again once its JobSet is gone.
        "template": {"spec": {"failurePolicy": jobset.failure_policy(job), "replicatedJobs": [replicated]}},
    }


def build(job: JobDescription) -> dict[str, Any]:
    """The `spec` of the TrainJob."""
    return {
        "runtimeRef": {"apiGroup": API_VERSION.partition("/")[0], "kind": TRAINING_RUNTIME.kind, "name": job.name},
        "trainer": {"numNodes": job.nodes, "numProcPerNode": job.processes_per_node},
    }


def not_noticed(refusal: str) -> bool:
    """Whether a TrainJob is refused because a controller (Trainer, Kueue) has not noticed its TrainingRuntime, which was
    created just before.
    """
    return bool(re.search(r"must be created before|runtime '\S+' not found", refusal))


def _no_pods(spec: Mapping[str, Any]) -> list[tuple[dict[str, Any], int]]:
    return []


def _pods(spec: Mapping[str, Any]) -> list[tuple[dict[str, Any], int]]:
    return jobset.pods(spec["template"]["spec"])


TRAINING_RUNTIME = Kind("TrainingRuntime", API_VERSION, "trainingruntimes", build=build_runtime, pods=_pods)
RUNTIME = Runtime(
    kind="TrainJob",
    api_version=API_VERSION,
    plural="trainjobs",
    operator="Kubeflow Trainer, 2.1 or newer, with the JobSet controller, 0.10 or newer",
    build=build,
    pods=_no_pods,
    counts_restarts=True,
    children=(f"-{_NODE}-0",),
    template=TRAINING_RUNTIME,
    made=jobset.RUNTIME,
    integration="trainer.kubeflow.org/trainjob",
    # from 2.2 on
    version=("/api/v1/namespaces/kubeflow-system/configmaps/kubeflow-trainer-public", "kubeflow_trainer_version"),
)
