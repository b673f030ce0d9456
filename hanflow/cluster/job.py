"""One description of a job, whatever kind of Kubernetes object it becomes. Plain data: no client, no cluster.

`describe` turns the settings into a `JobDescription`; a builder for each kind (trainjob.py, pytorchjob.py, jobset.py) turns
that into the object's `spec`. The workers' exit status decides whether a restart can help (`hanflow.training.workers.torchrun`
passes it on): 1 and 2 are errors in settings, data or code, 143 is a requested stop after a checkpoint, anything else may
be retried.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hanflow.config import JobConfig, job_problems
from hanflow.config.tpu import tpu_slice
from hanflow.config.worker_spec import WorkerSpec, as_text, torchrun_command, train_command
from hanflow.errors import GRACE_SECONDS, ConfigError
from hanflow.images import DEFAULT, Images

RUN_LABEL = "hanflow/run"
"""Label of a job and its pods: the run that they belong to. What carries it is deleted when the run ends."""
STEP_LABEL = "hanflow/step"
TASK_LABEL = "hanflow/task"
JOB_LABEL = "hanflow/job"
"""Label of a job's pods: its name."""
ELASTIC_LABEL = "hanflow/elastic"
"""Label of the pods of an elastic PyTorchJob: it has no master, worker 0 is rank 0."""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
DIGEST_ANNOTATION = "hanflow/digest"
"""Annotation of a job: digest of its specification. A job with an equal digest may be adopted, any other is replaced."""

KEPT_SECONDS = 24 * 3600
"""How long a finished job is kept if nobody removes it: long enough for a retried step to find it."""
USER = 1000
"""User and group id of every process, as in the images."""
SCRATCH = "/tmp"
"""The only writable folder of a pod; every cache is below it."""
SPOT_LABEL = "cloud.google.com/gke-spot"


@dataclass(frozen=True)
class Origin:
    """The run and the step that a job belongs to."""

    run: str
    """Id of the pipeline run (any text)."""
    step: str = "train"
    owner: Mapping[str, Any] | None = None
    """Owner reference to the Workflow: the cluster deletes the job together with it."""


@dataclass(frozen=True)
class PodExtras:
    """What the pipeline gave the step's own pod, passed on to the job's pods; as Kubernetes writes it (KFP's TaskConfig)."""

    environment: Sequence[Mapping[str, Any]] = ()
    volumes: Sequence[Mapping[str, Any]] = ()
    volume_mounts: Sequence[Mapping[str, Any]] = ()
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    affinity: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, task_config: Any) -> PodExtras:
        """From a `kfp.dsl.TaskConfig`. Its resources are those of the step's own pod; a job's resources are settings."""
        return cls(
            environment=task_config.env or (),
            volumes=task_config.volumes or (),
            volume_mounts=task_config.volume_mounts or (),
            node_selector=task_config.node_selector or {},
            tolerations=task_config.tolerations or (),
            affinity=task_config.affinity or None,
        )


@dataclass(frozen=True)
class JobDescription:
    """A job, without regard to the kind of Kubernetes object that runs it."""

    name: str
    labels: Mapping[str, str]
    """Of the job and of its pods."""
    owner: Mapping[str, Any] | None
    queue: str
    """Kueue's LocalQueue; empty: none."""
    image: str
    command: Sequence[str]
    environment: Sequence[Mapping[str, Any]]
    """As Kubernetes writes it; each name once."""
    nodes: int
    """Pods; on TPUs, pods of one slice."""
    processes_per_node: int
    devices: Mapping[str, int]
    """Resource name → number for each pod, e.g. nvidia.com/gpu: 8."""
    node_selector: Mapping[str, str]
    tolerations: Sequence[Mapping[str, Any]]
    affinity: Mapping[str, Any] | None
    volumes: Sequence[Mapping[str, Any]]
    volume_mounts: Sequence[Mapping[str, Any]]
    cpu: str
    memory: str
    service_account: str
    priority_class: str
    max_restarts: int
    deadline_seconds: int
    min_nodes: int = 0
    """Fewest pods with which training continues (elastic); 0: it needs all."""
    slices: int = 1
    """TPU slices that train together."""

    @property
    def elastic(self) -> bool:
        return 0 < self.min_nodes < self.nodes


@dataclass(frozen=True)
class Kind:
    """A kind of Kubernetes object: its names in the API, and its builder."""

    kind: str
    api_version: str
    plural: str
    build: Callable[[JobDescription], dict[str, Any]]
    """The `spec` of the object."""
    pods: Callable[[Mapping[str, Any]], list[tuple[dict[str, Any], int]]]
    """The pod templates inside a `spec`, each with its number of pods."""

    @property
    def path(self) -> str:
        """Path of the collection in the API, with `{namespace}`."""
        return f"/apis/{self.api_version}/namespaces/{{namespace}}/{self.plural}"


@dataclass(frozen=True)
class Runtime(Kind):
    """A kind that runs jobs."""

    operator: str
    """The controller that serves this kind and its oldest supported version, for messages."""
    counts_restarts: bool
    """Whether the controller itself counts restarts against the limit; otherwise the launcher does."""
    elastic: bool = False
    """Whether training can go on with some of the pods."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    children: tuple[str, ...] = ()
    """Suffixes of the names of further objects that the controller makes and whose events explain a job that waits."""
    template: Kind | None = None
    """Kind of a further object, of the job's name, that holds the pods: created before the job, deleted after it."""
    made: Kind | None = None
    """Kind of an object, of the job's name, that the controller makes: a job created while that of an earlier one exists
    would take over its state."""
    integration: str = ""
    """Name of this kind among Kueue's integrations."""
    version: tuple[str, str] | None = None
    """Path of a ConfigMap that everyone may read, and the key in it that has the version of the operator."""


def describe(
    job: JobConfig, spec: WorkerSpec, origin: Origin, extras: PodExtras | None = None, images: Images = DEFAULT
) -> JobDescription:
    """The job of a train step.

    Args:
        job: where the workers run, and with what resources.
        spec: what the workers do.
        origin: the run that the job belongs to.
        extras: what the pipeline passes on to the pods.
        images: where the workers' images are, unless `job.image` names one.

    Raises:
        ConfigError: settings of the job that cannot work.
    """
    problems = job_problems(job)
    if problems:
        raise ConfigError(problems)
    extras = extras or PodExtras()
    hardware = _tpus(job, spec, images) if job.runtime == "tpu" else _gpus_or_cpus(job, spec, images)
    selector = dict(hardware.node_selector)
    tolerations = [{"key": device, "operator": "Exists", "effect": "NoSchedule"} for device in hardware.devices]
    if job.spot:
        selector[SPOT_LABEL] = "true"
        tolerations.append({"key": SPOT_LABEL, "operator": "Equal", "value": "true", "effect": "NoSchedule"})
    volumes = [{"name": "scratch", "emptyDir": {"sizeLimit": job.scratch}}, *map(dict, extras.volumes)]
    mounts = [{"name": "scratch", "mountPath": SCRATCH}, *map(dict, extras.volume_mounts)]
    if hardware.shared_memory:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": hardware.shared_memory}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    return JobDescription(
        name=job_name(origin.run, spec.task, spec.output),
        labels=labels_of(origin, spec.task),
        owner=origin.owner,
        queue=job.queue,
        image=job.image or hardware.image,
        command=hardware.command,
        environment=_environment(job, hardware.environment, extras),
        nodes=hardware.nodes,
        min_nodes=job.min_workers,
        slices=hardware.slices,
        processes_per_node=hardware.processes_per_node,
        devices=hardware.devices,
        node_selector={**selector, **extras.node_selector, **job.node_selector},
        tolerations=[*tolerations, *map(dict, extras.tolerations), *job.tolerations],
        affinity=extras.affinity,
        volumes=volumes,
        volume_mounts=mounts,
        cpu=job.cpu,
        memory=job.memory,
        service_account=job.service_account or "default",
        priority_class=job.priority_class,
        max_restarts=job.max_restarts,
        deadline_seconds=round(job.deadline_hours * 3600),
    )


@dataclass(frozen=True)
class _Hardware:
    """What the kind of device decides."""

    image: str
    command: list[str]
    nodes: int
    devices: Mapping[str, int]
    node_selector: Mapping[str, str]
    processes_per_node: int = 1
    slices: int = 1
    shared_memory: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


def _gpus_or_cpus(job: JobConfig, spec: WorkerSpec, images: Images) -> _Hardware:
    return _Hardware(
        image=images.gpu if job.gpus else images.cpu,
        command=torchrun_command(spec),
        nodes=job.workers,
        devices={"nvidia.com/gpu": job.gpus} if job.gpus else {},
        node_selector={"cloud.google.com/gke-accelerator": job.accelerator} if job.accelerator and job.gpus else {},
        processes_per_node=max(job.gpus, 1),
        shared_memory=job.shared_memory if job.gpus else "",
    )


def _tpus(job: JobConfig, spec: WorkerSpec, images: Images) -> _Hardware:
    chosen = tpu_slice(job.accelerator, job.topology)
    # In the workers' settings, too: they refuse to run on a slice of another shape.
    config = replace(spec.config, backend="xla", topology=chosen.topology)
    return _Hardware(
        image=images.tpu,
        command=train_command(replace(spec, config=config)),
        nodes=chosen.hosts,
        devices={"google.com/tpu": chosen.chips_per_host},
        node_selector={
            "cloud.google.com/gke-tpu-accelerator": chosen.label,
            "cloud.google.com/gke-tpu-topology": chosen.topology,
        },
        slices=job.slices,
        environment={"PJRT_DEVICE": "TPU"},
    )


def _environment(job: JobConfig, hardware: Mapping[str, str], extras: PodExtras) -> list[dict[str, Any]]:
    """The container's variables: defaults, then the settings of the job, its Secrets, and what the pipeline adds."""
    values = {
        "HOME": SCRATCH,  # caches of Hugging Face, Triton, Weights & Biases …
        "TMPDIR": SCRATCH,
        "USER": "hanflow",  # torch's compiler asks for it; the image's user may have no name
        **hardware,
        **{name: as_text(value) for name, value in job.environment.items()},
    }
    variables: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in values.items()]
    for name, place in job.secrets.items():
        secret, _, key = place.partition("/")
        variables.append({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}})
    known = {variable["name"] for variable in variables}
    return variables + [dict(variable) for variable in extras.environment if variable["name"] not in known]


def pod_template(job: JobDescription, *, container: str, port: tuple[str, int] | None = None) -> dict[str, Any]:
    """The template of the job's pods. It meets the `restricted` profile, and only the scratch folder is writable.

    Args:
        job: the description.
        container: name of the container.
        port: name and number of the port at which the workers meet; None: the controller adds it.
    """
    labels = {**job.labels, JOB_LABEL: job.name, **({ELASTIC_LABEL: "true"} if job.elastic else {})}
    spec: dict[str, Any] = {
        "serviceAccountName": job.service_account,
        "automountServiceAccountToken": False,  # gs:// is reached through the node's metadata server
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "nodeSelector": job.node_selector,
        "tolerations": job.tolerations,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": container,
                "image": job.image,
                "imagePullPolicy": "IfNotPresent",
                "command": job.command,
                "env": job.environment,
                **({"ports": [{"name": port[0], "containerPort": port[1], "protocol": "TCP"}]} if port else {}),
                "resources": {
                    "requests": {"cpu": job.cpu, "memory": job.memory, **job.devices},
                    "limits": {"memory": job.memory, **job.devices},
                },
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                    "readOnlyRootFilesystem": True,
                },
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "volumeMounts": job.volume_mounts,
            }
        ],
        "volumes": job.volumes,
    }
    if job.priority_class:
        spec["priorityClassName"] = job.priority_class
    if job.affinity:
        spec["affinity"] = job.affinity
    # The autoscaler must not remove a node because it looks idle from outside.
    annotations = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
    # A copy: templates of one job must not share parts that one of them changes.
    return {"metadata": {"labels": labels, "annotations": annotations}, "spec": copy.deepcopy(spec)}


def job_name(run: str, task: str, output: str) -> str:
    """A name that a retried step finds again and that no other job of any run has (a run may train many models).

    At most 42 characters of DNS-1035: the names of pods and services derived from it stay within 63.
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
    """`text` if it may be the value of a label (a run's id may), else a digest of it."""
    if re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", text):
        return text
    return hashlib.sha256(text.encode()).hexdigest()[:32]
