"""The summarization pipeline."""

from __future__ import annotations

from typing import Any

from hanflow.config import Experiment
from hanflow.images import DEFAULT, Images
from pipelines.dag import make_pipeline


def make(defaults: Experiment, images: Images = DEFAULT) -> Any:
    """The pipeline, its parameters starting from `defaults`, its steps on `images`."""
    return make_pipeline(
        "hanflow-summarization",
        "summarization",
        "Preprocess, tokenize, train, evaluate and export a Korean summarization model.",
        defaults,
        images,
    )
