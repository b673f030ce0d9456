"""Multi-head attention between projected sequences by plain matrix products, for our own forward passes on CPUs.

Why products and not torch's fused kernel: see `hanflow.models.kernels.attention`, which is the same for models of
transformers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hanflow.models.kernels.attention import MOST_PROBABILITIES
from hanflow.models.kernels.dropout import dropout as drop


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    heads: int,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Multi-head attention between projected sequences.

    Args:
        query: (B, Q, D) in the compute dtype.
        key, value: (B, K, D).
        bias: added to the scores, -inf where nothing may be seen: (B or 1, Q or 1, K) in the same dtype; None: all is
            seen. Every query must see something.
        heads: divides D.
        dropout: probability of a weight to be dropped.

    Returns:
        (B, Q, D).
    """
    B, Q, D = query.shape
    K, width = key.shape[1], D // heads
    q, k, v = (x.view(B, -1, heads, width).transpose(1, 2) for x in (query, key, value))
    if query.dtype == torch.float32 or B * heads * Q * K > MOST_PROBABILITIES:
        mask = None if bias is None else bias[:, None]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return mixed.transpose(1, 2).reshape(B, Q, D)
    q, k, v = (x.reshape(B * heads, -1, width) for x in (q * width**-0.5, k, v))
    # Autocast would run the softmax in float32 and double what is kept for the backward pass.
    with torch.autocast("cpu", enabled=False):
        if bias is None:
            scores = torch.bmm(q, k.transpose(1, 2))
        else:
            each = bias[:, None].expand(B, heads, bias.shape[1], K).reshape(B * heads, bias.shape[1], K)
            scores = torch.baddbmm(each, q, k.transpose(1, 2))
        weights = drop(torch.softmax(scores, dim=-1), dropout, training=True)
        mixed = torch.bmm(weights, v)
    return mixed.view(B, heads, Q, width).transpose(1, 2).reshape(B, Q, D)


def padding_bias(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(B, 1, K) for `attend` from a mask (B, K) that is 1 where a token is real."""
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(mask == 0, float("-inf"))[:, None]


def causal_bias(length: int, dtype: torch.dtype) -> torch.Tensor:
    """(1, length, length) for `attend`: a query sees itself and what stands before it."""
    return torch.full((length, length), float("-inf"), dtype=dtype).triu_(1)[None]
