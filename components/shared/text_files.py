"""Texts to score from files of any system: lines, csv, tsv or jsonl, each also .gz, streamed row by row."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain

from components.shared.config import UserError
from components.shared.progress import log

HEAD = 1 << 16
"""Bytes of a file's beginning that its encoding is told from."""

FIELD_LIMIT = 1 << 30
"""Longest cell of a csv, in characters; Python's own limit is 131,072."""

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_RETURN = "\x0b"
"""What stands for a carriage return inside a text: the csv module takes a lone one for a line end, or for an error."""

_FORMULA = ("'=", "'+", "'-", "'@", "'\t", f"'{_RETURN}")


@dataclass(frozen=True)
class Source:
    """A file with one text a row, or several."""

    path: str
    """The ending tells the format: .csv, .tsv, .jsonl or .ndjson; any other holds one text a line. Each also .gz."""
    column: str | None = None
    """Name of the column or key; None: the only one there is, or `usual`."""
    usual: str = "prediction"
    """Column that is taken among several if none was named."""
    option: str = "--column"
    """What a person names the column by, for messages."""
    encoding: str = "auto"
    """A codec's name, or `auto`: by byte-order mark, else UTF-8, else CP949 where only that fits."""


def read(source: Source) -> Iterator[list[str]]:
    """The texts of every row, in order: one each, or in jsonl a list of several.

    A csv's cell that begins with an apostrophe and what a spreadsheet takes for a formula loses the apostrophe, which
    predictions.csv (and any careful writer) put there. Empty lines are texts in a file of lines, nothing elsewhere.

    Raises:
        UserError: the file is missing, damaged, empty or not in its encoding, has no such column, or a row is broken;
            says which line and what to do.
    """
    name = source.path.lower().removesuffix(".gz")
    rows = 0
    try:
        with _opened(source) as stream:
            lines = _Lines(stream)
            try:
                for texts in _format(name)(source, lines):
                    rows += 1
                    yield texts
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{source.path}: is not {error.encoding.upper()} at line {lines.number + 1} or soon after "
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
    packed = source.path.lower().endswith(".gz")
    with gzip.open(source.path) if packed else open(source.path, "rb") as file:
        head = io.BufferedReader(file, HEAD)
        codec = _codec(source, head.peek(HEAD))
        # Lines end at \n alone: a lone \r or U+2028 stands inside a text.
        yield io.TextIOWrapper(head, encoding=codec, newline="\n")


def _codec(source: Source, head: bytes) -> str:
    if source.encoding != "auto":
        try:
            b"".decode(source.encoding)
            codec = codecs.lookup(source.encoding).name
        except LookupError:
            raise UserError(
                f"--encoding: {source.encoding!r} is no text encoding; give auto, utf-8, cp949, euc-kr or utf-16"
            ) from None
        return "utf-8-sig" if codec == "utf-8" else codec
    marked = next((codec for bom, codec in _BOMS if head.startswith(bom)), None)
    if marked:
        return marked
    if _fits(head, "utf-8") or not _fits(head, "cp949"):
        return "utf-8"
    _tell_cp949(source.path)
    return "cp949"


@cache  # a file may be read twice
def _tell_cp949(path: str) -> None:
    log.warning("%s: is not UTF-8, read as CP949 (give --encoding if that is wrong)", path)


def _fits(head: bytes, codec: str) -> bool:
    try:
        codecs.getincrementaldecoder(codec)().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def _format(name: str) -> Callable[[Source, _Lines], Iterator[list[str]]]:
    if name.endswith((".jsonl", ".ndjson")):
        return _of_json
    return _of_table if name.endswith((".csv", ".tsv")) else _of_lines


def _of_lines(_: Source, lines: _Lines) -> Iterator[list[str]]:
    return ([_without_end(line)] for line in lines)


def _without_end(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


def _of_table(source: Source, lines: _Lines) -> Iterator[list[str]]:
    csv.field_size_limit(FIELD_LIMIT)
    tabs = source.path.lower().removesuffix(".gz").endswith(".tsv")
    rows = _tab_rows(lines) if tabs else _csv_rows(lines, ",")
    try:
        header = next((row for row in rows if row), None)
        if header is None:
            return
        columns = [column.strip() for column in header]
        place = columns.index(_chosen(source, columns))
        first = lines.number + 1
        for row in rows:
            if row:
                if len(row) != len(columns):
                    raise UserError(
                        f"{source.path}: line {first}: expected {len(columns)} columns, found {len(row)}; quote texts that "
                        f"hold {'tabs' if tabs else 'commas'}, quotes or newlines, or give jsonl"
                    )
                text = row[place]
                yield [text[1:] if text.startswith(_FORMULA) else text]
            first = lines.number + 1
    except csv.Error as error:
        raise UserError(f"{source.path}: line {lines.number}: {error}; write the file anew, or as jsonl") from None


def _csv_rows(lines: Iterator[str], delimiter: str) -> Iterator[list[str]]:
    return csv.reader((line.replace("\r\n", "\n").replace("\r", _RETURN) for line in lines), delimiter=delimiter)


def _tab_rows(lines: _Lines) -> Iterator[list[str]]:
    """Rows of a tsv: most writers quote nothing, so a line that is whole without its quotes is read as it stands."""
    width = 0
    for line in lines:
        fields = _without_end(line).split("\t")
        width = width or len(fields)
        if len(fields) == width and not (fields[-1].startswith('"') and fields[-1].count('"') % 2):
            yield [_unquoted(field) for field in fields] if fields != [""] else []
        else:
            yield next(_csv_rows(chain([line], lines), "\t"))


def _unquoted(field: str) -> str:
    """The content of a properly quoted field; others as they are."""
    inner = field[1:-1].replace('""', "")
    if len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inner:
        return field[1:-1].replace('""', '"')
    return field


def _of_json(source: Source, lines: _Lines) -> Iterator[list[str]]:
    key = None
    for line in lines:
        if not line.strip():
            continue
        where = f"{source.path}: line {lines.number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: is not JSON ({error}); write one JSON value a line") from None
        if isinstance(value, dict):
            key = key or _chosen(source, list(value))
            if key not in value:
                raise UserError(f"{where}: has no key {key!r}; its keys: {', '.join(value)}; every line needs it")
            value = value[key]
        yield _texts(value, where)


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
    if source.usual in columns:
        return source.usual
    if len(columns) == 1:
        return columns[0]
    raise UserError(f"{source.path}: has several columns: {there}; say which one with {source.option}")


def unequal(rows: Mapping[str, int]) -> UserError:
    """What is said of files that do not hold the same number of rows: path → rows."""
    counts = ", ".join(f"{path} {count:,}" for path, count in rows.items())
    return UserError(
        f"the files differ in rows: {counts}; give one prediction for every reference, in the same order (in a file of "
        f"lines a newline inside a text makes two rows: give csv or jsonl then)"
    )
