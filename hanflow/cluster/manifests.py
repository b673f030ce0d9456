"""Jobs to apply by hand: `python -m hanflow.cluster.manifests --output manifests/jobs` writes them from the builders.

They train what the steps before left under the root that the ConfigMap `hanflow` names: `kubectl apply -f` starts one,
`kubectl delete -f` removes it, applied again it goes on from its checkpoints. Another experiment, other images or settings
of the job: `--experiment`, `--image-repository`, `--set job.workers=4`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from hanflow import resources
from hanflow.cluster.job import Origin, build, pod_templates
from hanflow.cluster.pod import PodExtras
from hanflow.config import JobConfig
from hanflow.config.worker_spec import WorkerSpec
from hanflow.errors import UserError
from hanflow.experiment import Experiment, load_experiment
from hanflow.images import DEFAULT, Images, add_options, from_options

NAMESPACE = "kubeflow"
CONFIG_MAP = "hanflow"
"""ConfigMap of the namespace whose key `root` is the folder of all runs, e.g. gs://bucket/runs."""
ROOT_VARIABLE = "HANFLOW_ROOT"
JOBS: dict[str, dict[str, Any]] = {
    "pytorchjob.yaml": {"runtime": "pytorchjob", "workers": 2, "accelerator": "nvidia-l4"},
    "jobset.yaml": {"runtime": "tpu", "accelerator": "v4-32"},
}
"""File → settings of the job in it."""
_HEAD = "# Written by `python -m hanflow.cluster.manifests --output manifests/jobs`; a test holds it to the builders.\n"


def manifest(job: JobConfig, experiment: Experiment, images: Images = DEFAULT) -> dict[str, Any]:
    """A job that trains that experiment, its data under the ConfigMap's root."""
    # Stands for the root until the settings are escaped; Kubernetes puts the variable's value into what replaces it.
    place = f"gs://{ROOT_VARIABLE}"
    folder = f"{place}/{experiment.name}"
    work = WorkerSpec(experiment.task, experiment.train, f"{folder}/shards", f"{folder}/model")
    root = {"name": ROOT_VARIABLE, "valueFrom": {"configMapKeyRef": {"name": CONFIG_MAP, "key": "root"}}}
    body = build(job, work, Origin("manual"), PodExtras(environment=[root]), images)
    body["metadata"]["namespace"] = NAMESPACE
    for template in pod_templates(body):
        (container,) = template["spec"]["containers"]
        container["command"] = [part.replace(place, f"$({ROOT_VARIABLE})") for part in container["command"]]
    return body


def write(folder: Path, path: str | Path, overrides: Sequence[str] = (), images: Images = DEFAULT) -> list[Path]:
    """Write every job of `JOBS`; returns the paths.

    Args:
        folder: to write into.
        path: the experiment file.
        overrides: `step.key=value` texts; those of `job` change both jobs.
        images: where the workers' images are.

    Raises:
        UserError: the experiment or an override is wrong.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, settings in JOBS.items():
        own = [f"job.{key}={value}" for key, value in settings.items()]
        experiment = load_experiment(path, [*own, *overrides], require=False)
        body = manifest(experiment.job, experiment, images)
        text = yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=120)
        paths.append(folder / name)
        paths[-1].write_text(_HEAD + text, encoding="utf-8")
    return paths


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m hanflow.cluster.manifests", description=__doc__)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to write into")
    parser.add_argument(
        "--experiment",
        default=str(resources.folder("experiments") / "summarization.yaml"),
        metavar="FILE",
        help="settings of the training (default: %(default)s)",
    )
    parser.add_argument("--set", action="append", default=[], metavar="STEP.KEY=VALUE", help="change one setting")
    add_options(parser)
    options = parser.parse_args(argv)
    try:
        for path in write(options.output, options.experiment, options.set, from_options(options)):
            print(path)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
