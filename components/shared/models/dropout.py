"""Dropout for CPUs: torch's own draws one Bernoulli number an element from one thread, a tenth of a training step."""

from __future__ import annotations

from typing import Any

import torch

BITS = 16
"""Random bits an element: the rate is exact to 2⁻¹⁷."""


class _Dropout(torch.autograd.Function):
    """residual + x · mask / (1 - p); the mask is kept scaled, in the dtype of x."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, residual: torch.Tensor | None, p: float) -> torch.Tensor:
        mask = _mask(x, p)
        ctx.save_for_backward(mask)
        return x * mask if residual is None else torch.addcmul(residual, x, mask)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (mask,) = ctx.saved_tensors
        (gradient,) = gradients
        return gradient * mask, gradient if ctx.needs_input_grad[1] else None, None


def _mask(x: torch.Tensor, p: float) -> torch.Tensor:
    """0 with probability p, else 1 / (1 - p); from torch's generator, so `torch.manual_seed` decides."""
    count = x.numel()
    words = torch.empty(-(-count * BITS // 64), dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[:count].view(x.shape)
    kept = bits >= round(p * 2**BITS) - 2 ** (BITS - 1)
    return kept.to(x.dtype).mul_(1.0 / (1.0 - p))


def dropout(x: torch.Tensor, p: float, training: bool) -> torch.Tensor:
    """`torch.nn.functional.dropout`, several times faster on a CPU.

    Args:
        x: any shape, floating point.
        p: probability of an element to become 0; the others are divided by 1 - p.
    """
    return _Dropout.apply(x, None, p) if training and p > 0.0 else x


def dropout_add(x: torch.Tensor, residual: torch.Tensor, p: float, training: bool) -> torch.Tensor:
    """`residual + dropout(x)` in one pass; same shapes and dtypes."""
    return _Dropout.apply(x, residual, p) if training and p > 0.0 else residual + x
