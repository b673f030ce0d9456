"""The rows of a split, and what is kept of them: a file of predictions, some examples, numbers."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from hanflow.data.corpus import batches
from hanflow.data.delimited import csv_writer, safe_cell
from hanflow.tasks.base import Task
from hanflow.tasks.data import Predictions

CHUNK = 2_000
"""Rows in memory at once: enough that rows of like length find each other, so that memory stays the same for any split."""

EXTREMES = 5
"""Best rows, and worst rows, that are kept to be shown."""


def chunks(path: Path, task: Task, limit: int) -> Iterator[dict[str, list[str]]]:
    """Role → texts of a split's rows, the first `limit` of them (0: all), so many at a time.

    Raises:
        UserError: the file cannot be read.
    """
    return batches(path, [column.role for column in task.columns], CHUNK, limit)


@dataclass(frozen=True)
class Example:
    """One row with what was predicted for it."""

    row: int
    """Number in the split, from 0."""
    id: str
    """Id from the raw data; "" where it has none."""
    prompt: str
    reference: str
    prediction: str
    measures: dict[str, float]


@dataclass
class Kept:
    """What remains of the trained model's rows; grows by a few numbers a row."""

    wanted: frozenset[int]
    """Rows to keep as examples."""
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
        """Consider one row."""
        if example.row in self.wanted:
            self.examples.append(example)
        for heap, key in ((self.best, rank), (self.worst, -rank)):
            entry = (key, -example.row, example)
            if len(heap) < EXTREMES:
                heapq.heappush(heap, entry)
            elif entry[:2] > heap[0][:2]:
                heapq.heapreplace(heap, entry)


class PredictionsFile(AbstractContextManager["PredictionsFile"]):
    """`predictions.csv`, and the rows that a report shows; use as a context manager.

    UTF-8 CSV with the columns `id` (if the first rows have ids), `row` (from 0, in the split), `prompt`, `reference`,
    `prediction`, then those of the predictions and one a measure. A cell that begins with = + - @, a tab or a carriage
    return gets an apostrophe before it, so that no spreadsheet runs a text as a formula; drop it to have the text back.
    """

    def __init__(self, path: Path, task: Task, wanted: Sequence[int]):
        self.kept = Kept(frozenset(wanted))
        self._path, self._task, self._row = path, task, 0
        self._with_ids = False

    def add(
        self, rows: Mapping[str, Sequence[str]], predictions: Predictions, measures: Mapping[str, np.ndarray]
    ) -> None:
        """Append the predictions for some rows."""
        prompts, references = self._task.prompts(rows), self._task.references(rows)
        ids = rows.get("id") or [""] * len(prompts)
        if self._row == 0:
            self._with_ids = any(ids)
            names = ["row", "prompt", "reference", "prediction", *predictions.columns, *self._task.shown_measures]
            self._writer.writerow([*(["id"] if self._with_ids else []), *names])
        for i, (prompt, reference, text) in enumerate(zip(prompts, references, predictions.texts, strict=True)):
            figures = {name: float(measures[name][i]) for name in self._task.shown_measures}
            more = [safe_cell(str(values[i])) for values in predictions.columns.values()]
            texts = [safe_cell(cell) for cell in (prompt, reference, text)]
            scores = [f"{value:.6f}" for value in figures.values()]
            first = [safe_cell(ids[i])] if self._with_ids else []
            self._writer.writerow([*first, self._row, *texts, *more, *scores])
            example = Example(self._row, ids[i], prompt, reference, text, figures)
            self.kept.add(example, figures[self._task.rank_by])
            self._row += 1
        for name, texts in (("input", prompts), ("generated", predictions.texts), ("reference", references)):
            self.kept.lengths[name].append(np.array([len(text) for text in texts], dtype=np.int64))
        for name, values in self._task.describe(rows, predictions, references).items():
            self.kept.described.setdefault(name, []).append(values)

    def __enter__(self) -> PredictionsFile:
        self._stream: TextIO = self._path.open("w", encoding="utf-8", errors="replace", newline="")
        self._writer = csv_writer(self._stream)
        return self

    def __exit__(self, *_: Any) -> None:
        self._stream.close()
