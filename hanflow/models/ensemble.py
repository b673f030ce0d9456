"""Ensembles of trained classifiers: the weighted mean of their class probabilities.

Shapes: B rows of a batch, L padded length, M members, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from hanflow.errors import UserError
from hanflow.models.text_classifier import TextClassifier

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EnsembleConfig(PretrainedConfig):
    """The complete configs of the members, and their weights."""

    model_type = "hanflow_ensemble"

    members: list[dict] = field(default_factory=list)
    """Each member's config as a mapping, `model_type` included."""
    names: list[str] = field(default_factory=list)
    """Name of each member."""
    weights: list[float] = field(default_factory=list)
    """Share of each member in the average, summing to 1."""
    vocab_size: int = 8000
    pad_token_id: int | None = 0
    max_position_embeddings: int | None = None
    """Longest text that all members accept; None: unlimited."""


class EnsembleForSequenceClassification(TextClassifier):
    """Weighted mean of the members' class probabilities; `logits` are its logarithm."""

    config_class = EnsembleConfig
    _supports_sdpa = True  # as far as the members do

    def __init__(self, config: EnsembleConfig):
        super().__init__(config)
        # Attributes, not a ModuleList: transformers gathers tied weights from children that are models themselves.
        for number, member in enumerate(config.members):
            own = AutoConfig.for_model(**member)
            built = AutoModelForSequenceClassification.from_config(own, trust_remote_code=False)
            setattr(self, f"member_{number}", built)
        self.post_init()

    @property
    def members(self) -> list[PreTrainedModel]:
        """The classifiers, in the order of the config."""
        return [getattr(self, f"member_{number}") for number in range(len(self.config.members))]

    def get_input_embeddings(self) -> torch.nn.Module:
        """The first member's; every member has its own."""
        return self.members[0].get_input_embeddings()

    def scores(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """float32 (B, C): logarithms of probabilities that sum to 1."""
        logs_MBC = torch.stack(
            [
                member(input_ids=input_ids, attention_mask=attention_mask).logits.float().log_softmax(-1)
                for member in self.members
            ]
        )
        shares_M = logs_MBC.new_tensor(self.config.weights)
        return torch.logsumexp(logs_MBC + shares_M.log()[:, None, None], dim=0)


def combine(
    members: Mapping[str, tuple[PreTrainedModel, PreTrainedTokenizerBase]], weights: Sequence[float] | None = None
) -> EnsembleForSequenceClassification:
    """An ensemble of trained classifiers, with copies of their weights.

    Args:
        members: name of each → the model and its tokenizer. All read the same token ids and name the same
            classes in the same order.
        weights: weight of each, in their order, none negative; they are normalised to sum to 1. None: equal weights.

    Raises:
        UserError: there are no members, or they do not fit together; says which and why.
    """
    names = list(members)
    if not names:
        raise UserError("an ensemble needs members; give the folders of trained classifiers")
    if weights is None:
        weights = [1.0] * len(names)
    if len(weights) != len(names):
        raise UserError(f"{len(weights)} weights for {len(names)} members ({', '.join(names)}); give one each")
    if min(weights) < 0 or not 0 < sum(weights) < math.inf:
        raise UserError(f"weights {', '.join(map(str, weights))}: none may be negative, and their sum must be above 0")
    first, *others = names
    model, tokenizer = members[first]
    for name in others:
        other, its_tokenizer = members[name]
        if other.config.id2label != model.config.id2label:
            raise UserError(
                f"{name}: its classes are {_listed(other)}, those of {first} are {_listed(model)}; "
                "an ensemble averages class by class: train its members on the same corpus"
            )
        if its_tokenizer.backend_tokenizer.to_str() != tokenizer.backend_tokenizer.to_str():
            raise UserError(
                f"{name}: its tokenizer is not that of {first}; the members of an ensemble read the same token ids: "
                "train them on the same shards"
            )
    models = [members[name][0] for name in names]
    positions = [getattr(member.config, "max_position_embeddings", None) for member in models]
    config = EnsembleConfig(
        members=[member.config.to_dict() for member in models],
        names=names,
        weights=[weight / sum(weights) for weight in weights],
        vocab_size=len(tokenizer),
        pad_token_id=model.config.pad_token_id,
        max_position_embeddings=min((longest for longest in positions if longest is not None), default=None),
        id2label=model.config.id2label,
        label2id=model.config.label2id,
    )
    ensemble = EnsembleForSequenceClassification(config)
    for ours, theirs in zip(ensemble.members, models, strict=True):
        ours.load_state_dict(theirs.state_dict())
    return ensemble.eval()


def _listed(model: PreTrainedModel) -> str:
    return ", ".join(str(model.config.id2label[index]) for index in sorted(model.config.id2label))


AutoConfig.register(EnsembleConfig.model_type, EnsembleConfig, exist_ok=True)
AutoModelForSequenceClassification.register(EnsembleConfig, EnsembleForSequenceClassification, exist_ok=True)
