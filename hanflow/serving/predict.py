"""Texts from files to predictions in a file, a chunk at a time: memory does not follow the number of rows."""

from __future__ import annotations

import gzip
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from hanflow.data.lines import STANDARD_INPUT
from hanflow.data.readers import format_of
from hanflow.data.resumable_file import PartialFile
from hanflow.data.writers import OUTPUT_FORMATS, encoded
from hanflow.errors import UserError
from hanflow.progress import Progress, log
from hanflow.serving.bundle import Bundle, answer
from hanflow.serving.inputs import Inputs, Request, inputs_of
from hanflow.storage import exists, is_remote, publish_file, work_folder
from hanflow.version import module_content

CHUNK_CHARACTERS = 8_000_000
"""Characters of a chunk from which it is full, however few rows they are."""

SEARCH = (
    "beams",
    "max_new_tokens",
    "min_new_tokens",
    "length_penalty",
    "no_repeat_ngram",
    "remove_tokens",
    "engine",
    "compute_type",
    "top_classes",
    "greedy",
    "temperature",
    "top_k",
    "top_p",
    "with_prompt",
)
"""Settings of the evaluate step that predictions depend on (batch_tokens only decides how fast they come)."""


@dataclass
class PredictSummary:
    """Counts of a run."""

    rows: int = 0
    """Rows of the output."""
    already: int = 0
    """Those of them that an earlier, interrupted run wrote."""
    empty: int = 0
    """Texts of this run that hold nothing."""
    cut: int = 0
    """Texts of this run that are longer than what the model reads."""
    seconds: float = 0.0
    """Of predicting and writing alone."""


def run(bundle: Bundle, request: Request) -> PredictSummary:
    """Predict every row of the input, one row of output each, in order.

    From files into a file: interrupted at any moment, the same call resumes where it stopped, and the file ends up the
    same as without the interruption.

    Args:
        bundle: see `open_bundle`.
        request: input, output and form.

    Raises:
        UserError: input or output cannot be used.
    """
    if request.chunk_rows < 1:
        raise UserError(f"--chunk-rows: {request.chunk_rows} is too few; give 1 or more")
    inputs = inputs_of(bundle, request)
    inputs.check_first_rows()
    kind = request.output_format
    if kind == "auto":
        written = "pairs" if bundle.task.labels else "lines"
        kind = written if request.output == STANDARD_INPUT else format_of(request.output)
    if kind not in OUTPUT_FORMATS:
        raise UserError(f"--format: {kind!r} is not a format; give one of {', '.join(OUTPUT_FORMATS)}")
    if request.output == STANDARD_INPUT:
        return _to_stream(bundle, request, inputs, kind, sys.stdout.buffer)
    if is_remote(request.output):
        return _to_bucket(bundle, request, inputs, kind)
    return _to_file(bundle, request, inputs, kind, Path(request.output))


def _to_stream(bundle: Bundle, request: Request, inputs: Inputs, kind: str, stream: BinaryIO) -> PredictSummary:
    summary = PredictSummary()

    def write(content: bytes, _: int) -> None:
        stream.write(content)
        stream.flush()

    _predict(bundle, request, inputs, kind, summary, None, write)
    return summary


def _to_bucket(bundle: Bundle, request: Request, inputs: Inputs, kind: str) -> PredictSummary:
    """By way of a file on this machine, where an interrupted run resumes; it is uploaded once complete."""
    if exists(request.output) and not request.force:
        raise UserError(f"--output: {request.output}: exists already; give another, or replace it with --force")
    path = work_folder(request.output) / request.output.rpartition("/")[2]
    summary = _to_file(bundle, replace(request, force=True), inputs, kind, path)
    publish_file(path, request.output, replace=request.force)
    path.unlink()
    return summary


def _to_file(bundle: Bundle, request: Request, inputs: Inputs, kind: str, path: Path) -> PredictSummary:
    if not path.parent.is_dir():
        raise UserError(f"--output: {path}: its folder does not exist; create it first")
    if path.is_dir():
        raise UserError(f"--output: {path}: is a folder; give a file in it, e.g. {path / 'predictions.csv'}")
    resumable = inputs.rereadable
    identity: dict[str, Any] = {
        "bundle": bundle.manifest.digest,
        "program": module_content(__name__),
        "settings": {name: value for name, value in asdict(bundle.settings).items() if name in SEARCH},
        "format": kind,
        "column": request.column,
        "input_format": request.input_format,
        "encoding": request.encoding,
        "with_input": request.with_input,
        "inputs": inputs.fingerprint() if resumable else None,
    }
    file = PartialFile(path, identity)
    if not request.restart and resumable and file.completed():
        log.info("%s: is complete already", path)
        return PredictSummary(rows=file.done["rows"], already=file.done["rows"])
    if path.exists() and not request.force:
        raise UserError(f"--output: {path}: exists already; give another file, or replace it with --force")
    summary = PredictSummary()
    with file.opened(request.restart, resumable):
        summary.already = summary.rows = file.done.get("rows", 0)
        if not resumable:
            log.info("%s cannot be read twice: after an interruption the work starts over", request.input)
        elif summary.already:
            log.info("%s: resumes after row %s", file.partial, f"{summary.already:,}")
        total = file.done.get("total")
        if resumable and total is None:
            # A malformed row is found now, not after hours of work.
            total = sum(1 for _ in inputs.rows())

        def write(content: bytes, rows: int) -> None:
            # One gzip member a chunk: a gzip file may be a chain of members.
            content = gzip.compress(content, mtime=0) if path.name.lower().endswith(".gz") else content
            file.commit(content, {"rows": rows, "total": total})

        _predict(bundle, request, inputs, kind, summary, total, write)
        file.finish()
    return summary


def _predict(
    bundle: Bundle,
    request: Request,
    inputs: Inputs,
    kind: str,
    summary: PredictSummary,
    total: int | None,
    write: Callable[[bytes, int], None],
) -> None:
    """Predict what is left of the rows.

    Args:
        summary: its `already` rows are passed over; the others are counted here.
        total: rows in all; None: not known.
        write: takes the bytes of some rows, and the number of rows done with them.
    """
    rows = islice(inputs.rows(), summary.already, None)
    predictor = bundle.predictor()
    started = time.monotonic()
    with Progress(f"predicting ({predictor.description})", total, done=summary.already) as progress:
        for chunk in _chunks(rows, request.chunk_rows):
            texts = [text for _, text in chunk]
            found = answer(bundle, predictor, texts, progress)
            summary.empty += sum(found.empty)
            summary.cut += sum(cut > 0 for cut in found.cut)
            table: list[Mapping[str, Any]] = [
                {
                    **names,
                    **({"input": text} if request.with_input or kind == "pairs" else {}),
                    "prediction": prediction,
                    **{name: values[i] for name, values in found.predictions.columns.items()},
                }
                for i, ((names, text), prediction) in enumerate(zip(chunk, found.predictions.texts, strict=True))
            ]
            content = encoded(kind, table, header=summary.rows == 0)
            summary.rows += len(chunk)
            write(content, summary.rows)
    summary.seconds = time.monotonic() - started


def _chunks(rows: Iterator[tuple[dict[str, Any], str]], most: int) -> Iterator[Sequence[tuple[dict[str, Any], str]]]:
    chunk: list[tuple[dict[str, Any], str]] = []
    characters = 0
    for names, text in rows:
        chunk.append((names, text))
        characters += len(text)
        if len(chunk) >= most or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk
