"""Language models: new models, batches and losses.

Rows are chunks of one stream of tokens, `eos document eos document eos …`: the separator before a document is what
its first token is predicted from. Neighbouring chunks share one token, the last of one being the first of the next, so
that every token is predicted exactly once. Shapes: B rows of a batch, T input tokens of a row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from hanflow.models import ffn, gpt
from hanflow.models.architecture import Architectures
from hanflow.models.kernels.cross_entropy import CHUNK, IGNORED, linear_cross_entropy

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ARCHITECTURES = Architectures(
    "language_modeling",
    {"gpt": gpt.ARCHITECTURE, "ffn": ffn.ARCHITECTURE},
    'train.architecture={"type": "gpt"}',
)


def collate(
    rows: Sequence[Sequence[np.ndarray]],
    shape: Sequence[int],
    config: PretrainedConfig,
    *,
    static: bool = False,
) -> dict[str, torch.Tensor]:
    """Chunks as one batch.

    Args:
        rows: at most B rows of one int32 array of 2 to T + 1 token ids.
        shape: (B, T + 1).
        config: the model's config, for the ids of separator and padding, and `separate_documents`: whether a token sees
            its own document only.
        static: no difference here: the tensors follow from the arguments above.

    Returns:
        int64 tensors: `input_ids` (B, T); `targets` (B, T), the token after each, IGNORED where there is none;
        and, if documents are separate, `position_ids` (B, T), counted from each document's separator: models take a
        position that does not rise by one for a new document. Padding stands on the right, where nothing sees it.
    """
    B, T = shape[0], shape[1] - 1
    end = config.eos_token_id
    separator = end[0] if isinstance(end, list) else end
    pad = separator if config.pad_token_id is None else config.pad_token_id
    inputs = np.full((B, T), pad, dtype=np.int64)
    targets = np.full((B, T), IGNORED, dtype=np.int64)
    for at, (row,) in enumerate(rows):
        inputs[at, : len(row) - 1] = row[:-1]
        targets[at, : len(row) - 1] = row[1:]
    batch = {"input_ids": torch.from_numpy(inputs), "targets": torch.from_numpy(targets)}
    if getattr(config, "separate_documents", False):
        places = np.arange(T, dtype=np.int64)
        starts = np.where(inputs == separator, places, 0)
        batch["position_ids"] = torch.from_numpy(places - np.maximum.accumulate(starts, axis=1))
    return batch


def loss(model: Any, batch: Mapping[str, torch.Tensor], label_smoothing: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the targets; its mean's exponential is the perplexity.

    Works with every transformers model whose head is one linear layer over its base model's hidden states.

    Returns:
        (sum over the targets, number of targets that are not IGNORED): float32 and int64 scalars.
    """
    settings = {"position_ids": batch["position_ids"]} if "position_ids" in batch else {}
    hidden_BTD = model.base_model(input_ids=batch["input_ids"], use_cache=False, **settings).last_hidden_state
    head = model.get_output_embeddings()
    targets_N = batch["targets"].flatten()
    bias_V = getattr(head, "bias", None)
    total = linear_cross_entropy(hidden_BTD.flatten(0, 1), head.weight, targets_N, bias_V, label_smoothing)
    return total, (targets_N != IGNORED).sum()


def row_losses(model: Any, rows: Sequence[np.ndarray]) -> np.ndarray:
    """Cross-entropy of every row's tokens after the first, summed: float64 (B,), in nats.

    Works with the models that `loss` works with.

    Args:
        model: a language model in evaluation mode.
        rows: int32 arrays of at least 2 token ids.
    """
    width = max(map(len, rows))
    batch = collate([(row,) for row in rows], (len(rows), width), model.config)
    targets_BT = batch.pop("targets").to(model.device)
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
    hidden_ND = model.base_model(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)
    head = model.get_output_embeddings()
    losses_N = torch.cat(
        [  # the logits of a whole batch would be gigabytes
            F.cross_entropy(head(hidden).float(), targets, ignore_index=IGNORED, reduction="none")
            for hidden, targets in zip(hidden_ND.split(CHUNK), targets_BT.flatten().split(CHUNK), strict=True)
        ]
    )
    return losses_N.view(targets_BT.shape).double().sum(1).cpu().numpy()
