"""What the training benchmarks run on: petitions under the KoBART tokenizer, in hanflow's own shards."""

from __future__ import annotations

import os
from pathlib import Path

from hanflow.experiment import step_config
from hanflow.steps.preprocess import run as preprocess
from hanflow.steps.tokenize import run as tokenize
from hanflow.tasks.summarization import SummarizationPreprocess, SummarizationTokenize

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("HANFLOW_SHARED", ROOT.parent / "shared"))
"""Folder with `data/`: beside the project, or where HANFLOW_SHARED says."""

KOBART = {
    "type": "bart",
    "d_model": 768,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "encoder_attention_heads": 16,
    "decoder_attention_heads": 16,
    "encoder_ffn_dim": 3072,
    "decoder_ffn_dim": 3072,
    "max_position_embeddings": 1026,
}
"""The shape of KoBART; with its vocabulary of 30,000 it has 123.9 million parameters. Weights are random."""

MAX_SOURCE, MAX_TARGET = 512, 64

RNN = {"type": "rnn", "embedding_size": 128, "hidden_size": 256, "n_layers": 4, "dropout": 0.3}
CNN = {"type": "cnn", "embedding_size": 256, "windows": [3, 4, 5], "n_filters": 100, "dropout": 0.3}
GPT = {
    "type": "gpt",
    "d_model": 256,
    "d_ffn": 1024,
    "n_layers": 6,
    "nhead": 4,
    "max_position_embeddings": 256,
    "dropout": 0.1,
}
"""The shapes of the described systems."""


def make_review_shards(folder: Path, rows: int, task: str = "classification") -> Path:
    """Shards of so many reviews (those in `shared/`, else the bundled sample), a vocabulary of 16,000 trained on them."""
    raw = SHARED / "data" / "nsmc" / ("lm_reviews.txt" if task == "language_modeling" else "ratings_train.txt")
    source = raw if raw.is_file() else ROOT / "pipelines" / "sample_data" / "reviews.tsv.gz"
    values = {"source": str(source), "limit_rows": rows, "validation_ratio": 0.01, "test_ratio": 0.0}
    preprocess(step_config("preprocess", values, task), task=task, output=str(folder / "corpus"))
    classifies = task == "classification"
    own = {"max_source_tokens": 100, "morphemes": True} if classifies else {"chunk_tokens": 256}
    encoding = step_config("tokenize", {"vocabulary_size": 16_000, **own}, task)
    tokenize(encoding, task=task, output=str(folder / "shards"), corpus=str(folder / "corpus"))
    return folder / "shards"


def tokenizer() -> Path | str:
    """KoBART's tokenizer: in `shared/`, else on the hub."""
    local = SHARED / "data" / "kobart_tokenizer"
    return local if local.is_dir() else "gogamza/kobart-base-v2"


def make_shards(folder: Path, rows: int) -> Path:
    """Shards of so many petitions (those in `shared/`, else the bundled sample) under the KoBART tokenizer.

    Where `shared/` is missing the tokenizer is asked of the hub.
    """
    raw = SHARED / "data" / "petitions" / "train.tsv"
    source = raw if raw.is_file() else ROOT / "pipelines" / "sample_data" / "petitions.tsv.gz"
    config = SummarizationPreprocess(source=str(source), limit_rows=rows, validation_ratio=0.1, test_ratio=0.0)
    preprocess(config, task="summarization", output=str(folder / "corpus"))
    encoding = SummarizationTokenize(
        tokenizer=str(tokenizer()), max_source_tokens=MAX_SOURCE, max_target_tokens=MAX_TARGET
    )
    tokenize(encoding, task="summarization", output=str(folder / "shards"), corpus=str(folder / "corpus"))
    return folder / "shards"
