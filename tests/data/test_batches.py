"""The batch plan: nothing lost, nothing twice, few shapes, the same for any number of workers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hanflow.data.batches import MAX_SHAPES, BatchPlan


def lengths_of(seed: int, rows: int, longest: tuple[int, int] = (200, 40)) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.stack([random.integers(1, top + 1, rows) for top in longest], axis=1).astype(np.int64)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(0, 300),
    budget=st.integers(16, 4000),
    size=st.sampled_from([0, 0, 1, 7, 32]),
    epoch=st.integers(0, 3),
)
def test_every_row_once_in_a_shape_that_holds_it(seed: int, rows: int, budget: int, size: int, epoch: int) -> None:
    lengths = lengths_of(seed, rows)
    plan = BatchPlan(lengths, seed=seed, batch_tokens=budget, batch_size=size)
    batches = plan.epoch(epoch)
    seen = np.concatenate([batch.rows for batch in batches]) if batches else np.zeros(0, dtype=np.int64)
    assert sorted(seen.tolist()) == list(range(rows))
    assert len({batch.shape for batch in batches}) <= MAX_SHAPES
    assert len(batches) == plan.batches_per_epoch, "the schedule counts on as many batches in every epoch"
    for batch in batches:
        assert 1 <= len(batch.rows) <= batch.shape[0]
        assert np.all(lengths[batch.rows] <= plan.trimmed(batch)[1:])
        assert np.all(np.array(plan.trimmed(batch)) <= batch.shape)
        assert batch.shape[0] == (size or max(1, budget // sum(batch.shape[1:])))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 100), world=st.integers(1, 5))
def test_ranks_share_a_batch_without_gap_or_overlap(seed: int, rows: int, world: int) -> None:
    plan = BatchPlan(lengths_of(seed, rows), seed=seed, batch_tokens=1500)
    for batch in plan.epoch(0):
        shares = [batch.share(rank, world) for rank in range(world)]
        assert sorted(np.concatenate([rows for rows, _ in shares]).tolist()) == sorted(batch.rows.tolist())
        assert len({shape for _, shape in shares}) == 1, "static shapes: every rank's part has the same"
        assert all(len(rows) <= shape[0] for rows, shape in shares)


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    lengths = lengths_of(0, 500)

    def order(seed: int, epoch: int) -> list[list[int]]:
        return [b.rows.tolist() for b in BatchPlan(lengths, seed=seed, batch_tokens=2000).epoch(epoch)]

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


def test_validation_keeps_its_order() -> None:
    plan = BatchPlan(lengths_of(0, 50), seed=1, batch_tokens=2000, shuffle=False)
    assert [b.rows.tolist() for b in plan.epoch(0)] == [b.rows.tolist() for b in plan.epoch(5)]


def test_shapes_are_fitted_to_the_lengths() -> None:
    # Two kinds of rows that never need to share a shape: no token is padded.
    lengths = np.array([[16, 8]] * 64 + [[128, 8]] * 64)
    plan = BatchPlan(lengths, seed=0, batch_tokens=136 * 8)
    assert [shape[1:] for shape in plan.shapes] == [(16, 8), (128, 8)]
    assert plan.shapes[0][0] == 136 * 8 // 24
    # 64 short rows fill one batch of 45; the 19 left over ride in the long rows' batches.
    assert plan.batches_per_epoch == 1 + -(-(64 + 19) // 8)


def test_shapes_save_most_of_the_padding_on_lengths_like_real_ones() -> None:
    random = np.random.default_rng(3)
    source = np.minimum(np.exp(random.normal(6.0, 0.7, 5000)).astype(np.int64) + 10, 512)
    target = np.clip(random.normal(15, 4, 5000).astype(np.int64), 5, 30)
    plan = BatchPlan(np.stack([source, target], axis=1), seed=0, batch_tokens=8192)
    assert plan.padding_efficiency() > 0.9
    assert plan.padding_efficiency(trimmed=True) > 0.96
    one_shape = BatchPlan(np.stack([source, target], axis=1), seed=0, batch_tokens=8192, max_shapes=1)
    assert plan.padding_efficiency() > one_shape.padding_efficiency() + 0.15


@pytest.mark.parametrize("rows", [0, 1])
def test_next_to_no_data(rows: int) -> None:
    plan = BatchPlan(lengths_of(0, rows), seed=0, batch_tokens=100)
    assert plan.batches_per_epoch == rows
    assert plan.padding_efficiency() > 0
