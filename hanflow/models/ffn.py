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
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput
from transformers.modeling_utils import slice_logits_to_keep

from hanflow.models.architecture import Architecture
from hanflow.models.kernels.dropout import dropout


class FfnConfig(PretrainedConfig):
    """Everything that shapes the model; the defaults are those of the described system."""

    model_type = "hanflow_ffn"
    attribute_map = {  # noqa: RUF012 – as in transformers
        "hidden_size": "d_model",
        "intermediate_size": "d_ffn",
        "num_hidden_layers": "n_layers",
    }

    vocab_size: int = 8000
    d_model: int = 256
    d_ffn: int = 1024
    n_layers: int = 6
    window: int = 8
    """Tokens that the next one is predicted from."""
    dropout: float = 0.1
    """Of the joined window and of what each layer adds."""
    activation_function: str = "gelu"
    separate_documents: bool = False
    """Whether the window ends where a document begins, where several are packed into one row."""
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    use_cache: bool = False
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None


class Layer(nn.Module):
    """What a feed-forward network adds to the stream, from its normalised input."""

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
    ) -> BaseModelOutput:
        """Hidden states; arguments as in `FfnForCausalLM.forward`."""
        W = self.config.window
        ids_BTW = F.pad(input_ids, (W - 1, 0)).unfold(1, W, 1)
        visible_BTW = _visible(input_ids, attention_mask, position_ids, W)
        x_BTWD = self.embed_tokens(ids_BTW) * visible_BTW[..., None]
        x_BTD = dropout(self.join(x_BTWD.flatten(2)), self.config.dropout, self.training)
        for layer in self.layers:
            x_BTD = layer(x_BTD)
        return BaseModelOutput(last_hidden_state=self.norm(x_BTD))


class FfnForCausalLM(PreTrainedModel, GenerationMixin):
    """The network with a head that shares the embeddings' weights.

    transformers' `generate` works with it; there is no cache, as a step needs the last window of tokens alone.
    """

    config_class = FfnConfig
    base_model_prefix = "model"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 – read on the class

    def __init__(self, config: FfnConfig):
        super().__init__(config)
        self.model = Network(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

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

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """Scores of the next token.

        Args:
            input_ids: int64 (B, T).
            attention_mask: (B, T), 0 where padded, on the left or right; None: nothing is.
            position_ids: int64 (B, T): a document begins at 0, and sees nothing of the one before it; None: one
                document a row.
            labels: int64 (B, T), the input ids, -100 where nothing is to be learnt; shifted here.
            logits_to_keep: logits of this many last tokens (0: of all), or of the tokens with these indices.

        Returns:
            `logits`: (B, T or fewer, V) in the compute dtype.
        """
        hidden = self.model(input_ids, attention_mask=attention_mask, position_ids=position_ids).last_hidden_state
        logits = self.lm_head(slice_logits_to_keep(hidden, logits_to_keep))
        loss = None if labels is None else self.loss_function(logits, labels, vocab_size=self.config.vocab_size)
        return CausalLMOutput(loss=loss, logits=logits)


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


ARCHITECTURE = Architecture(
    FfnConfig,
    FfnForCausalLM,
    (
        "d_model",
        "d_ffn",
        "n_layers",
        "window",
        "dropout",
        "activation_function",
        "separate_documents",
        "initializer_range",
    ),
)

AutoConfig.register(FfnConfig.model_type, FfnConfig, exist_ok=True)
AutoModelForCausalLM.register(FfnConfig, FfnForCausalLM, exist_ok=True)
