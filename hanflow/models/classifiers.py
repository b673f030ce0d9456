"""Text classifiers of every architecture: made, loaded, fed, scored and asked.

All of them map `input_ids` (B, L) and `attention_mask` (B, L) to `logits` (B, C). Shapes: B rows of a batch, L padded
length, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForSequenceClassification

from hanflow.config import TrainConfig
from hanflow.data.batches import batches
from hanflow.errors import UserError
from hanflow.loading import pretrained
from hanflow.models import architecture, bert, cnn, register, rnn
from hanflow.models.kernels.cross_entropy import IGNORED

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

ARCHITECTURES: dict[str, tuple[Any, Any, Any]] = {
    "rnn": (rnn.check, rnn.RnnConfig, rnn.RnnForSequenceClassification),
    "cnn": (cnn.check, cnn.CnnConfig, cnn.CnnForSequenceClassification),
    "bert": (bert.check, bert.BertConfig, bert.BertForSequenceClassification),
}
"""`train.architecture.type` → (check of its settings, config class, model class)."""


def check(settings: Mapping[str, Any]) -> list[str]:
    """Problems of the architecture settings of a classifier made from nothing, one text each."""
    kind, problems = architecture.choose(
        settings, ARCHITECTURES, "classification", 'train.architecture={"type": "cnn"}'
    )
    return problems or ARCHITECTURES[kind][0](settings)


def new_model(
    config: TrainConfig,
    tokenizer: PreTrainedTokenizerBase,
    labels: Sequence[str],
    class_weights: Sequence[float] | None = None,
) -> PreTrainedModel:
    """The model before training: random weights from `config.seed`, or those of `config.pretrained`.

    Args:
        labels: name of each class; its place is its index, which the model's config keeps.
        class_weights: factor of each class's loss, kept in the model's config; None: all 1. See `loss`.

    Raises:
        UserError: the architecture or the labels are wrong, the pretrained model cannot be had or does not fit the
            tokenizer.
    """
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise UserError(f"a classifier needs two different labels or more, not {', '.join(labels) or 'none'}")
    if tokenizer.pad_token_id is None:
        raise UserError(
            "the tokenizer has no padding token, which batches of texts need; add one: "
            'tokenize.special_tokens=["[PAD]"] with pad_token, or choose another tokenizer'
        )
    names = dict(enumerate(labels))
    indices = {name: index for index, name in names.items()}
    torch.manual_seed(config.seed)
    if config.pretrained:
        # A head for other classes is left behind, a new one drawn.
        model = load(config.pretrained, id2label=names, label2id=indices, ignore_mismatched_sizes=True)
        pretrained.fit_to_tokenizer(model, tokenizer, config.pretrained, ("pad_token_id",))
    else:
        problems = check(config.architecture)
        if problems:
            raise UserError("\n".join(problems))
        settings = {key: value for key, value in config.architecture.items() if key != "type"}
        _, config_class, model_class = ARCHITECTURES[config.architecture.get("type", "rnn")]
        ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        model = model_class(config_class(**ids, id2label=names, label2id=indices, **settings)).eval()
    if class_weights is not None:
        if len(class_weights) != len(labels):
            raise UserError(f"{len(class_weights)} class weights for {len(labels)} labels; give one each")
        model.config.class_weights = [float(weight) for weight in class_weights]
    return model


def load(name: str, **settings: Any) -> PreTrainedModel:
    """A classifier in float32, from a hub name or a folder; our own architectures and ensembles too.

    Args:
        settings: handed on to transformers' `from_pretrained`.

    Raises:
        UserError: it cannot be loaded; says why.
    """
    register()
    return pretrained.load(AutoModelForSequenceClassification, name, "classifier", **settings)


def balanced_weights(counts: Sequence[int]) -> list[float]:
    """Class weights that let every class count the same in the loss: rows / (classes × rows of the class).

    Their mean over the training rows is 1, as `loss` wants it.

    Args:
        counts: training rows of each class, all above 0.
    """
    return [sum(counts) / (len(counts) * count) for count in counts]


def collate(
    rows: Sequence[Sequence[Any]], shape: Sequence[int], config: PretrainedConfig, *, static: bool = False
) -> dict[str, torch.Tensor]:
    """(tokens, label) rows as one batch.

    Args:
        rows: at most B rows: an int32 array of token ids, and the class's index as an integer or an array of one.
            Without a label: the tokens alone.
        shape: (B, L); what follows is not looked at.
        config: the model's config, for the id of padding.
        static: leave nothing out.

    Returns:
        int64 tensors: `input_ids` (B, L), padded on the right; `attention_mask` (B, L), left out where nothing is
        padded, unless static; `labels` (B,), IGNORED for missing rows and labels.
    """
    B, L = shape[:2]
    ids = np.full((B, L), config.pad_token_id, dtype=np.int64)
    lengths = np.ones(B, dtype=np.int64)  # a missing row is one token of padding: attention must look at something
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

    The training loop divides by the number of labels, which it knows before anything is computed, where torch's
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


def probabilities(
    model: PreTrainedModel, rows: Sequence[np.ndarray], batch_tokens: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Probability of every class for every text, batch by batch.

    Args:
        model: a classifier; evaluated in eval mode, its own mode is put back.
        rows: int32 arrays of token ids.
        batch_tokens: most padded tokens of a batch; one row always fits.

    Yields:
        (indices of the batch's rows, int64 (B,); probabilities, float32 (B, C)), every row once, long ones first.
    """
    was_training = model.training
    model.eval()
    try:
        for members in batches([len(row) for row in rows], batch_tokens):
            L = max(len(rows[members[0]]), 1)
            batch = collate([(rows[row],) for row in members], (len(members), L), model.config)
            inputs = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "labels"}
            with torch.inference_mode():
                scores = model(**inputs).logits.float().softmax(-1).cpu().numpy()
            yield np.array(members), scores
    finally:
        model.train(was_training)
