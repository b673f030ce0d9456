"""BART's forward pass for training on CPUs, over the weights of transformers' modules.

The same formulas as transformers' BartModel, arranged for processors: what is neither multiplied nor needed again is
not written to memory. Queries, keys and values come from one product, attention runs as plain products
(`hanflow.models.kernels.attention`), dropout and the sum with the residual are one operation, and under autocast the
residual stream stays in the compute dtype, so that nothing is cast to and fro.

Shapes: B rows, S source length, T target length, D model width, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from hanflow.models.kernels.attend import attend, causal_bias, padding_bias
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
    """One attention sub-layer with its residual and norm; `memory`: what a cross-attention looks at."""
    if memory is None:
        query, key, value = _project(x, (module.q_proj, module.k_proj, module.v_proj))
    else:
        (query,) = _project(x, (module.q_proj,))
        key, value = _project(memory, (module.k_proj, module.v_proj))
    dropped = module.dropout if module.training else 0.0
    mixed = attend(query, key, value, bias, heads=module.num_heads, dropout=dropped)
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
