"""Models as training starts from them: pretrained ones (`train.pretrained`), or new ones (`train.architecture`).

The same settings, seed and tokenizer give the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hanflow.config import TrainConfig
from hanflow.loading.pretrained import CAUSAL_LM, CLASSIFIER, ENCODER_DECODER, load_for_training
from hanflow.models import bart, causal_lm, classifiers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def encoder_decoder(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """An encoder-decoder before training.

    Raises:
        UserError: the architecture is wrong, or the pretrained model cannot be loaded or is not the tokenizer's.
    """
    if not config.pretrained:
        return bart.new_model(config.architecture, tokenizer, config.seed)
    return load_for_training(config, ENCODER_DECODER, tokenizer, ["pad_token_id", "eos_token_id"])


def language_model(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A decoder before training.

    Raises:
        UserError: as `encoder_decoder`; or the tokenizer has no end-of-sequence token.
    """
    if not config.pretrained:
        return causal_lm.new_model(config.architecture, tokenizer, config.seed)
    causal_lm.check_tokenizer(tokenizer)
    return load_for_training(config, CAUSAL_LM, tokenizer, ["eos_token_id"])


def classifier(
    config: TrainConfig,
    tokenizer: PreTrainedTokenizerBase,
    labels: Sequence[str],
    class_weights: Sequence[float] | None = None,
) -> PreTrainedModel:
    """A classifier before training; of a pretrained one with other classes the head is replaced by a new one.

    Args:
        labels: name of each class; its place is its index.
        class_weights: factor of each class's loss, see `classifiers.loss`; None: all are 1.

    Raises:
        UserError: as `encoder_decoder`; or labels or weights are wrong, or the tokenizer has no padding token.
    """
    if not config.pretrained:
        return classifiers.new_model(config.architecture, tokenizer, config.seed, labels, class_weights)
    settings = {**classifiers.label_fields(labels), "ignore_mismatched_sizes": True}
    classifiers.check_tokenizer(tokenizer)
    model = load_for_training(config, CLASSIFIER, tokenizer, ["pad_token_id"], **settings)
    return classifiers.set_class_weights(model, class_weights)
