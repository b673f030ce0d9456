"""What our own language models have in common: the config, the head, and the interface of transformers' models.

Shapes: B rows of a batch, T tokens of a row, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep

SHAPE = ("d_model", "d_ffn", "n_layers", "dropout", "activation_function", "separate_documents", "initializer_range")
"""Settings of `train.architecture` that both models have."""


class LanguageModelConfig(PretrainedConfig):
    """Everything that shapes a model; the defaults are those of the described system."""

    attribute_map = {  # noqa: RUF012 – the names that transformers' generation and caches use
        "hidden_size": "d_model",
        "intermediate_size": "d_ffn",
        "num_hidden_layers": "n_layers",
    }

    vocab_size: int = 8000
    d_model: int = 256
    d_ffn: int = 1024
    n_layers: int = 6
    dropout: float = 0.1
    """Of the first layer's input and of what each layer adds."""
    activation_function: str = "gelu"
    separate_documents: bool = False
    """Whether a token sees its own document only, where several are packed into one row."""
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None


class LanguageModel(PreTrainedModel, GenerationMixin):
    """A network that computes hidden states, and a head that shares the embeddings' weights.

    transformers' `generate` works with it.
    """

    network: type[nn.Module]
    """Made of the config; has `embed_tokens`, and takes the arguments of `forward` but `labels` and `logits_to_keep`."""
    base_model_prefix = "model"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 – read on the class

    def __init__(self, config: LanguageModelConfig):
        super().__init__(config)
        self.model = self.network(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Scores of the next token.

        Args:
            input_ids: int64 (B, T); with a cache: those that it does not hold.
            attention_mask: (B, all tokens so far), 0 where padded; None: nothing is.
            position_ids: int64 (B, T); None: from where the cache ends. Without mask and cache, a document begins
                where they do not rise by one, at 0, and sees nothing of the one before it.
            past_key_values: keys and values of the tokens before, for models with attention.
            labels: int64 (B, T), the input ids, -100 where nothing is to be learnt; shifted here.
            use_cache: whether keys and values are returned too.
            logits_to_keep: logits of this many last tokens (0: of all), or of the tokens with these indices.

        Returns:
            `logits`: (B, T or fewer, V) in the compute dtype.
        """
        output = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        logits = self.lm_head(slice_logits_to_keep(output.last_hidden_state, logits_to_keep))
        loss = None if labels is None else self.loss_function(logits, labels, vocab_size=self.config.vocab_size)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=output.past_key_values)
