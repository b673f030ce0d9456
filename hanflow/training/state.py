"""Where training stands, beside weights and optimizer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class LoopState:
    """Where training stands, beside weights and optimizer."""

    identity: dict[str, Any]
    """The settings and data that the run is made of; another run must not resume from it."""
    step: int = 0
    """Optimizer steps done. Epoch and place within it, learning rate and dropout seeds all follow from this."""
    validated_step: int = 0
    """Last step after which a validation was finished."""
    best_step: int = -1
    """Step with the best validation so far; -1: none yet."""
    best_value: float = 0.0
    """Its value of the metric that decides."""
    resumed: int = -1
    """Step of the checkpoint that `train.resume` asked for and this course has gone on from; -1: none was."""
    bad_validations: int = 0
    """Validations in a row without an improvement."""
    skipped: int = 0
    """Steps skipped because their gradient was not finite."""
    skipped_in_row: int = 0
    """How many of them were the last ones."""
    order: str = ""
    """Chained sha256 over the row numbers of all global batches so far: equal digests mean equal samples in equal order."""
    window: dict[str, float] = field(default_factory=dict)
    """Sums since the last logged step."""
    backend: dict[str, Any] = field(default_factory=dict)
    """What the backend needs (the fp16 scaler)."""
    train: list[dict[str, float]] = field(default_factory=list)
    """Logged training figures, in order."""
    validation: list[dict[str, float]] = field(default_factory=list)
    """Logged validation figures, in order."""

    def saw(self, batches: Iterable[np.ndarray]) -> None:
        """Note the rows of one step's global batches, int64 arrays."""
        for rows in batches:
            self.order = hashlib.sha256(self.order.encode() + rows.astype("<i8").tobytes()).hexdigest()
