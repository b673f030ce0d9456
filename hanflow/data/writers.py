"""Rows of predictions as bytes of a csv, tsv, jsonl or a file of lines."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from hanflow.data.delimited import csv_writer, safe_cell
from hanflow.strict_json import json_ready

OUTPUT_FORMATS = ("lines", "csv", "tsv", "jsonl", "pairs")

_LINE_ENDS = {"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}
"""Line ends to many readers of lines, but not to JSON, which would leave them as they are."""


def encoded(kind: str, rows: Sequence[Mapping[str, Any]], header: bool) -> bytes:
    """Rows in one of OUTPUT_FORMATS, UTF-8, lines ended by newline.

    - csv, tsv: quoted where needed; in tsv, which many read without minding quotes, tabs and line ends inside a text
      become spaces, so that a row is a line; a text that a spreadsheet would run as a formula gets an apostrophe before it, half
      a surrogate pair becomes a question mark.
    - jsonl: every text exactly as it is, half a surrogate pair and unusual line ends as escapes.
    - lines: the column `prediction` alone, one line a row; line ends inside it become spaces.
    - pairs: `prediction`, a tab and `input`, one line a row; of several classes (column `top`) the names, the likeliest
      first, with spaces between.

    Args:
        rows: column → text or number; the same columns in every row.
        header: whether the names of the columns come first (csv and tsv).
    """
    if kind == "jsonl":
        return b"".join(_json_line(row) for row in rows)
    if kind == "lines":
        return "".join(one_line(row["prediction"]) + "\n" for row in rows).encode("utf-8", "replace")
    if kind == "pairs":
        return "".join(f"{_label(row)}\t{one_line(row['input'])}\n" for row in rows).encode("utf-8", "replace")
    flat = one_line if kind == "tsv" else str
    lines = io.StringIO()
    writer = csv_writer(lines, "," if kind == "csv" else "\t")
    if header and rows:
        writer.writerow(rows[0])
    writer.writerows([safe_cell(flat(v)) if isinstance(v, str) else v for v in row.values()] for row in rows)
    return lines.getvalue().encode("utf-8", "replace")


def _label(row: Mapping[str, Any]) -> str:
    return " ".join(map(one_line, json.loads(row["top"]))) if row.get("top") else one_line(row["prediction"])


def one_line(text: str) -> str:
    """A text with spaces for its line ends and tabs."""
    return " ".join(text.splitlines()).replace("\t", " ")


def _json_line(row: Mapping[str, Any]) -> bytes:
    ready = json_ready(row)
    line = json.dumps(ready, ensure_ascii=False)
    for character, escape in _LINE_ENDS.items():
        line = line.replace(character, escape)
    try:
        return (line + "\n").encode()
    except UnicodeEncodeError:  # a lone surrogate
        return (json.dumps(ready) + "\n").encode()
