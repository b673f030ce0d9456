"""Rows of token ids into batches for what is computed once: predictions, scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


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
