"""Text classifiers: new models, batches, the loss and class probabilities.

All of them map `input_ids` (B, L) and `attention_mask` (B, L) to `logits` (B, C). Shapes: B rows of a batch, L padded
length, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertForSequenceClassification

from hanflow.models import cnn, rnn
from hanflow.models.architecture import Architecture, Architectures
from hanflow.models.kernels.cross_entropy import IGNORED

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

BERT = Architecture(
    BertConfig,
    BertForSequenceClassification,
    (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "hidden_act",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "classifier_dropout",
        "max_position_embeddings",
        "initializer_range",
        "layer_norm_eps",
    ),
    heads=(("hidden_size", "num_attention_heads"),),
)

ARCHITECTURES = Architectures(
    "classification",
    {"rnn": rnn.ARCHITECTURE, "cnn": cnn.ARCHITECTURE, "bert": BERT},
    'train.architecture={"type": "cnn"}',
)


def balanced_weights(counts: Sequence[int]) -> list[float]:
    """Class weights that give every class the same share of the loss: rows / (classes × rows of the class).

    Their mean over the training rows is 1, as `loss` assumes.

    Args:
        counts: training rows of each class, all above 0.
    """
    return [sum(counts) / (len(counts) * count) for count in counts]


def head(model: PreTrainedModel) -> torch.nn.Linear:
    """The layer that computes the class scores: the last one with as many outputs as there are classes.

    Raises:
        ValueError: the model has no such layer.
    """
    classes = model.config.num_labels
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == classes]
    if not layers:
        raise ValueError("no linear layer has as many outputs as there are classes")
    return layers[-1]


def set_rows(model: PreTrainedModel, rows: Mapping[int, tuple[torch.Tensor, torch.Tensor | None]], seed: int) -> None:
    """Draw a classifier's head anew, except for some classes.

    Args:
        model: changed in place.
        rows: index of a class → its weights, floating (H,) for H hidden units, and its bias, floating ().
        seed: of the new rows.
    """
    layer = head(model)
    torch.manual_seed(seed)
    fresh = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    model._init_weights(fresh)
    with torch.no_grad():
        for place, (weights, bias) in rows.items():
            fresh.weight[place] = weights
            if fresh.bias is not None and bias is not None:
                fresh.bias[place] = bias
        layer.load_state_dict(fresh.state_dict())


def collate(
    rows: Sequence[Sequence[Any]], shape: Sequence[int], config: PretrainedConfig, *, static: bool = False
) -> dict[str, torch.Tensor]:
    """(tokens, label) rows as one batch.

    Args:
        rows: at most B rows: an int32 array of token ids, and the class's index as an integer or an array of one.
            Without a label: the tokens alone.
        shape: (B, L, …); the rest is ignored.
        config: the model's config, for the id of padding.
        static: always return the same tensors.

    Returns:
        int64 tensors: `input_ids` (B, L), padded on the right; `attention_mask` (B, L), left out where nothing is
        padded, unless static; `labels` (B,), IGNORED for missing rows and labels.
    """
    B, L = shape[:2]
    ids = np.full((B, L), config.pad_token_id, dtype=np.int64)
    lengths = np.ones(B, dtype=np.int64)  # a missing row is one token of padding: attention over none would be NaN
    labels = np.full(B, IGNORED, dtype=np.int64)
    for at, row in enumerate(rows):
        ids[at, : len(row[0])] = row[0]
        lengths[at] = max(len(row[0]), 1)
        if len(row) > 1:
            labels[at] = int(np.asarray(row[1]).item())
    batch = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}
    if static or lengths.min() < L:
        batch["attention_mask"] = torch.from_numpy((np.arange(L) < lengths[:, None]).astype(np.int64))
    return batch


def loss(model: Any, batch: Mapping[str, torch.Tensor], label_smoothing: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the labels, each row's times the weight of its class, if `model.config.class_weights` is set.

    The training loop divides by the number of labels, which it knows in advance, whereas torch's
    weighted mean divides by the sum of the rows' weights. With weights whose mean over the training rows is 1 (see
    `balanced_weights`) the two agree over an epoch; the loop's is the unbiased one, as its divisor does not depend on
    which rows a batch happens to hold. Label smoothing weighs classes as torch's `cross_entropy` does.

    Returns:
        (sum over the rows, number of labels that are not IGNORED): float32 and int64 scalars.
    """
    logits_BC = model(input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask")).logits.float()
    labels_B = batch["labels"]
    weights = getattr(model.config, "class_weights", None)
    total = F.cross_entropy(
        logits_BC,
        labels_B,
        weight=None if weights is None else logits_BC.new_tensor(weights),
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return total, (labels_B != IGNORED).sum()


def probabilities(model: PreTrainedModel, rows: Sequence[np.ndarray]) -> np.ndarray:
    """Probability of every class for every text, computed as one batch: float32 (B, C).

    Args:
        model: a classifier in evaluation mode.
        rows: int32 arrays of token ids, at least one.
    """
    batch = collate([(row,) for row in rows], (len(rows), max(1, *map(len, rows))), model.config)
    del batch["labels"]
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
    with torch.inference_mode():
        return model(**inputs).logits.float().softmax(-1).cpu().numpy()
