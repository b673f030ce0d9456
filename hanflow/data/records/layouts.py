"""The table of the layouts in which corpora come as JSON, and the columns of a record.

A record of no known layout has its keys as columns, those of objects inside it too: by their own name where only one of
that name is there, and by their path with dots.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hanflow.data.schema import ColumnMapping, Source
from hanflow.data.values import is_missing
from hanflow.errors import UserError

Getter = Callable[[Any], Any]
"""Record → the value of one of its columns; KeyError, TypeError, IndexError or AttributeError where it has none."""


@dataclass(frozen=True)
class Layout:
    """A layout of records."""

    name: str
    signs: tuple[str, ...]
    """Paths that a record has; `[]` is the first item of a list."""
    columns: Mapping[str, str | Callable[[Any, Source], Any]]
    """Column → the path of its value, or a function that makes it of the record."""
    within: str = ""
    """Key of the list that the records are in, where other lists hold records of the same keys."""


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


def _dialogue(record: Any, source: Source) -> str:
    speaker = speaker_prefix(source.speaker_format)
    numbers: dict[str, int] = {}
    lines = []
    for turn in record["body"]["dialogue"]:
        name = str(turn.get("participantID", ""))
        number = numbers.setdefault(name, len(numbers) + 1)
        if not is_missing(turn["utterance"], source.missing):
            lines.append(speaker(number, name) + str(turn["utterance"]))
    return "\n".join(lines)


def _sentences(record: Any, source: Source) -> str:
    found = [[part["sentence"] for part in paragraph if part] for paragraph in record["text"]]
    kept = [
        [str(sentence) for sentence in paragraph if not is_missing(sentence, source.missing)] for paragraph in found
    ]
    return "\n".join(" ".join(paragraph) for paragraph in kept)


def _forms(key: str) -> Callable[[Any, Source], list[Any]]:
    return lambda record, _: [part["form"] for part in record[key]]


LAYOUTS = (
    Layout(
        "AI-Hub dialogue summarization",
        ("header/dialogueInfo", "body/dialogue"),
        {
            "id": "header/dialogueInfo/dialogueID",
            "topic": "header/dialogueInfo/topic",
            "dialogue": _dialogue,
            "summary": "body/summary",
        },
    ),
    Layout(
        "AI-Hub document summarization",
        ("text/[]/[]/sentence",),
        {"id": "id", "title": "title", "document": _sentences, "abstractive": "abstractive"},
    ),
    Layout("AI-Hub books", ("passage", "summary"), {"id": "passage_id", "document": "passage", "summary": "summary"}),
    Layout(
        "AI-Hub reports",
        ("Meta(Refine)/passage", "Annotation/summary1"),
        {
            "id": "Meta(Refine)/passage_id",
            "document": "Meta(Refine)/passage",
            "summary": "Annotation/summary1",
        },
    ),
    Layout(
        "AI-Hub papers",
        ("orginal_text", "summary_text"),
        {"document": "orginal_text", "summary": "summary_text"},
        within="summary_entire",
    ),
    Layout("NIKL written texts", ("paragraph/[]/form",), {"id": "id", "document": _forms("paragraph")}),
    Layout("NIKL spoken texts", ("utterance/[]/form",), {"id": "id", "document": _forms("utterance")}),
    Layout("Dacon news", ("article_original", "abstractive"), {"document": "article_original"}),
)
"""Known layouts, the more special ones first; a record's own keys are columns beside those that a layout makes."""


def layout_of(record: Any, key: str = "") -> Layout | None:
    """The layout of a record, or of the skeleton of one; None: none that is known.

    Args:
        key: of the list that it is in.
    """
    return next(
        (
            layout
            for layout in LAYOUTS
            if layout.within in ("", key) and all(_has(record, sign.split("/")) for sign in layout.signs)
        ),
        None,
    )


def _has(value: Any, path: list[str]) -> bool:
    for step in path:
        if step == "[]":
            value = next((item for item in value if item), None) if isinstance(value, list) else None
        elif isinstance(value, dict) and step in value:
            value = value[step]
        else:
            return False
    return True


def columns_of(record: Any, source: Source, layout: Layout | None) -> dict[str, Getter]:
    """Name of every column of a record → what gets it from this record and its like."""
    found: dict[str, Getter] = {}
    for name, made in (layout.columns if layout else {}).items():
        found[name] = _optional(made.split("/")) if isinstance(made, str) else _making(made, source)
    paths = list(_leaves(record, ()))
    last = [path[-1] for path in paths]
    for path in paths:
        if len(path) == 1 or last.count(path[-1]) == 1:
            found.setdefault(path[-1], _optional(path))
    for path in paths:
        found.setdefault(".".join(path), _optional(path))
    return found


def _leaves(record: dict[str, Any], path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for key, value in record.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, key))
        elif not isinstance(value, list) or not any(isinstance(item, (dict, list)) for item in value):
            yield (*path, key)


def _making(make: Callable[[Any, Source], Any], source: Source) -> Getter:
    return lambda record: make(record, source)


def _optional(path: tuple[str, ...] | list[str]) -> Getter:
    """The value at a path; None where the last key is not there."""
    *above, last = path

    def get(record: Any) -> Any:
        for key in above:
            record = record[key]
        return record.get(last)

    return get


def accepts(record: Any, mapping: ColumnMapping, *, shallow: bool = False) -> bool:
    """Whether a record (or a skeleton of one) of no known layout has a column for each role needed.

    Args:
        shallow: whether only its own keys count, with plain values, not those of objects inside it.
    """
    if shallow:
        names = [key for key, value in record.items() if not isinstance(value, dict)]
    else:
        names = list(columns_of(record, mapping.source, None))
    return bool(names) and not mapping.missing(mapping.find(names))
