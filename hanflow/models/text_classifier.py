"""What our own text classifiers have in common: the interface that transformers' classifiers have."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class TextClassifier(PreTrainedModel):
    """A classifier of token ids; a derived class computes the class scores."""

    def scores(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Logits, floating (B, C); arguments as in `forward`."""
        raise NotImplementedError

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Class scores of texts.

        Args:
            input_ids: int64 (B, L): B rows, padded on the right to L tokens.
            attention_mask: (B, L), 1 where a token stands; None: nothing is padded.
            labels: int64 (B,), class indices; with them the output has their mean cross-entropy, `loss`.

        Returns:
            `logits`: float32 (B, C) for C classes.
        """
        logits = self.scores(input_ids, attention_mask).float()
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits)
