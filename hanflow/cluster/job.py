"""The train step's workers as Kubernetes objects: a PyTorchJob, or a JobSet on TPU slices. Plain data, no client.

A job says by its exit status what may be tried again (`hanflow.training.workers.torchrun` makes it so under torchrun): 1 and 2 are
errors in settings, data or code that a person must mend, 143 is a polite stop after a signal, all else may pass.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hanflow.cluster.pod import PodExtras, pod_spec
from hanflow.config import JobConfig, job_problems
from hanflow.config.tpu import tpu_slice
from hanflow.config.worker_spec import WorkerSpec, pytorch_command, tpu_command
from hanflow.errors import PERMANENT, STOPPED, ConfigError, UserError
from hanflow.images import DEFAULT, Images

RUN_LABEL = "hanflow/run"
"""Label of a job and its pods: the run that they belong to; what is deleted when the run ends."""
STEP_LABEL = "hanflow/step"
JOB_LABEL = "hanflow/job"
"""Label of a job's pods: its name."""
ELASTIC_LABEL = "hanflow/elastic"
"""Label of the pods of an elastic job: worker 0 is of rank 0 there, no master is."""
TASK_LABEL = "hanflow/task"
DIGEST_ANNOTATION = "hanflow/digest"
"""Annotation of a job: digest of all it was made from. An equal one may be adopted, another one is replaced."""

KEPT_SECONDS = 24 * 3600
"""How long a finished job stays if nobody removes it: long enough for a retried step to find it."""


@dataclass(frozen=True)
class Origin:
    """Whose job it is."""

    run: str
    """Id of the pipeline's run (any text)."""
    step: str = "train"
    owner: Mapping[str, Any] | None = None
    """Owner reference to the Workflow; the cluster removes the job with it."""


def build(
    job: JobConfig, work: WorkerSpec, origin: Origin, extras: PodExtras | None = None, images: Images = DEFAULT
) -> dict[str, Any]:
    """The job as the Kubernetes API takes it, without a namespace.

    Args:
        job: where the workers run, and with what.
        work: what they do.
        origin: whose job it is.
        extras: what the step's pod hands on.
        images: where the workers' images are, unless `job.image` names one.

    Raises:
        ConfigError: settings of the job that cannot work.
        UserError: the runtime is local: there is no job to build.
    """
    problems = job_problems(job)
    if problems:
        raise ConfigError(problems)
    if job.runtime == "pytorchjob":
        body = _pytorch_job(job, work, extras or PodExtras(), images)
    elif job.runtime == "tpu":
        body = _job_set(job, work, extras or PodExtras(), images)
    else:
        raise UserError(f"job.runtime={job.runtime}: runs in the step's own process, as no job")
    name, labels = job_name(origin.run, work.task, work.output), labels_of(origin, work.task)
    elastic = {ELASTIC_LABEL: "true"} if "elasticPolicy" in body["spec"] else {}
    for template in pod_templates(body):
        template["metadata"] = {
            "labels": {**labels, **elastic, JOB_LABEL: name},
            # The autoscaler must not take a node away because it looks idle from outside.
            "annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
        }
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    metadata: dict[str, Any] = {
        "name": name,
        "labels": {**labels, **({"kueue.x-k8s.io/queue-name": job.queue} if job.queue else {})},
        "annotations": {**body.pop("annotations", {}), DIGEST_ANNOTATION: digest[:32]},
    }
    if origin.owner:
        metadata["ownerReferences"] = [dict(origin.owner)]
    return {"apiVersion": body["apiVersion"], "kind": body["kind"], "metadata": metadata, "spec": body["spec"]}


def job_name(run: str, task: str, output: str) -> str:
    """A name that a retried step finds again, and that no other task of any run has (a run may train many models).

    At most 42 characters of DNS-1035: the names of pods and services that are made from it stay below 63.
    """
    short = re.sub(r"[^a-z0-9]+", "-", task.lower()).strip("-")[:20].strip("-")
    digest = hashlib.sha256("\n".join((run, task, output)).encode()).hexdigest()
    return f"hanflow-{short}-{digest[:12]}"


def labels_of(origin: Origin, task: str) -> dict[str, str]:
    """Labels of a job and of its pods."""
    return {
        "app.kubernetes.io/name": "hanflow",
        "app.kubernetes.io/managed-by": "hanflow",
        RUN_LABEL: label_value(origin.run),
        STEP_LABEL: label_value(origin.step),
        TASK_LABEL: label_value(task),
    }


def label_value(text: str) -> str:
    """`text` where it may be the value of a label (a run's id is), else a digest of it."""
    if re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", text):
        return text
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def pod_templates(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pod templates inside a job."""
    if body["kind"] == "PyTorchJob":
        return [replica["template"] for replica in body["spec"]["pytorchReplicaSpecs"].values()]
    return [replicated["template"]["spec"]["template"] for replicated in body["spec"]["replicatedJobs"]]


def pod_count(body: Mapping[str, Any]) -> int:
    """How many pods the job has when it is whole."""
    if body["kind"] == "PyTorchJob":
        return sum(replica["replicas"] for replica in body["spec"]["pytorchReplicaSpecs"].values())
    return sum(r["replicas"] * r["template"]["spec"]["parallelism"] for r in body["spec"]["replicatedJobs"])


def _pytorch_job(job: JobConfig, work: WorkerSpec, extras: PodExtras, images: Images) -> dict[str, Any]:
    resources: dict[str, Any] = {"nvidia.com/gpu": job.gpus} if job.gpus else {}
    selector = {"cloud.google.com/gke-accelerator": job.accelerator} if job.accelerator and job.gpus else {}
    pod = pod_spec(
        job,
        extras,
        name="pytorch",  # the operator looks for that name
        image=job.image or (images.gpu if job.gpus else images.cpu),
        command=pytorch_command(work),
        environment={},
        port={"name": "pytorchjob-port", "containerPort": 23456},
        devices=resources,
        selector=selector,
    )
    if job.gpus:
        pod["volumes"].append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": job.shared_memory}})
        pod["containers"][0]["volumeMounts"].append({"name": "shm", "mountPath": "/dev/shm"})
    # Its exit statuses: below 128 the job fails, from 128 on, or when the pod was evicted, the pod is made anew.
    replica = {"restartPolicy": "ExitCode", "template": {"spec": pod}}
    elastic = 0 < job.min_workers < job.workers
    if elastic:  # all are workers then: a lost master would end the job, and torchrun chooses rank 0 itself
        replicas = {"Worker": {"replicas": job.workers, **_copy(replica)}}
    else:
        replicas = {"Master": {"replicas": 1, **_copy(replica)}}
        if job.workers > 1:
            replicas["Worker"] = {"replicas": job.workers - 1, **_copy(replica)}
    spec: dict[str, Any] = {
        "nprocPerNode": str(max(job.gpus, 1)),
        "runPolicy": {
            # Pods that still run when the job has ended hold GPUs for nothing; ended ones hold the logs.
            "cleanPodPolicy": "Running",
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            "activeDeadlineSeconds": round(job.deadline_hours * 3600),
            "backoffLimit": job.max_restarts,
        },
        "pytorchReplicaSpecs": replicas,
    }
    if elastic:
        spec["elasticPolicy"] = {
            "minReplicas": job.min_workers,
            "maxReplicas": job.workers,
            "rdzvBackend": "c10d",
            "maxRestarts": job.max_restarts,
        }
    return {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "spec": spec}


def _job_set(job: JobConfig, work: WorkerSpec, extras: PodExtras, images: Images) -> dict[str, Any]:
    slice_ = tpu_slice(job.accelerator, job.topology)
    # Said in settings too: workers refuse another slice than the one that was asked for.
    work = replace(work, config=replace(work.config, backend="xla", topology=slice_.topology))
    pod = pod_spec(
        job,
        extras,
        name="hanflow",
        image=job.image or images.tpu,
        command=tpu_command(work),
        environment={"PJRT_DEVICE": "TPU"},
        port={"name": "tpu", "containerPort": 8471},
        devices={"google.com/tpu": slice_.chips_a_host},
        selector={
            "cloud.google.com/gke-tpu-accelerator": slice_.label,
            "cloud.google.com/gke-tpu-topology": slice_.topology,
        },
    )
    pod["restartPolicy"] = "Never"
    exit_codes = {"containerName": "hanflow", "operator": "In"}
    permanent = {"action": "FailJob", "onExitCodes": {**exit_codes, "values": list(PERMANENT)}}
    hosts = {
        "parallelism": slice_.hosts,
        "completions": slice_.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # a slice restarts as a whole, by the JobSet
        "activeDeadlineSeconds": round(job.deadline_hours * 3600),
        "podFailurePolicy": {
            "rules": [
                permanent,
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {"action": "FailJob", "onExitCodes": {**exit_codes, "values": [STOPPED]}},
            ]
        },
        "template": {"spec": pod},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        # One slice to a node pool, one node pool to a slice.
        "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        "spec": {
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            "failurePolicy": {
                "maxRestarts": job.max_restarts,
                "rules": [
                    {
                        "name": "needs_a_person",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                        "onJobFailureMessagePatterns": ["rule at index 0$"],
                    },
                    {"name": "too_long", "action": "FailJobSet", "onJobFailureReasons": ["DeadlineExceeded"]},
                    {
                        "name": "host_maintenance",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    },
                ],
            },
            "replicatedJobs": [{"name": "slice", "replicas": job.slices, "template": {"spec": hosts}}],
        },
    }


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value))
