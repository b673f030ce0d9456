"""All settings of a run by section, and their names: `train.epochs` in a file and on the command line."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hanflow.config import (
    ClusterConfig,
    CombineConfig,
    EvaluateConfig,
    ExportConfig,
    JobConfig,
    PreprocessConfig,
    TokenizeConfig,
    TrainConfig,
    build,
    changed,
    suggest,
    to_mapping,
)
from hanflow.config.fields import coerced, setting
from hanflow.errors import ConfigError, UserError
from hanflow.tasks import chosen_task, known_tasks


@dataclass(frozen=True)
class Experiment:
    """Every setting of one run; the classes of the sections are those that its task extends (`Task.settings`)."""

    name: str = setting("experiment", "Name of the run; output folders and the model card carry it.")
    task: str = setting("summarization", "The task: one of hanflow or of an installed package, or `module:Class`.")
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    tokenize: TokenizeConfig = field(default_factory=TokenizeConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    combine: CombineConfig = field(default_factory=CombineConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    job: JobConfig = field(default_factory=JobConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    from_yaml: typing.ClassVar[typing.Callable[..., Experiment]]
    """Reads an experiment from a file: `hanflow.experiment.loading.from_yaml`, which is set there as it needs this class."""

    @property
    def pipeline(self) -> str:
        """Name of the pipeline that runs it."""
        return "ensemble" if self.combine.members else self.task

    def settings(self, step: str) -> dict[str, Any]:
        """The settings that a step is given, as plain data."""
        values = to_mapping(getattr(self, step))
        return {**values, "title": values["title"] or self.name} if step == "export" else values


STEPS: dict[str, type] = {
    "preprocess": PreprocessConfig,
    "tokenize": TokenizeConfig,
    "train": TrainConfig,
    "combine": CombineConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
}
"""Step → the settings that it has for every task."""


SECTIONS: dict[str, type] = {**STEPS, "job": JobConfig, "cluster": ClusterConfig}
"""Section of an experiment → its settings: those of the steps, and where their pods and the train step's workers run."""


def section_class(section: str, task: str = "") -> type:
    """The settings class of a section: the one by which the task extends it, if it does.

    Raises:
        UserError: no such task.
    """
    return chosen_task(task).settings.get(section, SECTIONS[section]) if task else SECTIONS[section]


@dataclass(frozen=True)
class Setting:
    """One setting as files and command lines name it, e.g. `train.epochs`."""

    step: str
    name: str
    type: type
    default: Any
    help: str
    required: bool
    choices: tuple[str, ...] = ()
    """The only values that it, or an item of a list, may have; empty: any."""

    @property
    def dotted(self) -> str:
        return f"{self.step}.{self.name}"


def settings_of(section: str, task: str = "") -> list[Setting]:
    """The settings of one section, in the order they are declared; with a task, its own as well."""
    cls = section_class(section, task)
    hints = typing.get_type_hints(cls)
    defaults = cls()
    return [
        Setting(
            section,
            f.name,
            hints[f.name],
            getattr(defaults, f.name),
            f.metadata["help"],
            f.metadata["required"],
            f.metadata["choices"],
        )
        for f in dataclasses.fields(cls)
    ]


def all_settings(task: str = "") -> list[Setting]:
    """The settings of all sections; with a task, its own as well."""
    return [s for section in SECTIONS for s in settings_of(section, task)]


def step_config(section: str, values: Mapping[str, Any], task: str = "") -> Any:
    """The config of one section from plain values.

    Args:
        task: name of the task, whose own settings are known as well.

    Raises:
        ConfigError: unknown keys, wrong types or values out of range; all of them in one message.
    """
    config, problems = build(section_class(section, task), values, section, True, suggestion(task))
    if problems:
        raise ConfigError(problems)
    return config


def build_experiment(values: Mapping[str, Any], require: bool = True) -> tuple[Experiment | None, list[str]]:
    """An experiment, or None, and everything that is wrong with the values.

    Args:
        values: the sections as YAML gives them, and `name` and `task`.
        require: whether required settings must be given.
    """
    problems: list[str] = []
    task = str(values.get("task") or "summarization")
    try:
        chosen_task(task)
    except UserError as error:
        return None, [str(error)]
    arguments: dict[str, Any] = {"task": task}
    if values.get("name") is not None:
        try:
            arguments["name"] = coerced(values["name"], str)
        except ValueError as error:
            problems.append(f"name: {error}")
    known = [f.name for f in dataclasses.fields(Experiment)]
    for key in values:
        if key not in known:
            problems.append(f"{key}: no such setting{suggestion(task)(str(key))}")
    for section in SECTIONS:
        given = values.get(section)
        config, found = build(
            section_class(section, task), {} if given is None else given, section, require, suggestion(task)
        )
        problems += found
        arguments[section] = config
    return (None, problems) if problems else (Experiment(**arguments), [])


def suggestion(task: str = "") -> typing.Callable[[str], str]:
    """The hint to print after a key that is not a setting of that task."""

    def hint(key: str) -> str:
        owners = [name for name in known_tasks() if task and key in (s.dotted for s in all_settings(name))]
        if owners:
            return f" of the task {task}; only of {', '.join(owners)}"
        sections = [f.name for f in dataclasses.fields(Experiment)]
        near = suggest.setting(key, [*(s.dotted for s in all_settings(task)), *sections])
        if near:
            return suggest.did_you_mean(near)
        section = key.partition(".")[0]
        if section in SECTIONS:
            return f"; `hanflow settings {section}` lists those of {section}"
        return f"; known: {', '.join(sections)}"

    return hint


def member_settings(experiment: Experiment) -> list[dict[str, Any]]:
    """Of every member of an ensemble its `name`, its `settings` of train, and those of its `job`.

    A member's own settings override those of the sections; settings of train left at their default are left out. Each
    member has its own folder of checkpoints.
    """
    shared, job = changed(experiment.train), to_mapping(experiment.job)
    place = shared.pop("checkpoints", "").rstrip("/")
    return [
        {
            "name": member["name"],
            "settings": {
                **shared,
                **({"checkpoints": f"{place}/{member['name']}"} if place else {}),
                **own_settings(member),
            },
            "job": {**job, **(member.get("job") or {})},
        }
        for member in experiment.combine.members
    ]


def own_settings(member: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of train that a member of an ensemble sets itself."""
    return {key: value for key, value in member.items() if key not in ("name", "job")}
