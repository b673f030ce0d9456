"""Reading a split of a corpus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hanflow.errors import UserError


def batches(path: Path, roles: Sequence[str], size: int, limit: int = 0) -> Iterator[dict[str, list[str]]]:
    """Role → texts of a split's rows, so many at a time and in order.

    Args:
        path: parquet file of the split.
        roles: columns that are read; the others cost nothing.
        size: most rows of a batch.
        limit: rows in all; 0: all there are.

    Raises:
        UserError: the file cannot be read.
    """
    import pyarrow.parquet as pq

    left = limit or None
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(size, columns=list(roles)):
                whole = batch.slice(0, left)
                yield whole.to_pydict()
                if left is not None:
                    left -= whole.num_rows
                    if not left:
                        return
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run the preprocess step again") from None
