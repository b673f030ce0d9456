"""What is read: a raw file and how to read it, its rows, and which raw column plays which role."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple
from unicodedata import normalize

from hanflow.config import PreprocessConfig
from hanflow.config.steps import MISSING
from hanflow.config.suggest import did_you_mean, similar
from hanflow.errors import UserError
from hanflow.progress import log


@dataclass(frozen=True)
class Column:
    """One column of the corpus, and the raw columns that can fill it."""

    role: str
    """Name in the corpus."""
    aliases: tuple[str, ...]
    """Raw column names that mean it, the preferred one first, compared without case."""
    required: bool = True
    """Whether a raw file without it is refused; else it is left empty."""
    text: bool = False
    """Whether it carries text: the tokenizer is trained on it, its lengths are reported."""
    input: bool = False
    """Whether it is what a person gives to have something predicted; its text stands in one split only."""
    category: bool = False
    """Whether it is one of few names, which every split has to spell alike."""


class RejectedRow(Exception):
    """A row cannot be used; the message is the reason kept beside it."""


class Row(NamedTuple):
    """One raw row."""

    number: int
    """As a person counts in that file, from 1: the line where the row begins, or the record of a file without lines."""
    values: dict[str, Any] | None
    """Role → raw text, "" for optional roles that the file does not have; None: the row cannot be used. With
    `Source.join_lists` off, a list of texts where one text was looked for is a `list[str]`."""
    raw: str | None
    """The row as it stands in the file, to be shown; None: nothing better than `values`."""
    reason: str = ""
    """Why the row cannot be used."""

    def shown(self) -> str:
        """The raw text that is kept of a rejected row."""
        return self.raw if self.raw is not None else json.dumps(self.values, ensure_ascii=False)


@dataclass(frozen=True)
class Source:
    """A raw file and how to read it. Whoever reads, the rules are the same; `every_row` alone decides what becomes of
    rows that cannot be used."""

    path: str
    """Local path, URI, or `-` for standard input; a name that ends in .gz is decompressed."""
    columns: tuple[Column, ...]
    """What is looked for."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Role → the raw column that a person named for it; the aliases of that role then count for nothing."""
    format: str = "auto"
    """One of `readers.FORMATS`, or `auto`: by the ending of the path, anything unknown holds lines."""
    encoding: str = "auto"
    """A codec's name, or `auto`: by byte-order mark, else UTF-8, else CP949 where only that fits."""
    missing: frozenset[str] = frozenset(MISSING)
    """Words that stand for a value that is not there, spelt exactly so."""
    speaker_format: str = "#Person{n}#: "
    """What stands before each utterance of an AI-Hub dialogue."""
    every_row: bool = False
    """True: each row of the file must come out, in order and as it stands, so the first bad row is an error and an
    empty line of a file of lines is an empty text. False: bad rows come out with their reasons, and empty lines of a
    file of lines are passed over."""
    join_lists: bool = True
    """Whether a list of texts becomes one text, one item a line; else it stays a list."""
    column_option: str = "preprocess.columns"
    """What a person names columns with, for messages."""
    encoding_option: str = "preprocess.encoding"
    """What a person names the encoding with, for messages."""


def without_surrogates(text: str) -> str:
    """Text without lone surrogates, which JSON can spell (\\ud800) and no encoding can hold."""
    return text.encode("utf-8", "ignore").decode("utf-8")


class ColumnMapping:
    """Which raw column of one file plays which role."""

    def __init__(self, source: Source):
        self.source, self.path = source, source.path
        self.roles = tuple(column.role for column in source.columns)
        self.required = tuple(column.role for column in source.columns if column.required)
        self.text_role = (*self.required, *self.roles)[0]
        """The role of the texts in a file without columns."""
        self.absent = dict.fromkeys(self.roles, "")
        self.first_line = False
        """Whether the names of columns are the first line of the file, so that it may have none."""
        self.present: frozenset[str] = frozenset()
        """Roles that the file has a column for; filled when its first columns are known."""
        self._names = dict(source.names)
        self.numbered = {
            role: int(name) - 1 for role, name in self._names.items() if _WHOLE.fullmatch(name) and int(name)
        }
        """Role → place from 0, where a person gave numbers alone."""
        if len(self.numbered) < len(self._names):
            self.numbered = {}

    def find(self, found: Sequence[str]) -> dict[str, int]:
        """Role → index in `found` of the raw column that plays it; roles without one are left out.

        A role that a person named a column for is looked for by that name only, else by its aliases and its own name,
        the first that exists. Names are compared without case and surrounding blanks. In a table where a person gave
        numbers alone, they are places from 1, unless the names of its columns are numbers.
        """
        places: dict[str, int] = {}
        for index, name in reversed(list(enumerate(found))):  # of two columns of one name the first wins
            places[_key(name)] = index
        chosen = {}
        for column in self.source.columns:
            named = self._names.get(column.role)
            wanted = (*column.aliases, column.role) if named is None else (named,)
            place = next((places[_key(name)] for name in wanted if _key(name) in places), None)
            if place is not None:
                chosen[column.role] = place
        if self._places_meant(found):
            return {role: place for role, place in self.numbered.items() if place < len(found)}
        return chosen

    def _places_meant(self, first: Sequence[str]) -> bool:
        """Whether the numbers that a person gave are places: only a first line of different numbers names its columns so."""
        names = {cell.strip() for cell in first}
        named = (
            len(names) == len(first) and all(map(_WHOLE.fullmatch, names)) and names.issuperset(self._names.values())
        )
        return bool(self.first_line and self.numbered) and not named

    def is_row(self, first: Sequence[str]) -> bool:
        """Whether the first line of a table is a row: its columns were given by number, and it has none of their names."""
        if not self._places_meant(first):
            return False
        aliases = {column.role: {*map(_key, (*column.aliases, column.role))} for column in self.source.columns}
        return not any(_key(first[place]) in aliases[role] for role, place in self.find(first).items())

    def missing(self, chosen: Container[str]) -> list[str]:
        """The roles that must have a raw column (required, or named by a person) and have none."""
        return [role for role in self.roles if role not in chosen and (role in self.required or role in self._names)]

    def resolve(self, found: Sequence[str]) -> dict[str, int]:
        """`find`, complete. Where one role is required, the only column of a file plays it, whatever its name.

        Raises:
            UserError: a role that is required or named by a person has no column.
        """
        self.sole(found)
        chosen = self.find(found)
        if self.missing(chosen):
            raise self.refusal(found)
        self.present = frozenset(chosen)
        return chosen

    def sole(self, found: Sequence[str]) -> bool:
        """Whether the only column of a file plays the only role that is required, whatever its name; from now on it does."""
        if self.find(found) or not len(found) == len(self.required) == 1 or self._names or _DELIMITER.search(found[0]):
            return False
        _log_only_column(self.path, found[0], self.text_role)
        self._names[self.text_role] = found[0]  # for all rows to come: jsonl may have other keys later
        return True

    def refusal(self, found: Sequence[str]) -> UserError:
        """Why no row of this file can be used, what was looked for, and what to do."""
        chosen, option = self.find(found), self.source.column_option
        aliases = {column.role: column.aliases for column in self.source.columns}
        looked_for = " and ".join(
            f"{role} ({option} names {self._names[role]!r})"
            if role in self._names
            else f"{role} (looked for {', '.join(aliases[role])})"
            for role in self.missing(chosen)
        )
        names = [name.strip()[:50] for name in found[:20]]
        cure = f"name it with {option}"
        wrong = [self._names[role] for role in self.missing(chosen) if role in self._names]
        near = [name for name in (similar(wanted, names) for wanted in wrong) if name]
        if not option.startswith("--"):
            example = {r: names[chosen[r]] if chosen.get(r, 99) < len(names) else "..." for r in self.required}
            cure = f"say which column plays which role: {option}='{json.dumps(example, ensure_ascii=False)}'"
        delimiter = _DELIMITER.search(found[0]) if len(found) == 1 else None
        if delimiter:
            known = {",": "commas: name it .csv", "\t": "tabs: name it .tsv"}
            say = f"{delimiter[0]!r}: put the line sep={delimiter[0]} before the first, or save it with commas"
            cure = f"its values seem to be separated by {known.get(delimiter[0], say)}; or {cure}"
        elif any("\r" in name.strip() for name in found):
            cure = "its lines seem to end in carriage returns alone, but it has newlines too: save it with line ends of one kind"
        elif self.first_line and len(found) > 1 and not chosen:
            number = f"""{option}='{json.dumps({r: n for n, r in enumerate(self.required, 1)})}'"""
            number = f"{option} 1" if option.startswith("--") else number
            cure = f"{cure}; its first line looks like a row: if it is no header, number the columns, e.g. {number}"
        return UserError(
            f"{self.path}: has no column for {looked_for}; columns found: {', '.join(names) or 'none'}"
            f"{did_you_mean(near)}; {cure}"
        )


_DELIMITER = re.compile(r"[,;|\t]")
"""What makes the name of an only column look like several, divided by another delimiter than the one that was tried."""


_WHOLE = re.compile("[0-9]{1,4}")


def _key(name: str) -> str:
    return normalize("NFKC", name.replace("\ufeff", "")).strip().casefold()


@cache  # a file may be read twice
def _log_only_column(path: str, name: str, role: str) -> None:
    log.warning("%s: its only column, %r, is taken for %s", path, name, role)


def check_columns(given: Mapping[str, object], columns: Sequence[Column]) -> dict[str, str]:
    """The setting `preprocess.columns`, once every role in it is one of the task's.

    Raises:
        UserError: a role that the task does not have.
    """
    roles = [column.role for column in columns]
    for role in given:
        if role not in roles:
            near = similar(str(role), roles, 0.6)
            raise UserError(
                f"preprocess.columns: this task has no role {role!r}{did_you_mean([near] if near else [])} Roles: "
                f"""{", ".join(roles)}; write it as role → raw column, e.g. {{"{roles[0]}": "the raw column's name"}}"""
            )
    return {role: str(name) for role, name in given.items() if name is not None}


def corpus_source(path: str, columns: Sequence[Column], config: PreprocessConfig) -> Source:
    """A file as the preprocess step reads it: rows that cannot be used come out with their reasons.

    Raises:
        UserError: `preprocess.columns` has a role that is none of `columns`.
    """
    names = check_columns(config.columns, columns)
    missing, speaker = frozenset(map(str, config.missing)), config.speaker_format
    return Source(path, tuple(columns), names, encoding=config.encoding, missing=missing, speaker_format=speaker)
