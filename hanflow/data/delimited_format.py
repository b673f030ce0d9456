"""Cells of csv and tsv: written so that every reader finds the same rows and no formula, and read back."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import chain
from typing import Any, TextIO

FIELD_LIMIT = 1 << 30
"""Longest cell of a csv that is read, in characters; Python's own limit is 131,072."""

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings of a cell that spreadsheets take for a formula."""

_RETURN = "\x0b"
"""What stands for a carriage return inside a text: the csv module takes a lone one for a line end, or for an error."""

_GUARDED = tuple(f"'{mark}" for mark in (*FORMULA, _RETURN))


def safe_cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula: such a one gets an apostrophe, which `unguarded` takes away again."""
    return f"'{text}" if text.startswith(FORMULA) else text


def unguarded(cell: str) -> str:
    """The text of a cell that `safe_cell` may have guarded."""
    return cell[1:] if cell.startswith(_GUARDED) else cell


def csv_writer(stream: TextIO, delimiter: str = ",") -> Any:
    """A `csv.writer` whose rows end by newline alone.

    Told to end them so itself, it leaves a carriage return inside a text unquoted (before Python 3.13): two broken rows.

    Args:
        stream: opened with `newline=""`.
        delimiter: between two cells.
    """
    return csv.writer(_NewlineEnds(stream), delimiter=delimiter)


class _NewlineEnds:
    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, line: str) -> int:
        return self._stream.write(line.removesuffix("\r\n") + "\n")


def csv_rows(lines: Iterator[str], delimiter: str = ",") -> Iterator[list[str]]:
    """The rows of lines that keep their ends; a blank line is an empty row.

    Raises:
        csv.Error: a row is no csv.
    """
    csv.field_size_limit(FIELD_LIMIT)
    return csv.reader((line.replace("\r\n", "\n").replace("\r", _RETURN) for line in lines), delimiter=delimiter)


def tab_rows(lines: Iterator[str]) -> Iterator[list[str]]:
    """The same of a tsv: most writers quote nothing, so a line that is whole without its quotes is read as it stands."""
    width = 0
    for line in lines:
        fields = without_end(line).split("\t")
        width = width or len(fields)
        if len(fields) == width and not left_open(fields[-1]):
            yield [unquoted(field) for field in fields] if fields != [""] else []
        else:
            yield next(csv_rows(chain([line], lines), "\t"))


def without_end(line: str) -> str:
    """A line without its newline and the carriage return before that."""
    return line.removesuffix("\n").removesuffix("\r")


def left_open(field: str) -> bool:
    """Whether a field begins with a quote that nothing closes in it."""
    return field.startswith('"') and field.count('"') % 2 == 1


def unquoted(field: str) -> str:
    """The content of a properly quoted field; others as they are."""
    if len(field) > 1 and field[0] == field[-1] == '"' and '"' not in field[1:-1].replace('""', ""):
        return field[1:-1].replace('""', '"')
    return field
