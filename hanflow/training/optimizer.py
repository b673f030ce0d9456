"""The optimizer and its schedule."""

from __future__ import annotations

import math
from typing import Any

import torch

from hanflow.config import TrainConfig


class TracedAdamW(torch.optim.Optimizer):
    """torch's AdamW in plain operations, all of whose numbers live on the device: one graph for every step.

    Like torch's fused one it takes `found_inf` (above 0: change nothing) and `grad_scale` (what gradients are divided
    by) as attributes, float32 tensors on the device or None. `lr` is a tensor there too. A parameter's state has torch's
    names; `step` has shape (1,).
    """

    BETAS = (0.9, 0.999)
    EPS = 1e-8

    def __init__(self, groups: list[dict[str, Any]]):
        super().__init__(groups, {"lr": 0.0})
        self.found_inf: torch.Tensor | None = None
        self.grad_scale: torch.Tensor | None = None
        for group in self.param_groups:
            for p in group["params"]:
                # Sent, as later states are where they are: zeros made on the device would be constants of the graph.
                zeros = torch.zeros(p.shape, dtype=p.dtype)
                self.state[p] = {
                    "step": torch.zeros(1).to(p.device),
                    "exp_avg": zeros.to(p.device, copy=True),
                    "exp_avg_sq": zeros.to(p.device, copy=True),
                }

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Algorithm 2 of Loshchilov and Hutter, 2019, in torch's order of operations."""
        beta1, beta2 = self.BETAS
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                gradient = p.grad if self.grad_scale is None else p.grad / self.grad_scale
                step = state["step"] + 1
                mean = state["exp_avg"].lerp(gradient, 1 - beta1)
                square = state["exp_avg_sq"] * beta2 + (1 - beta2) * gradient * gradient
                # 1 - beta**step without the cancellation that float32 would suffer in it.
                seen1, seen2 = (-torch.expm1(step * math.log(beta)) for beta in self.BETAS)
                deviation = square.sqrt() / seen2.sqrt() + self.EPS
                rate = group["lr"] / seen1
                weights = p * (1 - group["lr"] * group["weight_decay"]) - rate * mean / deviation
                for old, new in (
                    (state["step"], step),
                    (state["exp_avg"], mean),
                    (state["exp_avg_sq"], square),
                    (p, weights),
                ):
                    old.copy_(new if self.found_inf is None else torch.where(self.found_inf > 0, old, new))


def make_optimizer(model: torch.nn.Module, config: TrainConfig, *, traced: bool = False) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, 2019); vectors (biases, norms) are exempt from weight decay.

    Args:
        traced: made of plain operations for a device that compiles whole steps, else torch's fused one.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for _, p in named if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return TracedAdamW(groups) if traced else torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def total_steps(config: TrainConfig, per_epoch: int) -> int:
    """Optimizer steps of the whole run."""
    steps = config.epochs * per_epoch
    return min(steps, config.max_steps) if config.max_steps else steps


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
