"""What the status of a job and its pods means: phase, why a pod waits, how it ended. Pure functions over plain data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hanflow.cluster.job import ELASTIC_LABEL
from hanflow.errors import PERMANENT, STOPPED

HOPELESS = ("InvalidImageName", "ErrImageNeverPull")
"""Reasons of waiting containers that waiting never cures."""
STUCK = ("ErrImagePull", "ImagePullBackOff", "CreateContainerConfigError", "CreateContainerError", "RunContainerError")
"""Reasons that are usually mistakes, such as a missing image or Secret."""
REFUSED = ("TrainJobResourcesCreationFailed",)
"""Reasons of events about a job of which the controller cannot make anything."""
_DISRUPTED = (
    "Evicted",
    "Preempted",
    "Preempting",
    "NodeLost",
    "NodeShutdown",
    "Shutdown",
    "Terminated",
    "NodeAffinity",
)


@dataclass(frozen=True)
class Phase:
    """The state of a job."""

    name: str
    """pending, suspended, running, restarting, succeeded or failed."""
    message: str = ""

    @property
    def finished(self) -> bool:
        return self.name in ("succeeded", "failed")


def phase(job: Mapping[str, Any]) -> Phase:
    """The phase of a TrainJob, a PyTorchJob or a JobSet, from its conditions and, while it runs, its counts of jobs."""
    status = job.get("status") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or () if c.get("status") == "True"}
    terminal = {"Completed": "Succeeded", "Failed": "Failed"}.get(status.get("terminalState", ""))
    names = (
        ("Failed", "failed"),
        ("Succeeded", "succeeded"),
        ("Completed", "succeeded"),  # of a JobSet
        ("Complete", "succeeded"),  # of a TrainJob
        ("Suspended", "suspended"),
        ("Restarting", "restarting"),
        ("RestartingJobSet", "restarting"),
        ("Running", "running"),
    )
    for condition, name in names:
        if condition in conditions or condition == terminal:
            found = conditions.get(condition, {})
            text = ": ".join(part for part in (found.get("reason"), found.get("message")) if part)
            return Phase(name, text)
    counts = status.get("jobsStatus") or status.get("replicatedJobsStatus") or ()  # of a TrainJob, of a JobSet
    ready = sum(count.get("ready", 0) for count in counts)
    return Phase("running") if ready else Phase("pending")


def suspended(job: Mapping[str, Any]) -> bool:
    """Whether a job waits until it is admitted, by its `spec`: Kueue suspends a job when it is created."""
    spec = job["spec"]
    return bool(spec.get("suspend") or (spec.get("runPolicy") or {}).get("suspend"))


def place_in_queue(waiting: Iterable[Mapping[str, Any]], job: Mapping[str, Any], queue: str) -> list[dict[str, Any]]:
    """An event that says where a job waits; none if it does not.

    Args:
        waiting: what Kueue says that waits in the queue: objects that belong to jobs, with their positions from 0 on.
        job: as the API server has it.
        queue: name of the LocalQueue.
    """
    uid = job["metadata"]["uid"]
    for each in waiting:
        if any(owner["uid"] == uid for owner in each["metadata"].get("ownerReferences") or ()):
            local, whole = each["positionInLocalQueue"] + 1, each["positionInClusterQueue"] + 1
            text = f"number {local} in Kueue's queue {queue}, number {whole} of all that wait for the same quota"
            return [{"type": "Normal", "reason": "Queued", "message": text}]
    return []


@dataclass(frozen=True)
class Termination:
    """How a pod ended."""

    pod: str
    kind: str
    """succeeded; preempted (its node was lost, or it was asked to stop); permanent (a restart cannot help); retryable."""
    text: str
    """For people: exit status, reasons, the last error message of the container."""


def termination(pod: Mapping[str, Any], *, deleted: bool = False) -> Termination | None:
    """How the pod ended; None: it has not.

    Args:
        pod: as the API gives it.
        deleted: the cluster no longer has it; without another reason in its status it counts as preempted.
    """
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    if status.get("phase") == "Succeeded":
        return Termination(name, "succeeded", "succeeded")
    ended = _ended_containers(status)
    if status.get("phase") != "Failed":
        return Termination(name, "preempted", "it was deleted while it ran") if deleted and not ended else None
    disrupted = [c for c in status.get("conditions") or () if c["type"] == "DisruptionTarget" and c["status"] == "True"]
    codes = [container["exitCode"] for container in ended]
    parts = []
    if disrupted or status.get("reason") in _DISRUPTED:
        kind = "preempted"
        source = disrupted[0] if disrupted else status
        parts.append(_joined(status.get("reason") or source.get("reason"), source.get("message")))
    elif STOPPED in codes:
        kind = "preempted"
    elif any(code in PERMANENT for code in codes):
        kind = "permanent"
    else:
        kind = "retryable"
        parts.append(_joined(status.get("reason"), status.get("message")))
    for container in ended:
        if container["exitCode"]:
            reason = container.get("reason")
            note = f" ({reason})" if reason and reason != "Error" else ""
            parts.append(f"exit status {container['exitCode']}{note}{_last_error(container)}")
    return Termination(name, kind, "; ".join(part for part in parts if part) or "it failed without giving a reason")


def _ended_containers(status: Mapping[str, Any]) -> list[dict[str, Any]]:
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    return [c["state"]["terminated"] for c in containers if (c.get("state") or {}).get("terminated")]


def _last_error(container: Mapping[str, Any]) -> str:
    """The error message at the end of the container's output, or its last line."""
    lines = [line.strip() for line in (container.get("message") or "").splitlines() if line.strip()]
    errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    words = lines[errors[-1] :] if errors else lines[-1:]
    return f": {' '.join(words)[:600]}" if words else ""


@dataclass(frozen=True)
class Waiting:
    """Why a pod does not run yet."""

    pod: str
    reason: str
    message: str

    @property
    def text(self) -> str:
        return _joined(self.reason, self.message)


def waiting(pod: Mapping[str, Any]) -> Waiting | None:
    """Why the pod waits; None: it does not wait, or its status gives no reason."""
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    if status.get("phase") not in (None, "Pending", "Running"):
        return None
    for container in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        state = (container.get("state") or {}).get("waiting")
        if state and state.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
            return Waiting(name, state["reason"], state.get("message", ""))
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return Waiting(name, condition.get("reason", "Unschedulable"), condition.get("message", ""))
    return None


def rank_zero(pods: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The newest pod of rank 0: a PyTorchJob's master (its worker 0 if elastic), node 0 of a TrainJob, host 0 of a JobSet."""
    found = [pod for pod in pods if _is_rank_zero(pod["metadata"].get("labels") or {})]
    return max(found, key=lambda pod: pod["metadata"].get("creationTimestamp") or "", default=None)


def _is_rank_zero(labels: Mapping[str, str]) -> bool:
    if "training.kubeflow.org/job-name" in labels:
        if labels.get("training.kubeflow.org/job-role") == "master":
            return True
        elastic = labels.get(ELASTIC_LABEL) == "true"
        return elastic and labels.get("training.kubeflow.org/replica-index") == "0"
    host = labels.get("batch.kubernetes.io/job-completion-index")
    return host == "0" and labels.get("jobset.sigs.k8s.io/job-index") == "0"


def has_started(pod: Mapping[str, Any]) -> bool:
    """Whether the pod has a log to read."""
    containers = (pod.get("status") or {}).get("containerStatuses") or ()
    return any({"running", "terminated"} & set(c.get("state") or {}) for c in containers)


def _joined(reason: Any, message: Any) -> str:
    return ": ".join(str(part) for part in (reason, message) if part)
