"""Attention by plain matrix products, for training on CPUs that multiply bf16 natively (AMX).

torch's fused attention saves memory, but on a CPU its backward pass runs at a tenth of the matrix units' speed, and with
dropout it has no fused kernel there at all. Where the probabilities fit into memory, two batched products and a softmax
are about twice as fast: same formula (Vaswani et al., 2017, section 3.2.1), rounded in another order. Measured with
`dropout` (bf16, AMX): a training step of a small GPT takes 18 % less time, one of BERT 22 to 41 % less.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

from hanflow.models.kernels.dropout import kept

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "hanflow_matmul"

MIN_QUERIES = 128
"""Queries below which the fused kernel is as good."""

MAX_PROBABILITIES = 2**26
"""Elements of one layer's probabilities, rows × heads × queries × keys, above which memory matters more."""


def use_on_cpu(model: PreTrainedModel) -> None:
    """Train a transformers model with this attention, which calls torch's own where that is faster.

    Models that cannot use torch's fused attention are left unchanged.
    """
    if not model._supports_sdpa:
        return
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls for every attention layer.

    Args:
        query, key, value: (B, heads, queries or keys, width) in the compute dtype.
        attention_mask: boolean, True where a query sees a key, or floating, added to the scores; broadcast to
            (B, heads, queries, keys).
        scaling: factor of the scores; None: 1 / √width.

    Returns:
        (B, queries, heads, width), and no weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    causal = is_causal if is_causal is not None else getattr(module, "is_causal", False)
    queries, keys = query.shape[-2], key.shape[-2]
    plain = (
        torch.is_grad_enabled()
        and query.device.type == "cpu"
        # With dropout torch has no fused kernel on a CPU, and draws its random numbers slowly.
        and ((query.dtype != torch.float32 and queries >= MIN_QUERIES) or dropout > 0.0)
        and query.shape[0] * query.shape[1] * queries * keys <= MAX_PROBABILITIES
        and not (causal and attention_mask is None and queries != keys)
        and query.shape[1] == key.shape[1]
    )
    if not plain:
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            scaling=scaling,
            dropout=dropout,
            is_causal=is_causal,
            **kwargs,
        )
    # Rows and heads as one dimension, so that the product, its scale and the mask are one call.
    q, k, v = (tensor.flatten(0, 1) for tensor in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if attention_mask is not None:
        scores = (q * scale) @ k.transpose(1, 2)
        scores = (scores.unflatten(0, query.shape[:2]) + _additive(attention_mask, scores.dtype)).flatten(0, 1)
    elif causal and queries > 1:
        scores = torch.baddbmm(_triangle(queries, q.dtype), q, k.transpose(1, 2), alpha=scale)
    else:
        scores = (q * scale) @ k.transpose(1, 2)
    # Autocast would run the softmax in float32 and double what is kept for the backward pass.
    with torch.autocast("cpu", enabled=False):
        probabilities = torch.softmax(scores, dim=-1)
    if dropout > 0.0:
        probabilities = probabilities * kept(probabilities.shape, dropout, probabilities.dtype)
    return (probabilities @ v).unflatten(0, query.shape[:2]).transpose(1, 2).contiguous(), None


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask to add to scores, from a boolean one (True: visible) or from one that is additive already."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, float("-inf"))


@functools.lru_cache(maxsize=8)
def _triangle(length: int, dtype: torch.dtype) -> torch.Tensor:
    """The causal mask to add to scores, of shape (length, length)."""
    return torch.full((length, length), float("-inf"), dtype=dtype).triu(1)
