"""The form of a pipeline: about twelve parameters that people change, and one mapping for every other setting.

Kubeflow's pages sort parameters by name and show an empty, zero or false default as missing, so each starts from
something: `none`, `any` and `new` stand for an empty text.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from hanflow.config import changed
from hanflow.errors import ConfigError
from hanflow.experiment.checks import cross_checks, model_problems
from hanflow.experiment.sections import SECTIONS, Experiment, all_settings, build_experiment
from hanflow.tasks import chosen_task


@dataclass(frozen=True)
class Field:
    """One parameter of a pipeline's form."""

    name: str
    setting: str
    """The setting that it sets, e.g. `train.epochs`."""
    type: type
    help: str
    empty: str = ""
    """Word for an empty text."""


_GENERAL: dict[str, tuple[str, str]] = {
    "data": ("preprocess.source", ""),
    "test_data": ("preprocess.test_source", "none"),
    "model": ("train.pretrained", "new"),
    "epochs": ("train.epochs", ""),
    "learning_rate": ("train.learning_rate", ""),
    "batch_tokens": ("train.batch_tokens", ""),
    "runtime": ("job.runtime", ""),
    "nodes": ("job.workers", ""),
    "gpus_per_node": ("job.gpus", ""),
    "node_type": ("job.accelerator", "any"),
}
"""Parameter of every pipeline → its setting, and the word for an empty text."""

MODEL_HELP = (
    "Pretrained model and its tokenizer: hub name or folder; `new`: random weights of settings.train.architecture."
)
MEMBERS = "members"
"""Parameter of the ensemble's pipeline in place of `model`."""
SETTINGS_HELP = (
    'Every other setting by section and name, e.g. {"train": {"seed": 1}, "evaluate": {"limit_rows": 100}}; they '
    "override the form. `hanflow settings` lists them all."
)


def form_of(task: str, ensemble: bool = False) -> list[Field]:
    """The parameters of the pipeline of a task, the needed one first.

    Args:
        task: name of the task; empty: any task, for the parameters that all have.
        ensemble: whether several models are trained in parallel: `members` replaces `model`.
    """
    known = {s.dotted: s for s in all_settings(task)}
    names = dict(_GENERAL)
    if ensemble:
        del names["model"]
        names[MEMBERS] = ("combine.members", "")
    if task:
        names |= {name: (dotted, "") for name, dotted in chosen_task(task).headline.items()}
    fields = []
    for name, (dotted, empty) in names.items():
        setting = known[dotted]
        choices = f" One of: {', '.join(setting.choices)}." if setting.choices else ""
        word = f" `{empty}`: empty." if empty else ""
        help = MODEL_HELP if name == "model" else f"{setting.help}{choices}{word}"
        kind = list[dict] if name == MEMBERS else setting.type
        fields.append(Field(name, dotted, kind, help, empty))
    return fields


def form_values(experiment: Experiment) -> dict[str, Any]:
    """Parameter of the form → its value in an experiment."""
    values = {}
    for field in form_of(experiment.task, bool(experiment.combine.members)):
        section, _, name = field.setting.partition(".")
        value = getattr(getattr(experiment, section), name)
        values[field.name] = field.empty if value == "" else value
    # An example of the mapping: Kubeflow shows an empty default as missing.
    return {**values, "settings": {"train": {"seed": experiment.train.seed}}}


def settings_off_form(experiment: Experiment, form: Collection[str]) -> dict[str, Any]:
    """The name of an experiment, and its settings that are not on the form and differ from their defaults, by section.

    Args:
        form: names of the form's parameters.
    """
    fields = form_of(experiment.task, bool(experiment.combine.members))
    on_form = {field.setting for field in fields if field.name in form}
    model, tokenizer = experiment.train.pretrained, experiment.tokenize.tokenizer
    if model and tokenizer == model:
        on_form.add("tokenize.tokenizer")
    elif model:
        on_form.discard("train.pretrained")  # with it stands the tokenizer of another name
    others: dict[str, Any] = {"name": experiment.name}
    for section in SECTIONS:
        own = {n: v for n, v in changed(getattr(experiment, section)).items() if f"{section}.{n}" not in on_form}
        if own:
            others[section] = own
    return others


def from_form(
    task: str, base: Mapping[str, Any], form: Mapping[str, Any], settings: Mapping[str, Any] | None
) -> Experiment:
    """The experiment that the values of a form describe.

    Args:
        task: name of the task.
        base: settings that the pipeline starts from (`settings_off_form`).
        form: its parameters.
        settings: further settings, section → name → value; they win.

    Raises:
        ConfigError: unknown names, wrong types or values, settings that exclude each other; all in one message.
    """
    values: dict[str, Any] = {key: dict(own) if isinstance(own, Mapping) else own for key, own in base.items()}
    values["task"] = task
    fields = {field.name: field for field in form_of(task, MEMBERS in form)}
    problems = [f"{name}: no such parameter" for name in form if name not in fields]
    for name, value in form.items():
        if name in fields:
            section, _, setting = fields[name].setting.partition(".")
            empty = fields[name].empty
            values.setdefault(section, {})[setting] = "" if empty and value == empty else value
    model = values.get("train", {}).get("pretrained")
    if model:
        values["train"].pop("architecture", None)
        encoding = values.setdefault("tokenize", {})
        if not encoding.get("tokenizer") or model != base.get("train", {}).get("pretrained"):
            encoding["tokenizer"] = model
    for section, own in (settings or {}).items():
        if section in SECTIONS and (own is None or isinstance(own, Mapping)):
            values[section] = {**values.get(section, {}), **(own or {})}
        else:
            values[section] = own
    if values["task"] != task:
        problems.append(f"task: this pipeline learns {task}; start that of {values['task']} instead")
        values["task"] = task
    experiment, found = build_experiment(values)
    problems += found
    if experiment is not None and not problems:
        problems += cross_checks(experiment)
        if experiment.combine.members and MEMBERS not in form:
            problems.append("combine.members: this pipeline trains one model; give them to the form of the ensemble's")
    if experiment is not None and not problems:
        problems += model_problems(experiment)
    if experiment is None or problems:
        raise ConfigError(problems)
    return experiment
