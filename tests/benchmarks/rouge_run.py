"""ROUGE beside the rouge_score package: the same pairs, the same tokens, given to both cut already.

The pairs are neighbouring stretches of petitions in morphemes: real Korean with the repetitions that it has.
"""

from __future__ import annotations

import gzip
import sys
import time
from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
from rouge_score import rouge_scorer

from hanflow.metrics import rouge
from hanflow.text.scoring_tokens import TOKENIZATIONS, normalise
from tests.benchmarks.data import ROOT, SHARED

PAIRS, TOKENS, LINE = 8500, 250, 50
REPEATS = 3
LSUM_PAIRS = 600
"""Pairs that rouge_score's ROUGE-Lsum scores in a repeat; ours scores all."""

PEER = "rouge_score, same tokens"


def measure() -> list[dict[str, Any]]:
    """Two figures, each with pairs a second of ours and theirs (a list of repeats each).

    In each repeat ours scores all pairs and rouge_score a third of them, another one each time, so that all are scored
    by both (of ROUGE-Lsum only some): its time is proportional to the number of pairs. The scores must be equal.
    """
    predictions, references = pairs()
    figures = [
        {"name": "ROUGE-1, -2 and -L", "ours": [], "theirs": []},
        {"name": f"ROUGE-Lsum, lines of {LINE} tokens", "ours": [], "theirs": []},
    ]
    in_lines = lines(predictions), lines(references)
    third = -(-PAIRS // REPEATS)
    for repeat in range(REPEATS):
        started = time.perf_counter()
        usual = rouge.overlap_tokens(predictions, references)
        figures[0]["ours"].append(PAIRS / (time.perf_counter() - started))
        some = range(repeat * third, min((repeat + 1) * third, PAIRS))
        figures[0]["theirs"].append(theirs(predictions, references, some, usual))
        started = time.perf_counter()
        summed = {"rougeLsum": rouge.overlap_sentences(*in_lines)}
        figures[1]["ours"].append(PAIRS / (time.perf_counter() - started))
        some = range(repeat * LSUM_PAIRS, (repeat + 1) * LSUM_PAIRS)
        figures[1]["theirs"].append(theirs(*in_lines, some, summed))
    for figure in figures:
        figure["name"] += f", {PAIRS:,} pairs of {TOKENS} tokens, one process"
    return figures


def pairs() -> tuple[list[list[str]], list[list[str]]]:
    """PAIRS predictions and references of TOKENS morphemes each."""
    raw = SHARED / "data" / "petitions" / "train.tsv"
    sample = ROOT / "pipelines" / "sample_data" / "petitions.tsv.gz"
    text = raw.read_text(encoding="utf-8") if raw.is_file() else gzip.decompress(sample.read_bytes()).decode()
    news = [normalise(line.split("\t")[0]) for line in text.splitlines()[1:]]
    long = [tokens for tokens in TOKENIZATIONS["morpheme"].cut(news) if len(tokens) >= 2 * TOKENS]
    predictions: list[list[str]] = []
    references: list[list[str]] = []
    for offset in count(0, 37):
        for tokens in long:
            start = offset % (len(tokens) - 2 * TOKENS + 1)
            # New objects, as an analyser makes them: Python keeps the hash of one that was looked up before.
            fresh = [str(token).encode().decode() for token in tokens[start : start + 2 * TOKENS]]
            predictions.append(fresh[:TOKENS])
            references.append(fresh[TOKENS:])
            if len(predictions) == PAIRS:
                return predictions, references
    raise AssertionError("unreachable")


def lines(rows: Sequence[Sequence[str]]) -> list[list[Sequence[str]]]:
    """Token lists as sentences of LINE tokens."""
    return [[row[start : start + LINE] for start in range(0, len(row), LINE)] for row in rows]


class _Given:
    """A tokenizer for rouge_score that only looks up: what stands under a text's number."""

    def __init__(self) -> None:
        self.tokens: dict[str, Sequence[str]] = {}

    def tokenize(self, text: str) -> Sequence[str]:
        return self.tokens[text]

    def text(self, tokens: Sequence[Any]) -> str:
        """A text that will be cut into these tokens; sentences become its lines."""
        if tokens and not isinstance(tokens[0], str):
            return "\n".join(map(self.text, tokens))
        number = str(len(self.tokens))
        self.tokens[number] = tokens
        return number


def theirs(
    predictions: Sequence[Sequence[Any]],
    references: Sequence[Sequence[Any]],
    some: range,
    ours: dict[str, rouge.Overlap],
) -> float:
    """Pairs a second that rouge_score scores; ends the program if a score differs from ours."""
    given = _Given()
    texts = [(given.text(references[row]), given.text(predictions[row])) for row in some]
    scorer = rouge_scorer.RougeScorer(list(ours), tokenizer=given)
    started = time.perf_counter()
    scores = [scorer.score(*pair) for pair in texts]
    seconds = time.perf_counter() - started
    for variant, overlap in ours.items():
        expected = np.array([score[variant].fmeasure for score in scores])
        worst = float(np.abs(overlap.f1[some.start : some.stop] - expected).max())
        if worst > 1e-9:
            sys.exit(f"{variant}: ours differs from rouge_score by {worst}")
    return len(some) / seconds
