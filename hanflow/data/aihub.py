"""AI-Hub's JSON layouts: dialogue summarization and document summarization, streamed record by record."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import ijson

from hanflow.data.lines import BAD_BYTE, ROW_LIMIT, TOO_LONG, as_utf8
from hanflow.data.records import Unusable, as_text
from hanflow.data.schema import ColumnMapping, Row, Source, without_surrogates
from hanflow.errors import UserError

BATCH = 256
"""Records that are handed on together."""

LAYOUTS = (
    "AI-Hub dialogue summarization ({'data': [{'header': …, 'body': {'dialogue': […], 'summary': …}}]}) and "
    "AI-Hub document summarization ({'documents': [{'text': [[{'sentence': …}]], 'abstractive': […]}]})"
)


def read(file: str, mapping: ColumnMapping) -> Iterator[list[Row]]:
    """The rows of an AI-Hub JSON file.

    A dialogue's raw columns are id, topic, dialogue and summary; a document's are id, title, document, abstractive.

    Args:
        file: where its bytes can be read twice.
        mapping: finds the roles' columns; has the name for messages.

    Raises:
        UserError: no JSON, or neither of the two layouts.
    """
    path, source = mapping.path, replace(mapping.source, path=file)
    speaker = speaker_prefix(source.speaker_format)
    layout = _layout(path, source)
    names = ("id", "topic", "dialogue", "summary") if layout == "data" else ("id", "title", "document", "abstractive")
    convert = functools.partial(_dialogue, speaker) if layout == "data" else _document
    chosen = {role: names[place] for role, place in mapping.resolve(names).items()}
    rows: list[Row] = []
    number = 0
    try:
        for record in ijson.items(ijson.from_iter(as_utf8(source)), f"{layout}.item", use_float=True):
            number += 1
            rows.append(_row(number, record, convert, chosen, mapping))
            if number == 1 and rows[0].reason == _NO_LAYOUT:
                raise _unknown(path, f"the first entry of {layout!r} is not such a record")
            if len(rows) == BATCH:
                yield rows
                rows = []
    except ijson.JSONError as error:
        raise _broken(path, number, error) from None
    yield rows


_NO_LAYOUT = "not a record of the file's layout"


def _row(
    number: int, record: Any, convert: Callable[[Any], dict[str, Any]], chosen: dict[str, str], mapping: ColumnMapping
) -> Row:
    values: dict[str, Any] = dict(mapping.absent)
    try:
        columns = convert(record)
        for role, name in chosen.items():
            value = as_text(columns[name], name, mapping.source.join_lists)
            values[role] = without_surrogates(value) if isinstance(value, str) else [*map(without_surrogates, value)]
    except (KeyError, TypeError, AttributeError, Unusable) as error:
        shown = json.dumps(record, ensure_ascii=False, default=str)[:ROW_LIMIT]
        return Row(number, None, shown, str(error) if isinstance(error, Unusable) else _NO_LAYOUT)
    text = "".join(value if isinstance(value, str) else "".join(value) for value in values.values())
    reason = ""
    if len(text) > ROW_LIMIT:
        reason = TOO_LONG
    elif BAD_BYTE in text:
        reason = "not valid text in the file's encoding"
    return Row(number, None, json.dumps(values, ensure_ascii=False), reason) if reason else Row(number, values, None)


def speaker_prefix(template: str) -> Callable[[int, str], str]:
    """What stands before an utterance, from the speaker's number (from 1) and raw id.

    Raises:
        UserError: the template has a placeholder other than {n} and {id}.
    """
    unknown = set(re.findall(r"\{[^{}]*\}", template)) - {"{n}", "{id}"}
    if unknown:
        raise UserError(
            f"preprocess.speaker_format: {template!r} has the placeholder {min(unknown)}; known are {{n}} (speakers "
            f"counted from 1) and {{id}} (the raw speaker id), for example '#Person{{n}}#: '"
        )
    parts = re.split(r"(\{n\}|\{id\})", template)
    return lambda number, name: "".join({"{n}": str(number), "{id}": name}.get(part, part) for part in parts)


def _dialogue(speaker: Callable[[int, str], str], record: Any) -> dict[str, Any]:
    about, body = record["header"]["dialogueInfo"], record["body"]
    numbers: dict[str, int] = {}
    lines = []
    for turn in body["dialogue"]:
        name = str(turn.get("participantID", ""))
        lines.append(speaker(numbers.setdefault(name, len(numbers) + 1), name) + str(turn["utterance"]))
    return {
        "id": about.get("dialogueID", ""),
        "topic": about.get("topic", ""),
        "dialogue": "\n".join(lines),
        "summary": body.get("summary", ""),
    }


def _document(record: Any) -> dict[str, Any]:
    paragraphs = [" ".join(str(part["sentence"]) for part in paragraph if part) for paragraph in record["text"]]
    return {
        "id": record.get("id", ""),
        "title": record.get("title", ""),
        "document": "\n".join(paragraphs),
        "abstractive": record.get("abstractive", ""),
    }


def _layout(path: str, source: Source) -> str:
    """`data` (dialogues) or `documents`, by the first such list; nothing behind it is read."""
    try:
        for prefix, event, _ in ijson.parse(ijson.from_iter(as_utf8(source)), use_float=True):
            if event == "start_array" and prefix in ("data", "documents"):
                return str(prefix)
            if event == "start_array" and prefix == "":
                raise _unknown(path, "it is a list")
    except ijson.JSONError as error:
        raise _broken(path, 0, error) from None
    raise _unknown(path, "it has neither a list 'data' nor a list 'documents'")


def _unknown(path: str, found: str) -> UserError:
    return UserError(
        f"{path}: JSON of an unknown layout: {found}; known are {LAYOUTS}; write other data as one object a line and "
        f"name the file .jsonl"
    )


def _broken(path: str, records: int, error: Exception) -> UserError:
    problem = " ".join(str(error).split())[:120]
    if "trailing garbage" in problem and not records:
        return UserError(f"{path}: holds more than one JSON value; if it has one object a line, name the file .jsonl")
    return UserError(
        f"{path}: is no valid JSON after record {records} ({problem}); the file is cut short or damaged: fetch it again"
    )
