"""Where the train step's workers run, and the resources of the steps' own pods."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

from hanflow.config.fields import setting
from hanflow.config.tpu import tpu_slice


@dataclass(frozen=True)
class JobConfig:
    """Where the workers of the train step run, and with what resources."""

    runtime: str = setting(
        "local",
        "Where training runs: local, in the step's own process; trainjob, as a TrainJob of Kubeflow Trainer, or pytorchjob, as a "
        "PyTorchJob of the older training operator (GPUs, or CPUs alone); auto, the first of these two that the cluster "
        "serves; tpu, as a JobSet on a TPU slice.",
        choices=("local", "auto", "trainjob", "pytorchjob", "tpu"),
    )
    workers: int = setting(1, "Pods of a job on GPUs or CPUs, rank 0's included.", at_least=1)
    min_workers: int = setting(
        0,
        "PyTorchJob: training continues with as few pods as this when others are lost (elastic); 0: it needs all.",
        at_least=0,
    )
    gpus: int = setting(1, "GPUs of each pod of a job, one process each (0: one process on CPUs).", at_least=0)
    accelerator: str = setting(
        "",
        "Kind of accelerator. GPUs: GKE's name, e.g. nvidia-l4 (empty: any). TPU: generation and size, e.g. v4-32.",
    )
    topology: str = setting("", "Topology of the TPU slice in chips, e.g. 2x2x4; empty: the usual one of that size.")
    slices: int = setting(1, "TPU slices that train together.", at_least=1)
    image: str = setting("", "Image of the workers; empty: hanflow's image for that runtime.")
    cpu: str = setting("4", "CPUs that each pod requests, e.g. 4 or 500m.")
    memory: str = setting("16Gi", "Memory of each pod: its request and its limit.")
    shared_memory: str = setting("8Gi", "Size of /dev/shm of each pod with GPUs; counts as its memory.")
    scratch: str = setting(
        "100Gi", "Limit of each pod's disk under /tmp, for shards, model and checkpoints in transit."
    )
    namespace: str = setting("", "Namespace of the job; empty: that of the step, or of the kubeconfig's context.")
    service_account: str = setting(
        "hanflow", "Service account of the pods; it decides what they may read and write in gs://."
    )
    queue: str = setting(
        "", "Kueue's LocalQueue that admits the job; empty: none. It is an error if Kueue does not manage it."
    )
    priority_class: str = setting("", "PriorityClass of the pods; empty: the cluster's default.")
    spot: bool = setting(
        False, "Run on spot nodes: cheaper, but reclaimed at any time; training resumes from checkpoints."
    )
    node_selector: dict = setting({}, 'Further labels that nodes must have, e.g. {"pool": "training"}.')
    tolerations: list = setting(
        [], 'Further tolerations of the pods, as Kubernetes writes them, e.g. [{"key": "team"}].'
    )
    environment: dict = setting({}, 'Environment variables of the workers, e.g. {"NCCL_DEBUG": "INFO"}; never secrets.')
    secrets: dict = setting(
        {},
        'Environment variables from Secrets of the namespace: variable to secret/key, e.g. {"WANDB_API_KEY": "wandb/api-key"}.',
    )
    max_restarts: int = setting(
        3, "Restarts after failures that may be transient; lost nodes and host maintenance do not count.", at_least=0
    )
    deadline_hours: float = setting(168.0, "The job fails after this many hours, waiting for nodes included.", above=0)


@dataclass(frozen=True)
class ClusterConfig:
    """Resources of the steps' own pods in Kubeflow, requests and limits alike. `hanflow run` ignores them."""

    preprocess_cpu: str = setting("2", "CPUs of the preprocess step, e.g. 2 or 500m.")
    preprocess_memory: str = setting("8Gi", "Memory of the preprocess step.")
    tokenize_cpu: str = setting("4", "CPUs of the tokenize step, which uses them all.")
    tokenize_memory: str = setting("16Gi", "Memory of the tokenize step.")
    train_cpu: str = setting(
        "4", "CPUs of the train step's own pod; 500m is enough where a job trains (job.runtime is not local)."
    )
    train_memory: str = setting(
        "16Gi", "Memory of the train step's own pod; 2Gi is enough where a job trains (job.runtime is not local)."
    )
    evaluate_cpu: str = setting("4", "CPUs of the evaluate step, which generates on them.")
    evaluate_memory: str = setting("16Gi", "Memory of the evaluate step.")
    export_cpu: str = setting("2", "CPUs of the export step.")
    export_memory: str = setting("16Gi", "Memory of the export step, which holds the model in several formats at once.")
    node_selector: dict = setting(
        {}, "Labels that the steps' nodes must have; those of the train step's nodes are in job.node_selector."
    )
    tolerations: list = setting(
        [], 'Tolerations of the steps\' pods, as Kubernetes writes them, e.g. [{"key": "team"}].'
    )


_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|[kMGTP]i?)?")
_SECRET_KEY = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[-._a-zA-Z0-9]+")
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS?)$", re.IGNORECASE)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def job_problems(job: JobConfig) -> list[str]:
    """Problems among the settings of a job, beyond each one's own limits; never quotes a misplaced secret."""
    problems = []
    if job.runtime == "tpu":
        try:
            tpu_slice(job.accelerator, job.topology)
        except ValueError as error:
            problems.append(f"job.accelerator, job.topology: {error}")
        if job.min_workers:
            problems.append("job.min_workers: a TPU slice cannot train with some of its hosts; set it to 0")
    elif job.runtime == "trainjob" and job.min_workers:
        problems.append("job.min_workers: a TrainJob needs all its pods; set it to 0, or job.runtime to pytorchjob")
    elif job.min_workers > job.workers:
        problems.append(f"job.min_workers={job.min_workers} is more than job.workers={job.workers}")
    for name, value in job.environment.items():
        if not _VARIABLE.fullmatch(str(name)):
            problems.append(f"job.environment: {name!r} is not the name of an environment variable")
        elif _SECRET_NAME.search(name):
            problems.append(
                f"job.environment: {name} looks like a secret, and settings are logged and stored: put it into a Secret "
                "and refer to that in job.secrets"
            )
        elif isinstance(value, (dict, list)):
            problems.append(f"job.environment: {name}: expected text")
    for name, place in job.secrets.items():
        if not _VARIABLE.fullmatch(str(name)):
            problems.append(f"job.secrets: {name!r} is not the name of an environment variable")
        elif not (isinstance(place, str) and _SECRET_KEY.fullmatch(place)):
            problems.append(
                f"job.secrets: {name}: expected secret/key, the name of a Secret and a key in it (never the secret itself)"
            )
    return problems + _pod_problems("job", job, ("cpu", "memory", "shared_memory", "scratch"))


def cluster_problems(cluster: ClusterConfig) -> list[str]:
    """Problems among the resources of the steps' pods, beyond each one's own limits."""
    quantities = [field.name for field in fields(cluster) if field.name.endswith(("_cpu", "_memory"))]
    return _pod_problems("cluster", cluster, quantities) + [
        f"cluster.node_selector: {key}: expected text, found {value!r}"
        for key, value in cluster.node_selector.items()
        if not isinstance(value, str)
    ]


def _pod_problems(section: str, config: JobConfig | ClusterConfig, quantities: Sequence[str]) -> list[str]:
    """Problems of the resources (the settings `quantities`) and tolerations of pods."""
    problems = [
        f"{section}.{name}: expected a Kubernetes quantity such as 4, 500m or 16Gi, found {getattr(config, name)!r}"
        for name in quantities
        if not _QUANTITY.fullmatch(getattr(config, name))
    ]
    return problems + [
        f"{section}.tolerations: expected mappings such as {{key: team}}, found {toleration!r}"
        for toleration in config.tolerations
        if not isinstance(toleration, dict)
    ]
