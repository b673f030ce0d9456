"""Decoder-only Transformer that continues texts: pre-LN, learned positions, tied head (Radford et al., 2019).

Shapes: B rows of a batch, T tokens of a row, D model width, H heads, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hanflow.models.architecture import Architecture
from hanflow.models.kernels.dropout import dropout
from hanflow.models.language_model import SHAPE, LanguageModel, LanguageModelConfig


class GptConfig(LanguageModelConfig):
    """A language model with attention."""

    model_type = "hanflow_gpt"
    keys_to_ignore_at_inference = ("past_key_values",)
    attribute_map = LanguageModelConfig.attribute_map | {"num_attention_heads": "nhead"}

    nhead: int = 4
    attention_dropout: float = 0.0
    """Of the attention's probabilities; costs a fifth of the speed on a CPU."""
    max_position_embeddings: int = 256
    """Longest context in tokens."""
    use_cache: bool = True


class Attention(nn.Module):
    """Causal self-attention of one layer; queries, keys and values come from one product."""

    is_causal = True

    def __init__(self, config: GptConfig, layer: int):
        super().__init__()
        self.config, self.layer = config, layer
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model)
        self.out = nn.Linear(config.d_model, config.d_model)

    def forward(self, x_BTD: torch.Tensor, mask: torch.Tensor | None, cache: Cache | None) -> torch.Tensor:
        B, T, D = x_BTD.shape
        H = self.config.nhead
        query, key, value = self.qkv(x_BTD).view(B, T, 3, H, D // H).permute(2, 0, 3, 1, 4)
        if cache is not None:
            key, value = cache.update(key, value, self.layer)
        # What `set_attn_implementation` chose: sdpa, or `hanflow.models.kernels.attention` in training on a CPU.
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, sdpa_attention_forward)
        probability = self.config.attention_dropout if self.training else 0.0
        y_BTHd, _ = attend(self, query, key, value, mask, dropout=probability, scaling=(D // H) ** -0.5)
        return self.out(y_BTHd.reshape(B, T, D))


class Block(nn.Module):
    """One pre-LN layer: attention, then a feed-forward network, each with its residual."""

    def __init__(self, config: GptConfig, layer: int):
        super().__init__()
        self.dropout = config.dropout
        self.attention_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.attention = Attention(config, layer)
        self.ffn_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.up = nn.Linear(config.d_model, config.d_ffn)
        self.activation = ACT2FN[config.activation_function]
        self.down = nn.Linear(config.d_ffn, config.d_model)

    def forward(self, x_BTD: torch.Tensor, mask: torch.Tensor | None, cache: Cache | None) -> torch.Tensor:
        attended = self.attention(self.attention_norm(x_BTD), mask, cache)
        x_BTD = x_BTD + dropout(attended, self.dropout, self.training)
        expanded = self.activation(self.up(self.ffn_norm(x_BTD)))
        return x_BTD + dropout(self.down(expanded), self.dropout, self.training)


class Decoder(nn.Module):
    """Embeddings, layers and the last normalisation: all but the head."""

    def __init__(self, config: GptConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.d_model)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states; arguments as in `LanguageModel.forward`."""
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        embedded = self.embed_tokens(input_ids)
        packed = position_ids is not None and attention_mask is None and past_key_values is None
        if position_ids is None:
            position_ids = torch.arange(seen, seen + input_ids.shape[1], device=input_ids.device)[None]
        if packed:
            mask = _same_document(position_ids, embedded)
        elif attention_mask is None and past_key_values is None:
            mask = None  # causal alone: no mask needs to be made
        else:
            mask = create_causal_mask(
                config=self.config,
                inputs_embeds=embedded,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                position_ids=position_ids,
            )
        x_BTD = dropout(embedded + self.embed_positions(position_ids), self.config.dropout, self.training)
        for layer in self.layers:
            x_BTD = layer(x_BTD, mask, past_key_values)
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(x_BTD), past_key_values=past_key_values if use_cache else None
        )


class GptForCausalLM(LanguageModel):
    """The decoder with its head; works with or without transformers' caches."""

    config_class = GptConfig
    network = Decoder
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["Block"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Block):
            # GPT-2's: two sums a layer flow into the stream, whose variance should not grow with the depth.
            std = self.config.initializer_range / math.sqrt(2 * self.config.n_layers)
            init.normal_(module.attention.out.weight, std=std)
            init.normal_(module.down.weight, std=std)


def _same_document(position_ids: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The mask, to be added to scores, of rows that hold several documents: (B, 1, T, T) in the compute dtype.

    Additive, because every layer would make it from a boolean one again.
    """
    device = like.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else like.dtype
    document = (position_ids.diff(dim=1, prepend=position_ids[:, :1] - 1) != 1).cumsum(1)
    T = position_ids.shape[1]
    seen = torch.ones(T, T, dtype=torch.bool, device=like.device).tril()
    seen = seen & (document[:, :, None] == document[:, None, :])
    return torch.zeros(seen.shape, dtype=dtype, device=like.device).masked_fill_(~seen, float("-inf"))[:, None]


ARCHITECTURE = Architecture(
    GptConfig,
    GptForCausalLM,
    (*SHAPE, "nhead", "attention_dropout", "max_position_embeddings"),
    heads=(("d_model", "nhead"),),
)

AutoConfig.register(GptConfig.model_type, GptConfig, exist_ok=True)
AutoModelForCausalLM.register(GptConfig, GptForCausalLM, exist_ok=True)
