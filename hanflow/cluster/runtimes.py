"""The kinds of jobs that hanflow can run, by the value of `job.runtime`. A new kind is a builder file and a line here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from hanflow.cluster import jobset, pytorchjob
from hanflow.cluster.job import DIGEST_ANNOTATION, QUEUE_LABEL, Origin, PodExtras, Runtime, describe
from hanflow.config import JobConfig
from hanflow.config.worker_spec import WorkerSpec
from hanflow.errors import UserError
from hanflow.images import DEFAULT, Images

RUNTIMES: dict[str, Runtime] = {"pytorchjob": pytorchjob.RUNTIME, "tpu": jobset.RUNTIME}
BY_KIND: dict[str, Runtime] = {runtime.kind: runtime for runtime in RUNTIMES.values()}


def build(
    job: JobConfig, spec: WorkerSpec, origin: Origin, extras: PodExtras | None = None, images: Images = DEFAULT
) -> dict[str, Any]:
    """The job as the Kubernetes API takes it, without a namespace; see `hanflow.cluster.job.describe`.

    Raises:
        ConfigError: settings of the job that cannot work.
        UserError: the runtime is local: there is no job to build.
    """
    if job.runtime not in RUNTIMES:
        raise UserError(
            f"job.runtime={job.runtime}: training runs in the step's own process, without a job; "
            f"choose {' or '.join(RUNTIMES)} for a job on a cluster"
        )
    runtime = RUNTIMES[job.runtime]
    description = describe(job, spec, origin, extras, images)
    body: dict[str, Any] = {
        "apiVersion": runtime.api_version,
        "kind": runtime.kind,
        "metadata": {
            "name": description.name,
            "labels": {**description.labels, **({QUEUE_LABEL: description.queue} if description.queue else {})},
            "annotations": dict(runtime.annotations),
        },
        "spec": runtime.build(description),
    }
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    body["metadata"]["annotations"][DIGEST_ANNOTATION] = digest[:32]
    if description.owner:
        body["metadata"]["ownerReferences"] = [dict(description.owner)]
    return body


def pod_templates(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pod templates inside a job."""
    return [template for template, _ in BY_KIND[body["kind"]].pods(body["spec"])]


def pod_count(body: Mapping[str, Any]) -> int:
    """How many pods the job has when all of them are there."""
    return sum(count for _, count in BY_KIND[body["kind"]].pods(body["spec"]))
