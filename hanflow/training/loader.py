"""Splits as the loop reads them: planned, and collated ahead of time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from hanflow.config import TrainConfig
from hanflow.data.batches import Batch, BatchPlan
from hanflow.data.shards import Shard
from hanflow.tasks.base import Task
from hanflow.training.backends.base import Backend

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")

AHEAD = 2
"""Steps that are collated ahead of the one being computed."""


@dataclass(frozen=True)
class Data:
    """A split, its batch plan, and what each row adds to the loss."""

    shard: Shard
    plan: BatchPlan
    targets: np.ndarray
    """Target tokens of each row: int64 of shape (rows,)."""

    @classmethod
    def of(cls, shard: Shard, task: Task, config: TrainConfig, *, shuffle: bool) -> Data:
        """A split planned by the settings of a run; `shuffle` is for training."""
        lengths = shard.lengths()
        plan = BatchPlan(
            lengths,
            seed=config.seed,
            batch_tokens=config.batch_tokens,
            batch_size=config.batch_size,
            epoch_tokens=int(config.epoch_tokens * 1e6) if shuffle else 0,
            shuffle=shuffle,
        )
        return cls(shard, plan, task.targets(lengths))

    def target_count(self, batch: Batch) -> int:
        """Target tokens of a global batch."""
        return int(self.targets[batch.rows].sum())

    def token_count(self, batch: Batch) -> int:
        """Real tokens of a global batch, all sequences together."""
        return int(self.plan.lengths[batch.rows].sum())

    def collate(self, batch: Batch, task: Task, model: PreTrainedModel, backend: Backend) -> dict[str, torch.Tensor]:
        """This process's part of a global batch, in main memory."""
        rows, shape = batch.share(backend.reader, backend.readers, backend.row_multiple)
        if not backend.static_shapes:
            shape = (max(len(rows), 1), *self.plan.trimmed(batch)[1:])
        return backend.pin(task.collate(self.shard.rows(rows), shape, model, static=backend.static_shapes))


@dataclass(frozen=True)
class StepData:
    """The data of one optimizer step."""

    step: int
    """Number of the step, from 0."""
    batches: list[Batch]
    """Its global batches, one per forward pass."""
    tensors: list[dict[str, torch.Tensor]]
    """This process's part of each, in main memory."""
    targets: int
    """Target tokens of all ranks' parts together."""
    tokens: int
    """Real tokens of all ranks' parts together."""


def step_batches(plan: BatchPlan, first: int, last: int, per_epoch: int, accumulation: int) -> Iterator[list[Batch]]:
    """The global batches of each optimizer step, from step `first` up to `last`."""
    batches: list[Batch] = []
    for step in range(first, last):
        epoch, index = divmod(step, per_epoch)
        if index == 0 or not batches:
            batches = plan.epoch(epoch)
        yield batches[index * accumulation : (index + 1) * accumulation]


def step_data(
    data: Data, task: Task, model: PreTrainedModel, backend: Backend, steps: Iterable[list[Batch]], first: int
) -> Iterator[StepData]:
    """The steps' data, collated by a thread while the step before computes."""

    def collated() -> Iterator[StepData]:
        for step, batches in enumerate(steps, first):
            tensors = [data.collate(batch, task, model, backend) for batch in batches]
            targets, tokens = sum(map(data.target_count, batches)), sum(map(data.token_count, batches))
            yield StepData(step, batches, tensors, targets, tokens)

    return ahead(collated(), AHEAD)


def ahead(items: Iterator[T], depth: int) -> Iterator[T]:
    """The items in order, drawn by a thread up to `depth` ahead; its errors are raised here."""
    ready: queue.Queue[tuple[str, object]] = queue.Queue(depth)
    closed = threading.Event()

    def put(kind: str, item: object) -> bool:
        while not closed.is_set():
            try:
                ready.put((kind, item), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def draw() -> None:
        try:
            for item in items:
                if not put("item", item):
                    return
            put("end", None)
        except BaseException as error:
            put("error", error)

    thread = threading.Thread(target=draw, daemon=True, name="collate")
    thread.start()
    try:
        while True:
            kind, item = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise item  # type: ignore[misc]
            yield item  # type: ignore[misc]
    finally:
        closed.set()
        thread.join()
