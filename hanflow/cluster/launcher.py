"""The train step's job on a cluster: submitted or adopted, followed to its end, and removed whatever happens.

A step that is tried again finds its job by name: one that runs or has succeeded is adopted, one that failed or was made
from other settings is replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hanflow.cluster.client import Cluster
from hanflow.cluster.follow import Life
from hanflow.cluster.job import Origin, build
from hanflow.cluster.own_pod import own_pod, run_of, workflow_of
from hanflow.cluster.pod import PodExtras
from hanflow.cluster.submission import find, remove, submit
from hanflow.config import JobConfig
from hanflow.config.worker_spec import WorkerSpec
from hanflow.errors import UserError
from hanflow.images import images_of_this_step
from hanflow.progress import log
from hanflow.signals import Terminated
from hanflow.version import CONTENT_VARIABLE, content

REMOVE_SECONDS = 60.0
"""How long removing the job is tried."""
TERMINATE_SECONDS = 0.9
"""What a step has between SIGTERM and its end, about."""


@dataclass(frozen=True)
class Attempt:
    """A job that is ready to be launched."""

    cluster: Cluster
    body: dict[str, Any]

    def submitted(self) -> bool:
        """Whether the cluster has a job of this name already."""
        return find(self.cluster, self.body) is not None


def prepare(job: JobConfig, spec: WorkerSpec, *, run_id: str, extras: PodExtras | None) -> Attempt:
    """The job of a train step, named after the run that this process belongs to.

    Args:
        run_id: id of the run; empty: that of this pod, else the URI of the output.
        extras: what the pipeline gives the pods.

    Raises:
        UserError: a path that the job's pods cannot see.
        ClusterError: the cluster cannot be reached.
    """
    _check_reach(spec, extras or PodExtras())
    cluster = Cluster(job.namespace)
    pod = own_pod(cluster)
    origin = Origin(run_id or run_of(pod) or spec.output, owner=workflow_of(pod, cluster))
    return Attempt(cluster, build(job, spec, origin, _with_content(extras), images_of_this_step()))


def _check_reach(spec: WorkerSpec, extras: PodExtras) -> None:
    """Refuse local paths: the pods of a job see buckets, and volumes that the pipeline mounts, and nothing else.

    Raises:
        UserError: names the URI.
    """
    mounted = tuple(mount["mountPath"].rstrip("/") + "/" for mount in extras.volume_mounts)
    places = {
        "shards": spec.shards,
        "output": spec.output,
        "train.checkpoints": spec.config.checkpoints,
        "train.pretrained": spec.config.pretrained if spec.config.pretrained.startswith(("/", "~")) else "",
    }
    for name, uri in places.items():
        if uri and not uri.startswith("gs://") and not uri.removeprefix("file://").startswith(mounted):
            raise UserError(
                f"{name}={uri}: the job's pods cannot see that path; use gs://, or mount a volume there in the pipeline"
            )


def launch(cluster: Cluster, body: Mapping[str, Any], *, hours: float = 168.0, restarts: int = 3) -> None:
    """See a job through to its end; whatever that is, the job is not there any more afterwards.

    Args:
        cluster: where; its namespace is the job's.
        body: the job, from `jobs.build`.
        hours: how long it may take, waiting included.
        restarts: how many incidents that may pass a PyTorchJob survives (a JobSet counts for itself).

    Raises:
        JobFailed: it failed, vanished, took too long or can never start; says why.
        ClusterError: the cluster refuses the job, or went away for good.
    """
    job, hurry = None, False
    try:
        job = submit(cluster, body)
        Life(cluster, job, hours, restarts).follow()
        log.info("job %s succeeded", job["metadata"]["name"])
    except (Terminated, KeyboardInterrupt):
        hurry = True
        raise
    finally:
        try:
            remove(cluster, body, job, TERMINATE_SECONDS if hurry else REMOVE_SECONDS)
        except (Terminated, KeyboardInterrupt):
            remove(cluster, body, job, TERMINATE_SECONDS)
            raise


def _with_content(extras: PodExtras | None) -> PodExtras:
    """What the pods get besides: the digest of this library, so that workers from another image refuse to start."""
    given = extras or PodExtras()
    return replace(given, environment=[*given.environment, {"name": CONTENT_VARIABLE, "value": content()}])
