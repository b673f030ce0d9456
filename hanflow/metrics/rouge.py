"""ROUGE for Korean: pure functions over lists of texts.

    >>> scores = score_rows(["오늘 비가 왔다"], ["오늘은 비가 내렸다"])
    >>> scores["rougeL_morpheme"]  # F1 of every row, from 0 to 1
    >>> mean_intervals(scores)["rougeL_morpheme"]  # mean and bootstrap interval, see hanflow.metrics.intervals

Scores follow Lin (2004), as the rouge_score package computes them: ROUGE-N from clipped n-gram counts, ROUGE-L from the
longest common subsequence, ROUGE-Lsum from its union over sentences, which end at newlines. The tokens differ:
rouge_score's own tokenizer drops every character outside [a-z0-9], so Korean texts score 0 or, by their Latin letters
alone, 1. Here a text is normalised to NFKC and split by a named tokenization (`hanflow.text.scoring_tokens`). Scores of
different tokenizations cannot be compared, so the name is part of every key.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hanflow.metrics.overlaps import Numbers, Sequences, ngram_counts, ngram_matches, subsequence_lengths
from hanflow.metrics.union_lcs import Sentences, union_matches
from hanflow.text.scoring_tokens import Tokenization, get_tokenization

VARIANTS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
"""All variants."""

USUAL = ("rouge1", "rouge2", "rougeL")
"""The variants of leaderboards and of `rouge_sum`."""

CHUNK_CHARACTERS = 4_000_000
"""Characters of the texts that are processed at once: memory does not grow with the number of rows."""

CHUNK_ROWS = 1 << 16
CHUNK_TOKENS = 1 << 19
"""Tokens of predictions and references that are compared at once."""


@dataclass(frozen=True)
class Overlap:
    """The counts of one ROUGE variant in every row: int64 arrays of shape (rows,)."""

    matches: np.ndarray
    """N-grams or tokens that prediction and reference have in common."""
    predicted: np.ndarray
    """N-grams or tokens of the prediction."""
    expected: np.ndarray
    """N-grams or tokens of the reference."""

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
    predictions: Sequence[str],
    references: Sequence[str],
    tokenization: str | Tokenization = "morpheme",
    variants: Sequence[str] = USUAL,
) -> dict[str, np.ndarray]:
    """F1 of every row, with one reference each: `score_rows` without precision and recall."""
    cut = get_tokenization(tokenization)
    return {f"{v}_{cut.name}": o.f1 for v, o in overlap_rows(predictions, references, cut, variants).items()}


def score_rows(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    tokenization: str | Tokenization = "morpheme",
    variants: Sequence[str] = VARIANTS,
    *,
    best: bool | None = None,
) -> dict[str, np.ndarray]:
    """ROUGE of every row.

    Args:
        predictions: one text a row; one without any token scores 0.
        references: as many: the reference text of each row, or a list of several reference texts.
        tokenization: `morpheme`, `character`, `word`, `dacon`, or a `Tokenization` (see `model_tokenization`).
        variants: some of VARIANTS.
        best: whether to add the scores of the best reference; None: if any row has several references.

    Returns:
        Name → float64 array of shape (rows,), from 0 to 1. For each variant: `rougeL_<tokenization>` (F1),
        `rougeL_<tokenization>_precision` and `rougeL_<tokenization>_recall`; of several references the mean over them.
        `rougeL_<tokenization>_best`, `…_best_precision` and `…_best_recall` are those of the reference with the highest
        F1 (chosen for each variant, the first of equals), as in rouge_score's `score_multi`.

    Raises:
        ValueError: the tokenization or a variant is unknown, the lists differ in length, or a row has no reference.
    """
    cut = get_tokenization(tokenization)
    _check(predictions, references, variants)
    each = [[reference] if isinstance(reference, str) else list(reference) for reference in references]
    counts = np.array([len(row) for row in each], np.int64)
    if not counts.all():
        raise ValueError(f"row {int(np.argmin(counts))} has no reference")
    pairs = [prediction for prediction, count in zip(predictions, counts, strict=True) for _ in range(count)]
    overlaps = overlap_rows(pairs, [reference for row in each for reference in row], cut, variants)
    scores: dict[str, np.ndarray] = {}
    for variant, overlap in overlaps.items():
        name, columns = f"{variant}_{cut.name}", (overlap.f1, overlap.precision, overlap.recall)
        scores.update(zip(_names(name), (_means(column, counts) for column in columns), strict=True))
        if best or (best is None and counts.max(initial=1) > 1):
            chosen = _best(overlap.f1, counts)
            scores.update(zip(_names(f"{name}_best"), (column[chosen] for column in columns), strict=True))
    return scores


def _names(name: str) -> tuple[str, str, str]:
    return name, f"{name}_precision", f"{name}_recall"


def _means(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean of each row's consecutive values."""
    if len(values) == len(counts):
        return values
    return np.add.reduceat(values, np.cumsum(counts) - counts) / counts


def _best(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Index of each row's first highest value."""
    starts = np.cumsum(counts) - counts
    if not len(starts):
        return starts
    highest = values == np.repeat(np.maximum.reduceat(values, starts), counts)
    places = np.flatnonzero(highest)
    return places[np.searchsorted(places, starts)]


def overlap_rows(
    predictions: Sequence[str],
    references: Sequence[str],
    tokenization: str | Tokenization = "morpheme",
    variants: Sequence[str] = USUAL,
) -> dict[str, Overlap]:
    """The counts of every row, with one reference each; arguments and errors as in `score_rows`."""
    cut = get_tokenization(tokenization)
    _check(predictions, references, variants)
    parts = [
        _overlap_texts(predictions[start:stop], references[start:stop], cut, variants)
        for start, stop in _chunks(predictions, references)
    ]
    return _concatenated(parts, variants)


def overlap_tokens(
    predictions: Sequence[Sequence[Hashable]],
    references: Sequence[Sequence[Hashable]],
    variants: Sequence[str] = USUAL,
) -> dict[str, Overlap]:
    """The counts of ROUGE-1, -2 and -L (some of USUAL) for given tokens, one list a text; errors as in `score_rows`."""
    _check(predictions, references, variants, USUAL)
    numbers = Numbers()
    return _overlap_sequences(Sequences.of(predictions, numbers), Sequences.of(references, numbers), variants)


def overlap_sentences(
    predictions: Sequence[Sequence[Sequence[Hashable]]], references: Sequence[Sequence[Sequence[Hashable]]]
) -> Overlap:
    """The counts of ROUGE-Lsum for given tokens: a list of sentences a text, a list of tokens a sentence."""
    _check(predictions, references, ())
    numbers = Numbers()

    def sentences(texts: Sequence[Sequence[Sequence[Hashable]]]) -> Sentences:
        tokens = Sequences.of((tokens for text in texts for tokens in text), numbers)
        return Sentences(tokens, Sequences.joined(np.empty(0), [len(text) for text in texts]).starts)

    return _overlap_sentences(sentences(predictions), sentences(references))


def _check(
    predictions: Sequence[object],
    references: Sequence[object],
    variants: Sequence[str],
    known: Sequence[str] = VARIANTS,
) -> None:
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references")
    unknown = [variant for variant in variants if variant not in known]
    if unknown:
        raise ValueError(f"variant {unknown[0]!r} is not known here; known: {', '.join(known)}")


def _chunks(predictions: Sequence[str], references: Sequence[str]) -> Iterator[tuple[int, int]]:
    """(first row, one past the last) of parts of about CHUNK_CHARACTERS, in order."""
    start = size = 0
    for row, (prediction, reference) in enumerate(zip(predictions, references, strict=True), start=1):
        size += len(prediction) + len(reference)
        if size >= CHUNK_CHARACTERS or row - start >= CHUNK_ROWS or row == len(predictions):
            yield start, row
            start, size = row, 0


def _concatenated(parts: Sequence[dict[str, Overlap]], variants: Sequence[str]) -> dict[str, Overlap]:
    def column(variant: str, field: str) -> np.ndarray:
        return np.concatenate([np.empty(0, np.int64), *(getattr(part[variant], field) for part in parts)])

    return {v: Overlap(column(v, "matches"), column(v, "predicted"), column(v, "expected")) for v in variants}


def _overlap_texts(
    predictions: Sequence[str], references: Sequence[str], cut: Tokenization, variants: Sequence[str]
) -> dict[str, Overlap]:
    numbers = Numbers()
    places: dict[str, int] = {}  # every distinct text is split once
    for text in (*predictions, *references):
        places.setdefault(text, len(places))
    texts = [cut.clean(text) for text in places]
    tokens = Sequences.of(cut.cut([text.replace("\n", " ") for text in texts]), numbers)
    a = np.array([places[text] for text in predictions], np.int64)
    b = np.array([places[text] for text in references], np.int64)
    usual = [variant for variant in USUAL if variant in variants or (variant == "rougeL" and "rougeLsum" in variants)]
    overlaps = _overlap_sequences(tokens.take(a), tokens.take(b), usual)
    if "rougeLsum" in variants:
        several = np.array(["\n" in text for text in texts], bool)
        rows = np.flatnonzero(several[a] | several[b])  # between two texts of one sentence it equals ROUGE-L
        whole = overlaps["rougeL"]
        summed = Overlap(whole.matches.copy(), whole.predicted.copy(), whole.expected.copy())
        if len(rows):
            sentences = _sentences(texts, tokens, cut, numbers)
            part = _overlap_sentences(sentences.take(a[rows]), sentences.take(b[rows]))
            for field in ("matches", "predicted", "expected"):
                getattr(summed, field)[rows] = getattr(part, field)
        overlaps["rougeLsum"] = summed
    return {variant: overlaps[variant] for variant in variants}


def _sentences(texts: Sequence[str], tokens: Sequences, cut: Tokenization, numbers: Numbers) -> Sentences:
    """The sentences of every text; the tokens of those without a newline are in `tokens` already."""
    lines = [[line for line in text.split("\n") if line] if "\n" in text else None for text in texts]
    every = [line for part in lines if part is not None for line in part]
    cut_lines = Sequences.of(cut.cut(every), numbers)
    both = Sequences(
        np.concatenate([tokens.values, cut_lines.values]),
        np.concatenate([tokens.starts, cut_lines.starts[1:] + tokens.starts[-1]]),
    )
    order, counts, next_line = [], [], len(texts)
    for place, part in enumerate(lines):
        if part is None:
            order.append(place)
            counts.append(1)
        else:
            order += range(next_line, next_line + len(part))
            counts.append(len(part))
            next_line += len(part)
    return Sentences(both.take(np.array(order, np.int64)), Sequences.joined(both.values[:0], counts).starts)


def _overlap_sequences(predictions: Sequences, references: Sequences, variants: Sequence[str]) -> dict[str, Overlap]:
    parts = []
    for start, stop in _chunks_of_tokens(predictions.starts, references.starts):
        a, b = predictions.slice(start, stop), references.slice(start, stop)
        parts.append({variant: _overlap(a, b, variant) for variant in variants})
    return _concatenated(parts, variants)


def _overlap(predictions: Sequences, references: Sequences, variant: str) -> Overlap:
    if variant == "rougeL":
        matches = subsequence_lengths(predictions, references)
        return Overlap(matches, predictions.lengths, references.lengths)
    n = int(variant.removeprefix("rouge"))
    matches = ngram_matches(predictions, references, n)
    return Overlap(matches, ngram_counts(predictions.lengths, n), ngram_counts(references.lengths, n))


def _overlap_sentences(predictions: Sentences, references: Sentences) -> Overlap:
    parts = []
    tokens_before = (side.tokens.starts[side.starts] for side in (predictions, references))
    for start, stop in _chunks_of_tokens(*tokens_before):
        a, b = predictions.slice(start, stop), references.slice(start, stop)
        parts.append({"rougeLsum": Overlap(union_matches(a, b), a.lengths, b.lengths)})
    return _concatenated(parts, ["rougeLsum"])["rougeLsum"]


def _chunks_of_tokens(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first row, one past the last) of parts of at most CHUNK_TOKENS on both sides, or of one row, in order.

    Args:
        a: tokens before each row of the predictions, and their total: int64 of shape (rows + 1,).
        b: the same for the references.
    """
    before, start = a + b, 0
    while start < len(before) - 1:
        stop = max(int(np.searchsorted(before, before[start] + CHUNK_TOKENS, side="right")) - 1, start + 1)
        yield start, stop
        start = stop
