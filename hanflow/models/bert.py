"""BERT that classifies texts, through transformers, made from a config where no pretrained one is at hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import BertConfig, BertForSequenceClassification

from hanflow.models import architecture

ARCHITECTURE_KEYS = (
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
)
"""Keys of `train.architecture` beside `type`; those of transformers' BertConfig that shape the model."""

__all__ = ["ARCHITECTURE_KEYS", "BertConfig", "BertForSequenceClassification", "check"]


def check(settings: Mapping[str, Any]) -> list[str]:
    """Problems of the architecture settings, one text each."""
    problems = architecture.problems(settings, BertConfig, ARCHITECTURE_KEYS)
    return problems or architecture.indivisible(settings, BertConfig, "hidden_size", "num_attention_heads")
