"""Jobs to apply by hand: `python -m components.train.manifests --output manifests/jobs` writes them from the builders.

They train what the steps before left in the bucket that the ConfigMap `hanflow` names: `kubectl apply -f` starts one,
`kubectl delete -f` removes it, applied again it goes on from its checkpoints.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from components.shared.config import Experiment, JobConfig, UserError, load_experiment
from components.train.jobs import Origin, PodExtras, Work, build, pod_templates

CONFIG_MAP = "hanflow"
"""ConfigMap of the namespace with the key `bucket`, a name without gs://."""
BUCKET_VARIABLE = "HANFLOW_BUCKET"
JOBS = {
    "pytorchjob.yaml": JobConfig(runtime="pytorchjob", workers=2, accelerator="nvidia-l4"),
    "jobset.yaml": JobConfig(runtime="tpu", accelerator="v4-32"),
}
"""File → the job in it."""
_HEAD = (
    "# Written by `python -m components.train.manifests --output manifests/jobs`; a test holds it to the builders.\n"
)


def manifest(job: JobConfig, experiment: Experiment) -> dict[str, Any]:
    """A job that trains that experiment, its data in the bucket of the ConfigMap."""
    # A name that no bucket has: Kubernetes puts the variable's value there.
    place = f"gs://{BUCKET_VARIABLE}/{experiment.name}"
    work = Work(experiment.task, experiment.train, f"{place}/shards", f"{place}/model")
    bucket = {"name": BUCKET_VARIABLE, "valueFrom": {"configMapKeyRef": {"name": CONFIG_MAP, "key": "bucket"}}}
    body = build(job, work, Origin("manual"), PodExtras(environment=[bucket]))
    for template in pod_templates(body):
        (container,) = template["spec"]["containers"]
        container["command"] = [
            argument.replace(f"gs://{BUCKET_VARIABLE}/", f"gs://$({BUCKET_VARIABLE})/")
            for argument in container["command"]
        ]
    return body


def write(folder: Path, experiment: Experiment) -> list[Path]:
    """Write every job of `JOBS`; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, job in JOBS.items():
        text = yaml.safe_dump(manifest(job, experiment), sort_keys=False, allow_unicode=True, width=120)
        paths.append(folder / name)
        paths[-1].write_text(_HEAD + text, encoding="utf-8")
    return paths


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m components.train.manifests", description=__doc__)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to write into")
    parser.add_argument(
        "--experiment",
        default="pipelines/experiments/summarization.yaml",
        help="settings of the training (default: %(default)s)",
    )
    options = parser.parse_args(argv)
    try:
        experiment = load_experiment(options.experiment, require=False)
        for path in write(options.output, experiment):
            print(path)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
