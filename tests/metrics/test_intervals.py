"""Intervals around scores: too narrow, and noise is sold as progress."""

from __future__ import annotations

import numpy as np
import pytest
from rouge_score import scoring

from hanflow.metrics.intervals import Interval, mean_intervals


def interval(values: list[float] | np.ndarray, **options: float) -> Interval:
    return mean_intervals({"score": np.array(values)}, **options)["score"]  # type: ignore[arg-type]


def test_rows_that_agree_leave_no_doubt() -> None:
    """Exact even where the mean of equal numbers is not (0.1 + 0.1 + 0.1 is not 0.3)."""
    assert interval([0.1] * 7) == Interval(0.1, 0.1, 0.1)
    assert interval([0.7]) == Interval(0.7, 0.7, 0.7)


def test_no_rows() -> None:
    assert mean_intervals({"score": np.empty(0)}) == {"score": Interval(0.0, 0.0, 0.0)}
    assert mean_intervals({}) == {}


def test_two_rows_by_hand() -> None:
    """Of 0 and 1, two draws have a mean of 0, ½ or 1 with probabilities ¼, ½ and ¼."""
    assert interval([0.0, 1.0], confidence=0.95) == Interval(
        0.5, 0.0, 1.0
    )  # 2.5 % and 97.5 % lie in the outer quarters
    assert interval([0.0, 1.0], confidence=0.4) == Interval(0.5, 0.5, 0.5)  # 30 % and 70 % in the middle half
    # At 1000 resamples the quarters are off by 1.4 points (one standard deviation); 20 % and 30 % are 3.6 of them away.
    assert interval([0.0, 1.0], confidence=0.6) == Interval(0.5, 0.0, 1.0)


def test_the_interval_is_that_of_the_normal_distribution_for_many_rows() -> None:
    """Central limit theorem: ±1.96 standard errors.

    The bounds are quantiles of 4000 resamples; a 2.5 % quantile's own standard error is sqrt(.025·.975/4000)/φ(1.96) =
    0.042 standard errors, and the skew of a mean of 400 rows adds less: 0.2 is nearly five times as much.
    """
    values = np.random.default_rng(5).exponential(size=400)
    error = values.std() / np.sqrt(len(values))
    found = interval(values, resamples=4000)
    assert found.mean == pytest.approx(values.mean(), abs=1e-12)
    assert (found.low - found.mean) / error == pytest.approx(-1.96, abs=0.2)
    assert (found.high - found.mean) / error == pytest.approx(1.96, abs=0.2)


def test_the_interval_is_rouge_score_s() -> None:
    """Its aggregator draws 1000 resamples with another generator: both bounds are off by 0.085 standard errors each (see
    above, at 1000), so their difference by 0.12; 0.5 is four times as much."""
    np.random.seed(3)
    values = np.random.default_rng(4).beta(2, 5, size=300)
    aggregator = scoring.BootstrapAggregator(confidence_interval=0.95, n_samples=1000)
    for value in values:
        aggregator.add_scores({"score": scoring.Score(value, value, value)})
    theirs, ours = aggregator.aggregate()["score"], interval(values)
    error = values.std() / np.sqrt(len(values))
    assert ours.low == pytest.approx(theirs.low.fmeasure, abs=0.5 * error)
    assert ours.high == pytest.approx(theirs.high.fmeasure, abs=0.5 * error)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """400 samples of 60 rows, level 90 %: coverage has a standard error of 1.5 points; the percentile interval of 60 rows
    is narrow by sqrt(59/60) and by the skew, about a point in all. Four standard errors on either side."""
    generator = np.random.default_rng(11)
    covered = 0
    for sample in range(400):
        found = interval(generator.beta(2, 3, size=60), confidence=0.9, resamples=300, seed=sample)
        covered += found.low <= 0.4 <= found.high  # the mean of Beta(2, 3) is 2/5
    assert 0.83 <= covered / 400 <= 0.96


def test_more_confidence_is_wider_and_more_rows_are_narrower() -> None:
    values = np.random.default_rng(2).random(500)
    narrow, wide, few = interval(values, confidence=0.5), interval(values, confidence=0.99), interval(values[:50])
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high
    assert few.high - few.low > 2 * (interval(values).high - interval(values).low)


def test_the_seed_decides() -> None:
    values = np.random.default_rng(2).random(50)
    assert interval(values, seed=7) == interval(values, seed=7)
    assert interval(values, seed=7) != interval(values, seed=8)


def test_metrics_share_resamples() -> None:
    """So that a difference row by row is a paired comparison: a system that is 0.01 better in every row is surely so."""
    theirs = np.random.default_rng(2).random(50)
    found = mean_intervals({"ours": theirs + 0.01, "theirs": theirs, "gain": (theirs + 0.01) - theirs})
    assert found["ours"].low - found["theirs"].low == pytest.approx(0.01, abs=1e-12)
    assert found["ours"].low < found["theirs"].high  # side by side they overlap
    assert found["gain"].low == pytest.approx(0.01, abs=1e-12)


def test_misuse_is_reported() -> None:
    for confidence in (0.0, 1.0, 95):
        with pytest.raises(ValueError, match="between 0 and 1"):
            interval([0.5], confidence=confidence)
    with pytest.raises(ValueError, match="at least 1"):
        interval([0.5], resamples=0)
    with pytest.raises(ValueError, match="different numbers of rows"):
        mean_intervals({"a": np.zeros(2), "b": np.zeros(3)})
