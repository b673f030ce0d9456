"""Models as training starts from them: pretrained ones (`train.pretrained`), or new ones (`train.architecture`).

The same settings, seed and tokenizer give the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hanflow.config import TrainConfig
from hanflow.errors import UserError
from hanflow.loading.pretrained import CAUSAL_LM, CLASSIFIER, ENCODER_DECODER, load_for_training
from hanflow.models import bart, causal_lm, classifiers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def encoder_decoder(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """An encoder-decoder before training.

    Raises:
        UserError: the architecture is wrong, or the pretrained model cannot be loaded or is not the tokenizer's.
    """
    if config.pretrained:
        return load_for_training(config, ENCODER_DECODER, tokenizer, ["pad_token_id", "eos_token_id"])
    end = tokenizer.eos_token_id
    ends = {"decoder_start_token_id": end, "forced_eos_token_id": end}
    return bart.ARCHITECTURES.build(config.architecture, tokenizer, config.seed, SPECIAL_IDS, **ends)


def language_model(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A decoder before training.

    Raises:
        UserError: as `encoder_decoder`; or the tokenizer has no end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the tokenizer has no end-of-sequence token, which separates documents; choose one that has, or train one"
        )
    if config.pretrained:
        return load_for_training(config, CAUSAL_LM, tokenizer, ["eos_token_id"])
    return causal_lm.ARCHITECTURES.build(config.architecture, tokenizer, config.seed, SPECIAL_IDS)


def classifier(
    config: TrainConfig,
    tokenizer: PreTrainedTokenizerBase,
    labels: Sequence[str],
    class_weights: Sequence[float] | None = None,
) -> PreTrainedModel:
    """A classifier before training; of a pretrained one with other classes the head is replaced by a new one.

    Args:
        labels: name of each class, which the model's config keeps; its place is its index.
        class_weights: factor of each class's loss, which the config keeps, see `classifiers.loss`; None: all are 1.

    Raises:
        UserError: as `encoder_decoder`; or labels or weights are wrong, or the tokenizer has no padding token.
    """
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise UserError(f"a classifier needs two different labels or more, not {', '.join(labels) or 'none'}")
    if class_weights is not None and len(class_weights) != len(labels):
        raise UserError(f"{len(class_weights)} class weights for {len(labels)} labels; give one each")
    if tokenizer.pad_token_id is None:
        raise UserError(
            "the tokenizer has no padding token, which batches of texts need; add one: "
            'tokenize.special_tokens=["[PAD]"] with pad_token, or choose another tokenizer'
        )
    names: dict[str, Any] = {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}
    if config.pretrained:
        model = load_for_training(config, CLASSIFIER, tokenizer, ["pad_token_id"], names, ignore_mismatched_sizes=True)
    else:
        build = classifiers.ARCHITECTURES.build
        model = build(config.architecture, tokenizer, config.seed, ["pad_token_id"], **names)
    if class_weights is not None:
        model.config.class_weights = [float(weight) for weight in class_weights]
    return model
