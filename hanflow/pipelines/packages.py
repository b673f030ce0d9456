"""Pipelines as the YAML packages that Kubeflow takes: compiled once from `pipelines/`, then edited as data.

What differs from run to run (an experiment's values, where the images are) is written into the package that
`make compile` made, so an installed hanflow needs no source of the pipelines.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from hanflow import resources
from hanflow.errors import UserError
from hanflow.experiment import STEPS, Experiment
from hanflow.experiment.form import form_values, settings_off_form
from hanflow.images import DEFAULT, REPOSITORY_VARIABLE, TAG_VARIABLE, Images

PIPELINES = ("summarization", "classification", "language_modeling", "ensemble")
"""Names of the pipelines of hanflow's own tasks, each with an experiment of the same name."""
ANY = "any_task"
"""The pipeline of tasks that are not hanflow's own."""


class Package:
    """A compiled pipeline: its specification, and that of its pods for Kubernetes."""

    def __init__(self, text: str):
        self.spec, *self.platform = yaml.safe_load_all(text)

    @classmethod
    def of(cls, experiment: Experiment, images: Images = DEFAULT) -> Package:
        """The package of the pipeline that runs an experiment, its form filled in with the experiment's values."""
        name = experiment.pipeline if experiment.pipeline in PIPELINES else ANY
        package = cls((resources.folder("compiled") / f"{name}.yaml").read_text(encoding="utf-8"))
        package.fill_in(experiment)
        package.set_images(images)
        return package

    def fill_in(self, experiment: Experiment) -> None:
        """Make an experiment's values the defaults of the form; its other settings become the steps' base.

        Raises:
            UserError: the pipeline is of another task.
        """
        for step in self._tasks():
            parameters = step.get("inputs", {}).get("parameters", {})
            task = parameters.get("task", {}).get("runtimeValue", {}).get("constant", experiment.task)
            if task != experiment.task:
                raise UserError(
                    f"the pipeline {self.spec['pipelineInfo']['name']} trains models of the task {task}, the experiment sets "
                    f"task={experiment.task}; set task={task}, or leave combine.members out"
                )
            if "base" in parameters:
                parameters["base"]["runtimeValue"]["constant"] = settings_off_form(experiment, self._form)
        for name, value in self.arguments(experiment).items():
            parameter = self._form[name]
            if value == "":  # a required parameter
                parameter.pop("defaultValue", None)
                parameter.pop("isOptional", None)
            else:
                parameter |= {"defaultValue": value, "isOptional": True}

    def arguments(self, experiment: Experiment) -> dict[str, Any]:
        """Parameter → value, for a run of an experiment."""
        values = {"task": experiment.task, **form_values(experiment)}
        return {name: values[name] for name in self._form}

    @property
    def _form(self) -> dict[str, dict[str, Any]]:
        return self.spec["root"]["inputDefinitions"]["parameters"]

    def set_images(self, images: Images) -> None:
        """Set the images of all steps, and of the jobs that they start."""
        for executor in self.spec["deploymentSpec"]["executors"].values():
            executor["container"]["image"] = images.cpu
            for variable in executor["container"].get("env", []):
                if variable["name"] == REPOSITORY_VARIABLE:
                    variable["value"] = images.repository
                elif variable["name"] == TAG_VARIABLE:
                    variable["value"] = images.tag

    def without_cache(self) -> None:
        """Run every task, also where its inputs are unchanged."""
        for task in self._tasks():
            task.get("cachingOptions", {}).pop("enableCache", None)

    def without_retries(self) -> None:
        """Run every task once: in a local run a failure should show at once."""
        for task in self._tasks():
            task.pop("retryPolicy", None)

    def _tasks(self) -> Iterator[dict[str, Any]]:
        for dag in (self.spec["root"]["dag"], *(c["dag"] for c in self.spec["components"].values() if "dag" in c)):
            yield from dag["tasks"].values()

    def text(self) -> str:
        """The package as YAML."""
        return yaml.safe_dump_all([self.spec, *self.platform], allow_unicode=True, sort_keys=True, width=120)

    def write(self, path: Path) -> Path:
        """Write the package; an older file is replaced when the new one is complete."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as partial:
            fresh = Path(partial) / path.name
            fresh.write_text(self.text(), encoding="utf-8")
            os.replace(fresh, path)
        return path


def step_names(experiment: Experiment) -> list[str]:
    """Names of the steps of a run, in order; `train-<name>` for a member of an ensemble."""
    if not experiment.combine.members:
        return [step for step in STEPS if step != "combine"]
    members = [f"train-{member['name']}" for member in experiment.combine.members]
    return ["preprocess", "tokenize", *members, "combine", "evaluate", "export"]
