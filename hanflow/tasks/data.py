"""Data that steps and tasks exchange: metrics, parts of reports, encoded rows, predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

Rows = Mapping[str, Sequence[str]]
"""Rows of a corpus: role → one text a row."""

Facts = Mapping[str, Any]
"""The result of `Task.facts`, as the shards store it."""

Measures = Mapping[str, "np.ndarray"]
"""The result of `Task.score` for some rows."""

Rest = Mapping[str, list[int]]
"""Name of each sequence → the beginning of a row of the shards that the next batch completes."""

ShardRow = Sequence["np.ndarray"]
"""A row of the shards: int32 arrays of shape (length,) of token ids, one for each of `Task.sequences`, in their order."""


@dataclass(frozen=True)
class Metric:
    """A score of all rows, or a measure of each, and its use."""

    name: str
    better: Literal["higher", "lower"] = "higher"
    decides: bool = False
    """Whether it decides which model is best."""
    ranks_rows: bool = False
    """Whether rows are ranked by it, the best and worst shown."""
    shown: bool = False
    """Whether it is shown for single rows."""


@dataclass(frozen=True)
class Table:
    """A table of an evaluation's report."""

    heading: str
    headers: Sequence[str]
    rows: Sequence[Sequence[object]]
    """Numbers or texts, one a header."""
    intro: str = ""


@dataclass(frozen=True)
class Lines:
    """Curves of an evaluation's report."""

    heading: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    """Name of each curve → its points (x, y)."""
    xlabel: str
    ylabel: str
    intro: str = ""


ReportPart = Table | Lines
"""A task's own part of an evaluation's report, as data: `hanflow.reports` draws it."""


@dataclass(frozen=True)
class Encoded:
    """A batch of rows as token ids."""

    columns: dict[str, list[list[int]]]
    """Name of each sequence → one list of token ids a row."""
    truncated: dict[str, int]
    """Name of each sequence → rows cut to its longest length."""
    tokens: int
    """Tokens of all texts before truncation, end-of-sequence not counted."""
    characters: int
    """Characters of all texts."""
    texts: int
    """Rows of the corpus that it holds."""
    rest: dict[str, list[int]] | None = None
    """Name of each sequence → the beginning of a row that the next batch completes; None: there is none."""


@dataclass(frozen=True)
class Predictions:
    """Predictions of a model, or a trivial system, for some rows."""

    texts: list[str]
    """One text a row, as a person reads it: a summary, a class."""
    columns: dict[str, list[Any]] = field(default_factory=dict)
    """Further columns beside the texts, e.g. a probability; one plain value a row."""
    measures: dict[str, np.ndarray] = field(default_factory=dict)
    """Input of `Task.score` beside the texts: floating-point arrays of shape (rows,) or (rows, classes)."""
    classes: tuple[str, ...] = ()
    """Names of the classes by index, where texts are classes."""
