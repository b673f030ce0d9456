"""Checks across settings: those that exclude or need each other, and the members of an ensemble."""

from __future__ import annotations

import re
from collections.abc import Mapping

from hanflow.config import EvaluateConfig, JobConfig, TrainConfig, build, changed, job_problems
from hanflow.config.cluster import cluster_problems
from hanflow.config.suggest import spelling_hint
from hanflow.experiment.sections import (
    Experiment,
    member_settings,
    own_settings,
    section_class,
    step_config,
    suggestion,
)
from hanflow.tasks import chosen_task
from hanflow.tasks.base import Task
from hanflow.tasks.data import Predictions


def cross_checks(experiment: Experiment) -> list[str]:
    """Problems between settings, one text each."""
    problems = []
    pre = experiment.preprocess
    split_off = (0 if pre.validation_source else pre.validation_ratio) + (0 if pre.test_source else pre.test_ratio)
    if split_off >= 1:
        problems.append(
            f"preprocess.validation_ratio + preprocess.test_ratio is {split_off:g}: nothing is left to train on"
        )
    evaluate = experiment.evaluate
    if not getattr(pre, f"{evaluate.split}_source") and not getattr(pre, f"{evaluate.split}_ratio"):
        other = "validation" if evaluate.split == "test" else "test"
        problems.append(
            f"evaluate.split={evaluate.split} has no rows: preprocess.{evaluate.split}_source is empty and "
            f"preprocess.{evaluate.split}_ratio is 0; set one of them, or evaluate.split={other}"
        )
    problems += _pretrained_problems(experiment.train, experiment.tokenize.tokenizer)
    problems += _member_problems(experiment)
    problems += chosen_task(experiment.task).check_settings(experiment.evaluate)
    if not experiment.export.formats:
        problems.append("export.formats: is empty; name at least one format, or auto")
    if "ctranslate2" in experiment.export.formats and not experiment.export.compute_types:
        problems.append("export.compute_types: is empty, but export.formats asks for ctranslate2; name float32 or int8")
    return problems + job_problems(experiment.job) + cluster_problems(experiment.cluster)


def model_problems(experiment: Experiment) -> list[str]:
    """Problems of the models that an experiment trains and of the figures that judge them, one text each; imports
    transformers, but loads no weights."""
    task = chosen_task(experiment.task)
    figures = limit_problems(experiment.evaluate, task)
    if not experiment.combine.members:
        return figures + task.check_model(experiment.train) + _best_problems(experiment.train, task)
    members = [(m["name"], step_config("train", m["settings"], experiment.task)) for m in member_settings(experiment)]
    return figures + [
        f"combine.members: {name}: {problem}"
        for name, train in members
        for problem in task.check_model(train) + _best_problems(train, task)
    ]


def limit_problems(config: EvaluateConfig, task: Task) -> list[str]:
    """Problems of `evaluate.minimum` and `evaluate.maximum`: unknown scores, and limits that are no numbers."""
    if not config.minimum and not config.maximum:
        return []
    known, problems = _scores(task), []
    for setting, limits in (("minimum", config.minimum), ("maximum", config.maximum)):
        for name, limit in limits.items():
            if name not in known:
                hint = spelling_hint(str(name), known)
                problems.append(f"evaluate.{setting}: the task has no score {name!r}{hint}; known: {', '.join(known)}")
            elif isinstance(limit, bool) or not isinstance(limit, (int, float)):
                problems.append(f"evaluate.{setting}.{name}: expected a number, found {limit!r}")
    return problems


def _best_problems(train: TrainConfig, task: Task) -> list[str]:
    if train.best_metric == "loss":
        return []
    scores = _scores(task)
    if train.best_metric not in scores:
        hint = spelling_hint(train.best_metric, ["loss", *scores])
        return [f"train.best_metric={train.best_metric}: no such figure{hint}; known: loss, {', '.join(scores)}"]
    if not train.validation_rows:
        return [f"train.best_metric={train.best_metric}: a score needs train.validation_rows above 0"]
    return []


def _scores(task: Task) -> list[str]:
    """Names of the scores that the task measures."""
    return list(task.overall(task.score(Predictions([]), [])))


def _pretrained_problems(train: TrainConfig, tokenizer: str) -> list[str]:
    problems = []
    if train.pretrained and train.architecture:
        problems.append("train.pretrained and train.architecture exclude each other: empty one of them")
    if train.pretrained and not tokenizer:
        problems.append(
            f"train.pretrained={train.pretrained!r} needs its own tokenizer: set tokenize.tokenizer={train.pretrained!r}"
        )
    return problems


_MEMBER_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")


def _member_problems(experiment: Experiment) -> list[str]:
    """Problems of the members of an ensemble, one text each."""
    members, weights = experiment.combine.members, experiment.combine.weights
    if not members:
        return ["combine.weights: there are no combine.members that weights could apply to"] if weights else []
    names: list[str] = []
    problems: list[str] = []
    for number, member in enumerate(members, 1):
        name = member.get("name") if isinstance(member, Mapping) else None
        if not isinstance(name, str) or not _MEMBER_NAME.fullmatch(name):
            problems.append(
                f"combine.members: number {number} is {member!r}; give a mapping with its `name` (small letters, digits, "
                "hyphens) and its train settings"
            )
            continue
        if name in names:
            problems.append(f"combine.members: two are named {name}")
        names.append(name)
        own = own_settings(member)
        train, found = build(
            section_class("train", experiment.task),
            {**changed(experiment.train), **own},
            "train",
            False,
            suggestion(experiment.task),
        )
        if train and own.keys() & {"pretrained", "architecture"}:
            found += _pretrained_problems(train, experiment.tokenize.tokenizer)
        different = {} if member.get("job") is None else member["job"]
        if not isinstance(different, Mapping):
            found.append(f"job: expected `key: value` lines, found {different!r}")
            different = {}
        job, wrong = build(JobConfig, {**changed(experiment.job), **different}, "job", False)
        found += wrong or job_problems(job)
        problems += [f"combine.members: {name}: {problem}" for problem in found]
    if weights and len(weights) != len(members):
        problems.append(f"combine.weights: {len(weights)} weights for {len(members)} members; give one each, or none")
    if any(isinstance(w, bool) or not isinstance(w, (int, float)) or w < 0 for w in weights) or (
        weights and not any(weights)
    ):
        problems.append(f"combine.weights: {weights}: give numbers, none negative, not all of them 0")
    if experiment.evaluate.untrained:
        problems.append("evaluate.untrained: an ensemble has no untrained model; set it to false")
    return problems
