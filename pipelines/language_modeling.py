"""The language modeling pipeline."""

from __future__ import annotations

from typing import Any

from components.shared.config import Experiment
from pipelines.build import make_pipeline


def make(defaults: Experiment) -> Any:
    """The pipeline, its parameters starting from `defaults`."""
    return make_pipeline(
        "hanflow-language-modeling",
        "language_modeling",
        "Preprocess, tokenize, train, evaluate and export a Korean language model.",
        defaults,
    )
