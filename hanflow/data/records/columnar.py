"""Files whose rows are columns of typed values: parquet, and Arrow as the library `datasets` saves it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hanflow.data.lines import ROW_LIMIT, TOO_LONG, empty
from hanflow.data.schema import ColumnMapping, Row
from hanflow.data.values import Unusable, as_text
from hanflow.errors import UserError, first_line
from hanflow.storage import is_remote, open_raw, stamp

BATCH, BATCH_BYTES = 4096, 64_000_000
"""Most rows of parquet decoded at once, and about how many bytes."""


def read(file: str, mapping: ColumnMapping, kind: str) -> Iterator[list[Row]]:
    """The rows of a file; columns of other types than text are cast, null and NaN are "".

    Args:
        file: where its bytes can be read from any place, not only from the beginning.
        mapping: finds the roles' columns; has the name for messages.
        kind: `parquet` or `arrow`.
    """
    path = mapping.path
    if (is_remote(file) or os.path.exists(file)) and not stamp(file)[0]:
        raise empty(path)
    number = 0
    try:
        with ExitStack() as stack:
            source = stack.enter_context(open_raw(file)) if is_remote(file) else file
            schema, batches = (_parquet if kind == "parquet" else _arrow)(source, mapping, stack)
            chosen = mapping.resolve(schema.names)
            for role, place in chosen.items():
                _check_type(schema.field(place), role, mapping)
            for batch in batches(sorted({schema.names[place] for place in chosen.values()})):
                columns = {
                    role: _texts(batch.column(schema.names[place]), schema.names[place], mapping)
                    for role, place in chosen.items()
                }
                yield _batch_rows(number, batch.num_rows, columns, mapping)
                number += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        first = first_line(error).rstrip(".")
        raise UserError(
            f"{path}: cannot be read as {kind} after row {number} ({first}); it is cut short, damaged or another "
            f"format: fetch or write it again"
        ) from None


Batches = Callable[[list[str]], Iterator[pa.RecordBatch]]
"""Names of columns → the batches of a file."""


def _parquet(source: Any, mapping: ColumnMapping, stack: ExitStack) -> tuple[pa.Schema, Batches]:
    table = stack.enter_context(pq.ParquetFile(source))
    size = _batch_size(table.metadata)
    return table.schema_arrow, lambda names: table.iter_batches(batch_size=size, columns=names)


def _arrow(source: Any, mapping: ColumnMapping, stack: ExitStack) -> tuple[pa.Schema, Batches]:
    """Both of Arrow's forms: the stream, as `save_to_disk` writes it, and the file."""
    stream = stack.enter_context(pa.OSFile(source) if isinstance(source, str) else pa.PythonFile(source))
    if stream.read(6) == b"ARROW1":
        reader = stack.enter_context(pa.ipc.open_file(stream))
        whole = (reader.get_batch(index) for index in range(reader.num_record_batches))
    else:
        stream.seek(0)
        reader = stack.enter_context(pa.ipc.open_stream(stream))
        whole = iter(reader)
    return reader.schema, lambda _: (
        batch.slice(start, BATCH) for batch in whole for start in range(0, batch.num_rows, BATCH)
    )


def _batch_size(metadata: pq.FileMetaData) -> int:
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    row_bytes = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=1.0)
    return max(1, min(BATCH, int(BATCH_BYTES / max(row_bytes, 1.0))))


def _item_type(kind: pa.DataType) -> pa.DataType | None:
    """The type of the items of a list; None: it is no list."""
    types = pa.types
    return (
        kind.value_type if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind) else None
    )


def _check_type(column: pa.Field, role: str, mapping: ColumnMapping) -> None:
    if pa.types.is_nested(_item_type(column.type) or column.type):
        raise UserError(
            f"{mapping.path}: column {column.name!r}, wanted for {role}, holds {column.type}; expected text or a list "
            f"of texts; name another column with {mapping.source.column_option}"
        )


def _texts(column: pa.Array, name: str, mapping: ColumnMapping) -> list[Any]:
    """A column as texts (or lists of them); None where the bytes are no valid UTF-8."""
    if _item_type(column.type) is not None:
        return [_list_text(items, name, mapping) for items in column.to_pylist()]
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    try:
        texts = column.cast(pa.string()).to_pylist()
        return ["" if text is None else text for text in texts]
    except (UnicodeDecodeError, pa.ArrowInvalid):
        return [_decoded(value) for value in column.cast(pa.binary()).to_pylist()]


def _list_text(items: list[Any] | None, name: str, mapping: ColumnMapping) -> Any:
    """A list as `as_text` reads it, one of numbers too; "" where nothing is in it."""
    words = mapping.source.missing
    kept = [item if isinstance(item, str) else as_text(item, name, words, True) for item in items or ()]
    try:
        return as_text(kept, name, words, mapping.source.join_lists)
    except Unusable:
        return ""


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
