"""Metrics of classifiers: accuracy, F1, calibration, confusion; pure functions over arrays.

Shapes: N rows, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

BINS = 15
"""Bins of the calibration error, as in Guo et al. (2017)."""

UNKNOWN = -1
"""Index of a reference class that the model does not have."""


def measures(
    probabilities: np.ndarray | None, classes: Sequence[str], references: Sequence[str]
) -> dict[str, np.ndarray]:
    """Per-row quantities from which `overall` computes the metrics.

    Args:
        probabilities: float32 (N, C); None: N is 0.
        classes: name of each class.
        references: the reference class of every row; one that is not in `classes` counts as predicted wrongly.

    Returns:
        float64 arrays of shape (N,): `right` (1 where the likeliest class is the reference, else 0), `label` and
        `predicted` (indices of reference and predicted class, UNKNOWN for a class not in `classes`), `probability` (of
        the predicted class), `probability_of_right` (of the reference).
    """
    if probabilities is None or not len(references):
        names = ("right", "label", "predicted", "probability", "probability_of_right")
        return {name: np.zeros(0) for name in names}
    index = {name: place for place, name in enumerate(classes)}
    label = np.array([index.get(reference, UNKNOWN) for reference in references])
    predicted, rows = probabilities.argmax(axis=1), np.arange(len(references))
    of_right = np.where(label == UNKNOWN, 0.0, probabilities[rows, np.maximum(label, 0)])
    return {
        "right": (predicted == label).astype(np.float64),
        "label": label.astype(np.float64),
        "predicted": predicted.astype(np.float64),
        "probability": probabilities[rows, predicted].astype(np.float64),
        "probability_of_right": of_right.astype(np.float64),
    }


def overall(rows: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Metrics of all rows, from the arrays of `measures`.

    Returns:
        `accuracy`; `macro_f1`, the mean over the classes that occur as reference or prediction; `micro_f1` (with one class
        a row, the accuracy); `loss`, the mean negative log-likelihood in nats; `calibration_error`, see `calibration`. All
        are 0 without any row.
    """
    count = len(rows["right"])
    if not count:
        return dict.fromkeys(("accuracy", "macro_f1", "micro_f1", "loss", "calibration_error"), 0.0)
    accuracy = float(rows["right"].mean())
    f1 = per_class(rows, 1 + int(max(rows["label"].max(), rows["predicted"].max())))[:, 2]
    bins = calibration(rows)
    return {
        "accuracy": accuracy,
        "macro_f1": float(np.nanmean(f1)),
        "micro_f1": accuracy,
        "loss": float(-np.log(np.maximum(rows["probability_of_right"], 1e-12)).mean()),
        "calibration_error": float((bins[:, 2] * np.abs(bins[:, 1] - bins[:, 0])).sum() / count),
    }


def confusion(rows: Mapping[str, np.ndarray], classes: int) -> np.ndarray:
    """int64 (C, C): number of rows by reference class (first axis) and predicted class; rows of unknown classes are omitted."""
    known = rows["label"] >= 0
    places = rows["label"][known] * classes + rows["predicted"][known]
    return np.bincount(places.astype(np.int64), minlength=classes * classes).reshape(classes, classes)


def per_class(rows: Mapping[str, np.ndarray], classes: int) -> np.ndarray:
    """Precision, recall, F1 and number of reference rows of every class: float64 (C, 4); F1 is NaN where a class occurs
    neither as reference nor as prediction."""
    label, predicted = rows["label"].astype(np.int64), rows["predicted"].astype(np.int64)
    expected = np.bincount(label[label >= 0], minlength=classes).astype(np.float64)
    guessed = np.bincount(predicted, minlength=classes).astype(np.float64)
    hits = np.bincount(label[label == predicted], minlength=classes).astype(np.float64)
    with np.errstate(invalid="ignore"):
        f1 = 2 * hits / (expected + guessed)
    return np.stack([hits / np.maximum(guessed, 1), hits / np.maximum(expected, 1), f1, expected], axis=1)


def calibration(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """Mean probability, accuracy and number of rows of BINS probability bins of equal width: float64 (BINS, 3).

    The expected calibration error (Guo et al., 2017, equation 3) is the mean difference of the first two, weighted by
    the third.
    """
    place = np.minimum((rows["probability"] * BINS).astype(np.int64), BINS - 1)
    count = np.bincount(place, minlength=BINS).astype(np.float64)
    sums = [np.bincount(place, rows[name], BINS) / np.maximum(count, 1) for name in ("probability", "right")]
    return np.stack([*sums, count], axis=1)
