"""The optimizer and its schedule."""

from __future__ import annotations

import math

import torch

from components.shared.config import TrainConfig


def make_optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Fused AdamW (Loshchilov and Hutter, 2019); vectors (biases, norms) are exempt from weight decay."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for _, p in named if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, fused=True)


def warmup_steps(config: TrainConfig, total_steps: int) -> int:
    """Optimizer steps of rising learning rate."""
    return config.warmup_steps or math.ceil(config.warmup_ratio * total_steps)


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """Learning rate of the optimizer step with that number (from 0).

    A pure function, so nothing of it needs to be saved. Equal to transformers' `get_linear_schedule_with_warmup`,
    `get_cosine_schedule_with_warmup` and `get_constant_schedule_with_warmup`.
    """
    warmup = warmup_steps(config, total_steps)
    if step < warmup:
        return config.learning_rate * step / max(warmup, 1)
    done = (step - warmup) / max(total_steps - warmup, 1)
    if config.schedule == "linear":
        return config.learning_rate * max(0.0, 1.0 - done)
    if config.schedule == "cosine":
        return config.learning_rate * max(0.0, 0.5 * (1.0 + math.cos(math.pi * done)))
    return config.learning_rate
