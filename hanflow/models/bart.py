"""Encoder-decoders, of transformers' BART: new models, batches and the loss.

Shapes: B rows of a batch, S padded source length, T padded target length, N target tokens of the batch, D model
width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import BartConfig, BartForConditionalGeneration

from hanflow.models.architecture import Architecture, Architectures
from hanflow.models.kernels import bart_cpu
from hanflow.models.kernels.cross_entropy import IGNORED

if TYPE_CHECKING:
    from transformers import PretrainedConfig

TARGETS_MULTIPLE = 64
"""The N of a batch is rounded up to a multiple of this, so that few distinct matrix shapes occur."""

ARCHITECTURES = Architectures(
    "summarization",
    {
        "bart": Architecture(
            BartConfig,
            BartForConditionalGeneration,
            (
                "d_model",
                "encoder_layers",
                "decoder_layers",
                "encoder_attention_heads",
                "decoder_attention_heads",
                "encoder_ffn_dim",
                "decoder_ffn_dim",
                "activation_function",
                "dropout",
                "attention_dropout",
                "activation_dropout",
                "max_position_embeddings",
                "init_std",
                "scale_embedding",
            ),
            heads=(("d_model", "encoder_attention_heads"), ("d_model", "decoder_attention_heads")),
        )
    },
    "train.pretrained=gogamza/kobart-base-v2",
)


def collate(
    rows: Sequence[Sequence[np.ndarray]], shape: Sequence[int], config: PretrainedConfig, *, static: bool = False
) -> dict[str, torch.Tensor]:
    """(source, target) rows as one batch.

    Args:
        rows: at most B rows of two int32 arrays (end-of-sequence included).
        shape: (B, S, T).
        config: the model's config, for the ids of padding and of the decoder's start.
        static: only tensors whose shapes follow from `shape`, with the rows as their first dimension (so that a batch
            can be split among devices).

    Returns:
        int64 tensors: `input_ids` (B, S); `attention_mask` (B, S), left out where nothing is padded, unless static;
        `decoder_input_ids` (B, T), the targets shifted right by the start token. Static: `targets` (B, T), IGNORED
        where there is none. Else: `positions` (N,), where in the flattened (B·T) decoder output a target stands, and
        `targets` (N,), the ids there, IGNORED where N is rounded up.
    """
    B, S, T = shape
    sources = np.full((B, S), config.pad_token_id, dtype=np.int64)
    mask = np.zeros((B, S), dtype=np.int64)
    inputs = np.full((B, T), config.pad_token_id, dtype=np.int64)
    labels = np.full((B, T), IGNORED, dtype=np.int64)
    for row, (source, target) in enumerate(rows):
        sources[row, : len(source)] = source
        mask[row, : len(source)] = 1
        inputs[row, 0] = config.decoder_start_token_id
        inputs[row, 1 : len(target)] = target[:-1]
        labels[row, : len(target)] = target
    # Attention over a row of nothing but padding would be NaN: let it see one token.
    mask[len(rows) :, 0] = 1
    batch = {"input_ids": torch.from_numpy(sources), "decoder_input_ids": torch.from_numpy(inputs)}
    if static or not mask.all():
        batch["attention_mask"] = torch.from_numpy(mask)
    if static:
        return {**batch, "targets": torch.from_numpy(labels)}
    where = np.flatnonzero(labels != IGNORED)
    rounded = min(-(-max(len(where), 1) // TARGETS_MULTIPLE) * TARGETS_MULTIPLE, B * T)
    positions = np.zeros(rounded, dtype=np.int64)
    targets = np.full(rounded, IGNORED, dtype=np.int64)
    positions[: len(where)] = where
    targets[: len(where)] = labels.flat[where]
    return {**batch, "positions": torch.from_numpy(positions), "targets": torch.from_numpy(targets)}


def loss(model: Any, batch: Mapping[str, torch.Tensor], label_smoothing: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the targets; where the batch has `positions`, logits are computed at those alone.

    Equal to the sum behind `BartForConditionalGeneration(labels=…).loss` (which takes the mean).

    Returns:
        (sum over the N targets, number of targets that are not IGNORED): float32 and int64 scalars.
    """
    mask = batch.get("attention_mask")
    if bart_cpu.applies(model):
        hidden_BTD = bart_cpu.hidden(model, batch["input_ids"], mask, batch["decoder_input_ids"])
    else:
        hidden_BTD = model.model(
            input_ids=batch["input_ids"],
            attention_mask=mask,
            decoder_input_ids=batch["decoder_input_ids"],
            use_cache=False,
        ).last_hidden_state
    hidden_ND = hidden_BTD.flatten(0, 1)
    if "positions" in batch:
        hidden_ND = hidden_ND.index_select(0, batch["positions"])
    logits_NV = model.lm_head(hidden_ND) + model.final_logits_bias
    targets_N = batch["targets"].flatten()
    total = F.cross_entropy(
        logits_NV.float(), targets_N, ignore_index=IGNORED, reduction="sum", label_smoothing=label_smoothing
    )
    return total, (targets_N != IGNORED).sum()
