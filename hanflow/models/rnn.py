"""Bidirectional LSTM that classifies texts (Hochreiter and Schmidhuber, 1997; Schuster and Paliwal, 1997).

Shapes: B rows of a batch, L padded length, E embedding width, H width of one direction, C classes. Inside, time comes
first: (L, B, …), the layout of torch's LSTM.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig
from transformers import initialization as init

from hanflow.models.architecture import Architecture
from hanflow.models.kernels.dropout import dropout
from hanflow.models.text_classifier import TextClassifier


class RnnConfig(PretrainedConfig):
    """Everything that shapes the model; the defaults are those of the described system (emb 128, BiLSTM 256 × 4)."""

    model_type = "hanflow_rnn"

    vocab_size: int = 8000
    embedding_size: int = 128
    hidden_size: int = 256
    """Width of one direction."""
    n_layers: int = 4
    dropout: float = 0.3
    """Of what goes from one layer to the next."""
    initializer_range: float = 0.1
    """Standard deviation of new embeddings; other weights are drawn as torch draws those of its LSTM."""
    pad_token_id: int | None = 0


class RnnForSequenceClassification(TextClassifier):
    """Stacked bidirectional LSTM; both directions' last states of the top layer go to a linear classifier.

    The same function as `nn.LSTM(bidirectional=True)` over packed sequences. Packed sequences, though, are slow on a CPU
    (torch does not use oneDNN for them), so each direction runs on its own, the backward one over rows that are reversed
    within their length: padding then stands at the end for both, where it changes nothing.
    """

    config_class = RnnConfig
    _input_embed_layer = "embedding"

    def __init__(self, config: RnnConfig):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        widths = [config.embedding_size, *[2 * config.hidden_size] * (config.n_layers - 1)]
        self.forwards = nn.ModuleList(nn.LSTM(width, config.hidden_size) for width in widths)
        self.backwards = nn.ModuleList(nn.LSTM(width, config.hidden_size) for width in widths)
        self.classifier = nn.Linear(2 * config.hidden_size, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.LSTM):
            bound = module.hidden_size**-0.5
            for parameter in module.parameters():
                init.uniform_(parameter, -bound, bound)
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)

    def scores(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        x_LBE = self.embedding(input_ids.T)
        reverse = _Reversal(input_ids, attention_mask)
        *lower, (forwards, backwards) = zip(self.forwards, self.backwards, strict=True)
        for ahead, behind in lower:
            x_LBE = torch.cat([ahead(x_LBE)[0], reverse(behind(reverse(x_LBE))[0])], dim=-1)
            x_LBE = dropout(x_LBE, self.config.dropout, self.training)
        ends_BH = [reverse.last(forwards(x_LBE)[0]), reverse.last(backwards(reverse(x_LBE))[0])]
        return self.classifier(torch.cat(ends_BH, dim=-1))


class _Reversal:
    """Reverses the rows of a batch in time, each within its own length; applied twice it is the identity."""

    def __init__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None):
        self.order: torch.Tensor | None = None
        if attention_mask is None:
            return
        B, L = input_ids.shape
        rows = torch.arange(B, device=input_ids.device)
        lengths = attention_mask.sum(1).clamp(min=1)
        at = torch.arange(L, device=input_ids.device)[:, None]
        reversed_at = torch.where(at < lengths, lengths - 1 - at, at)
        self.order = (reversed_at * B + rows).flatten()
        """int64 (L · B,): where in the flattened input each position of the flattened output comes from."""
        self.ends = (lengths - 1) * B + rows

    def __call__(self, x_LBF: torch.Tensor) -> torch.Tensor:
        if self.order is None:
            return x_LBF.flip(0)
        return _Permute.apply(x_LBF.flatten(0, 1), self.order).view_as(x_LBF)

    def last(self, x_LBF: torch.Tensor) -> torch.Tensor:
        """(B, F): each row's state after all of its tokens."""
        return x_LBF[-1] if self.order is None else x_LBF.flatten(0, 1).index_select(0, self.ends)


class _Permute(torch.autograd.Function):
    """Rows in an order that is its own inverse: the gradient is gathered too, where torch would add into zeros."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(order)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient.index_select(0, ctx.saved_tensors[0]), None


ARCHITECTURE = Architecture(
    RnnConfig,
    RnnForSequenceClassification,
    ("embedding_size", "hidden_size", "n_layers", "dropout", "initializer_range"),
)

AutoConfig.register(RnnConfig.model_type, RnnConfig, exist_ok=True)
AutoModelForSequenceClassification.register(RnnConfig, RnnForSequenceClassification, exist_ok=True)
