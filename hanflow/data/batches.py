"""Rows of token ids into batches for what is computed once: predictions, scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


def batches(lengths: Sequence[int], batch_tokens: int, *, copies: int = 1, more: int = 0) -> Iterator[list[int]]:
    """Row numbers of every batch: rows of similar length together, the longest first.

    Args:
        lengths: tokens of every row.
        batch_tokens: most tokens of a batch: rows x (the longest length among them + more) x copies; one row always fits.
        copies: of every row that the work needs (the beams of a search).
        more: tokens that every row grows by.
    """
    order, at = sorted(range(len(lengths)), key=lambda row: -lengths[row]), 0
    while at < len(order):
        # Sorted by falling length, the first row of a batch is what it is padded to.
        count = max(batch_tokens // ((max(lengths[order[at]], 1) + more) * copies), 1)
        yield order[at : at + count]
        at += count


MAX_SHAPES = 8
"""Most static shapes of one run."""

MULTIPLE = 8
"""Padded lengths are multiples of this (tensor cores and AMX tiles like it), up to the longest row."""

WINDOW = 16
"""Batches among which rows are sorted by length: enough to find rows that fit together, few enough to stay mixed."""


@dataclass(frozen=True)
class Batch:
    """One global batch: `rows` are indices into the split; `shape` is (rows, padded length of every sequence)."""

    rows: np.ndarray
    shape: tuple[int, ...]

    def share(self, reader: int, readers: int, multiple: int = 1) -> tuple[np.ndarray, tuple[int, ...]]:
        """The rows of one reader and the shape of its part; readers at the end may have fewer rows than the shape.

        Args:
            reader: which of the `readers` that split every batch among them.
            multiple: devices that a reader's part is split over: its rows are rounded up to a multiple.
        """
        size = -(-self.shape[0] // (readers * multiple)) * multiple
        return self.rows[reader::readers], (size, *self.shape[1:])


class BatchPlan:
    """All epochs' batches of one split.

    Args:
        lengths: tokens of every sequence of every row: int64 array of shape (rows, sequences).
        seed: seed of the order.
        batch_tokens: padded tokens, all sequences together, of one batch; a longer row gets a batch of its own.
        batch_size: rows of one batch; 0: as many as fit `batch_tokens`.
        epoch_tokens: most padded tokens of an epoch, 0: all; which batches are left out is drawn anew every epoch.
        max_shapes: most static shapes.
        shuffle: False keeps shapes in order and rows in their order within a shape (validation).
    """

    def __init__(
        self,
        lengths: np.ndarray,
        *,
        seed: int,
        batch_tokens: int,
        batch_size: int = 0,
        epoch_tokens: int = 0,
        max_shapes: int = MAX_SHAPES,
        shuffle: bool = True,
    ):
        self.lengths, self.seed, self.shuffle, self._epoch_tokens = lengths, seed, shuffle, epoch_tokens
        self._groups = _group(lengths, max_shapes)
        self.shapes: list[tuple[int, ...]] = []
        """Shape of every group's batches, ascending by padded tokens of a row."""
        for _, padded in self._groups:
            fitting = max(1, batch_tokens // sum(padded))
            self.shapes.append((batch_size or fitting, *padded))
        self._next = [self._enclosing(i) for i in range(len(self.shapes))]

    def epoch(self, epoch: int) -> list[Batch]:
        """The batches of one epoch (counted from 0), every row in exactly one of them, or with `epoch_tokens` at most."""
        random = np.random.default_rng((self.seed, epoch))
        batches: list[Batch] = []
        leftover: list[list[np.ndarray]] = [[] for _ in self.shapes]
        for i, ((group, _), shape) in enumerate(zip(self._groups, self.shapes, strict=True)):
            rows = np.concatenate([*leftover[i], random.permutation(group) if self.shuffle else group])
            if self.shuffle:
                rows = self._like_beside_like(rows, shape[0])
            whole = len(rows) // shape[0] * shape[0]
            batches += [Batch(rows[at : at + shape[0]], shape) for at in range(0, whole, shape[0])]
            if whole == len(rows):
                continue
            later = self._next[i]
            if later is None:
                batches.append(Batch(rows[whole:], shape))
            else:
                leftover[later].append(rows[whole:])
        if self.shuffle:
            batches = [batches[i] for i in random.permutation(len(batches))]
        if self._epoch_tokens and batches:
            # By the mean of all batches, which no order changes: every epoch has as many.
            mean = sum(batch.shape[0] * sum(batch.shape[1:]) for batch in batches) / len(batches)
            batches = batches[: max(1, int(self._epoch_tokens / mean))]
        return batches

    def _like_beside_like(self, rows: np.ndarray, size: int) -> np.ndarray:
        """Shuffled rows sorted by length within windows of some batches, so that a batch can be trimmed."""
        windows = [rows[at : at + WINDOW * size] for at in range(0, len(rows), WINDOW * size)]
        keys = [np.lexsort(self.lengths[window].T[::-1]) for window in windows]
        return np.concatenate([window[key] for window, key in zip(windows, keys, strict=True)])

    def _enclosing(self, group: int) -> int | None:
        """The next shape that what did not fill a batch of this one fits into, whatever its rows are.

        Shapes alone decide, so every epoch has the same number of batches of every shape.
        """
        mine = self.shapes[group][1:]
        for later in range(group + 1, len(self.shapes)):
            if all(a <= b for a, b in zip(mine, self.shapes[later][1:], strict=True)):
                return later
        return None

    @cached_property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch, the same for every epoch."""
        return len(self.epoch(0))

    def padding_efficiency(self, *, trimmed: bool = False, devices: int = 1) -> float:
        """Real tokens / padded tokens over an epoch, between 0 and 1.

        Args:
            trimmed: of the shapes that the rows really need, not of the static ones.
            devices: that the rows of every static shape are spread over evenly.
        """
        batches = self.epoch(0)
        shapes = [self.trimmed(batch) if trimmed else batch.shape for batch in batches]
        padded = sum(-(-shape[0] // devices) * devices * sum(shape[1:]) for shape in shapes)
        real = sum(int(self.lengths[batch.rows].sum()) for batch in batches)
        return real / padded if padded else 1.0

    def trimmed(self, batch: Batch) -> tuple[int, ...]:
        """The shape that the rows of a batch really need: for devices that need no static shapes."""
        return len(batch.rows), *_padded(self.lengths[batch.rows].max(axis=0), np.array(batch.shape[1:]))


def _group(lengths: np.ndarray, max_shapes: int) -> list[tuple[np.ndarray, tuple[int, ...]]]:
    """Split the rows into groups of similar lengths, greedily where it saves most padding.

    Returns:
        (row indices ascending, padded lengths) of every group, ascending by padded tokens.
    """
    if not len(lengths):
        return []
    groups = [np.arange(len(lengths))]
    while len(groups) < max_shapes:
        cuts = [_best_cut(lengths, group) for group in groups]
        best = max(range(len(groups)), key=lambda i: cuts[i][0])
        saved, axis, threshold = cuts[best]
        if saved <= 0:
            break
        group = groups[best]
        below = lengths[group, axis] <= threshold
        groups[best : best + 1] = [group[below], group[~below]]
    longest = lengths.max(axis=0)
    padded = [_padded(lengths[group].max(axis=0), longest) for group in groups]
    merged: dict[tuple[int, ...], list[np.ndarray]] = {}
    for group, shape in zip(groups, padded, strict=True):
        merged.setdefault(shape, []).append(group)
    return sorted(
        ((np.sort(np.concatenate(parts)), shape) for shape, parts in merged.items()),
        key=lambda pair: (sum(pair[1]), pair[1]),
    )


def _padded(lengths: Sequence[int] | np.ndarray, longest: np.ndarray) -> tuple[int, ...]:
    """Lengths rounded up to MULTIPLE, but never beyond the split's longest row."""
    return tuple(
        int(min(-(-int(n) // MULTIPLE) * MULTIPLE, int(most))) for n, most in zip(lengths, longest, strict=True)
    )


def _best_cut(lengths: np.ndarray, group: np.ndarray) -> tuple[int, int, int]:
    """(padded tokens saved, sequence, largest length of the lower part) of the best way to cut a group in two."""
    best = (0, 0, 0)
    here = lengths[group]
    whole = len(group) * int(here.max(axis=0).sum())
    for axis in range(here.shape[1]):
        ordered = here[np.argsort(here[:, axis], kind="stable")]
        values = ordered[:, axis]
        ends = np.flatnonzero(np.diff(values)) + 1  # sizes of the lower part: between two different lengths
        if not len(ends):
            continue
        from_below = np.maximum.accumulate(ordered, axis=0).sum(axis=1)
        from_above = np.maximum.accumulate(ordered[::-1], axis=0)[::-1].sum(axis=1)
        costs = ends * from_below[ends - 1] + (len(group) - ends) * from_above[ends]
        at = int(np.argmin(costs))
        if whole - int(costs[at]) > best[0]:
            best = (whole - int(costs[at]), axis, int(values[ends[at] - 1]))
    return best
