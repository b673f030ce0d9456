"""Files whose rows name their own columns: jsonl and parquet."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hanflow.data.lines import ROW_LIMIT, TOO_LONG, empty, line_blocks
from hanflow.data.schema import ColumnMapping, Row, without_surrogates
from hanflow.errors import UserError, first_line
from hanflow.storage import is_remote, open_raw, stamp

LAYOUTS = 1000
"""Most combinations of keys in one jsonl file whose columns are remembered."""

BATCH, BATCH_BYTES = 4096, 64_000_000
"""Most rows of parquet decoded at once, and about how many bytes."""


class _Number(str):
    """A JSON number as the text that it is in the file: no 1e400 that becomes inf, no integer too long for Python."""

    __slots__ = ()


_DECODER = json.JSONDecoder(parse_float=_Number, parse_int=_Number, parse_constant=_Number)


class Unusable(Exception):
    """A value is no text; the message is the reason."""


def as_text(value: Any, name: str, join_lists: bool) -> str | list[str]:
    """A JSON value as text: texts and numbers themselves, null "", a list of texts by `Source.join_lists`.

    Args:
        name: the value's key, for messages.

    Raises:
        Unusable: it is an object, or a list of other things than texts.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        raise Unusable(f"{name} is an object, expected text")
    if not isinstance(value, list):
        return str(value)
    if not all(item.__class__ is str for item in value):
        raise Unusable(f"{name} is a list of other things than texts, expected text")
    if join_lists:
        return "\n".join(value)
    if not value:
        raise Unusable(f"{name} is an empty list, expected at least one text")
    return value


def read_jsonl(mapping: ColumnMapping) -> Iterator[list[Row]]:
    """The rows of a file with one JSON object a line; empty lines are passed over.

    Where only one role is required, a line may also hold its text alone.
    """
    objects = _Objects(mapping)
    number = 0
    for block in line_blocks(mapping.source):
        rows = []
        for index, line in enumerate(block.lines):
            number += 1
            if index in block.bad:
                rows.append(Row(number, None, line, block.bad[index]))
            elif line.strip():
                try:
                    rows.append(Row(number, objects.values(line), line))
                except Unusable as error:
                    rows.append(Row(number, None, line, str(error)))
        if objects.unfit is not None and not objects.fitting:  # now, not after a whole file of them
            raise mapping.refusal(objects.unfit)
        yield rows
    if not number:
        raise empty(mapping.path)


class _Objects:
    """The objects of one jsonl file, each of which may have keys of its own."""

    def __init__(self, mapping: ColumnMapping):
        self.mapping = mapping
        self.fitting = False
        """Whether an object had the keys needed."""
        self.unfit: tuple[str, ...] | None = None
        """Keys of the first object that lacked some."""
        self._layouts: dict[tuple[str, ...], tuple[dict[str, str], list[str]]] = {}
        """Keys of an object → (role → its key, the roles that it lacks)."""

    def values(self, line: str) -> dict[str, Any]:
        """Role → text of one line.

        Raises:
            Unusable: the line cannot be used.
            UserError: every line has to be usable, and the first object lacks keys.
        """
        try:
            item = _DECODER.decode(line.strip())
        except RecursionError:
            raise Unusable("not valid JSON: nested too deeply") from None
        except ValueError as error:
            raise Unusable(f"not valid JSON: {error}") from None
        mapping = self.mapping
        if isinstance(item, dict):
            chosen = self._chosen(tuple(item))
        elif len(mapping.required) == 1 and (item is None or item.__class__ in (str, list)):
            item, chosen = {mapping.text_role: item}, {mapping.text_role: mapping.text_role}
        else:
            raise Unusable("not a JSON object" + " or a text" * (len(mapping.required) == 1))
        # An escape may be half of a surrogate pair: text in no encoding.
        escaped = "\\u" in line and not mapping.source.every_row
        values = dict(mapping.absent)
        for role, key in chosen.items():
            value = item[key]
            if value.__class__ is not str:
                value = as_text(value, key, mapping.source.join_lists)
            values[role] = without_surrogates(value) if escaped else value
        return values

    def _chosen(self, keys: tuple[str, ...]) -> dict[str, str]:
        mapping = self.mapping
        if not self.fitting and mapping.source.every_row:
            mapping.resolve(keys)
        if keys not in self._layouts:
            if len(self._layouts) >= LAYOUTS:  # objects of ever new keys must not fill the memory
                self._layouts.clear()
            chosen = {role: keys[place] for role, place in mapping.find(keys).items()}
            self._layouts[keys] = chosen, mapping.missing(chosen)
        chosen, missing = self._layouts[keys]
        if not missing:
            self.fitting = True
            return chosen
        if self.unfit is None:
            self.unfit = keys
        raise Unusable(f"the object has no key for {', '.join(missing)}")


def read_parquet(file: str, mapping: ColumnMapping) -> Iterator[list[Row]]:
    """The rows of a parquet file; columns of other types than text are cast, null is "".

    Args:
        file: where its bytes can be read from any place, not only from the beginning.
        mapping: finds the roles' columns; has the name for messages.
    """
    path = mapping.path
    if (is_remote(file) or os.path.exists(file)) and not stamp(file)[0]:
        raise empty(path)
    number = 0
    try:
        with open_raw(file) if is_remote(file) else nullcontext(file) as source, pq.ParquetFile(source) as table:
            names = table.schema_arrow.names
            chosen = mapping.resolve(names)
            for role, place in chosen.items():
                _check_type(table.schema_arrow.field(place), role, mapping)
            wanted = sorted({names[place] for place in chosen.values()})
            for batch in table.iter_batches(batch_size=_batch_size(table.metadata), columns=wanted):
                columns = {role: _texts(batch.column(names[place]), mapping) for role, place in chosen.items()}
                yield _batch_rows(number, batch.num_rows, columns, mapping)
                number += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        first = first_line(error).rstrip(".")
        raise UserError(
            f"{path}: cannot be read as parquet after row {number} ({first}); it is cut short, damaged or another "
            f"format: fetch or write it again"
        ) from None


def _batch_size(metadata: pq.FileMetaData) -> int:
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    row_bytes = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=1.0)
    return max(1, min(BATCH, int(BATCH_BYTES / max(row_bytes, 1.0))))


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _check_type(column: pa.Field, role: str, mapping: ColumnMapping) -> None:
    kind = column.type.value_type if _is_list(column.type) else column.type
    if pa.types.is_nested(kind):
        raise UserError(
            f"{mapping.path}: column {column.name!r}, wanted for {role}, holds {column.type}; expected text or a list "
            f"of texts; name another column with {mapping.source.column_option}"
        )


def _texts(column: pa.Array, mapping: ColumnMapping) -> list[Any]:
    """A column as texts (or lists of them); None where the bytes are no valid UTF-8."""
    if _is_list(column.type):
        column = column.cast(pa.list_(pa.string()))
        if not mapping.source.join_lists:
            return [[text or "" for text in texts] if texts else "" for texts in column.to_pylist()]
        column = pc.binary_join(column, "\n")
    try:
        texts = column.cast(pa.string()).to_pylist()
        return ["" if text is None else text for text in texts]
    except (UnicodeDecodeError, pa.ArrowInvalid):
        return [_decoded(value) for value in column.cast(pa.binary()).to_pylist()]


def _decoded(value: bytes | None) -> str | None:
    try:
        return (value or b"").decode("utf-8")
    except UnicodeDecodeError:
        return None


def _batch_rows(before: int, count: int, columns: dict[str, list[Any]], mapping: ColumnMapping) -> list[Row]:
    absent: list[Any] = [""] * count
    rows = []
    lists = [columns.get(role, absent) for role in mapping.roles]
    for number, texts in enumerate(zip(*lists, strict=True), before + 1):
        values: dict[str, Any] = dict(zip(mapping.roles, texts, strict=True))
        if None in texts:
            shown = {role: text for role, text in values.items() if text}
            rows.append(Row(number, None, json.dumps(shown, ensure_ascii=False), "not valid UTF-8"))
        elif sum(map(len, texts)) > ROW_LIMIT:
            rows.append(Row(number, None, str(texts[0]), TOO_LONG))
        else:
            rows.append(Row(number, values, None))
    return rows
