"""The loss of a language model's head, without ever holding the logits of all positions.

Why: 8,192 positions of a vocabulary of 30,000 are 1 GB of float32 logits, written and read several times a step
by torch's `linear` and `cross_entropy`; here some 60 MB are reused (bf16).

Shapes: N positions, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

IGNORED = -100
"""Target id of positions that the loss leaves out; transformers' own convention."""

CHUNK = 1024
"""Positions whose logits are held at a time: enough for the matrix units and for the sums of the weight's gradient."""

SLICE = 64
"""Positions whose softmax is taken at a time: few enough for float32 copies of their logits to stay in the cache."""


def linear_cross_entropy(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_N: torch.Tensor,
    bias_V: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Sum of the cross-entropy of `hidden @ weight.T + bias`; equal to torch's `linear` and `cross_entropy`.

    On a CPU the logits are computed, scored and differentiated chunk by chunk. As elsewhere under autocast, the products
    are in the autocast dtype and the softmax in float32; the weight's gradient is summed in float32.

    Args:
        hidden_ND: floating.
        weight_VD, bias_V: parameters of the head.
        targets_N: int64; IGNORED where there is nothing to predict.
        label_smoothing: share of the target's probability given evenly to the whole vocabulary.

    Returns:
        float32 scalar.
    """
    if hidden_ND.device.type != "cpu":
        logits_NV = F.linear(hidden_ND, weight_VD, bias_V).float()
        return F.cross_entropy(
            logits_NV, targets_N, ignore_index=IGNORED, reduction="sum", label_smoothing=label_smoothing
        )
    predicted = targets_N != IGNORED
    if not predicted.all():
        where = predicted.nonzero().squeeze(1)
        hidden_ND, targets_N = hidden_ND.index_select(0, where), targets_N.index_select(0, where)
    return _LinearCrossEntropy.apply(hidden_ND, weight_VD, bias_V, targets_N, label_smoothing)


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradient of a sum is known as soon as its parts are: it is computed beside the loss, backward only scales."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_N: torch.Tensor,
        label_smoothing: float,
    ) -> torch.Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden_ND.dtype
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        V = weight_VD.shape[0]
        with torch.autocast("cpu", enabled=False):
            hidden, weight = hidden_ND.to(dtype), weight_VD.to(dtype)
            bias = None if bias_V is None else bias_V.to(dtype)
            total = torch.zeros((), dtype=torch.float32)
            hidden_gradient = torch.empty_like(hidden) if wants_hidden else None
            weight_gradient = torch.zeros_like(weight_VD, dtype=torch.float32) if wants_weight else None
            bias_gradient = torch.zeros(V, dtype=torch.float32) if wants_bias else None
            # The same memory for every chunk: what it holds stays in the cache.
            chunk_logits = torch.empty(CHUNK, V, dtype=dtype)
            slice_scores, slice_logs = torch.empty(2, SLICE, V, dtype=torch.float32)
            product = torch.empty_like(weight)
            for start in range(0, len(hidden), CHUNK):
                part, targets = hidden[start : start + CHUNK], targets_N[start : start + CHUNK, None]
                logits = chunk_logits[: len(part)]
                if bias is None:
                    torch.mm(part, weight.T, out=logits)
                else:
                    torch.addmm(bias, part, weight.T, out=logits)
                for at in range(0, len(part), SLICE):
                    labels = targets[at : at + SLICE]
                    scores = slice_scores[: len(labels)].copy_(logits[at : at + SLICE])
                    logs = torch.log_softmax(scores, -1, out=slice_logs[: len(labels)])
                    total -= logs.gather(1, labels).sum() * (1.0 - label_smoothing)
                    if label_smoothing:
                        total -= logs.sum() * (label_smoothing / V)
                    if not any(ctx.needs_input_grad):
                        continue
                    # d loss / d logits = softmax - smoothed target, written over the logits
                    difference = logs.exp_()
                    if label_smoothing:
                        difference -= label_smoothing / V
                    difference.scatter_add_(1, labels, torch.full(labels.shape, label_smoothing - 1.0))
                    if bias_gradient is not None:
                        bias_gradient += difference.sum(0)
                    logits[at : at + SLICE] = difference
                if hidden_gradient is not None:
                    torch.mm(logits, weight, out=hidden_gradient[start : start + CHUNK])
                if weight_gradient is not None:
                    weight_gradient += torch.mm(logits.T, part, out=product)
        ctx.save_for_backward(hidden_gradient, weight_gradient, bias_gradient)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (*(None if part is None else part * gradient for part in ctx.saved_tensors), None, None)
