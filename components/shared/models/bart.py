"""Encoder-decoders of the BART family, through transformers: made, loaded, fed and scored.

Shapes: B rows of a batch, S padded source length, T padded target length, N target tokens of the batch, D model
width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from components.shared.config import TrainConfig, UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

IGNORED = -100
"""Target id that takes no part in the loss; transformers' own convention."""

TARGETS_MULTIPLE = 64
"""The N of a batch is rounded up to a multiple of this, so that few distinct matrix shapes occur."""

ARCHITECTURE_KEYS = (
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
)
"""Keys of `train.architecture` beside `type`; those of transformers' BartConfig that shape the model."""


def check(settings: Mapping[str, Any]) -> list[str]:
    """Problems of the architecture settings of a model made from nothing, one text each."""
    from transformers import BartConfig

    if not settings:
        return [
            "train.architecture: is empty and train.pretrained too; set one, e.g. train.pretrained=gogamza/kobart-base-v2"
        ]
    problems = []
    if settings.get("type", "bart") != "bart":
        problems.append(f"train.architecture.type: {settings['type']!r} is not known to summarization; known: bart")
    defaults = {f.name: f.default for f in dataclasses.fields(BartConfig)}
    for key, value in settings.items():
        if key == "type":
            continue
        if key not in ARCHITECTURE_KEYS:
            near = difflib.get_close_matches(key, ARCHITECTURE_KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(ARCHITECTURE_KEYS)}"
            problems.append(f"train.architecture.{key}: no such setting; {hint}")
            continue
        default = defaults[key]
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if isinstance(default, bool):
            fits = isinstance(value, bool)
        elif isinstance(default, int):
            fits = isinstance(value, int) and not isinstance(value, bool) and value > 0
        elif isinstance(default, float):
            fits = number and value >= 0
        else:
            fits = isinstance(value, str)
        if not fits:
            problems.append(f"train.architecture.{key}: {value!r} does not fit; for example {default!r}")
    if not problems:
        width = settings.get("d_model", defaults["d_model"])
        for side in ("encoder", "decoder"):
            heads = settings.get(f"{side}_attention_heads", defaults[f"{side}_attention_heads"])
            if width % heads:
                problems.append(
                    f"train.architecture.{side}_attention_heads: {heads} does not divide d_model={width} evenly; give a divisor"
                )
    return problems


def new_model(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model before training: random weights from `config.seed`, or those of `config.pretrained`.

    Raises:
        UserError: the architecture is wrong, the pretrained model cannot be had or does not fit the tokenizer.
    """
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(config.seed)
    if config.pretrained:
        model = load(config.pretrained)
        _fit_to_tokenizer(model, tokenizer, config.pretrained)
        return model
    problems = check(config.architecture)
    if problems:
        raise UserError("\n".join(problems))
    settings = {key: value for key, value in config.architecture.items() if key != "type"}
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            decoder_start_token_id=tokenizer.eos_token_id,
            forced_eos_token_id=tokenizer.eos_token_id,
            **settings,
        )
    ).eval()


def load(name: str) -> PreTrainedModel:
    """A pretrained encoder-decoder in float32, from a hub name or a folder.

    Raises:
        UserError: it cannot be loaded; says why.
    """
    from transformers import AutoModelForSeq2SeqLM

    if name.startswith(("/", ".", "~")) and not Path(name).expanduser().exists():
        raise UserError(f"{name}: no such folder; give one with a model in Hugging Face format, or a hub name")
    if Path(name).is_file():
        raise UserError(
            f"{name}: is a file, expected a folder in Hugging Face format; make one of a checkpoint with "
            f"`hanflow import {name} --model CONFIG --tokenizer DIR --output DIR`"
        )
    try:
        return AutoModelForSeq2SeqLM.from_pretrained(name, dtype=torch.float32).eval()
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{name}: no pretrained encoder-decoder can be loaded from there ({reason}); give a folder in Hugging Face "
            "format, or the name of a model on the hub with network or a filled cache"
        ) from error


def _fit_to_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    for role in ("pad_token_id", "eos_token_id"):
        ours, theirs = getattr(tokenizer, role), getattr(model.config, role)
        if theirs is not None and ours != theirs:
            raise UserError(
                f"{name}: its {role} is {theirs}, the tokenizer's is {ours}: they do not belong together; "
                f"set tokenize.tokenizer={name}"
            )
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:  # special tokens were added: new rows at the end, drawn around the old ones' mean
        model.resize_token_embeddings(len(tokenizer), mean_resizing=True)


def collate(
    rows: Sequence[Sequence[np.ndarray]], shape: Sequence[int], config: PretrainedConfig
) -> dict[str, torch.Tensor]:
    """(source, target) rows as one batch.

    Args:
        rows: at most B rows of two int32 arrays (end-of-sequence included).
        shape: (B, S, T).
        config: the model's config, for the ids of padding and of the decoder's start.

    Returns:
        int64 tensors: `input_ids` (B, S); `attention_mask` (B, S), left out where nothing is padded;
        `decoder_input_ids` (B, T), the targets shifted right by the start token; `positions` (N,), where in the
        flattened (B·T) decoder output a target stands; `targets` (N,), the ids there, IGNORED where N is rounded up.
    """
    B, S, T = shape
    sources = np.full((B, S), config.pad_token_id, dtype=np.int64)
    mask = np.zeros((B, S), dtype=np.int64)
    inputs = np.full((B, T), config.pad_token_id, dtype=np.int64)
    positions, targets = [], []
    for row, (source, target) in enumerate(rows):
        sources[row, : len(source)] = source
        mask[row, : len(source)] = 1
        inputs[row, 0] = config.decoder_start_token_id
        inputs[row, 1 : len(target)] = target[:-1]
        positions.append(np.arange(row * T, row * T + len(target), dtype=np.int64))
        targets.append(target.astype(np.int64))
    # A row of padding alone would leave attention without anything to look at (NaN): let it see one token.
    mask[len(rows) :, 0] = 1
    count = sum(len(target) for target in targets)
    rounded = min(-(-max(count, 1) // TARGETS_MULTIPLE) * TARGETS_MULTIPLE, B * T)
    flat_positions = np.zeros(rounded, dtype=np.int64)
    flat_targets = np.full(rounded, IGNORED, dtype=np.int64)
    if count:
        flat_positions[:count] = np.concatenate(positions)
        flat_targets[:count] = np.concatenate(targets)
    batch = {
        "input_ids": torch.from_numpy(sources),
        "decoder_input_ids": torch.from_numpy(inputs),
        "positions": torch.from_numpy(flat_positions),
        "targets": torch.from_numpy(flat_targets),
    }
    if not mask.all():
        batch["attention_mask"] = torch.from_numpy(mask)
    return batch


def loss(model: Any, batch: Mapping[str, torch.Tensor], label_smoothing: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the targets, logits computed at their positions alone.

    Equal to the sum behind `BartForConditionalGeneration(labels=…).loss` (which takes the mean).

    Returns:
        (sum over the N targets, number of targets that are not IGNORED): float32 and int64 scalars.
    """
    hidden_BTD = model.model(
        input_ids=batch["input_ids"],
        attention_mask=batch.get("attention_mask"),
        decoder_input_ids=batch["decoder_input_ids"],
        use_cache=False,
    ).last_hidden_state
    hidden_ND = hidden_BTD.flatten(0, 1).index_select(0, batch["positions"])
    logits_NV = model.lm_head(hidden_ND) + model.final_logits_bias
    targets_N = batch["targets"]
    total = F.cross_entropy(
        logits_NV.float(), targets_N, ignore_index=IGNORED, reduction="sum", label_smoothing=label_smoothing
    )
    return total, (targets_N != IGNORED).sum()
