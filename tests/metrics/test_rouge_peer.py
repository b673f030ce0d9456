"""Given the same tokens, our ROUGE is the rouge_score package's: figures can be compared with everybody else's."""

from __future__ import annotations

import csv
import gzip
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rouge_score import rouge_scorer

from hanflow.metrics import rouge, union_lcs
from hanflow.metrics.overlaps import Numbers
from hanflow.text.scoring_tokens import TOKENIZATIONS, Tokenization

PETITIONS = Path(__file__).parents[2] / "pipelines" / "sample_data" / "petitions.tsv.gz"
TOLERANCE = 1e-9
"""Both compute P, R and 2PR/(P+R) of the same whole numbers in float64, in another order: the difference is rounding
alone, some 1e-16."""

WORDS = ["정부", "청원", "국민", "은", "합니다", "a", "1", "."]


class SameTokens:
    """Lets rouge_score see exactly our tokens."""

    def __init__(self, tokenization: Tokenization):
        self.tokenization = tokenization

    def tokenize(self, text: str) -> list[object]:
        return list(self.tokenization(text))


def assert_like_rouge_score(predictions: Sequence[str], references: Sequence[str], tokenization: str) -> None:
    scorer = rouge_scorer.RougeScorer(list(rouge.VARIANTS), tokenizer=SameTokens(TOKENIZATIONS[tokenization]))
    theirs = [
        scorer.score(reference, prediction) for prediction, reference in zip(predictions, references, strict=True)
    ]
    ours = rouge.score_rows(predictions, references, tokenization)
    parts = {"": "fmeasure", "_precision": "precision", "_recall": "recall"}
    assert list(ours) == [f"{variant}_{tokenization}{part}" for variant in rouge.VARIANTS for part in parts]
    for variant in rouge.VARIANTS:
        for part, field in parts.items():
            expected = np.array([getattr(row[variant], field) for row in theirs])
            assert ours[f"{variant}_{tokenization}{part}"] == pytest.approx(expected, abs=TOLERANCE)
        assert 0.0 < ours[f"{variant}_{tokenization}"].mean() < 1.0


def petitions(rows: int) -> list[dict[str, str]]:
    with gzip.open(PETITIONS, "rt", encoding="utf-8", newline="") as stream:
        return [row for row, _ in zip(csv.DictReader(stream, delimiter="\t"), range(rows), strict=False)]


def random_texts(
    seed: int, count: int, longest: int, words: int = len(WORDS), newlines: float = 0.1
) -> tuple[list[str], list[str]]:
    """(predictions, references) of up to so many words."""
    source = random.Random(seed)

    def text() -> str:
        drawn = (source.choice(WORDS[:words]) for _ in range(source.randrange(longest)))
        return "".join(word + ("\n" if source.random() < newlines else " ") for word in drawn)

    return [text() for _ in range(count)], [text() for _ in range(count)]


@pytest.mark.parametrize("tokenization", list(TOKENIZATIONS))
def test_real_korean_pairs(tokenization: str) -> None:
    """Beginnings of petitions against their titles, and against later parts of them, in lines."""
    rows = petitions(120)
    news = [row["news"].replace(". ", ".\n") for row in rows]
    assert_like_rouge_score([text[:150] for text in news], [row["summary"] for row in rows], tokenization)
    assert_like_rouge_score([text[:160] for text in news], [text[80:240] for text in news], tokenization)


@pytest.mark.parametrize(
    ("count", "longest", "words", "newlines"),
    [
        (2000, 10, 3, 0.3),  # very short, much in common: many ways to be the longest common subsequence
        (1500, 40, 8, 0.1),
        (500, 40, 2, 0.2),
        (500, 30, 8, 0.0),  # one sentence each
        (40, 150, 8, 0.02),  # sentences of more than 64 tokens: several numbers hold a column
        (6, 700, 8, 0.003),  # and of more than union_lcs.GIANT: Python's integers do
    ],
)
def test_random_texts(count: int, longest: int, words: int, newlines: float) -> None:
    assert_like_rouge_score(*random_texts(count, count, longest, words, newlines), "word")


@pytest.mark.parametrize(("history", "cells", "pairs"), [(1, 64, 1), (40, 1 << 18, 7), (3000, 512, 1 << 16)])
def test_a_summary_s_table_may_be_kept_in_parts(
    history: int, cells: int, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not fit in memory is computed twice; the score stays."""
    monkeypatch.setattr(union_lcs, "HISTORY", history)
    monkeypatch.setattr(union_lcs, "CELLS", cells)
    monkeypatch.setattr(union_lcs, "PAIRS", pairs)
    assert_like_rouge_score(*random_texts(5, 60, 60, newlines=0.05), "word")
    assert_like_rouge_score(*random_texts(6, 4, 700, newlines=0.002), "word")


def test_the_best_of_several_references_is_score_multi_s() -> None:
    predictions, first = random_texts(7, 200, 40)
    second, third = random_texts(8, 200, 40)
    several = [list(texts) for texts in zip(first, second, third, strict=True)]
    scorer = rouge_scorer.RougeScorer(list(rouge.VARIANTS), tokenizer=SameTokens(TOKENIZATIONS["word"]))
    theirs = [scorer.score_multi(texts, prediction) for texts, prediction in zip(several, predictions, strict=True)]
    ours = rouge.score_rows(predictions, several, "word")
    for variant in rouge.VARIANTS:
        for part, field in {"": "fmeasure", "_precision": "precision", "_recall": "recall"}.items():
            expected = np.array([getattr(row[variant], field) for row in theirs])
            # F1 of equals may differ in the last bit there, and then another reference be the best: leave ties out.
            tied = [
                len({round(scorer.score(t, p)[variant].fmeasure, 9) for t in texts}) < 3
                for texts, p in zip(several, predictions, strict=True)
            ]
            keep = ~np.array(tied) if part else np.ones(len(tied), bool)
            assert ours[f"{variant}_word_best{part}"][keep] == pytest.approx(expected[keep], abs=TOLERANCE)
            assert keep.sum() > 50


def test_tokens_that_are_cut_already() -> None:
    """Any hashable tokens, as lists: what the benchmark times."""
    source = random.Random(9)
    predictions = [[source.randrange(30) for _ in range(source.randrange(40))] for _ in range(100)]
    references = [[source.randrange(30) for _ in range(source.randrange(40))] for _ in range(100)]

    def joined(rows: list[list[int]]) -> list[str]:
        return [" ".join(map(str, row)) for row in rows]

    ours = rouge.overlap_tokens(predictions, references)
    for name, overlap in rouge.overlap_rows(joined(predictions), joined(references), "word").items():
        assert ours[name].f1.tolist() == overlap.f1.tolist()
    lines = [[row[:7], row[7:]] for row in predictions], [[row[:9], row[9:]] for row in references]
    texts = (["\n".join(joined(row)) for row in side] for side in lines)
    expected = rouge.overlap_rows(*texts, "word", ["rougeLsum"])["rougeLsum"]
    assert rouge.overlap_sentences(*lines).f1.tolist() == expected.f1.tolist()


def test_more_distinct_tokens_than_characters() -> None:
    """Tokens are given to rapidfuzz as characters, of which there are 1,114,112."""
    numbers = Numbers()
    numbers.update({f"unused {number}": number for number in range(3)})
    many = np.arange(0x110000 + 10, dtype=np.int32)
    from hanflow.metrics.overlaps import Sequences, ngram_matches, subsequence_lengths

    a = Sequences.joined(many[[5, 0xD800, 0x110001, 7, 0x110002]], [3, 2])
    b = Sequences.joined(many[[0xD800, 5, 0x110001, 0x110002, 7]], [3, 2])
    assert subsequence_lengths(a, b).tolist() == [2, 1]
    assert ngram_matches(a, b, 1).tolist() == [3, 2]
    assert ngram_matches(a, b, 2).tolist() == [0, 0]
    huge = Sequences.joined(np.array([2**31 - 1, 2**31 - 2, 5], np.int32), [3])
    assert ngram_matches(huge, huge, 2).tolist() == [2]
