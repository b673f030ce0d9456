"""A job as a JobSet: TPU slices, each of which restarts as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hanflow.cluster.job import KEPT_SECONDS, JobDescription, Runtime, pod_template
from hanflow.errors import PERMANENT, STOPPED

_CONTAINER = "hanflow"


def build(job: JobDescription) -> dict[str, Any]:
    """The `spec` of the JobSet: one Job for each slice, one pod for each of its hosts."""
    hosts = indexed_job(job, pod_template(job, container=_CONTAINER, port=("tpu", 8471)))
    return {
        "ttlSecondsAfterFinished": KEPT_SECONDS,
        "failurePolicy": failure_policy(job),
        "replicatedJobs": [{"name": "slice", "replicas": job.slices, "template": {"spec": hosts}}],
    }


def indexed_job(job: JobDescription, template: dict[str, Any]) -> dict[str, Any]:
    """The `spec` of a Job with one pod of the template for each node, which fails as a whole when a pod fails.

    `failure_policy` relies on the order of its rules.
    """
    template["spec"]["restartPolicy"] = "Never"
    (container,) = template["spec"]["containers"]
    return {
        "parallelism": job.nodes,
        "completions": job.nodes,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # the JobSet restarts all pods together
        "activeDeadlineSeconds": job.deadline_seconds,
        "podFailurePolicy": {
            "rules": [
                _fail_on_exit_codes(container["name"], *PERMANENT),
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                _fail_on_exit_codes(container["name"], STOPPED),
            ]
        },
        "template": template,
    }


def failure_policy(job: JobDescription) -> dict[str, Any]:
    """What a JobSet does when an `indexed_job` fails: end, restart, or restart without counting it."""
    return {
        "maxRestarts": job.max_restarts,
        "rules": [
            {
                "name": "permanent_error",
                "action": "FailJobSet",
                "onJobFailureReasons": ["PodFailurePolicy"],
                "onJobFailureMessagePatterns": ["rule at index 0$"],
            },
            {
                "name": "deadline_exceeded",
                "action": "FailJobSet",
                "onJobFailureReasons": ["DeadlineExceeded"],
            },
            {
                "name": "host_maintenance",
                "action": "RestartJobSetAndIgnoreMaxRestarts",
                "onJobFailureReasons": ["PodFailurePolicy"],
            },
        ],
    }


def _fail_on_exit_codes(container: str, *codes: int) -> dict[str, Any]:
    return {
        "action": "FailJob",
        "onExitCodes": {"containerName": container, "operator": "In", "values": list(codes)},
    }


def pods(spec: Mapping[str, Any]) -> list[tuple[dict[str, Any], int]]:
    """The pod templates of a JobSet's `spec`, each with its number of pods."""
    jobs = [(replicated["template"]["spec"], replicated["replicas"]) for replicated in spec["replicatedJobs"]]
    return [(job["template"], replicas * job["parallelism"]) for job, replicas in jobs]


RUNTIME = Runtime(
    kind="JobSet",
    api_version="jobset.x-k8s.io/v1alpha2",
    plural="jobsets",
    # Older ones do not know onJobFailureMessagePatterns: every requested stop would end the job.
    operator="the JobSet controller, 0.10 or newer",
    build=build,
    pods=pods,
    counts_restarts=True,
    # One slice to a node pool, one node pool to a slice.
    annotations={"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
    children=("-slice-0",),
    integration="jobset.x-k8s.io/jobset",
)
