"""The HTML report of an evaluation."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hanflow.config import EvaluateConfig, to_mapping
from hanflow.metrics import lengths
from hanflow.metrics.intervals import Interval
from hanflow.reports import html
from hanflow.reports.html import Section
from hanflow.reports.training import CURVES, curves
from hanflow.storage.artifacts import Manifest, lineage, trainings
from hanflow.tasks.base import Task, lower_is_better
from hanflow.tasks.data import Lines, ReportPart

PROMPT_CHARACTERS = 600
"""Longer prompts are folded away."""

DECILES = 10

EXTREMES = 5
"""Best rows, and worst rows, that the report shows."""


@dataclass(frozen=True)
class System:
    """A model or a baseline, and its scores."""

    name: str
    measures: dict[str, np.ndarray]
    """Measures of every row, from `Task.score`: name → float64 array of shape (rows,)."""
    scores: dict[str, Interval]
    """`Task.overall` of them, with 95 % bootstrap intervals."""


@dataclass(frozen=True)
class Example:
    """One row with its prediction."""

    row: int
    """Number in the split, from 0."""
    id: str
    """Id from the raw data; "" where it has none."""
    prompt: str
    reference: str
    prediction: str
    measures: dict[str, float]


@dataclass
class Shown:
    """What the report shows of the trained model's rows: a few examples, and numbers of every row."""

    wanted: frozenset[int]
    """Numbers of the rows that are shown as examples."""
    examples: list[Example] = field(default_factory=list)
    best: list[tuple[float, int, Example]] = field(default_factory=list)
    worst: list[tuple[float, int, Example]] = field(default_factory=list)
    """Heaps of (rank, -row, example) and (-rank, -row, example)."""
    lengths: dict[str, list[np.ndarray]] = field(
        default_factory=lambda: {"input": [], "generated": [], "reference": []}
    )
    """Characters of every text."""
    described: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """`Task.describe` of every chunk."""

    def add(self, example: Example, rank: float) -> None:
        """Keep a row if it is wanted, or among the best or worst by `rank` (higher is better)."""
        if example.row in self.wanted:
            self.examples.append(example)
        for heap, key in ((self.best, rank), (self.worst, -rank)):
            entry = (key, -example.row, example)
            if len(heap) < EXTREMES:
                heapq.heappush(heap, entry)
            elif entry[:2] > heap[0][:2]:
                heapq.heapreplace(heap, entry)


def render(
    config: EvaluateConfig,
    task: Task,
    rows: int,
    systems: Sequence[System],
    shown: Shown,
    gate: Sequence[str],
    training: Mapping[str, Any],
    corpus: Manifest,
    shards: Manifest,
    model: Manifest,
) -> str:
    """The page, the same bytes for the same input.

    Args:
        config: the step's settings.
        task: the task of the model.
        rows: number of scored rows.
        systems: every system's measures and scores, the trained model first.
        shown: what is shown of the trained model's rows.
        gate: limits that its scores do not meet.
        training: training.json of the model.
        corpus, shards, model: manifests of the parents; length histograms are optional.
    """
    texts = {name: np.concatenate(parts) for name, parts in shown.lengths.items()}
    sections = [
        _scores(task, systems, rows, gate),
        *map(_part, task.sections(systems[0].measures, shards.details["facts"])),
        *_by_length(task, systems, texts["input"]),
        *_described(shown),
        *(section for name, facts in trainings(training).items() for section in _curves(name, facts)),
        *_lengths(texts, corpus, shards),
        *_examples(config.examples, task, shown),
        Section("Evaluation settings", html.settings(to_mapping(config))),
        *(
            Section(_of("Training settings", name), html.settings(facts["settings"]))
            for name, facts in trainings(training).items()
        ),
        Section(
            "Lineage",
            html.table(["artifact", "digest (sha256)"], list(lineage(corpus, shards, model).items())),
            "The artifacts that these scores were computed from.",
        ),
    ]
    return html.page("Evaluation", sections, f"{task.name}: {rows:,} rows of the {config.split} split")


def _part(part: ReportPart) -> Section:
    """A task's own part, as HTML."""
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
        f"Over the same {rows:,} rows, with 95 % bootstrap intervals; {task.best_metric} decides which model is best, "
        f"{'lower' if task.best_metric in lower_is_better(task) else 'higher'} is better."
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
            "A drop on the right suggests that inputs are truncated (tokenize.max_source_tokens).",
        )
    ]


def _described(shown: Shown) -> list[Section]:
    if not shown.described:
        return []
    rows = []
    for name, parts in shown.described.items():
        values = np.concatenate(parts)
        known = values[~np.isnan(values)]
        rows.append([name, float(known.mean()) if len(known) else "–", len(known)])
    return [
        Section(
            "Predictions", html.table(["property", "mean", "rows"], rows), "Means over the rows of the trained model."
        )
    ]


def _of(heading: str, member: str) -> str:
    return f"{heading} of the member {member}" if member else heading


def _curves(member: str, training: Mapping[str, Any]) -> list[Section]:
    best, intro = training.get("best"), ""
    if best:
        values = ", ".join(f"validation {name} {value:.4f}" for name, value in best.items() if name != "step")
        intro = f"The saved model is that of step {best['step']:,}: {values}."
    loss, *others = (replace(part, heading=_of(part.heading, member)) for part in curves(training, CURVES[:2]))
    return [replace(loss, intro=intro), *others]


def _lengths(texts: Mapping[str, np.ndarray], corpus: Manifest, shards: Manifest) -> list[Section]:
    series = {name: lengths.summary(texts[name]) for name in ("generated", "reference")}
    sections = [
        Section(
            "Predicted and reference lengths",
            html.histogram(series, "characters"),
            "Texts much shorter or longer than their references suggest a wrong max_new_tokens or length_penalty, or too little training.",
        )
    ]
    for manifest, heading, unit, intro in (
        (corpus, "Corpus lengths", "characters", "All splits, after cleaning."),
        (shards, "Token lengths", "tokens", "All splits, after truncation, end-of-sequence included."),
    ):
        if manifest.details.get("lengths"):
            sections.append(Section(heading, html.histogram(manifest.details["lengths"], unit), intro))
    return sections


def _examples(count: int, task: Task, shown: Shown) -> list[Section]:
    if not count:
        return []
    best, worst = ([example for *_, example in sorted(heap, reverse=True)] for heap in (shown.best, shown.worst))
    by = f"By {task.rank_by}."
    return [
        Section("Best rows", "\n".join(map(_example, best)), by),
        Section("Worst rows", "\n".join(map(_example, worst)), by),
        Section(
            "Examples",
            "\n".join(map(_example, shown.examples)),
            f"{len(shown.examples)} rows evenly spread over the split, not chosen by hand; every row is in "
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
