"""What every setting means to transformers' Trainer: pure, so that the mapping can be read and tested."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from hanflow.config import TrainConfig
from hanflow.training.optimizer import total_steps, warmup_steps

SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
"""Our schedules → transformers' names of the same ones."""

WITHOUT_COUNTERPART = {
    "nonfinite_limit": "the first logged loss that is not finite ends the run",
    "nonfinite_dump": "nothing is dumped",
}
"""Settings that this engine does not know → what happens instead."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What one optimizer step of the Trainer is made of."""

    rows: int
    """Rows of one forward pass of one worker (`per_device_train_batch_size`)."""
    steps_per_epoch: int
    """Optimizer steps of an epoch."""
    steps: int
    """Optimizer steps of the whole run."""
    world_size: int
    """Workers."""


def sizes(config: TrainConfig, lengths: np.ndarray, world_size: int) -> Sizes:
    """Batches as the Trainer cuts them: a fixed number of rows, whatever their lengths.

    Args:
        config: `batch_size` rows of the whole job; 0: as many of the longest row as fit `batch_tokens`.
        lengths: tokens of every sequence of the train split's rows: int64 array of shape (rows, sequences).
        world_size: workers; each takes an equal number of rows, rounded up.
    """
    longest = int(lengths.max(axis=0).sum())
    # What fits is rounded down, so that no pass exceeds its token budget; what was asked for in rows is rounded up.
    rows = -(-config.batch_size // world_size) if config.batch_size else config.batch_tokens // longest // world_size
    rows = max(rows, 1)
    batches = -(-len(lengths) // (rows * world_size))
    steps_per_epoch = -(-batches // config.accumulation)
    return Sizes(rows, steps_per_epoch, total_steps(config, steps_per_epoch), world_size)


def training_arguments(
    config: TrainConfig,
    sizes: Sizes,
    folder: Path,
    *,
    precision: str,
    device: str,
    validates: bool,
    best_is_highest: bool,
) -> dict[str, Any]:
    """The settings as keyword arguments of `TrainingArguments`.

    Args:
        config: the run's settings.
        sizes: of the run's batches.
        folder: where the Trainer's own checkpoints go.
        precision: fp32, bf16 or fp16 (auto is settled already).
        device: cpu or cuda.
        validates: whether there is a validation split.
        best_is_highest: whether the best value of the metric that decides is the largest.
    """
    cuda = device == "cuda"
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": sizes.rows,
        "per_device_eval_batch_size": sizes.rows,
        "gradient_accumulation_steps": config.accumulation,
        "num_train_epochs": config.epochs,
        # The Trainer's max_steps is the length of the run, even beyond the epochs; ours is a bound.
        "max_steps": sizes.steps if sizes.steps < config.epochs * sizes.steps_per_epoch else -1,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": SCHEDULES[config.schedule],
        "warmup_steps": warmup_steps(config, sizes.steps),
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.clip_norm,
        "label_smoothing_factor": config.label_smoothing,
        "optim": "adamw_torch_fused",
        "seed": config.seed,
        "data_seed": config.seed,
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "tf32": True if cuda and precision == "fp32" else None,
        "use_cpu": not cuda,
        # auto leaves it off: every batch of the Trainer has a shape of its own, so compilation would not end.
        "torch_compile": config.compile == "on",
        "dataloader_pin_memory": cuda,
        "remove_unused_columns": False,
        "logging_steps": config.log_every,
        "logging_nan_inf_filter": False,  # a loss that is not finite must be seen
        "disable_tqdm": True,
        "report_to": "none",  # our trackers write TensorBoard and, by its switch, Weights & Biases
        "push_to_hub": False,
        "save_total_limit": config.save_total_limit,
        "restore_callback_states_from_checkpoint": True,  # the patience that is used up
    }
    if sizes.world_size > 1:
        arguments["ddp_backend"] = "nccl" if cuda else "gloo"
    if validates:
        arguments |= {
            "eval_strategy": "steps" if config.validate_every else "epoch",
            "save_strategy": "steps" if config.validate_every else "epoch",
            "load_best_model_at_end": True,
            "metric_for_best_model": config.best_metric,
            "greater_is_better": best_is_highest,
        }
        if config.validate_every:  # the best model can only be loaded if it was saved: at every validation
            arguments |= {"eval_steps": config.validate_every, "save_steps": config.validate_every}
    else:
        arguments |= {"eval_strategy": "no", "save_strategy": "epoch"}
    return arguments


def without_counterpart(config: TrainConfig) -> list[str]:
    """What was set and means nothing, or something else, to this engine: one text each."""
    defaults = TrainConfig()
    told = [
        f"train.{name} ({instead})"
        for name, instead in WITHOUT_COUNTERPART.items()
        if getattr(config, name) != getattr(defaults, name)
    ]
    if not config.batch_size and config.batch_tokens != defaults.batch_tokens:
        told.append("train.batch_tokens (it gives the rows of a batch: as many of the longest row as fit)")
    return told
