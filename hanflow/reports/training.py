"""The HTML report of a training run: its curves."""

from __future__ import annotations

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
        series = {  # a figure that is NaN does not equal itself, and has no place on a curve
            split: [(p["step"], p[figure]) for p in history[split] if p.get(figure) == p.get(figure, 0.0)]
            for split in ("train", "validation")
            if any(figure in point for point in history[split])
        }
        if series:
            sections.append(Section(heading, html.lines(series, "optimizer step", axis)))
    return sections


def render(training: Mapping[str, Any]) -> str:
    """The page of a run, from its training.json."""
    history, sections = training["history"], curves(training)
    scores = sorted({name for point in history["validation"] for name in point} - {"step", "loss"})
    if scores:
        series = {name: [(p["step"], p[name]) for p in history["validation"]] for name in scores}
        sections.append(Section("Scores", html.lines(series, "optimizer step", "score")))
    facts = [[k, v] for k, v in training.items() if isinstance(v, (str, int, float)) and k != "order"]
    sections.append(Section("Facts", html.table(["what", "value"], facts)))
    return html.page("Training", sections, f"{training['steps']:,} optimizer steps on {training['device']}")
