"""Language models of every architecture: made, loaded, fed and scored.

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
from transformers import AutoModelForCausalLM

from hanflow.config import TrainConfig
from hanflow.errors import UserError
from hanflow.loading import pretrained
from hanflow.models import architecture, ffn, gpt, register
from hanflow.models.kernels.cross_entropy import CHUNK, IGNORED, linear_cross_entropy

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

ARCHITECTURES: dict[str, tuple[Any, Any, Any]] = {
    "gpt": (gpt.check, gpt.GptConfig, gpt.GptForCausalLM),
    "ffn": (ffn.check, ffn.FfnConfig, ffn.FfnForCausalLM),
}
"""`train.architecture.type` → (check of its settings, config class, model class)."""


def check(settings: Mapping[str, Any]) -> list[str]:
    """Problems of the architecture settings of a language model made from nothing, one text each."""
    kind, problems = architecture.choose(
        settings, ARCHITECTURES, "language_modeling", 'train.architecture={"type": "gpt"}'
    )
    return problems or ARCHITECTURES[kind][0](settings)


def new_model(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model before training: random weights from `config.seed`, or those of `config.pretrained`.

    Raises:
        UserError: the architecture is wrong, the pretrained model cannot be had or does not fit the tokenizer.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the tokenizer has no end-of-sequence token, which separates documents; choose one that has, or train one"
        )
    torch.manual_seed(config.seed)
    if config.pretrained:
        model = load(config.pretrained)
        pretrained.fit_to_tokenizer(model, tokenizer, config.pretrained, ("eos_token_id",))
        return model
    problems = check(config.architecture)
    if problems:
        raise UserError("\n".join(problems))
    settings = {key: value for key, value in config.architecture.items() if key != "type"}
    _, config_class, model_class = ARCHITECTURES[config.architecture.get("type", "gpt")]
    ids = {role: getattr(tokenizer, role) for role in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return model_class(config_class(vocab_size=len(tokenizer), **ids, **settings)).eval()


def load(name: str) -> PreTrainedModel:
    """A language model in float32, from a hub name or a folder; our own architectures too.

    Raises:
        UserError: it cannot be loaded; says why.
    """
    register()
    return pretrained.load(AutoModelForCausalLM, name, "language model")


def collate(
    rows: Sequence[Sequence[np.ndarray]],
    shape: Sequence[int],
    config: PretrainedConfig,
    separate_documents: bool | None = None,
) -> dict[str, torch.Tensor]:
    """Chunks as one batch.

    Args:
        rows: at most B rows of one int32 array of 2 to T + 1 token ids.
        shape: (B, T + 1).
        config: the model's config, for the ids of separator and padding.
        separate_documents: whether a token shall see its own document only; None: as the model's config says.

    Returns:
        int64 tensors: `input_ids` (B, T); `targets` (B, T), the token after each, IGNORED where there is none;
        and, if documents are separate, `position_ids` (B, T), counted from each document's separator: models take a
        position that does not rise by one for a new document. Padding stands on the right, where nothing sees it.
    """
    B, T = shape[0], shape[1] - 1
    separator = _first(config.eos_token_id)
    pad = separator if config.pad_token_id is None else config.pad_token_id
    inputs = np.full((B, T), pad, dtype=np.int64)
    targets = np.full((B, T), IGNORED, dtype=np.int64)
    for at, (row,) in enumerate(rows):
        inputs[at, : len(row) - 1] = row[:-1]
        targets[at, : len(row) - 1] = row[1:]
    batch = {"input_ids": torch.from_numpy(inputs), "targets": torch.from_numpy(targets)}
    if separate_documents is None:
        separate_documents = getattr(config, "separate_documents", False)
    if separate_documents:
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


def _first(ids: int | list[int]) -> int:
    return ids[0] if isinstance(ids, list) else ids


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
