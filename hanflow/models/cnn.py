"""Convolutions over a text's embeddings, the largest response of each filter kept (Kim, 2014).

Shapes: B rows of a batch, L padded length, E embedding width, F filters of one window, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig
from transformers import initialization as init

from hanflow.models.architecture import Architecture
from hanflow.models.kernels.dropout import dropout
from hanflow.models.text_classifier import TextClassifier


class CnnConfig(PretrainedConfig):
    """Everything that shapes the model; the defaults are those of the described system (emb 256, windows 3/4/5)."""

    model_type = "hanflow_cnn"

    vocab_size: int = 8000
    embedding_size: int = 256
    windows: list[int] = field(default_factory=lambda: [3, 4, 5])
    """Width in tokens of the filters of each group."""
    n_filters: int = 100
    """Filters of each window."""
    dropout: float = 0.3
    """Of the pooled responses."""
    initializer_range: float = 0.1
    """Standard deviation of new embeddings; other weights are drawn as torch draws those of its convolutions."""
    pad_token_id: int | None = 0


def _check_windows(settings: Mapping[str, Any]) -> list[str]:
    windows = settings.get("windows", [])
    if len(set(windows)) == len(windows):
        return []
    return [f"train.architecture.windows: {windows} names one twice; raise n_filters instead"]


class CnnForSequenceClassification(TextClassifier):
    """One convolution a window, ReLU, the maximum over time, dropout, a linear classifier.

    Only windows that lie within the text compete for the maximum, so padding never wins. A text shorter than a window
    is one window, filled up with zeros.
    """

    config_class = CnnConfig
    _input_embed_layer = "embedding"

    def __init__(self, config: CnnConfig):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(config.embedding_size, config.n_filters, window) for window in config.windows
        )
        self.classifier = nn.Linear(config.n_filters * len(config.windows), config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Conv1d, nn.Linear)):
            bound = module.weight[0].numel() ** -0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)

    def scores(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        x_BLE = self.embedding(input_ids)
        lengths_B = None
        if attention_mask is not None:
            x_BLE = x_BLE * attention_mask.to(x_BLE.dtype)[..., None]
            lengths_B = attention_mask.sum(1)
        missing = max(self.config.windows) - x_BLE.shape[1]
        x_BEL = F.pad(x_BLE, (0, 0, 0, max(missing, 0))).transpose(1, 2)
        pooled = []
        for window, convolution in zip(self.config.windows, self.convolutions, strict=True):
            response_BFL = convolution(x_BEL)
            # ReLU after the maximum gives the same values as before it, on fewer elements.
            pooled.append(_largest(response_BFL, lengths_B, input_ids.shape[1], window).relu())
        return self.classifier(dropout(torch.cat(pooled, dim=1), self.config.dropout, self.training))


def _largest(response_BFL: torch.Tensor, lengths_B: torch.Tensor | None, longest: int, window: int) -> torch.Tensor:
    """(B, F): the largest response over the windows that begin within the text and end there too."""
    if lengths_B is None:
        return response_BFL[..., : max(longest - window + 1, 1)].amax(dim=-1)
    starts = torch.arange(response_BFL.shape[-1], device=response_BFL.device)
    outside_BL = starts > (lengths_B - window).clamp(min=0)[:, None]
    return response_BFL.masked_fill(outside_BL[:, None], float("-inf")).amax(dim=-1)


ARCHITECTURE = Architecture(
    CnnConfig,
    CnnForSequenceClassification,
    ("embedding_size", "windows", "n_filters", "dropout", "initializer_range"),
    check=_check_windows,
)

AutoConfig.register(CnnConfig.model_type, CnnConfig, exist_ok=True)
AutoModelForSequenceClassification.register(CnnConfig, CnnForSequenceClassification, exist_ok=True)
