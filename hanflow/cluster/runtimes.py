"""The kinds of jobs that hanflow can run, by the value of `job.runtime`. A new kind is a builder file and a line here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
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


def operator_version(cluster: Cluster, runtime: Runtime) -> str:
    """Which operator runs a kind of job, and its version, e.g. `Kubeflow Trainer v2.3.0`; empty: it does not tell."""
    if runtime.version is None:
        return ""
    path, key = runtime.version
    try:
        return f"{runtime.operator.partition(',')[0]} {cluster.request('GET', path, patience=5.0)['data'][key]}"
    except (ClusterError, KeyError):
        return ""


def choose(cluster: Cluster, job: JobConfig) -> JobConfig:
    """The settings with a runtime in place of `auto`: the first of `AUTOMATIC` that this cluster can run.

    Raises:
        ClusterError: it can run none; the message says why.
    """
    if job.runtime != "auto":
        return job
    obstacles: dict[str, str] = {}
    for name in AUTOMATIC:
        runtime, elastic = RUNTIMES[name], job.min_workers > 0
        kinds = [kind for kind in (runtime, runtime.template) if kind]
        served = {kind.api_version: _served(cluster, kind.api_version) for kind in kinds}
        forbidden = [kind.plural for kind in kinds if not _may_create(cluster, kind)]
        obstacles[name] = obstacle(runtime, served, forbidden, elastic=elastic, namespace=cluster.namespace)
        if not obstacles[name]:
            break
    chosen, why = first_choice(obstacles)
    log.info("job.runtime=auto: %s", why)
    return replace(job, runtime=chosen)


def obstacle(
    runtime: Runtime,
    served: Mapping[str, Collection[str]],
    forbidden: Collection[str],
    *,
    elastic: bool,
    namespace: str,
) -> str:
    """Why jobs cannot run as this kind; empty: they can.

    Args:
        runtime: the kind.
        served: API version → plural names of what the API server serves of it.
        forbidden: plural names of what this account may not create in the namespace.
        elastic: whether training is to go on with some of the pods.
        namespace: of the jobs.
    """
    if elastic and not runtime.elastic:
        return "it needs all its pods, and job.min_workers asks for less"
    for kind in (runtime, runtime.template):
        if kind is not None and kind.plural not in served[kind.api_version]:
            return f"the cluster does not serve {kind.plural} ({kind.api_version})"
        if kind is not None and kind.plural in forbidden:
            return f"this account may not create {kind.plural} in namespace {namespace}"
    return ""


def first_choice(obstacles: Mapping[str, str]) -> tuple[str, str]:
    """The first runtime without an obstacle, and why it is that one.

    Args:
        obstacles: runtime → obstacle, the preferred runtime first.

    Raises:
        ClusterError: each has one.
    """
    found: list[str] = []
    for name, text in obstacles.items():
        if not text:
            return name, "; no ".join([f"training runs as a {RUNTIMES[name].kind}, which this cluster serves", *found])
        found.append(f"{RUNTIMES[name].kind}: {text}")
    raise ClusterError(
        f"job.runtime=auto: this cluster cannot run a training job: {'; '.join(found)}. "
        f"Install {RUNTIMES[AUTOMATIC[0]].operator}, or train in the step itself with job.runtime=local"
    )


def _served(cluster: Cluster, api_version: str) -> list[str]:
    try:
        return [resource["name"] for resource in cluster.request("GET", f"/apis/{api_version}")["resources"]]
    except NotFound:
        return []


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
