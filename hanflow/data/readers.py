"""Raw files of every format as a stream of rows: role → text, or the reason why a row cannot be used.

One module a family of formats: `delimited` (csv, tsv, lines), `records` (jsonl, parquet), `aihub` (json). Whoever reads
rows of files (preprocess, predict, score, the demo) does it here. Memory does not depend on a file's size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import NamedTuple

from hanflow.data import aihub, delimited, records
from hanflow.data.lines import byte_blocks, rereadable
from hanflow.data.schema import Column, ColumnMapping, Row, Source
from hanflow.errors import UserError
from hanflow.storage import find_raw

FORMATS = ("lines", "csv", "tsv", "jsonl", "parquet", "json")

_ENDINGS = {"txt": "lines", "ndjson": "jsonl"} | {name: name for name in FORMATS if name != "lines"}

SUFFIXES = tuple(f".{ending}{packed}" for ending in _ENDINGS for packed in ("", ".gz"))
"""Endings of the files that a reader exists for."""


def format_of(path: str) -> str:
    """The one of `FORMATS` that a path's ending means; any unknown ending means lines."""
    return _ENDINGS.get(path.lower().removesuffix(".gz").rpartition(".")[2], "lines")


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


def read(source: Source, scratch: Path | None = None) -> Iterator[list[Row]]:
    """The rows of one file, in batches and in order.

    Args:
        source: the file and how to read it.
        scratch: folder for temporary files: a compressed parquet file has to be unpacked to be read. None: the system's.

    Raises:
        UserError: the file as a whole cannot be used: damaged, empty, of unknown layout, without a column needed; or
            `source.every_row` is set and a row cannot be used, or there is none, with the row and what to do.
    """
    return _read(source, ColumnMapping(source), scratch)


def _read(source: Source, mapping: ColumnMapping, scratch: Path | None) -> Iterator[list[Row]]:
    kind = format_of(source.path) if source.format == "auto" else source.format
    batches = _batches(kind, mapping, scratch)
    return _refusing(batches, source, kind) if source.every_row else batches


def _batches(kind: str, mapping: ColumnMapping, scratch: Path | None) -> Iterator[list[Row]]:
    path = mapping.path
    if kind in ("csv", "tsv"):
        yield from delimited.read_table(kind, mapping)
    elif kind == "jsonl":
        yield from records.read_jsonl(mapping)
    elif kind == "lines":
        ending = path.lower().removesuffix(".gz")
        yield from delimited.read_lines(mapping, mapping.source.format == "auto" and ending.endswith(".txt"))
    else:
        reader = records.read_parquet if kind == "parquet" else aihub.read
        if rereadable(path) and not (kind == "parquet" and path.lower().endswith(".gz")):
            yield from reader(path, mapping)
            return
        # Parquet has to be read from its end, and json twice: neither a stream nor a compressed file allows that.
        with NamedTemporaryFile(suffix=f".{kind}", dir=scratch) as copy:
            for block in byte_blocks(path):
                copy.write(block)
            copy.flush()
            yield from reader(copy.name, mapping)


_CURES = (
    ("not valid JSON", "write one JSON value a line"),
    ("not valid", "give the file's encoding with {option}, e.g. cp949"),
    ("expected", "quote texts that hold delimiters, quotes or newlines, or write the file as jsonl"),
)
"""Beginning of a reason → what to do about it."""


def _refusing(batches: Iterator[list[Row]], source: Source, kind: str) -> Iterator[list[Row]]:
    """The batches, up to the first row that cannot be used.

    Raises:
        UserError: there is such a row, or no row at all.
    """
    rows = 0
    for batch in batches:
        bad = next((index for index, row in enumerate(batch) if row.values is None), None)
        yield batch[:bad]
        if bad is not None:
            row, unit = batch[bad], "record" if kind in ("parquet", "json") else "line"
            cure = next((cure for start, cure in _CURES if row.reason.startswith(start)), "correct or remove it")
            raise UserError(
                f"{source.path}: {unit} {row.number}: {row.reason}: {row.shown()[:60]!r}; "
                f"{cure.format(option=source.encoding_option)}"
            )
        rows += len(batch)
    if not rows:
        raise UserError(f"{source.path}: holds no row, only a header or empty lines; give a file with one text a row")


class TextRow(NamedTuple):
    """One row of a file of texts."""

    texts: list[str]
    """One text, or several where the file has a list of them and the source keeps lists."""
    id: str | None
    """None: the file has no column of ids, or nobody asked for it."""


def text_source(
    path: str,
    column: str | None = None,
    usual: Sequence[str] = ("prediction",),
    *,
    column_option: str = "--column",
    encoding: str = "auto",
) -> Source:
    """A file of which one text of every row is wanted, a list of texts kept as it is.

    Args:
        path: see `Source.path`.
        column: the column or key, as a person named it; None: the first of `usual` that there is, or the only one.
        usual: names of the column, compared without case.
        column_option: what a person names the column with, for messages.
        encoding: see `Source.encoding`.
    """
    role = usual[0]
    return Source(
        path,
        (Column(role, tuple(usual)),),
        {} if column is None else {role: column},
        encoding=encoding,
        every_row=True,
        join_lists=False,
        column_option=column_option,
        encoding_option="--encoding",
    )


def read_texts(source: Source) -> Iterator[TextRow]:
    """The texts of every row, in order: those of the source's first required role, and of the role `id` if it has one.

    Raises:
        UserError: see `read`.
    """
    mapping = ColumnMapping(source)
    for rows in _read(source, mapping, None):
        for row in rows:
            values = row.values or {}
            value = values[mapping.text_role]
            yield TextRow(
                value if isinstance(value, list) else [value], values["id"] if "id" in mapping.present else None
            )
