"""Pieces of `train.engine=transformers`: rows, batches, loss, and what is called back while the Trainer works."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import Any

import torch
import torch.nn.functional as F
from transformers import TrainerCallback

from hanflow.config import TrainConfig
from hanflow.data.shards import Shard
from hanflow.errors import UserError
from hanflow.models.kernels.cross_entropy import IGNORED
from hanflow.progress import Progress
from hanflow.training.state import LoopState
from hanflow.training.trackers import Trackers
from hanflow.training.trainer.state import train_point, validation_point


class Rows(torch.utils.data.Dataset):
    """Rows of a shard as the Trainer takes them: `input_ids`, `attention_mask` and `labels`, lists of token ids."""

    def __init__(self, shard: Shard, count: int | None = None):
        self._shard, self._count = shard, len(shard) if count is None else min(count, len(shard))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> dict[str, Any]:
        sequences = [sequence.tolist() for sequence in self._shard[row]]
        return {"input_ids": sequences[0], "attention_mask": [1] * len(sequences[0]), "labels": sequences[-1]}


class RawRows(Rows):
    """Rows of a shard for a task's own `collate`; `input_ids` is there for samplers that look at lengths."""

    def __getitem__(self, row: int) -> dict[str, Any]:
        sequences = self._shard[row]
        return {"input_ids": sequences[0], "row": sequences}


class Collator:
    """Rows as one batch, padded to the longest of them; notes how much of it is padding.

    Args:
        collate: features → tensors.
    """

    def __init__(self, collate: Any):
        self._collate = collate
        self.noting = True
        self.ahead: deque[tuple[int, int]] = deque()
        """(real, padded) tokens of the batches collated and not yet computed on: the loader works ahead."""

    def __call__(self, features: list[dict[str, Any]]) -> Any:
        if self.noting:
            rows = [f["row"] if "row" in f else (f["input_ids"], f["labels"]) for f in features]
            lengths = [[len(sequence) for sequence in row] for row in rows]
            padded = sum(max(column) for column in zip(*lengths, strict=True)) * len(rows)
            self.ahead.append((sum(map(sum, lengths)), padded))
        return self._collate(features)


def token_mean(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any, label_smoothing: float) -> torch.Tensor:
    """Loss of one pass, normalised by the target tokens of the whole optimizer step, float32 scalar."""
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
    total = F.cross_entropy(
        logits.flatten(0, 1).float(),
        labels.flatten(),
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return total / (num_items_in_batch if num_items_in_batch is not None else (labels != IGNORED).sum())


class Clock(TrainerCallback):
    """Speed of training, and what of it is padding; validations and saves do not count."""

    def __init__(self) -> None:
        self._mark, self._seconds, self._tokens = time.perf_counter(), 0.0, 0
        self._real = self._padded = 0

    def computed(self, real: int, padded: int) -> None:
        """A batch of so many tokens was computed on."""
        self._tokens += real
        self._real += real
        self._padded += padded

    @property
    def efficiency(self) -> float:
        """Real tokens / padded tokens of this process, between 0 and 1."""
        return self._real / self._padded if self._padded else 1.0

    def window(self) -> tuple[int, float]:
        """(real tokens of this process, seconds of training) since the last call."""
        self._tick()
        window = self._tokens, self._seconds
        self._tokens, self._seconds = 0, 0.0
        return window

    def _tick(self) -> None:
        now = time.perf_counter()
        self._seconds += now - self._mark
        self._mark = now

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._mark = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._tick()

    def on_evaluate(self, *_: Any, **__: Any) -> None:
        self._mark = time.perf_counter()

    def on_save(self, *_: Any, **__: Any) -> None:
        self._mark = time.perf_counter()


class Saves(TrainerCallback):
    """Checkpoints beside those at validations: every so many steps or minutes, and at the ends of epochs."""

    def __init__(self, config: TrainConfig):
        self._config, self._saved, self._at = config, 0, time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if state.global_step == state.max_steps:
            control.should_log = True
        if args.save_strategy == "epoch" and float(state.epoch).is_integer():
            return control  # saved once, after the epoch's validation
        every, minutes = self._config.save_every, self._config.save_minutes
        overdue = minutes > 0 and time.monotonic() - self._at > minutes * 60
        if overdue or (every and state.global_step % every == 0):
            control.should_save = True
        return control

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if self._saved != state.global_step:
            control.should_save = True
        return control

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._saved, self._at = state.global_step, time.monotonic()


class Reporter(TrainerCallback):
    """Tells the Trainer's figures to our trackers, its steps to our progress.

    Raises:
        UserError: the training loss is not finite: the Trainer would train on.
    """

    def __init__(self, state: LoopState, trackers: Trackers, progress: Progress):
        self._state, self._trackers, self._progress = state, trackers, progress

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._state.step = state.global_step
        self._progress.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        train = train_point(logs or {}, state.global_step)
        validation = validation_point(logs or {}, state.global_step)
        if train:
            self._state.train.append(train)
            self._trackers.write("train", train)
            self._progress.update(0, loss=train["loss"], tokens_per_s=train["tokens_per_second"])
            if not math.isfinite(train["loss"]):
                raise UserError(
                    f"the training loss was not finite up to step {state.global_step}; lower train.learning_rate, set "
                    "train.precision=fp32, or use train.engine=hanflow, which skips such steps"
                )
        if validation:
            self._state.validation.append(validation)
            self._state.validated_step = state.global_step
            self._trackers.write("validation", validation)
