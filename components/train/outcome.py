"""What a job leaves, seen from outside: the model artifact that its rank 0 wrote."""

from __future__ import annotations

from typing import Any

from components.shared.artifacts import Manifest
from components.shared.config import UserError, to_mapping
from components.shared.steps import Report
from components.shared.storage import manifest_at
from components.train.pod_spec import PodExtras
from components.train.work import Work


def report(work: Work) -> Report:
    """The report of a train step whose job has succeeded.

    Raises:
        UserError: the model is not where it should be.
    """
    return _report(manifest_at(work.output, "model", task=work.task))


def already_done(work: Work) -> Report | None:
    """The report of an earlier attempt that wrote the same model whole; None: there is none."""
    try:
        model = manifest_at(work.output, "model", task=work.task)
    except UserError:
        return None
    shards = manifest_at(work.shards, "shards", task=work.task)
    same = _learnt(model.config) == _learnt(to_mapping(work.config)) and model.parents.get("shards") == shards.digest
    return _report(model) if same else None


def _learnt(config: dict[str, Any]) -> dict[str, Any]:
    """The settings without those that a job sets for the place where it runs."""
    return {name: value for name, value in config.items() if name not in ("backend", "topology")}


def check_reach(work: Work, extras: PodExtras) -> None:
    """Refuse local paths: the pods of a job see buckets, and volumes that the pipeline mounts, and nothing else.

    Raises:
        UserError: names the URI.
    """
    mounted = tuple(mount["mountPath"].rstrip("/") + "/" for mount in extras.volume_mounts)
    places = {
        "shards": work.shards,
        "output": work.output,
        "train.checkpoints": work.config.checkpoints,
        "train.pretrained": work.config.pretrained if work.config.pretrained.startswith(("/", "~")) else "",
    }
    for name, uri in places.items():
        if uri and not uri.startswith("gs://") and not uri.removeprefix("file://").startswith(mounted):
            raise UserError(
                f"{name}={uri}: the job's pods cannot see that path; use gs://, or mount a volume there in the pipeline"
            )


def _report(model: Manifest) -> Report:
    return Report(model.details["figures"], html="report.html")
