"""AI-Hub's JSON layouts: dialogue summarization and document summarization, streamed record by record."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import ijson

from hanflow.config import PreprocessConfig
from hanflow.data.lines import BAD_BYTE, ROW_LIMIT, TOO_LONG, as_utf8
from hanflow.data.records import as_text
from hanflow.data.schema import ColumnMapping, Row, without_surrogates
from hanflow.errors import UserError

BATCH = 256
"""Records that are handed on together."""

LAYOUTS = (
    "AI-Hub dialogue summarization ({'data': [{'header': …, 'body': {'dialogue': […], 'summary': …}}]}) and "
    "AI-Hub document summarization ({'documents': [{'text': [[{'sentence': …}]], 'abstractive': […]}]})"
)


def read(path: str, mapping: ColumnMapping, config: PreprocessConfig) -> Iterator[list[Row]]:
    """The rows of an AI-Hub JSON file.

    A dialogue's raw columns are id, topic, dialogue and summary; a document's are id, title, document, abstractive.

    Raises:
        UserError: no JSON, or neither of the two layouts.
    """
    speaker = speaker_prefix(config.speaker_format)
    layout = _layout(path, config)
    if layout == "data":
        names = ("id", "topic", "dialogue", "summary")

        def convert(record: Any) -> dict[str, Any]:
            return _dialogue(record, speaker)
    else:
        names, convert = ("id", "title", "document", "abstractive"), _document
    chosen = mapping.resolve(names)
    rows: list[Row] = []
    number = 0
    try:
        for record in ijson.items(_stream(path, config), f"{layout}.item", use_float=True):
            number += 1
            rows.append(_row(number, record, convert, names, chosen, mapping, config))
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
    number: int,
    record: Any,
    convert: Callable[[Any], dict[str, Any]],
    names: tuple[str, ...],
    chosen: dict[str, int],
    mapping: ColumnMapping,
    config: PreprocessConfig,
) -> Row:
    try:
        columns = convert(record)
    except (KeyError, TypeError, AttributeError):
        return Row(number, None, json.dumps(record, ensure_ascii=False, default=str)[:ROW_LIMIT], _NO_LAYOUT)
    values = {}
    for role in mapping.roles:
        text = as_text(columns[names[chosen[role]]]) if role in chosen else ""
        if text is None:
            shown = json.dumps(record, ensure_ascii=False, default=str)
            return Row(number, None, shown, f"{names[chosen[role]]} is no text")
        values[role] = without_surrogates(text)
    reason = ""
    if sum(map(len, values.values())) > ROW_LIMIT:
        reason = TOO_LONG
    elif any(BAD_BYTE in text for text in values.values()):
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


def _dialogue(record: Any, speaker: Callable[[int, str], str]) -> dict[str, Any]:
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


class _Stream:
    """A file object over blocks of bytes, as ijson wants one."""

    def __init__(self, blocks: Iterator[bytes]):
        self.blocks, self.rest = blocks, b""

    def read(self, size: int = -1) -> bytes:
        """The next bytes, at most `size` of them; b"" at the end."""
        while not self.rest:
            block = next(self.blocks, None)
            if block is None:
                return b""
            self.rest = block
        taken, self.rest = self.rest[:size], self.rest[size:]
        return taken


def _stream(path: str, config: PreprocessConfig) -> _Stream:
    return _Stream(as_utf8(path, config.encoding))


def _layout(path: str, config: PreprocessConfig) -> str:
    """`data` (dialogues) or `documents`, told from the first such list; nothing behind it is read."""
    try:
        for prefix, event, _ in ijson.parse(_stream(path, config), use_float=True):
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
    told = " ".join(str(error).split())[:120]
    if "trailing garbage" in told and not records:
        return UserError(f"{path}: holds more than one JSON value; if it has one object a line, name the file .jsonl")
    return UserError(
        f"{path}: is no valid JSON after record {records} ({told}); the file is cut short or damaged: fetch it again"
    )
