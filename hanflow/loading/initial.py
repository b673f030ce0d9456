"""Models as training starts from them: pretrained ones (`train.pretrained`), or new ones (`train.architecture`).

The same settings, seed and tokenizer give the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hanflow.config import TrainConfig
from hanflow.errors import UserError
from hanflow.loading.pretrained import (
    CAUSAL_LM,
    CLASSIFIER,
    ENCODER_DECODER,
    check_folder,
    load_config,
    load_for_training,
    load_model,
)
from hanflow.models import bart, causal_lm, classifiers
from hanflow.progress import log
from hanflow.text.labels import label_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

SHOWN = 10
"""Most classes that a message lists."""


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
    """A classifier before training; the head of a pretrained one is taken class by class, by name (see `label_of`), and
    drawn anew for the classes that it does not have.

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
        kept = _trained_rows(config.pretrained, labels)
        model = load_for_training(config, CLASSIFIER, tokenizer, ["pad_token_id"], names, ignore_mismatched_sizes=True)
        if kept is not None:
            classifiers.set_rows(model, kept, config.seed)
    else:
        build = classifiers.ARCHITECTURES.build
        model = build(config.architecture, tokenizer, config.seed, ["pad_token_id"], **names)
    if class_weights is not None:
        model.config.class_weights = [float(weight) for weight in class_weights]
    elif getattr(model.config, "class_weights", None) is not None:
        model.config.class_weights = None  # those of the pretrained model's own training
    return model


def _trained_rows(pretrained: str, labels: Sequence[str]) -> dict[int, tuple[torch.Tensor, torch.Tensor | None]] | None:
    """Index of a label → the row of a pretrained classifier's head that has its name; None: that head fits as it is, or
    the model has none.
    """
    check_folder(pretrained)
    config = load_config(pretrained)
    if not any("ForSequenceClassification" in name for name in config.architectures or ()):
        return None
    theirs = [str(config.id2label[place]) for place in sorted(config.id2label)]
    spelt = {name: place for place, name in enumerate(theirs)}
    # A spelling is nearest to itself: with preprocess.labels=exact, 1 and 1.0 are two classes.
    found = {place: spelt[label] for place, label in enumerate(labels) if label in spelt}
    meant = {label_of(name): place for name, place in spelt.items() if place not in found.values()}
    for place, label in enumerate(labels):
        if place not in found and label_of(label) in meant:
            found[place] = meant.pop(label_of(label))
    same = len(theirs) == len(labels) == len(found) and all(ours == place for ours, place in found.items())
    if same:
        return None
    if getattr(config, "members", None):
        raise UserError(
            f"{pretrained}: is an ensemble with the classes {', '.join(theirs[:SHOWN])}, which are not those of the data, "
            f"{', '.join(labels[:SHOWN])}; give one of its members as train.pretrained"
        )
    new = [label for place, label in enumerate(labels) if place not in found]
    unused = [name for place, name in enumerate(theirs) if place not in found.values()]
    log.warning(
        "%s: its classes are %s; taken over by name: %s; drawn anew: %s%s",
        pretrained,
        ", ".join(theirs[:SHOWN]),
        ", ".join(labels[place] for place in list(found)[:SHOWN]) or "none",
        ", ".join(new[:SHOWN]) or "none",
        f"; not used: {', '.join(unused[:SHOWN])}" if unused else "",
    )
    if not found:
        return {}
    layer = classifiers.head(load_model(pretrained, CLASSIFIER))
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    return {
        ours: (weight[place].clone(), None if bias is None else bias[place].clone()) for ours, place in found.items()
    }
