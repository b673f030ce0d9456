"""The kinds of jobs that hanflow can run, by the value of `job.runtime`. A new kind is a builder file and a line here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hanflow.cluster import jobset, pytorchjob, trainjob
from hanflow.cluster.client import Cluster, ClusterError, NotFound
from hanflow.cluster.job import DIGEST_ANNOTATION, QUEUE_LABEL, Kind, Origin, PodExtras, Runtime, describe
from hanflow.config import JobConfig
from hanflow.config.worker_spec import WorkerSpec
from hanflow.errors import UserError
from hanflow.images import DEFAULT, Images
from hanflow.progress import log

RUNTIMES: dict[str, Runtime] = {
    "trainjob": trainjob.RUNTIME,
    "pytorchjob": pytorchjob.RUNTIME,
    "tpu": jobset.RUNTIME,
}
BY_KIND: dict[str, Runtime] = {runtime.kind: runtime for runtime in RUNTIMES.values()}
KINDS: dict[str, Kind] = {**BY_KIND, trainjob.TRAINING_RUNTIME.kind: trainjob.TRAINING_RUNTIME}
"""All kinds of objects that are created, a job's before that of its template: the order in which they are removed."""
AUTOMATIC = ("trainjob", "pytorchjob")
"""What `job.runtime=auto` may stand for, the preferred one first."""
_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


def build(
    job: JobConfig, spec: WorkerSpec, origin: Origin, extras: PodExtras | None = None, images: Images = DEFAULT
) -> list[dict[str, Any]]:
    """A job as the Kubernetes API takes it, without a namespace; see `hanflow.cluster.job.describe`.

    Returns:
        The objects in the order in which they are created; the last one is the job.

    Raises:
        ConfigError: settings of the job that cannot work.
        UserError: the runtime is local, or left to the cluster: there is no job to build.
    """
    if job.runtime not in RUNTIMES:
        raise UserError(
            f"job.runtime={job.runtime}: training runs in the step's own process, without a job, or the cluster decides; "
            f"choose {', '.join(RUNTIMES)} for a job on a cluster"
        )
    runtime = RUNTIMES[job.runtime]
    description = describe(job, spec, origin, extras, images)
    objects = []
    for kind in (*([runtime.template] if runtime.template else []), runtime):
        body: dict[str, Any] = {
            "apiVersion": kind.api_version,
            "kind": kind.kind,
            "metadata": {"name": description.name, "labels": dict(description.labels), "annotations": {}},
            "spec": kind.build(description),
        }
        objects.append(body)
    objects[-1]["metadata"]["annotations"].update(runtime.annotations)
    if description.queue:
        objects[-1]["metadata"]["labels"][QUEUE_LABEL] = description.queue
    digest = hashlib.sha256(json.dumps(objects, sort_keys=True).encode()).hexdigest()
    for body in objects:
        body["metadata"]["annotations"][DIGEST_ANNOTATION] = digest[:32]
        if description.owner:
            body["metadata"]["ownerReferences"] = [dict(description.owner)]
    return objects


def pod_templates(*objects: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pod templates inside the objects of a job."""
    return [template for body in objects for template, _ in KINDS[body["kind"]].pods(body["spec"])]


def pod_count(*objects: Mapping[str, Any]) -> int:
    """How many pods the job has when all of them are there."""
    return sum(count for body in objects for _, count in KINDS[body["kind"]].pods(body["spec"]))


def choose(cluster: Cluster, job: JobConfig) -> JobConfig:
    """The settings with a runtime in place of `auto`: the first of `AUTOMATIC` that this cluster can run.

    Raises:
        ClusterError: it can run none; the message says why.
    """
    if job.runtime != "auto":
        return job
    obstacles: list[str] = []
    for name in AUTOMATIC:
        runtime = RUNTIMES[name]
        obstacle = _obstacle(cluster, runtime, elastic=job.min_workers > 0)
        if not obstacle:
            log.info(
                "job.runtime=auto: training runs as a %s, which this cluster serves%s",
                runtime.kind, "".join(f"; no {text}" for text in obstacles),
            )  # fmt: skip
            return replace(job, runtime=name)
        obstacles.append(f"{runtime.kind}: {obstacle}")
    raise ClusterError(
        f"job.runtime=auto: this cluster cannot run a training job: {'; '.join(obstacles)}. "
        f"Install {RUNTIMES[AUTOMATIC[0]].operator}, or train in the step itself with job.runtime=local"
    )


def _obstacle(cluster: Cluster, runtime: Runtime, *, elastic: bool) -> str:
    """Why jobs cannot run as this kind; empty: they can."""
    if elastic and not runtime.elastic:
        return "it needs all its pods, and job.min_workers asks for less"
    for kind in (runtime, runtime.template):
        if kind is None:
            continue
        try:
            served = cluster.request("GET", f"/apis/{kind.api_version}")["resources"]
        except NotFound:
            served = []
        if kind.plural not in {resource["name"] for resource in served}:
            return f"the cluster does not serve {kind.plural} ({kind.api_version})"
        if not _may_create(cluster, kind):
            return f"this account may not create {kind.plural} in namespace {cluster.namespace}"
    return ""


def _may_create(cluster: Cluster, kind: Kind) -> bool:
    """Whether this account may create objects of the kind; True where the cluster does not answer that question."""
    action = {
        "namespace": cluster.namespace,
        "verb": "create",
        "group": kind.api_version.partition("/")[0],
        "resource": kind.plural,
    }
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": action},
    }
    try:
        return bool(cluster.request("POST", _REVIEWS, body=review)["status"]["allowed"])
    except ClusterError as error:
        log.warning("it is not known whether this account may create %s: %s", kind.plural, error)
        return True
