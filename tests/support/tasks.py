"""Small real chains for the tests of classification and language modelling: reviews → … → model, by the real steps."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

from hanflow.config import TokenizeConfig, TrainConfig
from hanflow.experiment import step_config
from hanflow.steps.preprocess import run as preprocess
from hanflow.steps.tokenize import run as tokenize
from hanflow.steps.train import run as train
from hanflow.tasks.classification import ClassificationTokenize
from hanflow.tasks.language_modeling import LanguageModelingTokenize
from tests.support.model_fixtures import Chain

REVIEWS = Path(__file__).parents[2] / "pipelines" / "sample_data" / "reviews.tsv.gz"

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "classification": {"type": "cnn", "embedding_size": 16, "n_filters": 8, "dropout": 0.3},
    "language_modeling": {
        "type": "gpt",
        "d_model": 16,
        "d_ffn": 32,
        "n_layers": 1,
        "nhead": 2,
        "max_position_embeddings": 32,
        "dropout": 0.1,
    },
}

ENCODING: dict[str, TokenizeConfig] = {
    "classification": ClassificationTokenize(vocabulary_size=500, max_source_tokens=40),
    "language_modeling": LanguageModelingTokenize(vocabulary_size=500, chunk_tokens=32),
}


def reviews(count: int) -> list[tuple[str, str]]:
    """The first reviews of the bundled sample: (label, text)."""
    with gzip.open(REVIEWS, "rt", encoding="utf-8") as stream:
        next(stream)
        rows = [line.rstrip("\n").split("\t") for _, line in zip(range(count), stream, strict=False)]
    return [(label, text) for _, text, label in rows]


def write_reviews(path: Path, rows: list[tuple[str, str]]) -> Path:
    """A raw TSV of labels and texts."""
    lines = ["label\ttext", *(f"{label}\t{text}" for label, text in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def make_shards(folder: Path, task: str, rows: list[tuple[str, str]], **settings: Any) -> Chain:
    """A corpus and its shards; the model is yet to be trained."""
    folder.mkdir(exist_ok=True, parents=True)
    source = write_reviews(folder / "reviews.tsv", rows)
    values = {"source": str(source), "validation_ratio": 0.1, "test_ratio": 0.1, **settings}
    config = step_config("preprocess", values, task)
    chain = Chain(folder / "corpus", folder / "shards", folder / "model")
    preprocess(config, task=task, output=str(chain.corpus))
    tokenize(ENCODING[task], task=task, output=str(chain.shards), corpus=str(chain.corpus))
    return chain


def settings(task: str, **changes: Any) -> TrainConfig:
    """Seconds of training."""
    values: dict[str, Any] = {
        "architecture": ARCHITECTURES[task],
        "epochs": 2,
        "batch_size": 16,
        "learning_rate": 1e-2,
        "precision": "fp32",
        "log_every": 1,
    }
    return step_config("train", {**values, **changes}, task)


def trained(chain: Chain, task: str, **changes: Any) -> Chain:
    """The chain with its model."""
    train(settings(task, **changes), task=task, output=str(chain.model), shards=str(chain.shards))
    return chain
