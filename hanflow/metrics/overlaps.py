"""Common n-grams and longest common subsequences of token sequences, for all rows at once, in numpy arrays."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count, pairwise

import numpy as np


class Numbers(defaultdict[Hashable, int]):
    """Token → its number, counted from 0 in order of first occurrence."""

    def __init__(self) -> None:
        super().__init__(count().__next__)


@dataclass(frozen=True)
class Sequences:
    """Sequences of different lengths in one array."""

    values: np.ndarray
    """The concatenated sequences: shape (tokens,); token numbers are int32."""
    starts: np.ndarray
    """Start of each sequence, and the end of the last one: int64 array of shape (sequences + 1,)."""

    @classmethod
    def of(cls, sequences: Iterable[Sequence[Hashable]], numbers: Numbers) -> Sequences:
        """Sequences of token numbers; new tokens are added to `numbers`."""
        number = numbers.__getitem__
        arrays = [np.fromiter(map(number, tokens), np.int32, len(tokens)) for tokens in sequences]
        return cls.joined(np.concatenate([np.empty(0, np.int32), *arrays]), [len(array) for array in arrays])

    @classmethod
    def joined(cls, values: np.ndarray, lengths: Sequence[int] | np.ndarray) -> Sequences:
        """Sequences from their concatenated values and their lengths."""
        starts = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=starts[1:])
        return cls(values, starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64 array of shape (sequences,)."""
        return np.diff(self.starts)

    @property
    def owners(self) -> np.ndarray:
        """Index of the sequence of each value: int64 array of shape (tokens,)."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def take(self, which: np.ndarray) -> Sequences:
        """The sequences with the given indices, which may repeat."""
        lengths = self.lengths[which]
        taken = Sequences.joined(self.values[:0], lengths)
        inside = np.arange(taken.starts[-1]) - np.repeat(taken.starts[:-1], lengths)
        return Sequences(self.values[np.repeat(self.starts[:-1][which], lengths) + inside], taken.starts)

    def slice(self, start: int, stop: int) -> Sequences:
        """The sequences from `start` to before `stop`; nothing is copied."""
        starts = self.starts[start : stop + 1]
        return Sequences(self.values[starts[0] : starts[-1]], starts - starts[0])


def ngram_matches(a: Sequences, b: Sequences, n: int) -> np.ndarray:
    """Number of n-grams that each pair of sequences has in common, with multiplicity (clipped counts).

    Args:
        a: token numbers.
        b: as many sequences.
        n: 1 or 2.

    Returns:
        int64 array of shape (sequences,).
    """
    width = int(max(a.values.max(initial=0), b.values.max(initial=0))).bit_length()
    (left, left_rows), (right, right_rows) = _grams(a, n, width), _grams(b, n, width)
    return common(left, left_rows, right, right_rows, len(a))


def ngram_counts(lengths: np.ndarray, n: int) -> np.ndarray:
    """Number of n-grams of sequences with the given lengths: an array of the same shape."""
    return np.maximum(lengths - (n - 1), 0)


def _grams(sequences: Sequences, n: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(n-grams as int64 numbers, index of the sequence of each); a token number has `width` bits."""
    values, rows = sequences.values.astype(np.int64), sequences.owners
    if n == 1:
        return values, rows
    assert n == 2, "two token numbers fit into one int64"
    inside = rows[1:] == rows[:-1]
    return (values[:-1] << width | values[1:])[inside], rows[1:][inside]


def common(left: np.ndarray, left_rows: np.ndarray, right: np.ndarray, right_rows: np.ndarray, rows: int) -> np.ndarray:
    """Size of the intersection of two multisets of integers in every row: int64 array of shape (rows,).

    Args:
        left: elements of the first multisets, int64.
        left_rows: the row of each, int64, ascending.
        right: elements of the second multisets.
        right_rows: the row of each, ascending.
        rows: number of rows.
    """
    both = np.concatenate([left, right])
    side = np.repeat([0, 1], [len(left), len(right)])
    row = np.concatenate([left_rows, right_rows])
    width = int(both.max(initial=0)).bit_length()
    if width + max(rows - 1, 1).bit_length() + 1 > 63:
        distinct, both = np.unique(both, return_inverse=True)  # smaller numbers
        width = len(distinct).bit_length()
    # Row, value and side in one number: sorting puts equal values of a row next to each other, left before right.
    keys = (row << width | both) << 1 | side
    keys.sort()
    group = keys >> 1
    starts = run_starts(group)
    if not len(starts):
        return np.zeros(rows, np.int64)
    of_right = np.add.reduceat(keys & 1, starts)
    of_left = np.diff(starts, append=len(keys)) - of_right
    shared = np.minimum(of_left, of_right)
    return np.bincount(group[starts] >> width, weights=shared, minlength=rows).astype(np.int64)


def run_starts(values: np.ndarray) -> np.ndarray:
    """Start of each run of equal values: int64 array of shape (runs,)."""
    begins = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=begins[1:])
    return np.flatnonzero(begins)


def subsequence_lengths(a: Sequences, b: Sequences) -> np.ndarray:
    """Length of the longest common subsequence of every pair of sequences, by rapidfuzz's bit-parallel algorithm.

    Args:
        a: token numbers, int32, from 0.
        b: as many sequences.

    Returns:
        int64 array of shape (sequences,).
    """
    from rapidfuzz import process
    from rapidfuzz.distance import LCSseq

    return process.cpdist(_comparable(a), _comparable(b), scorer=LCSseq.similarity, dtype=np.int64)


def _comparable(sequences: Sequences) -> list[str] | list[list[int]]:
    """Sequences as rapidfuzz compares them fastest: strings, a character a token."""
    values, starts = sequences.values, sequences.starts.tolist()
    parts = pairwise(starts)
    if values.max(initial=0) > 0x10FFFF:  # beyond the last character
        return [values[start:stop].tolist() for start, stop in parts]
    text = values.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
    return [text[start:stop] for start, stop in parts]
