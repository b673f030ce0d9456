"""Files of one row a line: csv, tsv and txt read, csv and tsv written.

The usual line has no quote and the right number of columns: it is split and that is all. Everything else goes the slow
way, which never lets one bad line take the next one with it.
"""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from collections.abc import Collection, Iterator
from itertools import chain
from operator import itemgetter
from typing import Any, TextIO

from hanflow.data.lines import ROW_LIMIT, Block, empty, line_blocks
from hanflow.data.schema import ColumnMapping, Row, without_surrogates
from hanflow.data.values import Unusable, as_text
from hanflow.errors import UserError

REPEATED = "repeats the header"
"""Why a row is rejected that is the header once more, as where files have been joined."""

_SEPARATOR = re.compile('(?i)"?sep=([,;|\\t])"?,*')
"""Excel's first line, which names the delimiter."""

LOOKAHEAD = 100_000
"""Most lines that one quoted row may span; a quote that is still open then was no opening quote."""

_SIGNS = "=+-@＝＋－＠"
"""Beginnings of a cell that spreadsheets take for a formula, after what one or the other of them passes over first."""

_PASSED_OVER = {"Cc", "Cf", "Zs", "Zl", "Zp"}
"""Unicode's categories of what is passed over: control and format characters, spaces and separators."""

_RETURN = "\ufdd1"
"""Stands for a carriage return inside a quoted cell, which the csv module takes for a line end or an error: a code
point that Unicode keeps for such inner uses."""


def safe_cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula: such a one gets an apostrophe, which reading takes away again.

    So does one that begins with apostrophes before a formula, or reading would take one of its own.
    """
    return f"'{text}" if _is_formula(text) else text


def unguarded(cell: str) -> str:
    """The text of a cell that `safe_cell` may have guarded."""
    return cell[1:] if cell.startswith("'") and _is_formula(cell) else cell


def _is_formula(text: str) -> bool:
    """Whether a spreadsheet may run a cell, apostrophes at its beginning aside."""
    text = text.lstrip("'")
    if text.startswith(("\t", "\r")):
        return True
    for character in text:
        if character in _SIGNS:
            return True
        if unicodedata.category(character) not in _PASSED_OVER:
            return False
    return False


def csv_writer(stream: TextIO, delimiter: str = ",") -> Any:
    """A `csv.writer` whose rows end by newline alone.

    Set to end them so itself, it leaves a carriage return inside a text unquoted (before Python 3.13): two broken rows.

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


def read_table(kind: str, mapping: ColumnMapping) -> Iterator[list[Row]]:
    """The rows of a file with a header; empty lines are passed over.

    Args:
        kind: `csv` or `tsv`.
        mapping: finds the roles' columns in the header.
    """
    return _Table("," if kind == "csv" else "\t", line_blocks(mapping.source), mapping).rows()


def read_lines(mapping: ColumnMapping, may_be_table: bool) -> Iterator[list[Row]]:
    """The rows of a file with one text a line.

    Args:
        mapping: the role that texts play; finds the roles' columns if the file is a table.
        may_be_table: whether a file whose first line has tabs and names a column that is looked for is read as tsv, as
            NSMC's .txt files are.
    """
    blocks = line_blocks(mapping.source)
    first = next(blocks, None)
    if first is None:  # nothing but a byte-order mark
        raise empty(mapping.path)
    following = chain([first], blocks)
    mapping.first_line = may_be_table
    if may_be_table and "\t" in first.lines[0] and mapping.find(_header(first.lines[0], "\t")):
        yield from _Table("\t", following, mapping).rows()
        return
    if len(mapping.required) > 1:
        row = ""
        if may_be_table and "\t" in first.lines[0]:
            numbers = json.dumps({role: place for place, role in enumerate(mapping.required, 1)})
            row = f"; its first line looks like a row: if so, number its columns with {mapping.source.column_option}='{numbers}'"
        raise UserError(
            f"{mapping.path}: a .txt file holds one text a line, but this task needs {' and '.join(mapping.required)}; "
            f"give a tsv, csv, jsonl or parquet file with a column for each (a .txt whose first line is a header with "
            f"tabs is read as tsv){row}"
        )
    absent, role, keep_empty = mapping.absent, mapping.text_role, mapping.source.every_row
    number = 0
    for block in following:
        rows = []
        for index, line in enumerate(block.lines):
            number += 1
            if index in block.bad:
                rows.append(Row(number, None, line, block.bad[index]))
            elif line or keep_empty:
                rows.append(Row(number, {**absent, role: line}, line))
        yield rows


def _header(line: str, delimiter: str) -> list[str]:
    try:
        fields = next(csv.reader([line.replace("\r", " ")], delimiter=delimiter, strict=True), [])
    except csv.Error:
        fields = line.split(delimiter)
    return [field.strip() for field in fields]


class _Table:
    """A delimited file with a header."""

    def __init__(self, delimiter: str, blocks: Iterator[Block], mapping: ColumnMapping):
        self.delimiter, self.blocks, self.mapping = delimiter, blocks, mapping
        self.lines: list[str] = []
        self.bad: dict[int, str] = {}
        self.number = 0
        """Number of the last line before `lines`."""
        csv.field_size_limit(ROW_LIMIT + 1)  # Python's own limit is 131,072 characters

    def rows(self) -> Iterator[list[Row]]:
        """The rows, a block's worth at a time."""
        start = self._read_header()
        delimiter, width, roles, pick = self.delimiter, self.width, self.mapping.roles, self.pick
        header = self.header
        firsts = self.firsts
        guarded = f"{delimiter}'"
        while True:
            rows: list[Row] = []
            lines, bad, number = self.lines, self.bad, self.number
            index, end = start, len(lines)  # `lines` grows when a quoted row reaches into the next block
            while index < end:
                line = lines[index]
                fields = line.split(delimiter)
                if len(fields) == width and '"' not in line and index not in bad and line:
                    if "'" in line and (guarded in line or line.startswith("'")):
                        fields = [unguarded(field) for field in fields]
                    index += 1
                    if fields[0] in firsts and [field.strip() for field in fields] == header:
                        rows.append(Row(number + index, None, line, REPEATED))
                        continue
                    fields.append("")  # what roles without a column pick
                    rows.append(Row(number + index, dict(zip(roles, pick(fields), strict=True)), line))
                    continue
                if line or index in bad:
                    used, row = self._slow(index, fields)
                    rows.append(row)
                    index += used
                else:
                    index += 1
            yield rows
            start = 0
            self.number += index
            self.lines = lines[index:]  # what was fetched for the last row and is none of it
            self.bad = {place - index: reason for place, reason in bad.items() if place >= index}
            if not self.lines and not self._extend():
                return

    def _extend(self) -> bool:
        """Fetch the next block, behind the lines at hand. False at the end of the file."""
        block = next(self.blocks, None)
        if block is None:
            return False
        self.bad.update((len(self.lines) + index, reason) for index, reason in block.bad.items())
        self.lines += block.lines
        return True

    def _read_header(self) -> int:
        """Find the columns; returns the index of the first line after the header."""
        self._extend()
        index = next((i for i, line in enumerate(self.lines) if line.strip()), None)
        if index is None:
            raise empty(self.mapping.path)
        separator = _SEPARATOR.fullmatch(self.lines[index])
        if separator:
            self.delimiter = separator[1]
            index += 1
            if index == len(self.lines) and not self._extend():
                raise empty(self.mapping.path)
        if index in self.bad:
            raise UserError(
                f"{self.mapping.path}: line {index + 1}, the header, cannot be read: {self.bad[index]}; "
                f"give the file's encoding in {self.mapping.source.encoding_option}"
            )
        self.mapping.first_line = True
        used, header = 1, _header(self.lines[index], self.delimiter)
        if (
            '"' in self.lines[index] and self.delimiter != "\t"
        ):  # a name, or a first row without a header, may hold newlines
            self.width = 0
            lines, found, _ = self._quoted(index)
            used, header = (lines, [field.strip() for field in found]) if found else (used, header)
        chosen = self.mapping.resolve(header)
        self.width = len(header)
        headless = self.mapping.is_row(header)
        self.header = [] if headless else header
        # How the first field of a repeated header may look: a quick test for every row.
        self.firsts = set() if headless else {header[0], self.lines[index].split(self.delimiter, 1)[0]}
        # A field "" is appended to every row, for the roles that have no column.
        places = [chosen.get(role, self.width) for role in self.mapping.roles]
        self.pick = itemgetter(*places) if len(places) > 1 else itemgetter(slice(places[0], places[0] + 1))
        return index if headless else index + used

    def _slow(self, index: int, fields: list[str]) -> tuple[int, Row]:
        """A line with quotes, the wrong number of columns or bad bytes: (lines used, its row)."""
        line, number = self.lines[index], self.number + index + 1
        if index in self.bad:
            return 1, Row(number, None, line, self.bad[index])
        if '"' not in line:
            return 1, Row(number, None, line, self._wrong_width(len(fields)))
        used, found, problem = (self._quoted_tsv if self.delimiter == "\t" else self._quoted_csv)(index, fields)
        raw = line if used == 1 else "\n".join(self.lines[index : index + used])
        if found is None:
            return used, Row(number, None, raw, problem)
        if [field.strip() for field in found] == self.header:
            return used, Row(number, None, raw, REPEATED)
        values = [unguarded(value) for value in self.pick([*found, ""])]
        if self.mapping.source.join_lists:
            values = [_utterances(value, self.mapping.source.missing) for value in values]
        return used, Row(number, dict(zip(self.mapping.roles, values, strict=True)), raw)

    def _wrong_width(self, found: int) -> str:
        return f"expected {self.width} columns, found {found}"

    def _quoted_csv(self, index: int, _: list[str]) -> tuple[int, list[str] | None, str]:
        """A line of csv with quotes, by RFC 4180: (lines used, fields or None, what is wrong)."""
        used, found, problem = self._quoted(index)
        if found is None:
            return 1, None, problem  # what follows may well be good: only this line is lost
        if len(found) == self.width:
            return used, found, ""
        if used > 1 and len(found) < self.width:  # it swallowed the delimiters of the rows between
            return 1, None, "a quote is opened and closed only in a later row"
        return used, None, self._wrong_width(len(found))

    def _quoted_tsv(self, index: int, fields: list[str]) -> tuple[int, list[str] | None, str]:
        """A line of tsv with quotes: most writers of tsv quote nothing, so the plain reading comes first."""
        plain = len(fields) == self.width
        if not plain or (self.width > 1 and _left_open(fields[-1])):
            used, found, _ = self._quoted(index)
            fits = found is not None and len(found) == self.width
            if fits and not self._complete_lines(index + 1, index + used - (not plain)):
                return used, found, ""
        if plain:
            return 1, [_unquoted(field) for field in fields], ""
        return 1, None, self._wrong_width(len(fields))

    def _complete_lines(self, start: int, stop: int) -> bool:
        """Whether a line among these is a row by itself, so that a quote before it was left open by mistake."""
        return any(line.count(self.delimiter) == self.width - 1 for line in self.lines[start:stop])

    def _quoted(self, index: int) -> tuple[int, list[str] | None, str]:
        """The quoted row that begins at a line: (lines used, fields or None, what is wrong)."""
        parser = csv.reader(self._ahead(index), delimiter=self.delimiter, strict=True)
        try:
            found = next(parser)
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                return 1, None, "a quote is opened and never closed"
            return 1, None, f"the quotes do not fit together: {error}"
        except StopIteration:
            return 1, None, self._wrong_width(0)
        return parser.line_num, [field.replace(_RETURN, "\r") for field in found], ""

    def _ahead(self, index: int) -> Iterator[str]:
        """The lines from one on, as far as one row may reach."""
        size = 0
        for place in range(index, index + LOOKAHEAD):
            if place >= len(self.lines) and not self._extend():
                return
            if place in self.bad:
                return
            line = self.lines[place].replace("\r", _RETURN)
            size += len(line)
            if size > ROW_LIMIT:
                return
            yield line + "\n"


def _left_open(field: str) -> bool:
    """Whether a field begins with a quote that nothing closes in it."""
    return field.startswith('"') and field.count('"') % 2 == 1


def _unquoted(field: str) -> str:
    """The content of a properly quoted field; others as they are."""
    if len(field) > 1 and field[0] == field[-1] == '"' and '"' not in field[1:-1].replace('""', ""):
        return field[1:-1].replace('""', '"')
    return field


def _utterances(value: str, words: Collection[str]) -> str:
    """A cell that is a JSON list of texts (AI-Hub's tsv), one a line; others as they are."""
    if not value.startswith(('["', "[null")) or value[-1:] != "]":
        return value
    try:
        joined = as_text(json.loads(value), "", words, True)
    except (ValueError, RecursionError, Unusable):
        return value
    return without_surrogates(joined)  # type: ignore[arg-type]
