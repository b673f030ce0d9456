"""`hanflow predict`: its options and what they do.

Imports nothing heavy before it is told to predict.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from hanflow.errors import UserError

if TYPE_CHECKING:
    from hanflow.serving.inputs import Request
    from hanflow.serving.predict import PredictSummary

FORMATS = ("lines", "csv", "tsv", "jsonl", "parquet", "json")
"""`readers.FORMATS`, written out: --help waits for no import. A test compares."""

OUTPUT_FORMATS = ("lines", "csv", "tsv", "jsonl", "pairs")
"""`writers.OUTPUT_FORMATS`, likewise."""

DESCRIPTION = """\
One prediction for every input text, in order. Input: .csv, .tsv, .jsonl or .parquet with a column for the
texts, AI-Hub's .json, or one text a line; each also .gz; a folder or a glob of such files; or standard input. Texts are cleaned and encoded as the bundle's
model learnt them. Killed or interrupted, the same command goes on where it stopped."""


def add(commands: Any) -> None:
    """Register the command with the subparsers of `hanflow`."""
    predict = commands.add_parser("predict", help="predict with an exported bundle", description=DESCRIPTION)
    predict.set_defaults(command=run)
    predict.add_argument("bundle", metavar="BUNDLE", help="folder that the export step wrote, local or gs://")
    predict.add_argument(
        "--input",
        metavar="X",
        help="file, folder or glob, local or gs://; - is standard input (default where that is no terminal)",
    )
    predict.add_argument(
        "--output", default="-", metavar="Y", help="file to write, local or gs:// (default: - is standard output)"
    )
    predict.add_argument(
        "--format",
        choices=OUTPUT_FORMATS,
        default="auto",
        help="of the output (default: by its ending, else lines, or of labels pairs: label, tab, text)",
    )
    predict.add_argument(
        "--input-format",
        choices=FORMATS,
        default="auto",
        help="of the input (default: by its ending; standard input holds lines)",
    )
    predict.add_argument("--column", metavar="NAME", help="column of the input texts (default: by its usual names)")
    predict.add_argument(
        "--encoding",
        default="auto",
        metavar="NAME",
        help="encoding of the input (default: by byte-order mark, else UTF-8, else CP949 where only that fits)",
    )
    predict.add_argument("--with-input", action="store_true", help="write the input texts, too, as the column input")
    search = predict.add_argument_group("how texts are generated (defaults: as the bundle was scored)")
    search.add_argument("--beams", type=int, metavar="N", help="beams of the search; 1: greedy")
    search.add_argument("--max-new-tokens", type=int, metavar="N", help="longest text, in tokens")
    search.add_argument("--min-new-tokens", type=int, metavar="N", help="shortest text, in tokens")
    search.add_argument("--length-penalty", type=float, metavar="X", help="exponent of the length in a beam's score")
    search.add_argument("--no-repeat-ngram", type=int, metavar="N", help="never the same n tokens twice; 0: allowed")
    search.add_argument(
        "--remove-token",
        action="append",
        metavar="TOKEN",
        help="delete this token from the texts; may be given several times",
    )
    search.add_argument("--engine", choices=("auto", "transformers", "ctranslate2"), help="what generates")
    search.add_argument("--compute-type", choices=("float32", "int8"), help="arithmetic; int8 is faster")
    search.add_argument("--batch-tokens", type=int, metavar="N", help="padded source tokens times beams of a batch")
    labels = predict.add_argument_group("how texts are classified")
    labels.add_argument("--top-classes", type=int, metavar="N", help="classes told for every text, the likeliest first")
    drawing = predict.add_argument_group("how a language model continues texts (--max-new-tokens too)")
    drawing.add_argument("--greedy", action="store_true", default=None, help="always the likeliest token")
    drawing.add_argument("--temperature", type=float, metavar="X", help="below 1 bolder, above 1 more even")
    drawing.add_argument("--top-k", type=int, metavar="N", help="draw among the N likeliest tokens only; 0: all")
    drawing.add_argument(
        "--top-p", type=float, metavar="X", help="draw among the likeliest that together have this probability; 1: all"
    )
    work = predict.add_argument_group("how the work is done")
    work.add_argument(
        "--chunk-rows", type=int, default=2_000, metavar="N", help="rows in memory at once (default: %(default)s)"
    )
    work.add_argument("--force", action="store_true", help="replace an output that exists")
    work.add_argument("--restart", action="store_true", help="throw away what an interrupted run left")


def run(options: argparse.Namespace) -> int:
    """Predict; returns the exit status."""
    given = options.input
    if given is None:
        if sys.stdin.isatty():
            raise UserError("--input: say what to predict: a file, a folder, a glob, or - to type lines here")
        given = "-"
    from hanflow.progress import log, setup_logging
    from hanflow.serving.bundle import open_bundle
    from hanflow.serving.inputs import Request
    from hanflow.serving.predict import run
    from hanflow.signals import Terminated, obey_sigterm

    setup_logging()
    log.addFilter(_Once())
    before = signal.getsignal(signal.SIGTERM)
    obey_sigterm()
    request = Request(
        input=given,
        output=options.output,
        column=options.column,
        input_format=options.input_format,
        output_format=options.format,
        encoding=options.encoding,
        with_input=options.with_input,
        chunk_rows=options.chunk_rows,
        force=options.force,
        restart=options.restart,
    )
    try:
        summary = run(open_bundle(options.bundle, _changes(options)), request)
    except (KeyboardInterrupt, Terminated) as error:
        status = error.exit_status if isinstance(error, Terminated) else 128 + signal.SIGINT
        print(f"{'terminated' if status > 130 else 'interrupted'}; {_what_is_left(request)}", file=sys.stderr)
        return status
    except BrokenPipeError:  # the reader of standard output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    finally:
        signal.signal(signal.SIGTERM, before)
        log.filters.clear()
    print(_summary(summary, request), file=sys.stderr)
    return 0


class _Once(logging.Filter):
    """Lets a warning pass once: a generator repeats its own with every chunk."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if record.levelno < logging.WARNING:
            return True
        new = text not in self._said
        self._said.add(text)
        return new


def _changes(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of the evaluate step that the command line changes."""
    names: tuple[str, ...] = ("beams", "max_new_tokens", "min_new_tokens", "length_penalty", "no_repeat_ngram")
    names += ("engine", "compute_type", "batch_tokens", "top_classes", "greedy", "temperature", "top_k", "top_p")
    changes = {name: getattr(options, name) for name in names}
    changes["remove_tokens"] = options.remove_token
    return {name: value for name, value in changes.items() if value is not None}


def _what_is_left(request: Request) -> str:
    if request.output == "-":
        return "the output ends in the middle"
    if request.input == "-":
        return "standard input cannot be read again: give it anew"
    if "://" in request.output:
        return "what is done is kept on this machine, and the same command goes on there"
    return f"what is done is in {request.output}.partial, and the same command goes on there"


def _summary(summary: PredictSummary, request: Request) -> str:
    new = summary.rows - summary.already
    before = f" ({summary.already:,} of them by an earlier run)" if summary.already else ""
    speed = f" in {summary.seconds:.1f} s, {new / summary.seconds:,.1f} rows/s" if new and summary.seconds else ""
    notes = [
        f"{count:,} {what}"
        for count, what in ((summary.empty, "empty inputs"), (summary.cut, "inputs cut to what the model reads"))
        if count
    ]
    place = "" if request.output == "-" else f" → {request.output}"
    return f"{summary.rows:,} rows{before}{speed}{'; ' + ', '.join(notes) if notes else ''}{place}"
