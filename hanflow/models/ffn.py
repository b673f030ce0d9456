"""Feed-forward language model: the next token from a window of the last ones (Bengio et al., 2003).

The window's embeddings stand side by side and pass through residual feed-forward layers. No attention: what lies before
the window is not seen.

Shapes: B rows of a batch, T tokens of a row, W tokens of the window, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPast

from hanflow.models.architecture import Architecture
from hanflow.models.kernels.dropout import dropout
from hanflow.models.language_model import SHAPE, LanguageModel, LanguageModelConfig


class FfnConfig(LanguageModelConfig):
    """A language model without attention."""

    model_type = "hanflow_ffn"

    window: int = 8
    """Tokens that the next one is predicted from."""
    use_cache: bool = False


class Layer(nn.Module):
    """One pre-LN layer: a feed-forward network with its residual."""

    def __init__(self, config: FfnConfig):
        super().__init__()
        self.dropout = config.dropout
        self.norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.up = nn.Linear(config.d_model, config.d_ffn)
        self.activation = ACT2FN[config.activation_function]
        self.down = nn.Linear(config.d_ffn, config.d_model)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        expanded = self.activation(self.up(self.norm(x_BTD)))
        return x_BTD + dropout(self.down(expanded), self.dropout, self.training)


class Network(nn.Module):
    """Embeddings, the joined window, layers and the last normalisation: all but the head."""

    def __init__(self, config: FfnConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.join = nn.Linear(config.window * config.d_model, config.d_model)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states; arguments as in `LanguageModel.forward`."""
        W = self.config.window
        ids_BTW = F.pad(input_ids, (W - 1, 0)).unfold(1, W, 1)
        visible_BTW = _visible(input_ids, attention_mask, position_ids, W)
        x_BTWD = self.embed_tokens(ids_BTW) * visible_BTW[..., None]
        x_BTD = dropout(self.join(x_BTWD.flatten(2)), self.config.dropout, self.training)
        for layer in self.layers:
            x_BTD = layer(x_BTD)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(x_BTD))


class FfnForCausalLM(LanguageModel):
    """The network with its head; there is no cache, as a step needs the last window of tokens alone."""

    config_class = FfnConfig
    network = Network

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The last window, whatever transformers' `generate` believes to be cached."""
        window = slice(-self.config.window, None)
        return {
            "input_ids": input_ids[:, window],
            "attention_mask": None if attention_mask is None else attention_mask[:, window],
            "logits_to_keep": 1,
        }


def _visible(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None, window: int
) -> torch.Tensor:
    """Which tokens of each window stand in the row, in the text and in the same document: float32 (B, T, W), 0 or 1."""
    B, T = input_ids.shape
    if attention_mask is None:
        attention_mask = torch.ones(B, T, dtype=torch.bool, device=input_ids.device)
    visible = F.pad(attention_mask.bool(), (window - 1, 0)).unfold(1, window, 1)
    if position_ids is not None:
        back = torch.arange(window - 1, -1, -1, device=input_ids.device)
        visible = visible & (back <= position_ids[..., None])
    return visible.float()


ARCHITECTURE = Architecture(FfnConfig, FfnForCausalLM, (*SHAPE, "window"))

AutoConfig.register(FfnConfig.model_type, FfnConfig, exist_ok=True)
AutoModelForCausalLM.register(FfnConfig, FfnForCausalLM, exist_ok=True)
