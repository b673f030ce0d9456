"""ROUGE of predictions in files, of any system, against references in files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hanflow.data.delimited import csv_writer
from hanflow.data.readers import text_source
from hanflow.data.schema import Source
from hanflow.errors import UserError
from hanflow.metrics.rouge import CHUNK_CHARACTERS, CHUNK_ROWS, score_rows
from hanflow.progress import Progress
from hanflow.steps.pairing import Pairs
from hanflow.tasks import get_task
from hanflow.text.scoring_tokens import Tokenization


@dataclass(frozen=True)
class FileScores:
    """What files of predictions and references score."""

    rows: int
    empty: int
    """Predictions of white space alone; they score 0."""
    references: tuple[int, int]
    """Fewest and most references of a row."""
    scores: dict[str, np.ndarray]
    """Score (`rougeL_morpheme_precision`) → float64 array of shape (rows,); see `rouge.score_rows`."""


def text_file(path: str, what: str, column: str | None, encoding: str) -> Source:
    """A file of texts to score.

    Args:
        what: `prediction` or `reference`, the usual name of its column; else it is found by those of summaries.
        column: its name, as a person gave it.
        encoding: see `Source.encoding`.
    """
    usual = next(c.aliases for c in get_task("summarization").columns if c.text and not c.input)
    option = f"--{what}-column"
    return text_source(path, column, (what, *usual), ids=True, column_option=option, encoding=encoding)


def score_files(
    predictions: Source, references: Sequence[Source], tokenizations: Sequence[str | Tokenization]
) -> FileScores:
    """ROUGE of every row of a file of predictions; the texts are streamed, only the scores are kept.

    Args:
        predictions: one text a row; see `readers.text_source`.
        references: files with as many rows; a row's references are those of all files together; see `Pairs`.
        tokenizations: ways to cut the texts; each gives its own scores.

    Raises:
        UserError: a file cannot be used (`readers.read_texts`), a row has several predictions, or the files differ in rows
            or in ids.
    """
    pairs = Pairs(predictions, references)
    parts: list[dict[str, np.ndarray]] = []
    rows = empty = 0
    counts: set[int] = set()
    with Progress("scoring", pairs.rows) as progress:
        for predicted, referenced in _chunks(pairs):
            part: dict[str, np.ndarray] = {}
            for tokenization in tokenizations:
                part.update(score_rows(predicted, referenced, tokenization))
            parts.append(part)
            rows += len(predicted)
            empty += sum(not text.strip() for text in predicted)
            counts.update(map(len, referenced))
            progress.update(len(predicted))
    names = max(parts, key=len)
    # Where every row of a chunk has one reference, that is its best one too.
    scores = {
        name: np.concatenate([part[name if name in part else name.replace("_best", "")] for part in parts])
        for name in names
    }
    return FileScores(rows, empty, (min(counts), max(counts)), scores)


def _chunks(pairs: Pairs) -> Iterator[tuple[list[str], list[list[str]]]]:
    """The predictions, and the references of each, of rows that are scored at once."""
    predicted: list[str] = []
    referenced: list[list[str]] = []
    characters = 0
    for number, (texts, references) in enumerate(pairs, start=1):
        if len(texts) > 1:
            raise UserError(
                f"{pairs.sources[0].path}: row {number} has {len(texts)} predictions; score each system by itself"
            )
        predicted.append(texts[0])
        referenced.append(references)
        characters += len(texts[0]) + sum(map(len, references))
        if characters >= CHUNK_CHARACTERS or len(predicted) >= CHUNK_ROWS:
            yield predicted, referenced
            predicted, referenced, characters = [], [], 0
    if predicted:
        yield predicted, referenced


def write_rows(path: Path, scores: Mapping[str, np.ndarray]) -> None:
    """Scores as CSV: `row` (from 0), then a column a score, six decimals.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv_writer(stream)
            writer.writerow(["row", *scores])
            for row, values in enumerate(zip(*scores.values(), strict=True)):
                writer.writerow([row, *(f"{value:.6f}" for value in values)])
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); give --rows a file in a folder that exists"
        ) from None
