"""The HTML report of a training run: its curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hanflow.reports import html
from hanflow.reports.html import Section

CURVES = (
    ("Loss", "loss", "nats a target token"),
    ("Learning rate", "learning_rate", "learning rate"),
    ("Gradient norm", "gradient_norm", "global norm before clipping"),
    ("Speed", "tokens_per_second", "real tokens a second"),
    ("Memory", "memory_gb", "GB, most so far"),
)
"""Heading, figure and axis of each curve."""


def curves(training: Mapping[str, Any], wanted: Sequence[tuple[str, str, str]] = CURVES) -> list[Section]:
    """A section for each of the curves that were recorded, from a run's training.json."""
    history, sections = training["history"], []
    for heading, figure, axis in wanted:
        series = {
            split: _points(history[split], figure)
            for split in ("train", "validation")
            if any(figure in point for point in history[split])
        }
        if series:
            sections.append(Section(heading, html.lines(series, "optimizer step", axis)))
    return sections


def _points(history: Sequence[Mapping[str, Any]], figure: str) -> list[tuple[int, float]]:
    """(step, value) where the figure is finite: else it is NaN or infinite, and None when it was read back."""
    return [(p["step"], p[figure]) for p in history if p.get(figure) is not None and math.isfinite(p[figure])]


def render(training: Mapping[str, Any]) -> str:
    """The page of a run, from its training.json."""
    history, sections = training["history"], curves(training)
    scores = sorted({name for point in history["validation"] for name in point} - {"step", "loss"})
    if scores:
        series = {name: _points(history["validation"], name) for name in scores}
        sections.append(Section("Scores", html.lines(series, "optimizer step", "score")))
    facts = [[k, v] for k, v in training.items() if isinstance(v, (str, int, float)) and k != "order"]
    sections.append(Section("Facts", html.table(["what", "value"], facts)))
    return html.page("Training", sections, f"{training['steps']:,} optimizer steps on {training['device']}")
