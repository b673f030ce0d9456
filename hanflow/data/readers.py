"""Raw files of every format as a stream of rows: role → text, or the reason why a row cannot be used.

One module a family of formats: `delimited` (csv, tsv, lines), and in `records` those of jsonl, json, and parquet and arrow. Whoever reads rows of files (preprocess, predict, score, the demo) does it here. Memory does not depend on a file's
size. The rows of a file are the rows given and the rows rejected, each with its number and reason.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import NamedTuple

from hanflow.data import delimited
from hanflow.data.lines import byte_blocks, rereadable
from hanflow.data.records import columnar, json_files, jsonl
from hanflow.data.schema import Column, ColumnMapping, Row, Source
from hanflow.errors import UserError
from hanflow.progress import log
from hanflow.storage import divided, find_raw, is_archive, is_remote, local_path, unpacked

FORMATS = ("lines", "csv", "tsv", "jsonl", "parquet", "arrow", "json")

_ENDINGS = {"txt": "lines", "ndjson": "jsonl"} | {name: name for name in FORMATS if name != "lines"}

SUFFIXES = (*(f".{ending}{packed}" for ending in _ENDINGS for packed in ("", ".gz")), ".zip")
"""Endings of the files that a reader exists for."""

_NO_DATA = re.compile(
    r"(?:(?:licen[cs]e|copying|copyright|readme|requirements)(?:[-_. ].*)?|notice|constraints|authors|contributors|changelog"
    r"|citation|source|metadata|dataset_?infos?|dataset_dict|state)\.(?:txt|json)|metadata\.(?:csv|tsv|jsonl)|cache-.*\.arrow",
    re.IGNORECASE,
)
"""Names of files that lie beside data and are none; a person who names one has it read."""


def format_of(path: str) -> str:
    """The one of `FORMATS` that a path's ending means; any unknown ending means lines."""
    return _ENDINGS.get(path.lower().removesuffix(".gz").rpartition(".")[2], "lines")


def raw_files(uri: str) -> list[str]:
    """The files with rows behind a path, a folder, an archive or a glob, or behind several with commas between; each once.

    What a folder holds besides is logged as passed over: endings without a reader, licences, lists of requirements and the
    like.

    Raises:
        UserError: nothing is there, or nothing that a reader exists for.
    """
    parts = [part for part in map(str.strip, uri.split(",")) if part]
    if len(parts) > 1 and not os.path.exists(uri):  # a comma may also be a part of a name
        return list(dict.fromkeys(file for part in parts for file in raw_files(part)))
    if divided(uri)[1]:
        return [uri]
    found = find_raw(uri, (*SUFFIXES, ""))
    named = found == [uri] or (len(found) == 1 and not is_remote(uri) and found == [str(local_path(uri))])
    files, several = unpacked(found), not named or is_archive(uri)
    readable = [path for path in files if path.lower().endswith(SUFFIXES[:-1])]
    if several:
        readable = [path for path in readable if not _NO_DATA.fullmatch(path.rpartition("/")[2])]
    if not readable:
        if several:
            raise UserError(
                f"{uri}: holds no readable file among {len(files)}; readable endings: {', '.join(SUFFIXES)} (licences, "
                "readmes and the like are passed over: name such a file itself to have it read)"
            )
        raise UserError(
            f"{found[0]}: no reader for files of this ending; convert it to one of those that are known: "
            f"{', '.join(SUFFIXES)}"
        )
    if len(readable) < len(files):
        kept = set(readable)
        passed = [path for path in files if path not in kept]
        log.info("%s: %s files to read; passed over: %s", uri, f"{len(readable):,}", _listed(passed))
    return readable


def _listed(paths: Sequence[str]) -> str:
    names = [path.rpartition("/")[2] for path in paths]
    return ", ".join(names[:20]) + (f" and {len(names) - 20:,} more" if len(names) > 20 else "")


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
    batches = _without_missing(_batches(kind, mapping, scratch), source)
    return _refusing(batches, source, kind) if source.every_row else batches


def _batches(kind: str, mapping: ColumnMapping, scratch: Path | None) -> Iterator[list[Row]]:
    path = mapping.path
    if kind in ("csv", "tsv"):
        yield from delimited.read_table(kind, mapping)
    elif kind == "jsonl":
        yield from jsonl.read(mapping)
    elif kind == "lines":
        ending = path.lower().removesuffix(".gz")
        yield from delimited.read_lines(mapping, mapping.source.format == "auto" and ending.endswith(".txt"))
    else:
        columns = kind in ("parquet", "arrow")

        def rows_of(file: str) -> Iterator[list[Row]]:
            return columnar.read(file, mapping, kind) if columns else json_files.read(file, mapping)

        if rereadable(path) and not (columns and (path.lower().endswith(".gz") or divided(path)[1])):
            yield from rows_of(path)
            return
        # Parquet has to be read from its end, and json twice: neither a stream nor a compressed file allows that.
        with NamedTemporaryFile(suffix=f".{kind}", dir=scratch) as copy:
            for block in byte_blocks(path):
                copy.write(block)
            copy.flush()
            yield from rows_of(copy.name)


def _without_missing(batches: Iterator[list[Row]], source: Source) -> Iterator[list[Row]]:
    """The batches, with "" for each text that is one of the words for a missing value."""
    words, lists = source.missing, not source.join_lists
    for batch in batches:
        for row in batch:
            values = row.values
            if values and (lists or not words.isdisjoint(values.values())):
                for role, text in values.items():
                    if text.__class__ is str and text in words:
                        values[role] = ""
        yield batch


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
    for whole in batches:
        batch = [row for row in whole if row.reason != delimited.REPEATED]
        for row in whole if len(batch) < len(whole) else ():
            if row.reason == delimited.REPEATED:
                log.warning("%s: line %s %s; it is passed over", source.path, f"{row.number:,}", row.reason)
        bad = next((index for index, row in enumerate(batch) if row.values is None), None)
        yield batch[:bad]
        if bad is not None:
            row, unit = batch[bad], "record" if kind in ("parquet", "arrow", "json") else "line"
            cure = next((cure for start, cure in _CURES if row.reason.startswith(start)), "correct or remove it")
            raise UserError(
                f"{source.path}: {unit} {row.number}: {row.reason}: {row.shown()[:60]!r}; "
                f"{cure.format(option=source.encoding_option)}"
            )
        rows += len(batch)
    if not rows:
        raise UserError(f"{source.path}: holds no row, only a header or empty lines; give a file with one text a row")


class _ColumnsFound(Exception):
    """Ends reading as soon as the names of a file's columns are known."""


class _ColumnProbe(ColumnMapping):
    def missing(self, chosen: Container[str]) -> list[str]:
        return []

    def resolve(self, found: Sequence[str]) -> dict[str, int]:
        raise _ColumnsFound(found)


def column_names(path: str, encoding: str = "auto") -> list[str]:
    """Names of a file's columns: its header, the keys of its first record; `text` of a file of lines.

    Raises:
        UserError: see `read`.
    """
    source = Source(path, (Column("text", ()),), encoding=encoding, every_row=True, encoding_option="encoding=")
    try:
        next(_read(source, _ColumnProbe(source), None))
    except _ColumnsFound as found:
        return [str(name).strip() for name in found.args[0]]
    return ["text"]


IDS = ("id", "fname")
"""Usual names of the column of ids."""


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
    ids: bool = False,
    column_option: str = "--column",
    encoding: str = "auto",
) -> Source:
    """A file of which one text of every row is wanted, a list of texts kept as it is.

    Args:
        path: see `Source.path`.
        column: the column or key, as a person named it; None: the first of `usual` that there is, or the only one.
        usual: names of the column, compared without case.
        ids: whether the rows' ids are wanted too, where there are any.
        column_option: what a person names the column with, for messages.
        encoding: see `Source.encoding`.
    """
    role = usual[0]
    return Source(
        path,
        (Column(role, tuple(usual)), *([Column("id", IDS, required=False)] if ids else [])),
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
