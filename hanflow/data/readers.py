"""Raw files of every format as a stream of rows: role → text, or the reason why a row cannot be used.

One module a family of formats: `delimited` (csv, tsv, txt), `structured` (jsonl, parquet), `aihub` (json). Memory does
not depend on a file's size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hanflow.config import PreprocessConfig
from hanflow.data import aihub, delimited
from hanflow.data import records as structured
from hanflow.data.schema import ColumnMapping, Row
from hanflow.errors import UserError
from hanflow.storage import find_raw
from hanflow.tasks.data import Column

FORMATS = ("csv", "tsv", "txt", "jsonl", "ndjson", "parquet", "json")
SUFFIXES = tuple(f".{name}{packed}" for name in FORMATS for packed in ("", ".gz"))
"""Endings of the files that a reader exists for."""


def raw_files(uri: str) -> list[str]:
    """The readable files behind a path, a folder or a glob, or behind several with commas between; each file once.

    Raises:
        UserError: nothing is there, or nothing that a reader exists for.
    """
    parts = [part for part in map(str.strip, uri.split(",")) if part]
    if len(parts) > 1 and not Path(uri).exists():  # a comma may also be a part of a name
        return list(dict.fromkeys(file for part in parts for file in raw_files(part)))
    found = find_raw(uri, SUFFIXES)
    readable = [path for path in found if path.lower().endswith(SUFFIXES)]
    if not readable:
        raise UserError(
            f"{found[0]}: no reader for files of this ending; convert it to one of those that are known: "
            f"{', '.join(SUFFIXES)}"
        )
    return readable


def read(path: str, columns: Sequence[Column], config: PreprocessConfig, scratch: Path) -> Iterator[list[Row]]:
    """The rows of one file, in batches and in order.

    Args:
        path: the file; its ending tells the format.
        columns: the task's columns.
        config: `columns`, `encoding` and `speaker_format` are looked at.
        scratch: folder for temporary files (a compressed parquet file has to be unpacked to be read).

    Raises:
        UserError: the file as a whole cannot be used: damaged, empty, of unknown layout, without a column needed.
    """
    name = path.lower().removesuffix(".gz")
    mapping = ColumnMapping(path, columns, config)
    if name.endswith((".csv", ".tsv", ".txt")):
        return delimited.read(path, name.rpartition(".")[2], mapping, config)
    if name.endswith((".jsonl", ".ndjson")):
        return structured.read_jsonl(path, mapping, config)
    if name.endswith(".parquet"):
        return structured.read_parquet(path, mapping, scratch)
    return aihub.read(path, mapping, config)
