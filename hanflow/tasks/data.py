"""What passes between a step and a task: encoded rows, predictions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


LESS_IS_BETTER = frozenset({"loss", "perplexity", "bits_per_byte", "calibration_error"})
"""Scores, of any task, whose best value is the smallest."""


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
    """Name of each sequence → the beginning of a row that the next batch goes on with; None: there is none."""


@dataclass(frozen=True)
class Predictions:
    """What a model, or a trivial system, says about some rows."""

    texts: list[str]
    """One text a row, as a person reads it: a summary, a class."""
    columns: dict[str, list[Any]] = field(default_factory=dict)
    """More that is worth a column beside the texts, e.g. a probability; one plain value a row."""
    measures: dict[str, np.ndarray] = field(default_factory=dict)
    """What `Task.score` needs beside the texts: floating-point arrays of shape (rows,) or (rows, classes)."""
    classes: tuple[str, ...] = ()
    """Names of the classes by index, where texts are classes."""
