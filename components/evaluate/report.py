"""The HTML report of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from components.shared import html, lengths
from components.shared.artifacts import Manifest, lineage
from components.shared.config import EvaluateConfig, to_mapping
from components.shared.html import Section
from components.shared.tasks.base import Task

if TYPE_CHECKING:
    from components.evaluate.score import Rows, System

PROMPT_CHARACTERS = 600
"""Longer prompts are folded away."""

POINTS = 400
"""Most points of a training curve; longer histories are averaged over neighbouring points."""


def render(
    config: EvaluateConfig,
    task: Task,
    rows: Rows,
    systems: Sequence[System],
    training: Mapping[str, Any],
    corpus: Manifest,
    shards: Manifest,
    model: Manifest,
) -> str:
    """The page, the same bytes for the same input.

    Args:
        config: the step's settings.
        task: what is learnt.
        rows: the scored rows.
        systems: every system's predictions and scores, the trained model first.
        training: training.json of the model.
        corpus, shards, model: manifests of the parents; length histograms may be absent.
    """
    sections = [
        _scores(task, systems, len(rows.references)),
        *_curves(training),
        *_lengths(rows, systems[0], corpus, shards),
    ]
    if config.examples:
        sections.append(_examples(config.examples, rows, systems[0]))
    sections += [
        Section("Evaluation settings", _settings(to_mapping(config))),
        Section("Training settings", _settings(training["settings"])),
        Section(
            "Lineage",
            html.table(["artifact", "digest (sha256)"], list(lineage(corpus, shards, model).items())),
            "The artifacts that these scores belong to.",
        ),
    ]
    subtitle = f"{task.name}: {len(rows.references):,} rows of the {config.split} split"
    return html.page("Evaluation", sections, subtitle)


def _scores(task: Task, systems: Sequence[System], rows: int) -> Section:
    names = list(systems[0].scores.overall)
    table = html.table(
        ["system", *names],
        [[system.name, *(float(system.scores.overall[name]) for name in names)] for system in systems],
    )
    intro = f"Means over the same {rows:,} rows; {task.best_metric} decides which model is best."
    rivals = {system.name: system.scores.overall[task.best_metric] for system in systems[1:]}
    if rivals:
        rival = max(rivals, key=lambda name: rivals[name])
        gap = systems[0].scores.overall[task.best_metric] - rivals[rival]
        where = f"{abs(gap):.4f} {'above' if gap > 0 else 'below'}" if gap else "level with"
        intro += f" The trained model is {where} {rival} there."
    return Section("Scores", table, intro)


def _curves(training: Mapping[str, Any]) -> list[Section]:
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
        Section("Loss", html.lines(loss, "optimizer step", "loss per target token"), intro),
        Section("Learning rate", html.lines({"learning rate": rates}, "optimizer step", "learning rate")),
    ]


def thinned(points: Sequence[tuple[float, float]], most: int = POINTS) -> list[tuple[float, float]]:
    """At most `most` points, each the mean of neighbouring ones."""
    if len(points) <= most:
        return list(points)
    groups = np.array_split(np.array(points, dtype=np.float64), most)
    return [(float(x), float(y)) for x, y in (group.mean(axis=0) for group in groups)]


def _lengths(rows: Rows, system: System, corpus: Manifest, shards: Manifest) -> list[Section]:
    texts = {
        "generated": lengths.summary(np.array([len(text) for text in system.predictions], dtype=np.int64)),
        "reference": lengths.summary(np.array([len(text) for text in rows.references], dtype=np.int64)),
    }
    sections = [
        Section(
            "Generated and reference lengths",
            html.histogram(texts, "characters"),
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


def _examples(count: int, rows: Rows, system: System) -> Section:
    chosen = spread(len(rows.references), count)
    items = []
    for row in chosen:
        scores = " · ".join(f"{name} {values[row]:.3f}" for name, values in system.scores.rows.items())
        name = rows.ids[row] if rows.ids and rows.ids[row] else f"row {row}"
        parts = {
            "input": html.text(rows.prompts[row], PROMPT_CHARACTERS),
            "reference": html.text(rows.references[row]),
            "prediction": html.text(system.predictions[row]),
        }
        items.append(html.example(name, parts, scores))
    intro = f"{len(chosen)} rows evenly spread over the split, none picked by hand; all of them are in predictions.csv."
    return Section("Examples", "\n".join(items), intro)


def spread(total: int, count: int) -> list[int]:
    """At most `count` of `total` row numbers, evenly spread, first and last among them."""
    return sorted({int(row) for row in np.linspace(0, total - 1, min(count, total)).round()}) if total else []


def _settings(settings: Mapping[str, Any]) -> str:
    values = [
        [name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]
        for name, value in settings.items()
    ]
    return html.table(["setting", "value"], values)
