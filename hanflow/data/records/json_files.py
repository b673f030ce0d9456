"""Files that are one JSON value: where in it the records are, and their rows, streamed record by record.

Records may be the items of lists at any depth (AI-Hub's files), the file itself (one record a file), or what pandas
writes in any of its forms.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import ijson

from hanflow.data.lines import BAD_BYTE, ROW_LIMIT, TOO_LONG, as_utf8
from hanflow.data.records.jsonl import Objects
from hanflow.data.records.layouts import LAYOUTS, accepts, columns_of, layout_of
from hanflow.data.schema import ColumnMapping, Row, Source
from hanflow.data.values import Unusable
from hanflow.errors import UserError
from hanflow.progress import log

BATCH = 256
"""Records that are handed on together."""

LOOK = 20_000
"""JSON tokens after which a known layout, or a list of records, is believed in without reading on to look for others."""

MOST_KEYS = 200
"""Keys of an object that are remembered while the records are looked for."""


def read(file: str, mapping: ColumnMapping) -> Iterator[list[Row]]:
    """The rows of a JSON file.

    Args:
        file: where its bytes can be read twice.
        mapping: finds the roles' columns; has the name for messages.

    Raises:
        UserError: it is no JSON, or in none of the layouts.
    """
    source = replace(mapping.source, path=file)
    number = 0
    rows: list[Row] = []
    skeleton, problem = _skeleton(source)
    if problem and (skeleton is None or "trailing garbage" in str(problem)):
        raise _broken(mapping.path, 0, problem)
    try:
        places = _places(skeleton, mapping)
    except UserError:
        if problem:
            raise _broken(mapping.path, 0, problem) from None
        raise
    try:
        for place in places:
            objects = Objects(mapping, place.key)
            for record in place.records(source):
                number += 1
                rows.append(_row(number, record, objects))
                if len(rows) == BATCH:
                    yield rows
                    rows = []
            if objects.unfit is not None and not objects.fitting:
                raise mapping.refusal(objects.unfit)
    except ijson.JSONError as error:
        raise _broken(mapping.path, number, error) from None
    yield rows


def _row(number: int, record: Any, objects: Objects) -> Row:
    try:
        values = objects.values(record, True)
    except Unusable as error:
        shown = json.dumps(record, ensure_ascii=False, default=str)[:ROW_LIMIT]
        reason = "not valid text in the file's encoding" if BAD_BYTE in shown else str(error)
        return Row(number, None, shown, reason)
    text = "".join(value if isinstance(value, str) else "".join(value) for value in values.values())
    reason = ""
    if len(text) > ROW_LIMIT:
        reason = TOO_LONG
    elif BAD_BYTE in text:
        reason = "not valid text in the file's encoding"
    return Row(number, None, json.dumps(values, ensure_ascii=False), reason) if reason else Row(number, values, None)


# Where the records are


@dataclass(frozen=True)
class Place:
    """Where in a file records are."""

    records: Callable[[Source], Iterator[Any]]
    """How they are read: file → the records."""
    key: str = ""
    """Of the list that they are in."""


def _places(skeleton: Any, mapping: ColumnMapping) -> list[Place]:
    """The lists of records in a file: all of the layout that is found first, else all that have the columns needed.

    Raises:
        UserError: there is none; the message names the keys that were found.
    """
    found = [(prefix, key, record) for prefix, key, record in _objects(skeleton, "", "") if record]
    for layout in LAYOUTS:
        fitting = _outer([(prefix, key) for prefix, key, record in found if layout_of(record, key) is layout])
        if fitting:
            return [_items(prefix, key) for prefix, key in fitting]
    pandas = _of_pandas(skeleton, mapping)
    if pandas:
        return [pandas]
    root = skeleton if isinstance(skeleton, dict) else {}
    if root and accepts(root, mapping, shallow=True):
        return [_items("", "")]
    fitting = _outer([(prefix, key) for prefix, key, record in found if prefix and accepts(record, mapping)])
    if fitting:
        _log_passed_over(mapping.path, [prefix for prefix, _, _ in found], [prefix for prefix, _ in fitting])
        return [_items(prefix, key) for prefix, key in fitting]
    if root and accepts(root, mapping):
        return [_items("", "")]
    if isinstance(skeleton, list) and skeleton and not isinstance(skeleton[0], dict) and len(mapping.required) == 1:
        return [_items("item", "")]  # a list of texts
    # The only column of a list of records may have any name.
    at, key, record = next(((p, k, r) for p, k, r in found if p), ("", "", root))
    names = list(columns_of(record, mapping.source, None))
    if mapping.sole(names):
        return [_items(at, key)]
    raise UserError(
        f"{mapping.path}: JSON of an unknown layout, without {' and '.join(mapping.missing(mapping.find(names)))}; its "
        f"keys: {_shown(skeleton)}; known are {', '.join(layout.name for layout in LAYOUTS)}, pandas' forms, and lists of "
        f"records with a key for each column: name the keys with {mapping.source.column_option}, or write one object a "
        f"line into a .jsonl file"
    )


def _outer(lists: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Of lists, outer ones first, those that are in no other: (prefix of ijson, key)."""
    kept: list[tuple[str, str]] = []
    for prefix, key in lists:
        if not any(prefix.startswith(f"{other}." if other else "") for other, _ in kept):
            kept.append((prefix, key))
    return kept


def _log_passed_over(path: str, lists: list[str], read: list[str]) -> None:
    passed = [
        at
        for at in lists
        if at and not any(at == other or at.startswith(f"{other}.") or other.startswith(f"{at}.") for other in read)
    ]
    if passed:
        names = ", ".join(at.removesuffix(".item") for at in passed[:20])
        log.info("%s: lists of objects without the columns needed, passed over: %s", path, names)


def _objects(value: Any, prefix: str, key: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(prefix of ijson, key of the list, skeleton) of the file itself and of the objects in its lists, outer ones first."""
    level = [(prefix, key, value, True)]
    while level:
        inner = []
        for at, name, node, record in level:
            if isinstance(node, dict):
                if record:
                    yield at, name, node
                inner += [(f"{at}.{k}" if at else k, k, child, False) for k, child in node.items()]
            elif isinstance(node, list):
                inner += [(f"{at}.item" if at else "item", name, child, True) for child in node]
        level = inner


def _items(prefix: str, key: str) -> Place:
    return Place(lambda source: ijson.items(_stream(source), prefix), key)


def _of_pandas(skeleton: Any, mapping: ColumnMapping) -> Place | None:
    """A file as `DataFrame.to_json` writes it with orient=split, values, index or columns; records and table are lists."""
    if isinstance(skeleton, list):
        rows = skeleton and isinstance(skeleton[0], list)
        return _items("item", "") if rows and mapping.numbered else None
    if not isinstance(skeleton, dict) or not skeleton:
        return None
    if isinstance(skeleton.get("columns"), list) and isinstance(skeleton.get("data"), list):
        return Place(_split)
    children = list(skeleton.values())
    if not all(isinstance(child, dict) and child for child in children):
        return None
    if all(accepts(child, mapping, shallow=True) for child in children):
        return Place(lambda source: (record for _, record in ijson.kvitems(_stream(source), "")))
    plain = not any(isinstance(value, (dict, list)) for child in children for value in child.values())
    if plain and accepts(dict.fromkeys(skeleton, ""), mapping):
        return Place(lambda source: _columnwise(source, list(skeleton)))
    return None


def _split(source: Source) -> Iterator[Any]:
    names = [str(name) for name in ijson.items(_stream(source), "columns.item")]
    for values in ijson.items(_stream(source), "data.item"):
        yield dict(zip(names, values, strict=False)) if isinstance(values, list) else values


def _columnwise(source: Source, names: list[str]) -> Iterator[Any]:
    """Records of columns one after the other, each read by a reader of its own: memory does not follow the rows."""
    columns = [ijson.kvitems(_stream(source), name) for name in names]
    for cells in zip_longest(*columns):
        keys = {None if cell is None else cell[0] for cell in cells}
        if len(keys) > 1:
            yield {"rows of other names": [str(key) for key in keys]}  # rejected: its values belong to several rows
        else:
            yield {name: cell[1] for name, cell in zip(names, cells, strict=True)}


# The skeleton: every key that is there, lists as their items merged into one


def _skeleton(source: Source) -> tuple[Any, ijson.JSONError | None]:
    """What a file consists of (objects with the keys that they have, lists with one item of each kind, None for plain
    values), as far as it is valid; and what is wrong behind that.
    """
    holder: list[Any] = []
    stack: list[Any] = [holder]
    keys: list[str | None] = [None]
    try:
        for count, (event, value) in enumerate(ijson.basic_parse(_stream(source))):
            if event == "map_key":
                keys[-1] = value
            elif event in ("end_map", "end_array"):
                stack.pop()
                keys.pop()
            else:
                child: Any = {} if event == "start_map" else [] if event == "start_array" else None
                child = _placed(stack[-1], keys[-1], child)
                if event in ("start_map", "start_array"):
                    stack.append(child)
                    keys.append(None)
            if count == LOOK and (isinstance(holder[0], list) or _known(holder[0])):
                break
    except ijson.JSONError as error:
        return holder[0] if holder else None, error
    return holder[0], None


def _known(skeleton: Any) -> bool:
    return any(prefix and layout_of(record, key) for prefix, key, record in _objects(skeleton, "", "") if record)


def _placed(parent: Any, key: str | None, child: Any) -> Any:
    """What stands at a place from now on: the child, or what stood there if that says more."""
    if isinstance(parent, dict):
        before = parent.get(key)
        if before is None and (key in parent or len(parent) < MOST_KEYS):
            parent[key] = child
    elif isinstance(parent, list):
        before = next((item for item in parent if type(item) is type(child)), None)
        if before is None and (child is not None or not parent):
            parent.append(child)
    else:
        before = None
    return before if type(before) is type(child) and before is not None else child


def _shown(skeleton: Any) -> str:
    """The outer keys, with those of the first list of objects."""
    lists = "".join(f"; in {at}: {', '.join(list(record)[:20])}" for at, _, record in _objects(skeleton, "", "") if at)
    top = ", ".join(list(skeleton)[:20]) if isinstance(skeleton, dict) else "none, it is a list"
    return f"{top}{lists}"[:500]


# The bytes


_CUT = re.compile(rb"(?:-|-?I|-?In|-?Inf|-?Infi|-?Infin|-?Infini|-?Infinit|N|Na)\Z")
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\Z)|-?Infinity|NaN', re.DOTALL)


def _stream(source: Source) -> Any:
    return ijson.from_iter(_strict(as_utf8(source)))


def _strict(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The blocks, with null for NaN and the infinities, which Python writes and JSON does not have."""
    inside, rest = False, b""
    for block in blocks:
        block = rest + block
        # What may be cut apart at the end of a block: an escape, or one of the words.
        whole = block.rstrip(b"\\") if block.endswith(b"\\") else _CUT.sub(b"", block[-9:])
        whole = whole if block.endswith(b"\\") else block[:-9] + whole
        block, rest = whole, block[len(whole) :]
        if b"NaN" in block or b"Infinity" in block:
            start = b'"' if inside else b""
            block = _TOKEN.sub(lambda found: found[0] if found[0][:1] == b'"' else b"null", start + block)[len(start) :]
        plain = block.replace(b"\\\\", b"")
        inside ^= (plain.count(b'"') - plain.count(b'\\"')) % 2 == 1
        yield block
    yield rest


def _broken(path: str, records: int, error: Exception) -> UserError:
    problem = " ".join(str(error).split())[:120]
    if "trailing garbage" in problem and not records:
        return UserError(f"{path}: holds more than one JSON value; if it has one object a line, name the file .jsonl")
    return UserError(
        f"{path}: is no valid JSON after record {records} ({problem}); the file is cut short or damaged: fetch it again"
    )
