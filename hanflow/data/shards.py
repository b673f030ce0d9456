"""Token ids on disk: Arrow IPC files of int32 lists, read through memory maps.

A shard file holds one list column a sequence (`source`, `target`, …), in the order of the corpus's rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from hanflow.errors import UserError


class ShardWriter:
    """Writes one split; use as a context manager.

    Args:
        path: the file to write.
        sequences: names of the columns.
    """

    def __init__(self, path: Path, sequences: Sequence[str]):
        self._schema = pa.schema([(name, pa.list_(pa.int32())) for name in sequences])
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._sink, self._schema)

    def write(self, columns: dict[str, list[list[int]]]) -> None:
        """Append rows: name of each sequence → one list of token ids a row."""
        arrays = [pa.array(columns[name], type=pa.list_(pa.int32())) for name in self._schema.names]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()
        self._sink.close()


class Shard:
    """One split of a shards artifact, memory-mapped: rows are read where they lie, nothing is copied up front."""

    def __init__(self, path: Path, sequences: Sequence[str]):
        if not path.is_file():
            raise UserError(f"{path}: no such shard file; run the tokenize step again")
        self._map = pa.memory_map(str(path))
        self.sequences = tuple(sequences)
        chunks = [batch for batch in pa.ipc.open_file(self._map).read_all().to_batches() if batch.num_rows]
        self._chunks = [{name: _offsets_and_values(batch.column(name)) for name in sequences} for batch in chunks]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in chunks)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def lengths(self) -> np.ndarray:
        """Tokens of every sequence of every row: int64 array of shape (rows, sequences)."""
        if not self._chunks:
            return np.zeros((0, len(self.sequences)), dtype=np.int64)
        return np.concatenate(
            [np.stack([np.diff(chunk[name][0]) for name in self.sequences], axis=1) for chunk in self._chunks]
        ).astype(np.int64)

    def __getitem__(self, row: int) -> tuple[np.ndarray, ...]:
        """Token ids of one row: an int32 view of shape (length,) for every sequence."""
        index = int(np.searchsorted(self._starts, row, side="right")) - 1
        at = row - int(self._starts[index])
        chunk = self._chunks[index]
        return tuple(chunk[name][1][chunk[name][0][at] : chunk[name][0][at + 1]] for name in self.sequences)

    def rows(self, indices: Iterable[int]) -> list[tuple[np.ndarray, ...]]:
        """Token ids of several rows."""
        return [self[index] for index in indices]


def _offsets_and_values(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    return column.offsets.to_numpy(zero_copy_only=True), column.values.to_numpy(zero_copy_only=True)
