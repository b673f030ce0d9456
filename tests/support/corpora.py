"""Small real corpora for the tests of the steps."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hanflow.storage import artifacts
from hanflow.storage.artifacts import Manifest

SAMPLE = Path(__file__).parents[2] / "pipelines" / "sample_data" / "petitions.tsv.gz"

ARCHITECTURE = {
    "type": "bart",
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
}
"""A BART of a few thousand parameters."""


def petitions(count: int) -> list[tuple[str, str]]:
    """The first petitions of the bundled sample that are at most 400 characters long: (body, title)."""
    with gzip.open(SAMPLE, "rt", encoding="utf-8") as stream:
        next(stream)
        rows = [line.rstrip("\n").split("\t") for line in stream]
    return [(body, title) for body, title in rows if len(body) <= 600][:count]


def write_corpus(folder: Path, rows: dict[str, list[tuple[str, str]]], task: str = "summarization") -> Path:
    """A corpus artifact with these rows in its splits."""
    folder.mkdir(parents=True)
    for split in artifacts.SPLITS:
        pairs = rows.get(split, [])
        columns = {"source": [s for s, _ in pairs], "target": [t for _, t in pairs]}
        blank = pa.array([""] * len(pairs), pa.string())
        table = pa.table({**{k: pa.array(v, pa.string()) for k, v in columns.items()}, "id": blank, "topic": blank})
        pq.write_table(table, folder / f"{split}.parquet")
    counts = {"rows": {split: len(rows.get(split, [])) for split in artifacts.SPLITS}}
    artifacts.write_manifest(folder, Manifest("corpus", task, {}, counts))
    return folder
