"""The input of a prediction: the request, and the rows of files or of standard input."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanflow.data.lines import STANDARD_INPUT, rereadable
from hanflow.data.readers import FORMATS, raw_files, read_texts
from hanflow.data.schema import Source
from hanflow.errors import UserError
from hanflow.storage import containers, divided, fingerprint, is_archive

if TYPE_CHECKING:
    from hanflow.serving.bundle import Bundle


@dataclass(frozen=True)
class Request:
    """Input, output and options of a prediction."""

    input: str = STANDARD_INPUT
    """File, folder, glob, or `-`: standard input."""
    output: str = STANDARD_INPUT
    """File to write, or `-`: standard output."""
    column: str | None = None
    """Column of the texts; None: by its usual names."""
    input_format: str = "auto"
    """One of `readers.FORMATS`, or auto: by the ending; standard input holds lines."""
    output_format: str = "auto"
    """One of `writers.OUTPUT_FORMATS`, or auto: by the ending; unknown endings get lines, standard output too, but of a
    task whose predictions are labels pairs."""
    encoding: str = "auto"
    """Of the input, see `Source.encoding`."""
    with_input: bool = False
    """Whether the input text becomes a column too."""
    chunk_rows: int = 2_000
    """Most rows in memory at once."""
    force: bool = False
    """Whether an output that exists is replaced, once the new one is complete."""
    restart: bool = False
    """Whether the output of an interrupted run is discarded."""


@dataclass
class Inputs:
    """The rows of all input files, one after the other."""

    paths: list[str]
    source: Source
    """How each of them is read."""

    @property
    def rereadable(self) -> bool:
        """Whether all of them can be read a second time."""
        return all(map(rereadable, self.paths))

    def fingerprint(self) -> list[dict[str, Any]]:
        """Equal as long as the files are the same."""
        inside = [name for _, name in map(divided, self.paths) if name]
        files = (
            {"files": sha256(repr(inside).encode()).hexdigest()} if inside else {}
        )  # those of an archive that are read
        return [fingerprint(path) | files for path in containers(self.paths)]

    def rows(self) -> Iterator[tuple[dict[str, Any], str]]:
        """(`file` where there are several, `row` from 0 in its file, `id` where there is one; text) of every row.

        Raises:
            UserError: see `readers.read_texts`.
        """
        for path in self.paths:
            file = {"file": path} if len(self.paths) > 1 else {}
            for number, row in enumerate(read_texts(replace(self.source, path=path))):
                yield file | {"row": number} | ({} if row.id is None else {"id": row.id}), row.texts[0]

    def check_first_rows(self) -> None:
        """Find a missing column or an empty file before a model is loaded.

        Raises:
            UserError: of several files one has ids and another has none, or a file cannot be used.
        """
        if not self.rereadable:
            return
        named = {path: next(read_texts(replace(self.source, path=path))).id is not None for path in self.paths}
        if len(set(named.values())) > 1:
            with_id, without = (next(path for path, has in named.items() if has is wanted) for wanted in (True, False))
            raise UserError(f"{without}: has no column for the rows' ids, but {with_id} has; predict them one by one")


def inputs_of(bundle: Bundle, request: Request) -> Inputs:
    """The input files of a request, read as the bundle's corpus was.

    Raises:
        UserError: there are none, the output is one of them, or their format is unknown.
    """
    if request.input_format not in ("auto", *FORMATS):
        raise UserError(f"--input-format: {request.input_format!r} is not a format; give one of {', '.join(FORMATS)}")
    paths = [STANDARD_INPUT]
    if request.input != STANDARD_INPUT:
        # A file that is named is read whatever its ending; a pipe is one, too.
        file = os.path.exists(request.input) and not os.path.isdir(request.input) and not is_archive(request.input)
        paths = [request.input] if file else raw_files(request.input)
        output = Path(request.output).absolute()
        own = {f"{output}{ending}" for ending in (".partial", ".partial.json")}
        paths = [path for path in paths if str(Path(path).absolute()) not in own]
        if request.output != STANDARD_INPUT and any(Path(path).resolve() == output.resolve() for path in paths):
            raise UserError(f"--output: {request.output} is one of the input files; give another one")
    source = input_source(bundle, column=request.column, format=request.input_format, encoding=request.encoding)
    return Inputs(paths, source)


def input_source(bundle: Bundle, path: str = "", *, column: str | None = None, **how: Any) -> Source:
    """A file of texts to predict from: its columns are found, and its texts read, as for the bundle's corpus.

    Args:
        column: the column of the texts, as a person named it; None: by its usual names.
        how: further attributes of `Source`.
    """
    text = bundle.task.input_role
    return Source(
        path,
        tuple(replace(c, required=c.role == text) for c in bundle.task.columns if c.role in (text, "id")),
        {} if column is None else {text: column},
        missing=frozenset(map(str, bundle.cleaning.missing)),
        speaker_format=bundle.cleaning.speaker_format,
        every_row=True,
        column_option="--column",
        encoding_option="--encoding",
        **how,
    )


def first_texts(bundle: Bundle, path: str, count: int) -> list[str]:
    """The first texts of a file that hold something, at most so many.

    Raises:
        UserError: see `readers.read_texts`; a file whose first texts are good may be bad behind them.
    """
    texts = (row.texts[0] for row in read_texts(input_source(bundle, path)))
    return list(islice((text for text in texts if text.strip()), count))
