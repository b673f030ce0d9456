"""A training run: its parts, its state and its result."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hanflow.config import TrainConfig
from hanflow.tasks.base import Task

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hanflow.data.shards import Shard


@dataclass(frozen=True)
class TrainingRun:
    """What an engine trains, and with which settings."""

    task: Task
    config: TrainConfig
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    """The model before training, in main memory; it is trained in place."""
    train: Shard
    validation: Shard
    """May be empty: then the last model is kept."""
    checkpoints: str
    """Folder or URI of the run's checkpoints and logs."""
    identity: dict[str, Any]
    """The settings and data that decide the result: checkpoints of another identity are refused."""


@dataclass
class LoopState:
    """The state of training, without weights and optimizer."""

    identity: dict[str, Any]
    """`TrainingRun.identity`; another run must not resume from it."""
    step: int = 0
    """Optimizer steps done. Epoch and position in it, learning rate and dropout seeds all follow from this."""
    validated_step: int = 0
    """Last step after which a validation was finished."""
    best_step: int = -1
    """Step with the best validation so far; -1: none yet."""
    best_value: float = 0.0
    """Its value of `train.best_metric`."""
    resumed: int = -1
    """Step of the checkpoint that `train.resume` named and this run has resumed from; -1: none."""
    bad_validations: int = 0
    """Validations in a row without an improvement."""
    skipped: int = 0
    """Steps skipped because their gradient was not finite."""
    skipped_in_row: int = 0
    """How many of them were the most recent steps."""
    order: str = ""
    """Chained sha256 over the row numbers of all global batches so far: equal digests mean equal samples in equal order."""
    window: dict[str, float] = field(default_factory=dict)
    """Sums since the last logged step."""
    backend: dict[str, Any] = field(default_factory=dict)
    """What the backend needs (the fp16 scaler), or the engine."""
    train: list[dict[str, float]] = field(default_factory=list)
    """Logged training figures, in order."""
    validation: list[dict[str, float]] = field(default_factory=list)
    """Logged validation figures, in order."""

    def add_to_order(self, batches: Iterable[np.ndarray]) -> None:
        """Add the row numbers of one step's global batches, int64 arrays."""
        for rows in batches:
            self.order = hashlib.sha256(self.order.encode() + rows.astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True)
class TrainingResult:
    """The result of an engine, on every rank."""

    model: PreTrainedModel
    """In main memory; on the main rank the best one by validation, or the last one where nothing was validated."""
    state: LoopState
    precision: str
    device: str
    """Type of the device: cpu, cuda or xla."""
    world_size: int
    """Devices that computed."""
    padding_efficiency: float
    """Real tokens / padded tokens, between 0 and 1."""
    is_main: bool
    """Whether this is the rank that saves the model."""
