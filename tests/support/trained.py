"""A model trained for some seconds on real rows: its outputs are no noise, so engines can be compared on them."""

from __future__ import annotations

import gzip
from pathlib import Path

from hanflow.steps.tokenize import run as tokenize
from hanflow.steps.train import run as train
from hanflow.tasks.summarization import SummarizationTokenize, SummarizationTrain
from tests.support.corpora import SAMPLE, write_corpus
from tests.support.model_fixtures import Chain

ROWS = 240
"""Rows of the test split."""

SEEN = 60
"""Rows that the model is trained on, until it knows many of their titles by heart: then it is sure of what it says."""


def _rows(count: int) -> list[tuple[str, str]]:
    with gzip.open(SAMPLE, "rt", encoding="utf-8") as stream:
        lines = [line.rstrip("\n").split("\t") for line in stream][1:]
    return [(body, title) for body, title in lines][:count]


def train_briefly(folder: Path) -> Chain:
    """Petitions → corpus → shards → a BART that has seen SEEN of them, which are in the test split too (seconds)."""
    rows = _rows(ROWS)
    splits = {"train": rows[:SEEN], "validation": rows[:4], "test": rows}
    chain = Chain(write_corpus(folder / "corpus", splits), folder / "shards", folder / "model")
    encoding = SummarizationTokenize(vocabulary_size=1200, max_source_tokens=80, max_target_tokens=24)
    tokenize(encoding, task="summarization", output=str(chain.shards), corpus=str(chain.corpus))
    architecture = {
        "type": "bart",
        "d_model": 64,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 128,
        "decoder_ffn_dim": 128,
        "max_position_embeddings": 80,
        "init_std": 0.06,
    }
    settings = SummarizationTrain(
        architecture=architecture, epochs=40, batch_tokens=2048, learning_rate=3e-3, precision="fp32", save_every=0
    )
    train(settings, task="summarization", output=str(chain.model), shards=str(chain.shards))
    return chain
