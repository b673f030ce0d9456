"""Scores of lists of texts, and rows of files to score or predict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hanflow.errors import UserError

if TYPE_CHECKING:
    import os

    import numpy as np

    from hanflow.api.prediction import Prediction
    from hanflow.tasks.base import Task
    from hanflow.text.scoring_tokens import Tokenization


class Scores(dict[str, float]):
    """Name of each score → its value over all rows; with the rows behind it."""

    def __init__(
        self,
        values: Mapping[str, float],
        rows: Mapping[str, np.ndarray],
        overall: Callable[..., Mapping[str, float]] | None,
    ):
        super().__init__(values)
        self.rows = dict(rows)
        """The values of each row that the scores are computed from: name → float64 array of shape (rows,)."""
        self._overall = overall

    def intervals(self, *, confidence: float = 0.95, seed: int = 0) -> dict[str, tuple[float, float]]:
        """Name of each score → (low, high) of its percentile bootstrap interval (1,000 resamples of the rows).

        Args:
            confidence: part of the resamples that the interval holds, above 0 and below 1.
            seed: of the resamples; the same seed gives the same interval.
        """
        from hanflow.metrics.intervals import mean_intervals, score_intervals

        if not 0 < confidence < 1:
            raise UserError(f"confidence={confidence}: give a number between 0 and 1, e.g. 0.95")
        if self._overall is None:
            found = mean_intervals(self.rows, confidence=confidence, seed=seed)
        else:
            found = score_intervals(self.rows, self._overall, confidence=confidence, seed=seed)
        return {name: (interval.low, interval.high) for name, interval in found.items() if name in self}


def rouge(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    *,
    tokenization: str | Tokenization = "morpheme",
) -> Scores:
    """ROUGE-1, -2, -L and -Lsum of Korean texts (Lin, 2004), each between 0 and 1.

    Args:
        predictions: one text a row; an empty one scores 0.
        references: the right text of each row, or its several right texts.
        tokenization: how texts are cut: `morpheme` (MeCab), `character` or `word`, after NFKC, or `dacon` (as Dacon's
            contests do, without it). Its name stands in every score's: scores of different tokenizations do not compare.

    Returns:
        `rougeL_morpheme` (F1), `rougeL_morpheme_precision`, `rougeL_morpheme_recall` …: means over the rows. Of several
        references a row's score is the mean over them, and `rougeL_morpheme_best` that of its best one.

    Raises:
        UserError: the lists differ in length, a row has no reference, or there is no such tokenization.
    """
    from hanflow.metrics.rouge import score_rows

    try:
        rows = score_rows(list(predictions), list(references), tokenization)
    except ValueError as error:
        raise UserError(f"rouge: {error}; give one prediction and its reference a row") from None
    return Scores({name: float(values.mean()) if len(values) else 0.0 for name, values in rows.items()}, rows, None)


def score(task: str, predictions: Sequence[str | Prediction], references: Sequence[str]) -> Scores:
    """The scores that the evaluate step gives to a task's predictions.

    Args:
        task: name of the task: summarization (ROUGE), classification (accuracy, F1, and of predictions with probabilities
            loss in nats a row and calibration error), or one of your own.
        predictions: one a row: texts, labels, or what a `Predictor` returned.
        references: the right text or label of each row.

    Raises:
        UserError: the lists differ in length, or the task's predictions cannot be scored as texts.
    """
    from hanflow.tasks import get_task

    chosen, references = get_task(task), list(references)
    if len(predictions) != len(references):
        raise UserError(f"score: {len(predictions)} predictions for {len(references)} references; give one a row")
    if not (chosen.generates or chosen.labels):
        raise UserError(
            f"score: the task {task} is scored by how likely a model finds the texts, not by texts that it predicts; use "
            'run_step("evaluate", …)'
        )
    texts = [str(prediction) for prediction in predictions]
    if not chosen.labels:
        return _scores(chosen, texts, references)
    given = [getattr(prediction, "probabilities", {}) for prediction in predictions]
    if texts and all(given):
        return _scores(chosen, texts, references, given)
    # Labels alone have no probabilities: scores that change with them are left out.
    labels = sorted({*texts, *references})
    rest = max(len(labels) - 1, 1)
    sure, less = (
        [{label: p if label == text else (1 - p) / rest for label in labels} for text in texts] for p in (1.0, 0.9)
    )
    scores, other = _scores(chosen, texts, references, sure), _scores(chosen, texts, references, less)
    for name in [name for name, value in scores.items() if value != other[name]]:
        del scores[name]
    return scores


def _scores(
    task: Task, texts: list[str], references: list[str], probabilities: Sequence[Mapping[str, float]] = ()
) -> Scores:
    import numpy as np

    from hanflow.tasks.data import Predictions

    classes = tuple(sorted({label for row in probabilities for label in row}))
    measures: dict[str, Any] = {}
    if classes:
        table = [[row.get(label, 0.0) for label in classes] for row in probabilities]
        measures["probabilities"] = np.array(table, dtype=np.float32)
    rows = task.score(Predictions(texts, measures=measures, classes=classes), references)
    return Scores(task.overall(rows), rows, task.overall)


def read_rows(
    path: str | os.PathLike[str], columns: Sequence[str] | None = None, *, encoding: str = "auto"
) -> Iterator[dict[str, str]]:
    """The rows of a file, in order; memory does not follow their number.

    Args:
        path: .csv, .tsv, .jsonl or .parquet with named columns, or a file with one text a line; each also .gz; local or
            `gs://…`.
        columns: those to give; None: all. A file of lines has one, `text`.
        encoding: name of a codec; auto: by byte-order mark, else UTF-8, else CP949 where only that fits.

    Yields:
        Name of each column → its text, "" for a missing one.

    Raises:
        UserError: the file is missing, damaged or empty, has no such column, or a row is malformed; the message gives the line.
    """
    from hanflow.data.readers import column_names, read
    from hanflow.data.schema import Column, Source

    found = column_names(str(path), encoding)
    chosen = found if columns is None else list(columns)
    absent = [name for name in chosen if name.casefold() not in {known.casefold() for known in found}]
    if absent or not chosen:
        wrong = f"has no column {absent[0]!r}" if absent else "columns is empty"
        raise UserError(f"{path}: {wrong}; its columns: {', '.join(found)}; name some of them, or give None for all")
    source = Source(
        str(path),
        tuple(Column(name, (name,)) for name in chosen),
        encoding=encoding,
        every_row=True,
        column_option="columns",
        encoding_option="encoding=",
    )
    for batch in read(source):
        for row in batch:
            yield dict(row.values or {})
