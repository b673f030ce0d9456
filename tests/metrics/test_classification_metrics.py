"""Scores of classes against hand-computed ones."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hanflow.metrics import classification as classes
from hanflow.tasks.classification import Classification
from hanflow.tasks.data import Table

NAMES = ("부정", "긍정", "중립")
PROBABILITIES = np.array(
    [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.05, 0.9, 0.05]], dtype=np.float32
)
REFERENCES = ["부정", "긍정", "긍정", "중립", "새 갈래"]


def measured() -> dict[str, np.ndarray]:
    return classes.measures(PROBABILITIES, NAMES, REFERENCES)


def test_what_follows_from_a_row() -> None:
    rows = measured()
    assert rows["right"].tolist() == [1, 1, 0, 1, 0]
    assert rows["label"].tolist() == [0, 1, 1, 2, -1]
    assert rows["predicted"].tolist() == [0, 1, 0, 2, 1]
    np.testing.assert_allclose(rows["probability_of_right"], [0.7, 0.8, 0.3, 0.6, 0.0], rtol=1e-6)


def test_overall_scores_by_hand() -> None:
    scores = classes.overall(measured())
    assert scores["accuracy"] == scores["micro_f1"] == pytest.approx(3 / 5)
    # F1 = 2 hits / (expected + predicted): 부정 2·1/(1+2), 긍정 2·1/(2+2), 중립 2·1/(1+1)
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    logs = [math.log(p) for p in (0.7, 0.8, 0.3, 0.6, 1e-12)]  # an unknown class: the smallest probability there is
    assert scores["loss"] == pytest.approx(-sum(logs) / 5, rel=1e-6)
    # 15 bins of 1/15: 0.6 (twice) shares bin 9 (0.6·15 = 9 in float32: 9.0000004), the others stand alone.
    gaps = [0.3, 0.2, abs(0.6 - 0.5) * 2, 0.9]
    assert scores["calibration_error"] == pytest.approx(sum(gaps) / 5, abs=1e-6)


def test_classes_one_by_one() -> None:
    table = classes.per_class(measured(), 3)
    np.testing.assert_allclose(table[:, 0], [1 / 2, 1 / 2, 1])  # precision
    np.testing.assert_allclose(table[:, 1], [1, 1 / 2, 1])  # recall
    assert table[:, 3].tolist() == [1, 2, 1]  # rows
    assert math.isnan(classes.per_class(measured(), 4)[3, 2])  # a class that nobody says or means
    matrix = classes.confusion(measured(), 3)
    assert matrix.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]  # the unknown class is left out


def test_no_rows_at_all() -> None:
    assert set(classes.overall(classes.measures(None, (), [])).values()) == {0.0}


def test_a_report_names_classes_and_the_unknown_ones() -> None:
    table, matrix, plot = Classification().sections(measured(), {"labels": NAMES})
    assert [part.heading for part in (table, matrix, plot)] == ["Classes", "Confusion matrix", "Reliability"]
    assert isinstance(table, Table) and [row[0] for row in table.rows] == list(NAMES)
    assert "1 rows have a class" in table.intro
