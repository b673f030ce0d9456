"""Runs a WorkflowTemplate as Argo does: its tasks in order, each step's command in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from hanflow import storage
from hanflow.experiment import EXPERIMENTS, load_experiment
from hanflow.storage import artifacts, gcs
from tests.cluster.manifests import MANIFESTS, Document, pick
from tests.support.corpora import ARCHITECTURE, petitions
from tests.support.forked import Zygote
from tests.support.tasks import ARCHITECTURES, reviews

ROOT = MANIFESTS.parent


def workflow(objects: list[Document]) -> Document:
    """The spec of the WorkflowTemplate."""
    found: Document = pick(objects, "WorkflowTemplate")["spec"]
    return found


def step(objects: list[Document], name: str) -> Document:
    """One template of the workflow."""
    return next(each for each in workflow(objects)["templates"] if each["name"] == name)


def tasks(objects: list[Document]) -> list[Document]:
    """The tasks of the DAG."""
    found: list[Document] = step(objects, "pipeline")["dag"]["tasks"]
    return found


def values_of(objects: list[Document], parameters: Mapping[str, str], name: str, uid: str) -> dict[str, str]:
    """The values of `{{…}}` in a run of that name: the given parameters, else the ConfigMap's entries and the defaults."""
    held = pick(objects, "ConfigMap")["data"]
    values = {}
    for parameter in workflow(objects)["arguments"]["parameters"]:
        reference = parameter.get("valueFrom", {}).get("configMapKeyRef", {})
        default = held[reference["key"]] if reference else parameter.get("value")
        values[f"workflow.parameters.{parameter['name']}"] = parameters.get(parameter["name"], default)
    return {**values, "workflow.name": name, "workflow.uid": uid}


def filled(text: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(.*?)\}\}", lambda found: values[found[1]], text)


@dataclass(frozen=True)
class Pod:
    """The parts of a step's pod that matter here."""

    module: str
    """What `python -m` runs."""
    arguments: list[str]
    environment: dict[str, str]
    """Its variables, except those from Secrets."""
    folder: Path
    """The only place it may write to."""


def pod_of(template: Document, values: Mapping[str, str], folder: Path) -> Pod:
    """The pod that Argo makes of a step's template; its input artifacts are written.

    Args:
        template: of the step.
        values: name → value.
        folder: the pod's disk; made.
    """
    container = template["container"]
    python, flag, module = container["command"]
    assert (python, flag) == ("python", "-m")
    arguments = [filled(text, values) for text in container["args"]]
    folder.mkdir()
    for artifact in template.get("inputs", {}).get("artifacts", ()):
        path = folder / Path(artifact["path"]).name
        path.write_text(filled(artifact["raw"]["data"], values), encoding="utf-8")
        arguments = [text.replace(artifact["path"], str(path)) for text in arguments]
    own = {v["name"]: filled(v["value"], values) for v in container["env"] if "value" in v}
    environment = {"HANFLOW_CACHE": str(folder / "cache"), "HOME": str(folder), **own}
    return Pod(module, arguments, environment, folder)


class Ended(NamedTuple):
    """How a step's command ended."""

    status: int
    out: str
    err: str


Runner = Callable[[Pod], Ended]


def start(pod: Pod) -> subprocess.Popen[str]:
    """The command of a pod as a process."""
    return subprocess.Popen(
        [sys.executable, "-m", pod.module, *pod.arguments],
        cwd=pod.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **pod.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def as_process(pod: Pod) -> Ended:
    """Run a pod's command as it is written."""
    process = start(pod)
    out, err = process.communicate()
    return Ended(process.returncode, out, err)


def as_fork_of(zygote: Zygote, environment: Mapping[str, str]) -> Runner:
    """Runs pods' commands in forks of a process that has imported everything already; `environment` is the forks'."""

    def run(pod: Pod) -> Ended:
        out, err = pod.folder / "stdout", pod.folder / "stderr"
        status = zygote.run(
            step=pod.module.removeprefix("hanflow.steps."),
            argv=pod.arguments,
            environment={**environment, **pod.environment},
            stdout=str(out),
            stderr=str(err),
        )
        return Ended(status, out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8"))

    return run


def succeed(template: Document, values: Mapping[str, str], folder: Path, runner: Runner = as_process) -> Ended:
    """Run a step that must succeed; see `pod_of`."""
    ended = runner(pod_of(template, values, folder))
    assert ended.status == 0, f"{template['name']} ended with {ended.status}: {ended.err}"
    return ended


def play(objects: list[Document], values: Mapping[str, str], folder: Path, runner: Runner) -> dict[str, str]:
    """Run all tasks of the DAG, each after those that it depends on; a task whose condition is false is skipped.

    Args:
        objects: the WorkflowTemplate and its ConfigMap.
        values: name → value.
        folder: gets one folder a task.
        runner: runs a pod.

    Returns:
        Task → its output, in the order in which they ended, without those that were skipped.
    """
    results: dict[str, str] = {}
    over: set[str] = set()
    waiting = tasks(objects)
    while waiting:
        task = next(each for each in waiting if set(each.get("dependencies", ())) <= over)
        waiting = [each for each in waiting if each is not task]
        over.add(task["name"])
        outputs = {f"tasks.{name}.outputs.result": text.strip() for name, text in results.items()}
        left, _, right = filled(task.get("when", "true == true"), {**values, **outputs}).partition(" == ")
        if left == right:
            template = step(objects, task["template"])
            results[task["name"]] = succeed(template, values, folder / task["name"], runner).out
    return results


SMALL: dict[str, dict[str, dict[str, Any]]] = {
    "summarization": {
        "tokenize": {"tokenizer": "", "vocabulary_size": 500, "max_source_tokens": 64, "max_target_tokens": 24},
        "train": {"pretrained": "", "architecture": ARCHITECTURE, "epochs": 1, "precision": "fp32"},
        "evaluate": {"max_new_tokens": 8, "limit_rows": 4, "untrained": True},
        "export": {"check_rows": 2},
    },
    "classification": {
        "tokenize": {"tokenizer": "", "vocabulary_size": 500},
        "train": {"pretrained": "", "architecture": ARCHITECTURES["classification"], "epochs": 1, "precision": "fp32"},
        "export": {"check_rows": 2},
    },
    "language_modeling": {
        "tokenize": {"vocabulary_size": 500, "chunk_tokens": 32},
        "train": {"architecture": ARCHITECTURES["language_modeling"], "epochs": 1, "precision": "fp32"},
        "export": {"check_rows": 2},
    },
}
"""Task → changes of its bundled experiment, so that the DAG takes seconds and downloads nothing."""


def small_experiment(task: str) -> str:
    settings = yaml.safe_load((EXPERIMENTS / f"{task}.yaml").read_text(encoding="utf-8"))
    for name, changes in SMALL[task].items():
        settings[name] = {**settings.get(name, {}), **changes}
    return yaml.safe_dump(settings, allow_unicode=True)


def raw_data(task: str) -> bytes:
    """A few rows of the bundled samples."""
    columns, rows = ("document\tsummary", petitions(60)) if task == "summarization" else ("label\ttext", reviews(120))
    return "".join(f"{line}\n" for line in (columns, *("\t".join(row) for row in rows))).encode()


def check_artifacts(task: str, text: str, source: str, place: str, folder: Path) -> None:
    """corpus → shards → model → evaluation → bundle, with the settings of the experiment, each made from those before.

    Args:
        task: what was learnt.
        text: the experiment.
        source: URI of the raw data.
        place: URI of the run's folder.
        folder: for files.
    """
    path = folder / "experiment.yaml"
    path.write_text(text, encoding="utf-8")
    experiment = load_experiment(path, [f"preprocess.source={source}", f"train.checkpoints={place}/checkpoints"])
    assert experiment.task == task
    made = {}
    for kind, maker in artifacts.KINDS.items():
        _, made[kind] = storage.fetched(f"{place}/{kind}", kind, task=task)
        assert made[kind].config == json.loads(json.dumps(experiment.settings(maker))), maker
    digests = {kind: manifest.digest for kind, manifest in made.items()}
    assert {kind: set(manifest.parents) for kind, manifest in made.items()} == {
        "corpus": set(),
        "shards": {"corpus"},
        "model": {"shards"},
        "evaluation": {"corpus", "shards", "model"},
        "bundle": {"shards", "model", "evaluation"},
    }
    for manifest in made.values():
        assert manifest.parents.items() <= digests.items(), "made of what this very run made"
    assert {path.split("/")[0] for path in gcs.listing(place)} == {*artifacts.KINDS, "checkpoints"}
