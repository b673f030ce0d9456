"""The HTML report of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hanflow.config import EvaluateConfig, to_mapping
from hanflow.metrics import lengths
from hanflow.metrics.intervals import Interval
from hanflow.reports import html
from hanflow.reports.html import Section
from hanflow.storage.artifacts import Manifest, lineage, trainings
from hanflow.tasks.base import Task, lower_is_better
from hanflow.tasks.data import Lines, ReportPart

if TYPE_CHECKING:
    from hanflow.steps.evaluate import System
    from hanflow.steps.evaluation_rows import Example, Kept

PROMPT_CHARACTERS = 600
"""Longer prompts are folded away."""

DECILES = 10

POINTS = 400
"""Most points of a training curve; longer histories are averaged over neighbouring points."""


def render(
    config: EvaluateConfig,
    task: Task,
    rows: int,
    systems: Sequence[System],
    kept: Kept,
    gate: Sequence[str],
    training: Mapping[str, Any],
    corpus: Manifest,
    shards: Manifest,
    model: Manifest,
) -> str:
    """The page, the same bytes for the same input.

    Args:
        config: the step's settings.
        task: what is learnt.
        rows: how many were scored.
        systems: every system's measures and scores, the trained model first.
        kept: what remains of the trained model's rows.
        gate: limits that its scores do not keep.
        training: training.json of the model.
        corpus, shards, model: manifests of the parents; length histograms may be absent.
    """
    texts = {name: np.concatenate(parts) for name, parts in kept.lengths.items()}
    sections = [
        _scores(task, systems, rows, gate),
        *map(_part, task.sections(systems[0].measures, shards.details["facts"])),
        *_by_length(task, systems, texts["input"]),
        *_described(kept),
        *(section for name, facts in trainings(training).items() for section in _curves(name, facts)),
        *_lengths(texts, corpus, shards),
        *_examples(config.examples, task, kept),
        Section("Evaluation settings", _settings(to_mapping(config))),
        *(
            Section(_of("Training settings", name), _settings(facts["settings"]))
            for name, facts in trainings(training).items()
        ),
        Section(
            "Lineage",
            html.table(["artifact", "digest (sha256)"], list(lineage(corpus, shards, model).items())),
            "The artifacts that these scores belong to.",
        ),
    ]
    return html.page("Evaluation", sections, f"{task.name}: {rows:,} rows of the {config.split} split")


def _part(part: ReportPart) -> Section:
    """What a task adds, as HTML."""
    if isinstance(part, Lines):
        return Section(part.heading, html.lines(part.series, part.xlabel, part.ylabel), part.intro)
    return Section(part.heading, html.table(part.headers, part.rows), part.intro)


def _scores(task: Task, systems: Sequence[System], rows: int, gate: Sequence[str]) -> Section:
    names = list(systems[0].scores)
    table = html.table(
        ["system", *names],
        [[system.name, *(_with_interval(system.scores[name]) for name in names)] for system in systems],
    )
    intro = (
        f"Of the same {rows:,} rows, with 95 % bootstrap intervals; {task.best_metric} decides which model is best, "
        f"{'less' if task.best_metric in lower_is_better(task) else 'more'} is better."
    )
    rivals = {system.name: system.scores[task.best_metric].mean for system in systems[1:]}
    if rivals:
        rival = (min if task.best_metric in lower_is_better(task) else max)(rivals, key=lambda name: rivals[name])
        gap = systems[0].scores[task.best_metric].mean - rivals[rival]
        where = f"{abs(gap):.4f} {'above' if gap > 0 else 'below'}" if gap else "level with"
        intro += f" The trained model is {where} {rival} there."
    if gate:
        intro += f" Not good enough to export: {'; '.join(gate)}."
    return Section("Scores", table, intro)


def _with_interval(interval: Interval) -> str:
    return f"{interval.mean:.4f} ({interval.low:.4f} to {interval.high:.4f})"


def _by_length(task: Task, systems: Sequence[System], lengths_of_inputs: np.ndarray) -> list[Section]:
    """The deciding score of ten groups of rows, from the shortest inputs to the longest."""
    groups = [group for group in np.array_split(np.argsort(lengths_of_inputs, kind="stable"), DECILES) if len(group)]
    if len(groups) < DECILES:
        return []
    series = {
        system.name: [
            (
                float(np.median(lengths_of_inputs[group])),
                task.overall({name: values[group] for name, values in system.measures.items()})[task.best_metric],
            )
            for group in groups
        ]
        for system in systems
    }
    return [
        Section(
            "Score by input length",
            html.lines(series, "characters of the input (median of a tenth of the rows)", task.best_metric),
            "A fall on the right points at inputs that are cut (tokenize.max_source_tokens).",
        )
    ]


def _described(kept: Kept) -> list[Section]:
    if not kept.described:
        return []
    rows = []
    for name, parts in kept.described.items():
        values = np.concatenate(parts)
        known = values[~np.isnan(values)]
        rows.append([name, float(known.mean()) if len(known) else "–", len(known)])
    return [Section("Predictions", html.table(["what", "mean", "rows"], rows), "Of the trained model, row by row.")]


def _of(heading: str, member: str) -> str:
    return f"{heading} of the member {member}" if member else heading


def _curves(member: str, training: Mapping[str, Any]) -> list[Section]:
    history, best = training["history"], training.get("best")
    loss = {
        "train": thinned([(point["step"], point["loss"]) for point in history["train"]]),
        "validation": thinned([(point["step"], point["loss"]) for point in history["validation"]]),
    }
    rates = thinned([(point["step"], point["learning_rate"]) for point in history["train"]])
    intro = ""
    if best:
        values = ", ".join(f"validation {name} {value:.4f}" for name, value in best.items() if name != "step")
        intro = f"The kept model is that of step {best['step']:,}: {values}."
    return [
        Section(_of("Loss", member), html.lines(loss, "optimizer step", "loss per target token"), intro),
        Section(_of("Learning rate", member), html.lines({"learning rate": rates}, "optimizer step", "learning rate")),
    ]


def thinned(points: Sequence[tuple[float, float]], most: int = POINTS) -> list[tuple[float, float]]:
    """At most `most` points, each the mean of neighbouring ones."""
    if len(points) <= most:
        return list(points)
    groups = np.array_split(np.array(points, dtype=np.float64), most)
    return [(float(x), float(y)) for x, y in (group.mean(axis=0) for group in groups)]


def _lengths(texts: Mapping[str, np.ndarray], corpus: Manifest, shards: Manifest) -> list[Section]:
    series = {name: lengths.summary(texts[name]) for name in ("generated", "reference")}
    sections = [
        Section(
            "Predicted and reference lengths",
            html.histogram(series, "characters"),
            "Texts much shorter or longer than their references point at max_new_tokens, length_penalty or the training.",
        )
    ]
    for manifest, heading, unit, intro in (
        (corpus, "Corpus lengths", "characters", "All splits, after cleaning."),
        (shards, "Token lengths", "tokens", "All splits, after truncation, end-of-sequence included."),
    ):
        if manifest.details.get("lengths"):
            sections.append(Section(heading, html.histogram(manifest.details["lengths"], unit), intro))
    return sections


def _examples(count: int, task: Task, kept: Kept) -> list[Section]:
    if not count:
        return []
    best, worst = ([example for *_, example in sorted(heap, reverse=True)] for heap in (kept.best, kept.worst))
    by = f"By {task.rank_by}."
    return [
        Section("Best rows", "\n".join(map(_example, best)), by),
        Section("Worst rows", "\n".join(map(_example, worst)), by),
        Section(
            "Examples",
            "\n".join(map(_example, kept.examples)),
            f"{len(kept.examples)} rows evenly spread over the split, none picked by hand; all of them are in "
            "predictions.csv.",
        ),
    ]


def _example(example: Example) -> str:
    scores = " · ".join(f"{name} {value:.3f}" for name, value in example.measures.items())
    parts = {
        "input": html.text(example.prompt, PROMPT_CHARACTERS),
        "reference": html.text(example.reference),
        "prediction": html.text(example.prediction),
    }
    return html.example(example.id or f"row {example.row}", parts, scores)


def _settings(settings: Mapping[str, Any]) -> str:
    values = [
        [name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]
        for name, value in settings.items()
    ]
    return html.table(["setting", "value"], values)
