"""ROUGE that is right for Korean: pure functions over lists of texts.

Scores follow Lin (2004), as the rouge_score package computes them: ROUGE-N from clipped n-gram counts, ROUGE-L from the
longest common subsequence. What differs is the tokens. rouge_score's own tokenizer drops every character outside
[a-z0-9], so Korean texts score 0 or, by their Latin letters alone, 1. Here a text is brought to NFKC and cut by a named
tokenization, and the name stands in every key: a score means nothing without it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mecab import MeCab

VARIANTS = ("rouge1", "rouge2", "rougeL")

MECAB_CHARACTERS = 1000
"""Longest piece given to MeCab at once: its wrapper's time grows with the square of the length."""

# MeCab ends a text at NUL and its wrapper refuses lone surrogates; a control character is no token anyway.
_UNREADABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class Overlap:
    """What one ROUGE variant counts, row by row: int64 arrays of shape (rows,)."""

    matches: np.ndarray
    """Units that prediction and reference share."""
    predicted: np.ndarray
    """Units of the prediction."""
    expected: np.ndarray
    """Units of the reference."""

    @property
    def precision(self) -> np.ndarray:
        """matches / predicted, 0 where nothing was predicted: float64 array of shape (rows,)."""
        return self.matches / np.maximum(self.predicted, 1)

    @property
    def recall(self) -> np.ndarray:
        """matches / expected, 0 where nothing was expected: float64 array of shape (rows,)."""
        return self.matches / np.maximum(self.expected, 1)

    @property
    def f1(self) -> np.ndarray:
        """Harmonic mean of precision and recall, 2·matches / (predicted + expected): float64 array of shape (rows,)."""
        return 2 * self.matches / np.maximum(self.predicted + self.expected, 1)


def f1_rows(
    predictions: Sequence[str], references: Sequence[str], tokenization: str = "morpheme"
) -> dict[str, np.ndarray]:
    """ROUGE-1, -2 and -L F1 of every row.

    Args:
        predictions: one text a row; an empty one, or one without any token, scores 0.
        references: the right text of every row.
        tokenization: a key of `TOKENIZATIONS`.

    Returns:
        `rouge1_<tokenization>`, `rouge2_…` and `rougeL_…` → float64 array of shape (rows,), between 0 and 1.

    Raises:
        ValueError: unknown tokenization, or the lists differ in length.
    """
    overlaps = overlap_rows(predictions, references, tokenization)
    return {f"{variant}_{tokenization}": overlap.f1 for variant, overlap in overlaps.items()}


def overlap_rows(
    predictions: Sequence[str], references: Sequence[str], tokenization: str = "morpheme"
) -> dict[str, Overlap]:
    """The counts behind ROUGE-1, -2 and -L of every row, for precision, recall and F1; arguments as in `f1_rows`."""
    if tokenization not in TOKENIZATIONS:
        raise ValueError(f"tokenization {tokenization!r} is not known; known: {', '.join(TOKENIZATIONS)}")
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references")
    tokenize = TOKENIZATIONS[tokenization]
    counts = np.zeros((len(VARIANTS), 3, len(predictions)), dtype=np.int64)
    for row, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        counts[:, :, row] = token_overlaps(tokenize(normalise(prediction)), tokenize(normalise(reference)))
    return {variant: Overlap(*counts[i]) for i, variant in enumerate(VARIANTS)}


def token_overlaps(prediction: Sequence[str], reference: Sequence[str]) -> list[tuple[int, int, int]]:
    """(matches, predicted, expected) of every variant in `VARIANTS`, for one pair of token lists."""
    # Small whole numbers in place of strings: LCSseq compares elements by their hash, and these cannot collide.
    numbers: dict[str, int] = {}
    a = [numbers.setdefault(token, len(numbers)) for token in prediction]
    b = [numbers.setdefault(token, len(numbers)) for token in reference]
    return [_ngrams(a, b, 1), _ngrams(a, b, 2), _longest_common_subsequence(a, b)]


def _ngrams(a: list[int], b: list[int], n: int) -> tuple[int, int, int]:
    left = Counter(zip(*(a[i:] for i in range(n)), strict=False))
    right = Counter(zip(*(b[i:] for i in range(n)), strict=False))
    return (left & right).total(), left.total(), right.total()


def _longest_common_subsequence(a: list[int], b: list[int]) -> tuple[int, int, int]:
    from rapidfuzz.distance import LCSseq

    return LCSseq.similarity(a, b), len(a), len(b)


def normalise(text: str) -> str:
    """NFKC, as most Korean tokenizers decode (ㅋ becomes ᄏ there), with unreadable characters as spaces."""
    return _UNREADABLE.sub(" ", unicodedata.normalize("NFKC", text))


def morphemes(text: str) -> list[str]:
    """Surface forms of MeCab's morphemes with mecab-ko-dic; texts beyond MECAB_CHARACTERS are cut at spaces first."""
    mecab = _mecab()
    return [morpheme for piece in _pieces(text, MECAB_CHARACTERS) for morpheme in mecab.morphs(piece)]


def _pieces(text: str, longest: int) -> list[str]:
    if len(text) <= longest:
        return [text]
    pieces, start = [], 0
    while len(text) - start > longest:
        space = text.rfind(" ", start, start + longest)
        end = space + 1 if space > start else start + longest  # a monster without any space: cut it anywhere
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]


@cache
def _mecab() -> MeCab:
    from mecab import MeCab

    return MeCab()


def characters(text: str) -> list[str]:
    """Every character (a syllable, in Korean) that is no white space."""
    return [character for character in text if not character.isspace()]


def words(text: str) -> list[str]:
    """What stands between white space: eojeol."""
    return text.split()


TOKENIZATIONS: dict[str, Callable[[str], list[str]]] = {
    "morpheme": morphemes,
    "character": characters,
    "word": words,
}
"""Name of each tokenization → normalised text to tokens."""
