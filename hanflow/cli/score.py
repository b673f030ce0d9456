"""`hanflow score`: ROUGE of any system's predictions, in files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanflow.errors import UserError, first_line

if TYPE_CHECKING:
    from hanflow.metrics.intervals import Interval
    from hanflow.steps.score import FileScores
    from hanflow.text.scoring_tokens import Tokenization

TOKENIZATIONS = ("morpheme", "character", "word", "model", "dacon")
"""`tokenizations.NAMES`, written out: --help waits for no import. A test compares."""

DESCRIPTION = """\
ROUGE-1, -2, -L and -Lsum of predictions against references, row by row, for Korean: texts are brought to NFKC and cut
by a named tokenization, whose name stands in every score. Files are .csv, .tsv, .jsonl or .parquet with a column for the
texts, or hold one text a line; each also .gz. A reference in .jsonl or .parquet may be a list of texts."""


def add(commands: Any) -> None:
    """Register the command with the subparsers of `hanflow`."""
    score = commands.add_parser("score", help="score any system's predictions by ROUGE", description=DESCRIPTION)
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
    score.add_argument("--prediction-column", metavar="NAME", help="column of the predictions (default: prediction)")
    score.add_argument("--reference-column", metavar="NAME", help="column of the references (default: reference)")
    score.add_argument(
        "--encoding",
        default="auto",
        metavar="NAME",
        help="encoding of the files (default: by byte-order mark, else UTF-8, else CP949 where only that fits)",
    )
    score.add_argument(
        "--confidence",
        type=float,
        default=0.95,
        metavar="LEVEL",
        help="level of the bootstrap intervals (default: %(default)s; 0: none)",
    )
    score.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: %(default)s)")
    score.add_argument("--rows", metavar="FILE", help="write every row's scores to this .csv")
    score.add_argument("--json", action="store_true", help="print JSON instead of a table")
    score.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Score, print, and write the rows if asked to; returns the exit status."""
    if not 0 <= options.confidence < 1:
        raise UserError(f"--confidence: {options.confidence} is no level; give one between 0 and 1, e.g. 0.95")
    if options.seed < 0:
        raise UserError(f"--seed: {options.seed} is negative; give 0 or more")
    if options.rows and not Path(options.rows).parent.is_dir():
        raise UserError(f"--rows: {options.rows}: its folder does not exist; make it first")
    from hanflow.data.readers import text_source
    from hanflow.metrics.intervals import mean_intervals
    from hanflow.steps.score import score_files, write_rows

    names = list(dict.fromkeys(options.tokenization or TOKENIZATIONS[:1]))
    tokenizations = [_model(options.tokenizer) if name == "model" else name for name in names]
    predictions = text_source(
        options.predictions,
        options.prediction_column or options.column,
        column_option="--prediction-column",
        encoding=options.encoding,
    )
    references = [
        text_source(
            path,
            options.reference_column or options.column,
            ("reference",),
            column_option="--reference-column",
            encoding=options.encoding,
        )
        for path in options.references
    ]
    found = score_files(predictions, references, tokenizations)
    intervals = mean_intervals(found.scores, confidence=options.confidence or 0.95, seed=options.seed)
    if options.rows:
        write_rows(Path(options.rows), found.scores)
    if options.json:
        print(json.dumps(_summary(options, names, found, intervals), ensure_ascii=False, indent=2))
    else:
        _print_table(options, found, intervals)
    return 0


def _model(tokenizer: str | None) -> Tokenization:
    if not tokenizer:
        raise UserError("--tokenization model: cuts by a model's own tokenizer; give its folder with --tokenizer")
    from hanflow.text.scoring_tokens import model_tokenization

    try:
        return model_tokenization(tokenizer)
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise UserError(
            f"--tokenizer: {tokenizer}: cannot be loaded ({reason}); give a folder with tokenizer.json, e.g. a bundle's "
            f"huggingface/"
        ) from None


def _summary(
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

        summary["confidence"] = {
            "level": options.confidence,
            "method": "percentile bootstrap",
            "resamples": RESAMPLES,
            "seed": options.seed,
        }
        summary["intervals"] = {name: [interval.low, interval.high] for name, interval in intervals.items()}
    return summary


def _print_table(options: argparse.Namespace, found: FileScores, intervals: dict[str, Interval]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "F1", *([f"{options.confidence:.4g} interval"] if options.confidence else [])):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for heading in ("precision", "recall"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, f1 in intervals.items():
        if not name.endswith(("_precision", "_recall")):
            spread = [f"{f1.low:.4f}–{f1.high:.4f}"] if options.confidence else []
            others = [f"{intervals[f'{name}_{part}'].mean:.4f}" for part in ("precision", "recall")]
            table.add_row(name, f"{f1.mean:.4f}", *spread, *others)
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    fewest, most = found.references
    each = "" if most == 1 else f", {fewest} references each" if fewest == most else f", {fewest} to {most} references"
    best = "; F1 is the mean over them, best that of the best one" if most > 1 else ""
    console.print(f"\n{found.rows:,} rows{each}{best}")
    if found.empty:
        console.print(f"{found.empty:,} predictions are empty and score 0")
