"""All settings of a run, and how the outside sees each: `train.epochs` in a file, `train_epochs` in Kubeflow."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Any

from hanflow.config.cluster import ClusterConfig, JobConfig
from hanflow.config.fields import setting
from hanflow.config.steps import CombineConfig, EvaluateConfig, ExportConfig, PreprocessConfig, TokenizeConfig
from hanflow.config.training import TrainConfig


@dataclass(frozen=True)
class Experiment:
    """Every setting of one run."""

    name: str = setting("experiment", "Name of the run; output folders and the model card carry it.")
    task: str = setting("summarization", "What is learnt.")
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    tokenize: TokenizeConfig = field(default_factory=TokenizeConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    combine: CombineConfig = field(default_factory=CombineConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    job: JobConfig = field(default_factory=JobConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    @property
    def pipeline(self) -> str:
        """Name of the pipeline that runs it."""
        return "ensemble" if self.combine.members else self.task


STEPS: dict[str, type] = {
    "preprocess": PreprocessConfig,
    "tokenize": TokenizeConfig,
    "train": TrainConfig,
    "combine": CombineConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
}
"""Step → its settings."""


SECTIONS: dict[str, type] = {**STEPS, "job": JobConfig, "cluster": ClusterConfig}
"""Section of an experiment → its settings: the steps', and what says where the train step's workers and the steps run."""


@dataclass(frozen=True)
class Setting:
    """One setting as the outside sees it: `train.epochs` on the command line, `train_epochs` in Kubeflow."""

    step: str
    name: str
    type: type
    default: Any
    help: str
    required: bool
    choices: tuple[str, ...] = ()
    """The only values it takes, or, of a list, that its items take; empty: not limited to some."""

    @property
    def dotted(self) -> str:
        return f"{self.step}.{self.name}"

    @property
    def parameter(self) -> str:
        return f"{self.step}_{self.name}"


def settings_of(step: str) -> list[Setting]:
    """The settings of one section, in the order they are declared."""
    cls = SECTIONS[step]
    hints = typing.get_type_hints(cls)
    defaults = cls()
    return [
        Setting(
            *(step, f.name, hints[f.name], getattr(defaults, f.name)),
            *(f.metadata[part] for part in ("help", "required", "choices")),
        )
        for f in dataclasses.fields(cls)
    ]


def all_settings() -> list[Setting]:
    """The settings of all sections."""
    return [s for section in SECTIONS for s in settings_of(section)]


def member_settings(experiment: Experiment) -> list[dict[str, Any]]:
    """Name and settings of every member of an ensemble: what the train section sets, below what is its own.

    Settings left at their default are left out.
    """
    shared = changed(experiment.train)
    return [{**shared, **member} for member in experiment.combine.members]


def changed(config: Any) -> dict[str, Any]:
    """The settings of a section that differ from their defaults."""
    defaults = to_mapping(type(config)())
    return {name: value for name, value in to_mapping(config).items() if value != defaults[name]}


def to_mapping(config: Any) -> dict[str, Any]:
    """A config as plain data, fit for YAML and JSON."""
    return dataclasses.asdict(config)
