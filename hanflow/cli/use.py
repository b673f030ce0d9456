"""`hanflow predict`, `demo` and `score`: predictions of a model, a page to try it, and scores of predictions."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanflow import resources
from hanflow.cli.options import Commands
from hanflow.errors import UserError
from hanflow.storage import check_output, is_remote, local_path

if TYPE_CHECKING:
    from hanflow.metrics.intervals import Interval
    from hanflow.serving.inputs import Request
    from hanflow.serving.predict import PredictSummary
    from hanflow.steps.score import FileScores
    from hanflow.text.scoring_tokens import Tokenization

FORMATS = ("lines", "csv", "tsv", "jsonl", "parquet", "arrow", "json")
OUTPUT_FORMATS = ("lines", "csv", "tsv", "jsonl", "pairs")
TOKENIZATIONS = ("morpheme", "character", "word", "model", "dacon")
"""Copies of those in hanflow.data and hanflow.text, so that --help imports nothing; a test compares them."""

SAMPLE = resources.folder("sample_data") / "petitions.tsv.gz"

MODEL_HELP = "folder of a run (runs/NAME), of an exported bundle or of a model, local or gs://; or OWNER/NAME on the Hugging Face hub"

ENCODING_HELP = "(default: by byte-order mark, else UTF-8, else CP949 where only that fits)"


def add(commands: Commands) -> None:
    """Register the commands."""
    _add_predict(commands)
    _add_demo(commands)
    _add_score(commands)


def _add_predict(commands: Commands) -> None:
    predict = commands.add(
        "predict",
        help="predict with a trained model",
        description="One prediction for every input text, in order. Input: .csv, .tsv, .json, .jsonl, .parquet or .arrow with a "
        "column for the texts, or one text a line; each also .gz or in a .zip; a folder or a glob of such files; or standard input. Texts are cleaned and "
        "encoded as for training. The same command continues an interrupted one.",
        examples=[
            "hanflow predict runs/NAME --input texts.txt",
            "hanflow predict runs/NAME --input news.csv --column body --output summaries.csv --with-input",
            "hanflow predict gs://bucket/runs/NAME/bundle --input 'data/*.jsonl' --output out.jsonl --beams 1",
            "echo '국회는 오늘 …' | hanflow predict runs/NAME",
        ],
    )
    predict.set_defaults(command=_predict)
    predict.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    predict.add_argument(
        "--input",
        metavar="PATH",
        help="file, folder or glob, local or gs://; - is standard input (default where that is not a terminal)",
    )
    predict.add_argument(
        "--output", default="-", metavar="PATH", help="file to write, local or gs:// (default: -, standard output)"
    )
    predict.add_argument(
        "--format",
        dest="output_format",
        choices=OUTPUT_FORMATS,
        default="auto",
        help="of the output (default: by the file's ending, else lines, or pairs for labels: label, tab, text)",
    )
    predict.add_argument(
        "--input-format",
        choices=FORMATS,
        default="auto",
        help="of the input (default: by the file's ending; lines for standard input)",
    )
    predict.add_argument("--column", metavar="NAME", help="column of the input texts (default: by its usual names)")
    predict.add_argument("--encoding", default="auto", metavar="NAME", help=f"of the input {ENCODING_HELP}")
    predict.add_argument("--with-input", action="store_true", help="also write the input texts, in the column input")
    search = predict.add_argument_group("generation (defaults: as the model was evaluated)")
    _add_numbers(
        search,
        ("--beams", int, "beams of the search; 1: greedy"),
        ("--max-new-tokens", int, "longest text, in tokens"),
        ("--min-new-tokens", int, "shortest text, in tokens"),
        ("--length-penalty", float, "exponent of the length in a beam's score"),
        ("--no-repeat-ngram", int, "never the same n tokens twice; 0: allowed"),
        ("--batch-tokens", int, "padded source tokens × beams of a batch"),
    )
    search.add_argument(
        "--remove-token",
        action="append",
        dest="remove_tokens",
        metavar="TOKEN",
        help="delete this token from the texts; may be given several times",
    )
    search.add_argument("--engine", choices=("auto", "transformers", "ctranslate2"), help="library that runs the model")
    search.add_argument("--compute-type", choices=("float32", "int8"), help="arithmetic; int8 is faster")
    labels = predict.add_argument_group("classification")
    _add_numbers(labels, ("--top-classes", int, "classes written for every text, the likeliest first"))
    sampling = predict.add_argument_group("language modelling (--max-new-tokens too)")
    sampling.add_argument("--greedy", action="store_true", default=None, help="always the likeliest token")
    _add_numbers(
        sampling,
        ("--temperature", float, "of the softmax; below 1 favours likely tokens"),
        ("--top-k", int, "sample among the N likeliest tokens only; 0: all"),
        ("--top-p", float, "sample among the likeliest tokens of this total probability; 1: all"),
    )
    sampling.add_argument(
        "--with-prompt", action="store_true", default=None, help="write each text before its continuation"
    )
    work = predict.add_argument_group("processing")
    work.add_argument(
        "--chunk-rows", type=int, default=2_000, metavar="N", help="rows in memory at once (default: %(default)s)"
    )
    work.add_argument("--force", action="store_true", help="replace an output that exists")
    work.add_argument(
        "--restart", action="store_true", help="discard the output of an interrupted command and start again"
    )


def _add_numbers(group: argparse._ArgumentGroup, *options: tuple[str, type, str]) -> None:
    """Add options that take a number: flag, type and help of each."""
    for flag, kind, help in options:
        group.add_argument(flag, type=kind, metavar="N" if kind is int else "X", help=help)


def _add_demo(commands: Commands) -> None:
    demo = commands.add(
        "demo",
        help="serve a page to try a model",
        description="Serve a page to try one model, or two side by side.",
        examples=["hanflow demo runs/NAME", "hanflow demo runs/first runs/second --port 8080 --host 0.0.0.0"],
    )
    demo.add_argument("models", nargs="+", metavar="MODEL", help=f"{MODEL_HELP}; one or two")
    demo.add_argument("--port", type=int, default=8501, metavar="N", help="port (default: %(default)s)")
    demo.add_argument(
        "--host", default="localhost", metavar="NAME", help="address to listen on (default: %(default)s; all: 0.0.0.0)"
    )
    demo.add_argument(
        "--examples",
        metavar="FILE",
        help="texts to offer, in any form that `hanflow predict` reads (default: petitions of the bundled sample)",
    )
    demo.set_defaults(command=_demo)


def _add_score(commands: Commands) -> None:
    score = commands.add(
        "score",
        help="score any system's predictions by ROUGE",
        description="ROUGE-1, -2, -L and -Lsum of predictions against references, row by row, for Korean: texts are "
        "normalised (NFKC) and cut by a named tokenization, which is part of each score's name. Files are .csv, .tsv, "
        ".jsonl or .parquet with a column for the texts, or hold one text a line; each also .gz. Files with ids that "
        "differ in order are joined by id. A reference in .jsonl or .parquet may be a list.",
        examples=[
            "hanflow score --predictions predictions.csv --references references.csv",
            "hanflow score --predictions p.txt --references a.txt b.txt --tokenization word morpheme --json",
        ],
    )
    score.add_argument("--predictions", required=True, metavar="FILE", help="one prediction a row")
    score.add_argument(
        "--references",
        required=True,
        nargs="+",
        action="extend",
        metavar="FILE",
        help="the references, row by row; several files: several references a row",
    )
    score.add_argument(
        "--tokenization",
        nargs="+",
        action="extend",
        choices=TOKENIZATIONS,
        metavar="NAME",
        help=f"how texts are cut, one or more of {', '.join(TOKENIZATIONS)} (default: {TOKENIZATIONS[0]})",
    )
    score.add_argument("--tokenizer", metavar="FOLDER", help="the tokenizer of --tokenization model")
    score.add_argument("--column", metavar="NAME", help="column of the texts in all files")
    score.add_argument("--prediction-column", metavar="NAME", help="of the predictions (default: by its usual names)")
    score.add_argument("--reference-column", metavar="NAME", help="of the references (default: by its usual names)")
    score.add_argument("--encoding", default="auto", metavar="NAME", help=f"of the files {ENCODING_HELP}")
    score.add_argument(
        "--confidence",
        type=float,
        default=0.95,
        metavar="LEVEL",
        help="level of the bootstrap intervals (default: %(default)s; 0: none)",
    )
    score.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: %(default)s)")
    score.add_argument("--rows", metavar="FILE", help="write every row's scores to this .csv")
    score.add_argument("--force", action="store_true", help="replace the file of --rows if it exists")
    score.add_argument("--json", action="store_true", help="print JSON instead of a table")
    score.set_defaults(command=_score)


def _predict(options: argparse.Namespace) -> int:
    if options.input is None:
        if sys.stdin.isatty():
            raise UserError("--input: is missing; give a file, a folder or a glob, or - to type lines here")
        options.input = "-"
    from hanflow.progress import log, setup_logging
    from hanflow.serving.inputs import Request
    from hanflow.serving.predict import SEARCH, run
    from hanflow.serving.sources import open_source
    from hanflow.signals import Terminated, exit_status, handled, terminate

    setup_logging()
    only_once = _OncePerWarning()
    log.addFilter(only_once)
    if options.output != "-" and not is_remote(options.output):
        options.output = str(local_path(options.output))
    request = Request(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Request)})
    given = {name: getattr(options, name) for name in (*SEARCH, "batch_tokens")}
    changes = {name: value for name, value in given.items() if value is not None}
    try:
        with handled(terminate, signal.SIGTERM):
            summary = run(open_source(options.model, changes), request)
    except KeyboardInterrupt as error:
        ended = "terminated" if isinstance(error, Terminated) else "interrupted"
        print(f"{ended}; {_how_to_continue(request)}", file=sys.stderr)
        return exit_status(error)
    finally:
        log.removeFilter(only_once)
    print(_prediction_summary(summary, request), file=sys.stderr)
    return 0


class _OncePerWarning(logging.Filter):
    """A logging filter that drops repeated warnings: a generator repeats its own for every chunk."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if record.levelno < logging.WARNING:
            return True
        new = text not in self._seen
        self._seen.add(text)
        return new


def _how_to_continue(request: Request) -> str:
    if request.output == "-":
        return "the output is incomplete"
    if request.input == "-":
        return "standard input cannot be read again: give the same input again"
    if "://" in request.output:
        return "finished rows are kept on this machine; the same command continues from there"
    return f"finished rows are in {request.output}.partial; the same command continues from there"


def _prediction_summary(summary: PredictSummary, request: Request) -> str:
    new = summary.rows - summary.already
    before = f" ({summary.already:,} of them by an earlier run)" if summary.already else ""
    speed = f" in {summary.seconds:.1f} s, {new / summary.seconds:,.1f} rows/s" if new and summary.seconds else ""
    notes = [
        f"{count:,} {what}"
        for count, what in ((summary.empty, "empty inputs"), (summary.cut, "inputs cut to the model's longest input"))
        if count
    ]
    place = "" if request.output == "-" else f" → {request.output}"
    return f"{summary.rows:,} rows{before}{speed}{'; ' + ', '.join(notes) if notes else ''}{place}"


def _demo(options: argparse.Namespace) -> int:
    """Check the models, then replace this process by the server; returns only with an error."""
    if len(options.models) > 2:
        raise UserError(f"{len(options.models)} models do not fit side by side; give one or two")
    if not 0 < options.port < 65_536:
        raise UserError(f"--port: {options.port} is not a port; give one from 1 to 65535, e.g. 8501")
    if importlib.util.find_spec("streamlit") is None:
        raise UserError("the demo needs Streamlit, which is not installed; pip install 'hanflow[demo]'")
    from hanflow.serving.inputs import first_texts
    from hanflow.serving.sources import open_source

    opened = [open_source(model) for model in options.models]
    if options.examples:
        first_texts(opened[0], options.examples, 1)
    arguments = demo_command(options.models, options.host, options.port, options.examples or str(SAMPLE))
    sys.stdout.flush()
    os.execv(arguments[0], arguments)


def demo_command(models: list[str], host: str, port: int, examples: str = str(SAMPLE)) -> list[str]:
    """The command line of the server."""
    spec = importlib.util.find_spec("hanflow.serving.demo")
    assert spec is not None and spec.origin
    settings = {
        "server.port": port,
        "server.address": host,
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "runner.magicEnabled": "false",
    }
    flags = [f"--{name}={value}" for name, value in settings.items()]
    page = ["--", "--examples", _absolute(examples), *map(_absolute, models)]
    return [sys.executable, "-m", "streamlit", "run", spec.origin, *flags, *page]


def _absolute(path: str) -> str:
    place = path if is_remote(path) else local_path(path)
    return str(place.absolute()) if isinstance(place, Path) and place.exists() else path  # or a model on the hub


def _score(options: argparse.Namespace) -> int:
    if not 0 <= options.confidence < 1:
        raise UserError(f"--confidence: {options.confidence} is not a level; give one between 0 and 1, e.g. 0.95")
    if options.seed < 0:
        raise UserError(f"--seed: {options.seed} is negative; give 0 or more")
    if options.rows:
        given = [options.predictions, *options.references]
        check_output("--rows", str(local_path(options.rows)), given, force=options.force)
    from hanflow.metrics.intervals import mean_intervals
    from hanflow.steps.score import score_files, text_file, write_rows

    names = list(dict.fromkeys(options.tokenization or TOKENIZATIONS[:1]))
    tokenizations = [_model_tokenization(options.tokenizer) if name == "model" else name for name in names]
    column, encoding = options.column, options.encoding
    predictions = text_file(options.predictions, "prediction", options.prediction_column or column, encoding)
    references = [
        text_file(path, "reference", options.reference_column or column, encoding) for path in options.references
    ]
    found = score_files(predictions, references, tokenizations)
    intervals = mean_intervals(found.scores, confidence=options.confidence or 0.95, seed=options.seed)
    if options.rows:
        write_rows(local_path(options.rows), found.scores)
    if options.json:
        print(json.dumps(_score_summary(options, names, found, intervals), ensure_ascii=False, indent=2))
    else:
        _print_scores(options.confidence, found, intervals)
    return 0


def _model_tokenization(tokenizer: str | None) -> Tokenization:
    if not tokenizer:
        raise UserError("--tokenization model: cuts by a model's own tokenizer; give its folder with --tokenizer")
    from hanflow.loading.pretrained import load_tokenizer
    from hanflow.text.scoring_tokens import model_tokenization

    try:
        return model_tokenization(load_tokenizer(tokenizer))
    except UserError as error:
        raise UserError(f"--tokenizer: {error}") from None


def _score_summary(
    options: argparse.Namespace, names: list[str], found: FileScores, intervals: dict[str, Interval]
) -> dict[str, Any]:
    """What --json prints: settings, counts, means, and intervals as [low, high]."""
    summary: dict[str, Any] = {
        "predictions": options.predictions,
        "references": options.references,
        "rows": found.rows,
        "empty_predictions": found.empty,
        "references_per_row": list(found.references),
        "tokenizations": names,
        **({"tokenizer": options.tokenizer} if "model" in names else {}),
        "scores": {name: interval.mean for name, interval in intervals.items()},
    }
    if options.confidence:
        from hanflow.metrics.intervals import RESAMPLES

        method = {"method": "percentile bootstrap", "resamples": RESAMPLES, "seed": options.seed}
        summary["confidence"] = {"level": options.confidence, **method}
        summary["intervals"] = {name: [interval.low, interval.high] for name, interval in intervals.items()}
    return summary


def _print_scores(confidence: float, found: FileScores, intervals: dict[str, Interval]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "F1", *([f"{confidence:.4g} interval"] if confidence else []), "precision", "recall"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for name, f1 in intervals.items():
        if not name.endswith(("_precision", "_recall")):
            spread = [f"{f1.low:.4f}–{f1.high:.4f}"] if confidence else []
            others = [f"{intervals[f'{name}_{part}'].mean:.4f}" for part in ("precision", "recall")]
            table.add_row(name, f"{f1.mean:.4f}", *spread, *others)
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    fewest, most = found.references
    each = "" if most == 1 else f", {fewest} references each" if fewest == most else f", {fewest} to {most} references"
    best = "; F1 is the mean over the references, best that of the best one" if most > 1 else ""
    console.print(f"\n{found.rows:,} rows{each}{best}")
    if found.empty:
        console.print(f"{found.empty:,} predictions are empty and score 0")
