"""The texts to predict from: the rows of a file, of many, or of standard input."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanflow.data.text_files import FORMATS, STANDARD_INPUT, Row, Source, read_rows, rereadable
from hanflow.errors import UserError
from hanflow.storage import find_raw, fingerprint

if TYPE_CHECKING:
    from hanflow.serving.bundle import Bundle
    from hanflow.serving.predict import Request

READABLE = tuple(f"{name}{packed}" for name in (".csv", ".tsv", ".jsonl", ".ndjson", ".txt") for packed in ("", ".gz"))
"""Endings of the files that are taken from a folder."""


@dataclass
class Inputs:
    """The rows of all input files, one after the other."""

    paths: list[str]
    source: Source
    several: bool = field(init=False)

    def __post_init__(self) -> None:
        self.several = len(self.paths) > 1

    @property
    def rereadable(self) -> bool:
        """Whether all of them can be read a second time."""
        return all(map(rereadable, self.paths))

    def fingerprint(self) -> list[dict[str, Any]]:
        """What tells whether the files are still the same."""
        return [fingerprint(path) for path in self.paths]

    def rows(self) -> Iterator[tuple[dict[str, Any], str]]:
        """(`file` where there are several, `row` from 0 in its file, `id` where there is one; text) of every row.

        Raises:
            UserError: see `read_rows`; or a row holds a list of texts.
        """
        for path in self.paths:
            for number, row in enumerate(read_rows(replace(self.source, path=path))):
                names = ({"file": path} if self.several else {}) | {"row": number} | _id(row)
                if len(row.texts) > 1:
                    raise UserError(f"{path}: row {number} holds {len(row.texts)} texts; give one text a row")
                yield names, row.texts[0]


def _id(row: Row) -> dict[str, str]:
    return {} if row.id is None else {"id": row.id}


def inputs_of(bundle: Bundle, request: Request) -> Inputs:
    """The input files of a request.

    Raises:
        UserError: there are none, the output is one of them, or their format is none that is known.
    """
    if request.input_format not in ("auto", *FORMATS):
        raise UserError(f"--input-format: {request.input_format!r} is no format; give one of {', '.join(FORMATS)}")
    paths = [STANDARD_INPUT]
    if request.input != STANDARD_INPUT:
        special = os.path.exists(request.input) and not os.path.isdir(request.input)  # a pipe is one, too
        paths = [request.input] if special else find_raw(request.input, READABLE)
        output = Path(request.output).absolute()
        own = {f"{output}{ending}" for ending in (".partial", ".partial.json", ".partial.json.new")}
        paths = [path for path in paths if str(Path(path).absolute()) not in own]
        if request.output != STANDARD_INPUT and any(Path(path).resolve() == output.resolve() for path in paths):
            raise UserError(f"--output: {request.output} is one of the input files; give another one")
    source = Source(
        "",
        request.column,
        bundle.input_names,
        "--column",
        request.encoding,
        request.input_format,
        bundle.id_names,
    )
    return Inputs(paths, source)


def check_first_rows(inputs: Inputs) -> None:
    """Let a missing column or an empty file show before a model is loaded.

    Raises:
        UserError: of several files one has ids and another has none, or a file cannot be used.
    """
    if not inputs.rereadable:
        return
    named = {path: next(read_rows(replace(inputs.source, path=path))).id is not None for path in inputs.paths}
    if len(set(named.values())) > 1:
        with_id, without = (next(path for path, there in named.items() if there is wanted) for wanted in (True, False))
        raise UserError(f"{without}: has no column for the rows' ids, but {with_id} has; predict them one by one")
