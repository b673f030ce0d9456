"""Descriptive metrics of summaries beside ROUGE: how much is copied, new, repeated or truncated, and their length.

Words are separated by white space (eojeol).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np


def describe(
    sources: Sequence[str], summaries: Sequence[str], references: Sequence[str], cut: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Descriptive metrics of every row; NaN where one is undefined (an empty summary, a single word).

    Args:
        sources: the texts that were summarized.
        summaries: the generated summaries.
        references: the reference summaries.
        cut: float64 of shape (rows,), 1.0 where `max_new_tokens` ended the summary; None: not known.

    Returns:
        Name → float64 array of shape (rows,): `copied words` (share of the summary's words that occur in the source), `new
        word pairs` (share of its word bigrams that do not occur in the source), `repeated word pairs` (share of its bigrams
        that occurred in it before), `length to reference` (characters), `cut at max_new_tokens`, `empty`.
    """
    columns: dict[str, list[float]] = {
        name: [] for name in ("copied words", "new word pairs", "repeated word pairs", "length to reference", "empty")
    }
    for source, summary, reference in zip(sources, summaries, references, strict=True):
        words, known = summary.split(), source.split()
        pairs, known_words = list(itertools.pairwise(words)), set(known)
        known_pairs = set(itertools.pairwise(known))
        columns["copied words"].append(_share(sum(word in known_words for word in words), len(words)))
        columns["new word pairs"].append(_share(sum(pair not in known_pairs for pair in pairs), len(pairs)))
        columns["repeated word pairs"].append(_share(len(pairs) - len(set(pairs)), len(pairs)))
        columns["length to reference"].append(_share(len(summary), len(reference)))
        columns["empty"].append(float(not words))
    figures = {name: np.array(values, dtype=np.float64) for name, values in columns.items()}
    return figures if cut is None else {**figures, "cut at max_new_tokens": cut}


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
