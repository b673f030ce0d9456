"""BART's forward pass for training on CPUs, over the weights of transformers' modules.

The same formulas as transformers' BartModel, arranged so that less is written to memory: queries, keys and values come
from one product, attention is plain matrix products (why: see `hanflow.models.kernels.attention`), dropout and the sum
with the residual are one operation, and under autocast the residual stream stays in the compute dtype.

Measured: with the other changes of the same day a step of a KoBART-size model took 1 / 1.34 of its time, on a CPU with
AMX in bf16. On CPUs without AMX no gain is known.

Shapes: B rows, S source length, T target length, Q queries, K keys, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from hanflow.models.kernels.attention import MAX_PROBABILITIES
from hanflow.models.kernels.dropout import dropout, dropout_add

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def applies(model: PreTrainedModel) -> bool:
    """Whether this module computes what the model's own forward pass computes."""
    config = model.config
    return (
        type(model).__name__ == "BartForConditionalGeneration"
        and model.device.type == "cpu"
        and config.encoder_layerdrop == config.decoder_layerdrop == 0.0
        and config.activation_dropout == 0.0
        and not any(
            getattr(side, "gradient_checkpointing", False) for side in (model.model.encoder, model.model.decoder)
        )
    )


def hidden(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, decoder_input_ids: torch.Tensor
) -> torch.Tensor:
    """The decoder's last hidden states, (B, T, D) in the compute dtype.

    Args:
        model: a BartForConditionalGeneration for which `applies` holds.
        input_ids: int64 (B, S).
        attention_mask: int64 (B, S), 1 where a source token is real; None: all are.
        decoder_input_ids: int64 (B, T).
    """
    core = model.model
    S = input_ids.shape[1]
    # One lookup for both sides: its gradient is as large as the vocabulary, and is made once instead of twice.
    embedded = core.shared(torch.cat([input_ids, decoder_input_ids], dim=1))
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else embedded.dtype
    bias = None if attention_mask is None else padding_bias(attention_mask, dtype)
    source = _embed(core.encoder, embedded[:, :S], dtype)
    for layer in core.encoder.layers:
        source = _attention(layer.self_attn, layer.self_attn_layer_norm, source, None, bias, layer)
        source = _feed_forward(layer, source)
    target = _embed(core.decoder, embedded[:, S:], dtype)
    causal = causal_bias(target.shape[1], dtype)
    for layer in core.decoder.layers:
        target = _attention(layer.self_attn, layer.self_attn_layer_norm, target, None, causal, layer)
        target = _attention(layer.encoder_attn, layer.encoder_attn_layer_norm, target, source, bias, layer)
        target = _feed_forward(layer, target)
    return target


def _embed(side: Any, embedded: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    positions = side.embed_positions
    summed = embedded + positions.weight[positions.offset : positions.offset + embedded.shape[1]]
    return dropout(side.layernorm_embedding(summed).to(dtype), side.dropout, side.training)


def _attention(
    module: Any,
    norm: torch.nn.Module,
    x: torch.Tensor,
    memory: torch.Tensor | None,
    bias: torch.Tensor | None,
    layer: Any,
) -> torch.Tensor:
    """One attention sub-layer with its residual and norm; `memory`: the keys and values of a cross-attention."""
    if memory is None:
        query, key, value = _project(x, (module.q_proj, module.k_proj, module.v_proj))
    else:
        (query,) = _project(x, (module.q_proj,))
        key, value = _project(memory, (module.k_proj, module.v_proj))
    dropped = module.dropout if module.training else 0.0
    mixed = attend(query, key, value, bias, heads=module.num_heads, drop=dropped)
    return norm(dropout_add(module.out_proj(mixed), x, layer.dropout, layer.training))


def _project(x: torch.Tensor, layers: Sequence[torch.nn.Linear]) -> tuple[torch.Tensor, ...]:
    """Several linear layers of one input as one product."""
    if len(layers) == 1:
        return (layers[0](x),)
    weight = torch.cat([layer.weight.to(x.dtype) for layer in layers])
    bias = torch.cat([layer.bias.to(x.dtype) for layer in layers])
    return F.linear(x, weight, bias).chunk(len(layers), dim=-1)


def _feed_forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    inner = layer.fc2(layer.activation_fn(layer.fc1(x)))
    return layer.final_layer_norm(dropout_add(inner, x, layer.dropout, layer.training))


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    heads: int,
    drop: float = 0.0,
) -> torch.Tensor:
    """Multi-head attention between projected sequences.

    Args:
        query: (B, Q, D) in the compute dtype.
        key, value: (B, K, D).
        bias: added to the scores, -inf where a query must not see a key: (B or 1, Q or 1, K) in the same dtype; None:
            every query sees every key. Each query must see at least one.
        heads: divides D.
        drop: probability of a weight to be dropped.

    Returns:
        (B, Q, D).
    """
    B, Q, D = query.shape
    K, width = key.shape[1], D // heads
    q, k, v = (x.view(B, -1, heads, width).transpose(1, 2) for x in (query, key, value))
    if query.dtype == torch.float32 or B * heads * Q * K > MAX_PROBABILITIES:
        mask = None if bias is None else bias[:, None]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=drop)
        return mixed.transpose(1, 2).reshape(B, Q, D)
    q, k, v = (x.reshape(B * heads, -1, width) for x in (q * width**-0.5, k, v))
    # Autocast would run the softmax in float32 and double what is kept for the backward pass.
    with torch.autocast("cpu", enabled=False):
        if bias is None:
            scores = torch.bmm(q, k.transpose(1, 2))
        else:
            each = bias[:, None].expand(B, heads, bias.shape[1], K).reshape(B * heads, bias.shape[1], K)
            scores = torch.baddbmm(each, q, k.transpose(1, 2))
        weights = dropout(torch.softmax(scores, dim=-1), drop, training=True)
        mixed = torch.bmm(weights, v)
    return mixed.view(B, heads, Q, width).transpose(1, 2).reshape(B, Q, D)


def padding_bias(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(B, 1, K) for `attend` from a mask (B, K) that is 1 where a token is real."""
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(mask == 0, float("-inf"))[:, None]


def causal_bias(length: int, dtype: torch.dtype) -> torch.Tensor:
    """(1, length, length) for `attend`: a query sees itself and what stands before it."""
    return torch.full((length, length), float("-inf"), dtype=dtype).triu_(1)[None]
