"""What a pod of a job is made of, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hanflow.config import JobConfig
from hanflow.config.worker_spec import as_text
from hanflow.errors import GRACE_SECONDS

USER = 1000
"""User and group of every process, as in the images."""
SCRATCH = "/tmp"
"""The only writable folder of a pod; everything that caches lives there."""


@dataclass(frozen=True)
class PodExtras:
    """What the step's own pod was given in the pipeline and hands on, as Kubernetes writes it (KFP's TaskConfig)."""

    environment: Sequence[Mapping[str, Any]] = ()
    volumes: Sequence[Mapping[str, Any]] = ()
    volume_mounts: Sequence[Mapping[str, Any]] = ()
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    affinity: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, task_config: Any) -> PodExtras:
        """From a `kfp.dsl.TaskConfig`. Its resources stay with the step's pod: those of the job are settings."""
        return cls(
            environment=task_config.env or (),
            volumes=task_config.volumes or (),
            volume_mounts=task_config.volume_mounts or (),
            node_selector=task_config.node_selector or {},
            tolerations=task_config.tolerations or (),
            affinity=task_config.affinity or None,
        )


def pod_spec(
    job: JobConfig,
    extras: PodExtras,
    *,
    name: str,
    image: str,
    command: list[str],
    environment: Mapping[str, str],
    port: Mapping[str, Any],
    devices: Mapping[str, Any],
    selector: Mapping[str, str],
) -> dict[str, Any]:
    """A pod spec that meets the `restricted` profile: nothing is writable but the scratch folder.

    Args:
        job: sizes, Secrets, places.
        extras: what the step's pod hands on.
        name: of the container.
        image: of the container.
        command: of the container.
        environment: variables that the settings of the job may replace.
        port: name and containerPort.
        devices: resource → how many; tolerated as taints, too.
        selector: labels of the nodes that have them.
    """
    tolerations = [{"key": resource, "operator": "Exists", "effect": "NoSchedule"} for resource in devices]
    if job.spot:
        selector = {**selector, "cloud.google.com/gke-spot": "true"}
        tolerations.append(
            {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        )
    environment = {
        "HOME": SCRATCH,  # caches of Hugging Face, Triton, Weights & Biases …
        "TMPDIR": SCRATCH,
        "USER": "hanflow",  # asked for by torch's compiler; the image's user may have no name
        **environment,
        **{key: as_text(value) for key, value in job.environment.items()},
    }
    variables: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in environment.items()]
    for key, place in job.secrets.items():
        secret, _, inside = place.partition("/")
        variables.append({"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": inside}}})
    known = {variable["name"] for variable in variables}
    variables += [dict(variable) for variable in extras.environment if variable["name"] not in known]
    volumes: list[dict[str, Any]] = [{"name": "scratch", "emptyDir": {"sizeLimit": job.scratch}}]
    mounts: list[dict[str, Any]] = [{"name": "scratch", "mountPath": SCRATCH}]
    spec: dict[str, Any] = {
        "serviceAccountName": job.service_account or "default",
        "automountServiceAccountToken": False,  # gs:// is reached through the node's metadata server
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "nodeSelector": {**selector, **extras.node_selector, **job.node_selector},
        "tolerations": [*tolerations, *map(dict, extras.tolerations), *job.tolerations],
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
                "name": name,
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "command": command,
                "env": variables,
                "ports": [{**port, "protocol": "TCP"}],
                "resources": {
                    "requests": {"cpu": job.cpu, "memory": job.memory, **devices},
                    "limits": {"memory": job.memory, **devices},
                },
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                    "readOnlyRootFilesystem": True,
                },
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "volumeMounts": [*mounts, *map(dict, extras.volume_mounts)],
            }
        ],
        "volumes": [*volumes, *map(dict, extras.volumes)],
    }
    if job.priority_class:
        spec["priorityClassName"] = job.priority_class
    if extras.affinity:
        spec["affinity"] = dict(extras.affinity)
    return spec
