"""Texts from files of any system, to score or to predict from: lines, csv, tsv or jsonl, each also .gz, row by row."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from hanflow.data.delimited_format import csv_rows, tab_rows, unguarded, without_end
from hanflow.data.encodings import HEAD, display_name, encoding_of
from hanflow.errors import UserError
from hanflow.storage import is_remote, open_raw

FORMATS = ("lines", "csv", "tsv", "jsonl")

STANDARD_INPUT = "-"
"""Path that means standard input."""


@dataclass(frozen=True)
class Source:
    """A file with one text a row, or several."""

    path: str
    """The ending tells the format: .csv, .tsv, .jsonl or .ndjson; any other holds one text a line. Each also .gz."""
    column: str | None = None
    """Name of the column or key; None: the only one there is, or `usual`."""
    usual: str | tuple[str, ...] = "prediction"
    """Column that is taken among several if none was named; of several names, compared without case, the first found."""
    option: str = "--column"
    """What a person names the column by, for messages."""
    encoding: str = "auto"
    """A codec's name, or `auto`: by byte-order mark, else UTF-8, else CP949 where only that fits."""
    format: str = "auto"
    """One of `FORMATS`, or `auto`: by the ending of the path; standard input holds lines."""
    ids: tuple[str, ...] = ()
    """Columns that may name a row, compared without case; the first found does."""


@dataclass(frozen=True)
class Row:
    """One row of a file."""

    texts: list[str]
    """One text, or in jsonl a list of several."""
    id: str | None = None
    """None: there is no such column, or nobody asked for it."""


def format_of(path: str) -> str:
    """The one of `FORMATS` that a path's ending tells; any unknown ending means lines."""
    name = path.lower().removesuffix(".gz")
    if name.endswith((".jsonl", ".ndjson")):
        return "jsonl"
    return name[-3:] if name.endswith((".csv", ".tsv")) else "lines"


def rereadable(path: str) -> bool:
    """Whether a file can be read a second time: neither standard input nor a pipe."""
    return is_remote(path) or (path != STANDARD_INPUT and os.path.isfile(path))


def read(source: Source) -> Iterator[list[str]]:
    """The texts of every row, in order; see `read_rows`."""
    return (row.texts for row in read_rows(source))


def read_rows(source: Source) -> Iterator[Row]:
    """Every row, in order.

    A csv's cell that begins with an apostrophe and what a spreadsheet takes for a formula loses the apostrophe, which
    predictions.csv (and any careful writer) put there. Empty lines are texts in a file of lines, nothing elsewhere.

    Raises:
        UserError: the file is missing, damaged, empty or not in its encoding, has no such column, or a row is broken;
            says which line and what to do.
    """
    rows = 0
    try:
        with _opened(source) as stream:
            lines = _Lines(stream)
            try:
                for row in _format(source)(source, lines):
                    rows += 1
                    yield row
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{source.path}: is not {display_name(error.encoding)} at line {lines.number + 1} or soon after "
                    f"({error.reason}); give its encoding with --encoding, e.g. cp949"
                ) from None
            if not lines.number:
                raise UserError(f"{source.path}: is empty; give a file with one text a row")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{source.path}: is no whole gzip file ({error}); fetch it again") from None
    except OSError as error:
        raise UserError(
            f"{source.path}: cannot be read ({error.strerror or error}); check the path and its rights"
        ) from None
    if not rows:
        raise UserError(f"{source.path}: holds no row, only a header or empty lines; give a file with one text a row")


def column_names(source: Source) -> list[str]:
    """Names of a file's columns: those of its header, or the keys of its first row; `text` of a file of lines.

    Raises:
        UserError: the file cannot be read.
    """
    kind = _format(source)
    if kind is _of_lines:
        return ["text"]
    try:
        with _opened(source) as stream:
            if kind is _of_json:
                first = json.loads(next((line for line in stream if line.strip()), "null"))
                return list(first) if isinstance(first, dict) else ["text"]
            rows = tab_rows(_Lines(stream)) if kind is _of_tabs else csv_rows(_Lines(stream))
            return [column.strip() for column in next((row for row in rows if row), ["text"])]
    except (OSError, ValueError) as error:  # what is wrong inside the file, its readers say better
        raise UserError(f"{source.path}: its columns cannot be read ({error}); check the file and its rights") from None


class _Lines:
    """The lines of a stream with their ends, counted."""

    def __init__(self, stream: io.TextIOBase):
        self._stream = stream
        self.number = 0
        """Of the last line that was read."""

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._stream)
        self.number += 1
        return line


@contextmanager
def _opened(source: Source) -> Iterator[io.TextIOWrapper]:
    if source.path == STANDARD_INPUT:
        stream = _decoded(source, sys.stdin.buffer)  # type: ignore[arg-type]
        yield stream
        stream.detach()  # else it would close standard input
        return
    packed = source.path.lower().endswith(".gz")
    with open_raw(source.path) as raw, gzip.open(raw) if packed else raw as file:
        yield _decoded(source, io.BufferedReader(file, HEAD))  # type: ignore[arg-type]


def _decoded(source: Source, stream: io.BufferedReader) -> io.TextIOWrapper:
    encoding = encoding_of(stream.peek(HEAD)[:HEAD], source.encoding, source.path, "--encoding")
    stream.read(len(encoding.mark))
    # Lines end at \n alone: a lone \r or U+2028 stands inside a text.
    return io.TextIOWrapper(stream, encoding=encoding.codec, newline="\n")


def _format(source: Source) -> Callable[[Source, _Lines], Iterator[Row]]:
    kind = format_of(source.path) if source.format == "auto" else source.format
    return {"jsonl": _of_json, "csv": _of_table, "tsv": _of_tabs, "lines": _of_lines}[kind]


def _of_lines(_: Source, lines: _Lines) -> Iterator[Row]:
    return (Row([without_end(line)]) for line in lines)


def _of_tabs(source: Source, lines: _Lines) -> Iterator[Row]:
    return _of_table(source, lines, tabs=True)


def _of_table(source: Source, lines: _Lines, tabs: bool = False) -> Iterator[Row]:
    rows = tab_rows(lines) if tabs else csv_rows(lines)
    try:
        header = next((row for row in rows if row), None)
        if header is None:
            return
        columns = [column.strip() for column in header]
        place, named = columns.index(_chosen(source, columns)), _first(source.ids, columns)
        id_place = columns.index(named) if named is not None else None
        first = lines.number + 1
        for row in rows:
            if row:
                if len(row) != len(columns):
                    raise UserError(
                        f"{source.path}: line {first}: expected {len(columns)} columns, found {len(row)}; quote texts that "
                        f"hold {'tabs' if tabs else 'commas'}, quotes or newlines, or give jsonl"
                    )
                yield Row([unguarded(row[place])], None if id_place is None else unguarded(row[id_place]))
            first = lines.number + 1
    except csv.Error as error:
        raise UserError(f"{source.path}: line {lines.number}: {error}; write the file anew, or as jsonl") from None


def _of_json(source: Source, lines: _Lines) -> Iterator[Row]:
    key = named = None
    for line in lines:
        if not line.strip():
            continue
        where = f"{source.path}: line {lines.number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: is not JSON ({error}); write one JSON value a line") from None
        if isinstance(value, dict):
            if key is None:
                key, named = _chosen(source, list(value)), _first(source.ids, list(value))
            if key not in value:
                raise UserError(f"{where}: has no key {key!r}; its keys: {', '.join(value)}; every line needs it")
            yield Row(_texts(value[key], where), None if named is None else _id(value.get(named)))
        else:
            yield Row(_texts(value, where))


def _id(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _texts(value: object, where: str) -> list[str]:
    """One text, or several; null is an empty one."""
    values: list[object] = value if isinstance(value, list) else ["" if value is None else value]
    if not values:
        raise UserError(f"{where}: an empty list holds no text; give at least one")
    texts = [text for text in values if isinstance(text, str)]
    if len(texts) < len(values):
        other = next(text for text in values if not isinstance(text, str))
        raise UserError(f"{where}: {json.dumps(other)[:50]} is no text; quote it")
    return texts


def _chosen(source: Source, columns: Sequence[str]) -> str:
    there = ", ".join(columns)
    if source.column is not None:
        if source.column not in columns:
            raise UserError(
                f"{source.path}: has no column {source.column!r}; its columns: {there}; choose one with {source.option}"
            )
        return source.column
    usual = _first((source.usual,) if isinstance(source.usual, str) else source.usual, columns)
    if usual is not None:
        return usual
    if len(columns) == 1:
        return columns[0]
    raise UserError(f"{source.path}: has several columns: {there}; say which one with {source.option}")


def _first(names: Sequence[str], columns: Sequence[str]) -> str | None:
    """The column that the earliest of some names means, compared without case; None: there is none."""
    lowered = [column.casefold() for column in columns]
    return next((columns[lowered.index(name.casefold())] for name in names if name.casefold() in lowered), None)


def unequal(rows: Mapping[str, int]) -> UserError:
    """What is said of files that do not hold the same number of rows: path → rows."""
    counts = ", ".join(f"{path} {count:,}" for path, count in rows.items())
    return UserError(
        f"the files differ in rows: {counts}; give one prediction for every reference, in the same order (in a file of "
        f"lines a newline inside a text makes two rows: give csv or jsonl then)"
    )
