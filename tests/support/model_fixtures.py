"""A tiny real chain for the tests of evaluate and export: corpus, shards and a trained BART, made by the real steps."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hanflow.steps.tokenize import run as tokenize
from hanflow.steps.train import run as train
from hanflow.storage import artifacts
from hanflow.storage.artifacts import Manifest
from hanflow.tasks.summarization import SummarizationEvaluate, SummarizationTokenize, SummarizationTrain
from tests.support.corpora import petitions, write_corpus

ARCHITECTURE: dict[str, Any] = {
    "type": "bart",
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 64,
    "init_std": 0.5,  # with BART's 0.02 a model this small says the same, or nothing, about every text
}

EVALUATE = SummarizationEvaluate(beams=2, max_new_tokens=12, min_new_tokens=4, no_repeat_ngram=2, examples=3)
"""Quick settings of an evaluation."""


@dataclass(frozen=True)
class Chain:
    """Folders of the artifacts of one run."""

    corpus: Path
    shards: Path
    model: Path

    @property
    def inputs(self) -> dict[str, str]:
        """What evaluate takes beside its settings."""
        return {"model": str(self.model), "shards": str(self.shards), "corpus": str(self.corpus)}


def make_chain(folder: Path, test_rows: int = 6, test: list[tuple[str, str]] | None = None) -> Chain:
    """Petitions → corpus → shards → a model trained for a few steps (seconds); `test` replaces the test rows."""
    rows = petitions(34 + test_rows)
    splits = {"train": rows[:30], "validation": rows[30:34], "test": rows[34:] if test is None else test}
    chain = Chain(write_corpus(folder / "corpus", splits), folder / "shards", folder / "model")
    encoding = SummarizationTokenize(
        vocabulary_size=500, special_tokens=["#Person1#"], max_source_tokens=64, max_target_tokens=16
    )
    tokenize(encoding, task="summarization", output=str(chain.shards), corpus=str(chain.corpus))
    settings = SummarizationTrain(
        architecture=ARCHITECTURE, epochs=2, batch_tokens=512, learning_rate=1e-2, precision="fp32", log_every=1
    )
    train(settings, task="summarization", output=str(chain.model), shards=str(chain.shards))
    return chain


def rewritten(folder: Path, kind: str, **changes: Any) -> None:
    """Give an artifact, its data perhaps changed, a manifest that fits again."""
    values = json.loads((folder / f"{kind}.json").read_text(encoding="utf-8"))
    values.pop("digest")
    artifacts.write_manifest(folder, Manifest(**{**values, **changes}))
