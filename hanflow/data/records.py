"""Files whose rows name their own columns: jsonl and parquet."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hanflow.config import PreprocessConfig
from hanflow.data.lines import ROW_LIMIT, TOO_LONG, byte_blocks, empty, line_blocks
from hanflow.data.schema import ColumnMapping, Row, without_surrogates
from hanflow.errors import UserError, first_line
from hanflow.storage import fingerprint, is_remote, open_raw

TRIALS = 1000
"""Objects of a jsonl file after which it is given up if none of them had the columns needed."""

BATCH, BATCH_BYTES = 4096, 64_000_000
"""Most rows of parquet decoded at once, and about how many bytes."""


class _Number(str):
    """A JSON number as the text that it is in the file: no 1e400 that becomes inf, no integer too long for Python."""

    __slots__ = ()


_DECODER = json.JSONDecoder(parse_float=_Number, parse_int=_Number, parse_constant=_Number)


def read_jsonl(path: str, mapping: ColumnMapping, config: PreprocessConfig) -> Iterator[list[Row]]:
    """The rows of a file with one JSON object a line; empty lines are passed over."""
    layouts: dict[tuple[str, ...], dict[str, int] | None] = {}  # keys of an object → where the roles are
    number, fitting, strange = 0, 0, 0
    unfit: tuple[str, ...] = ()
    for block in line_blocks(path, config.encoding):
        rows = []
        for index, line in enumerate(block.lines):
            number += 1
            if index in block.bad:
                rows.append(Row(number, None, line, block.bad[index]))
                continue
            if not line.strip():
                continue
            try:
                item = _DECODER.decode(line.strip())
            except (ValueError, RecursionError) as error:
                told = "nested too deeply" if isinstance(error, RecursionError) else error
                rows.append(Row(number, None, line, f"not valid JSON: {told}"))
                continue
            if not isinstance(item, dict):
                rows.append(Row(number, None, line, "not a JSON object"))
                continue
            keys = tuple(item)
            if keys not in layouts:
                if len(layouts) > TRIALS:  # objects of ever new keys must not fill the memory
                    layouts.clear()
                chosen = mapping.find(keys)
                layouts[keys] = None if mapping.missing(chosen) else chosen
            chosen_here = layouts[keys]
            if chosen_here is None:
                strange, unfit = strange + 1, unfit or keys
                if not fitting and strange == TRIALS:
                    raise mapping.refusal(unfit)
                missing = ", ".join(mapping.missing(mapping.find(keys)))
                rows.append(Row(number, None, line, f"the object has no key for {missing}"))
                continue
            fitting += 1
            rows.append(_object_row(number, line, item, keys, chosen_here, mapping))
        yield rows
    if strange and not fitting:
        raise mapping.refusal(unfit)
    if not number:
        raise empty(path)


def _object_row(
    number: int, line: str, item: dict[str, Any], keys: tuple[str, ...], chosen: dict[str, int], mapping: ColumnMapping
) -> Row:
    values = {}
    for role in mapping.roles:
        value = item[keys[chosen[role]]] if role in chosen else ""
        if value.__class__ is not str:
            text = as_text(value)
            if text is None:
                kind = "an object" if isinstance(value, dict) else "a list of other things than texts"
                return Row(number, None, line, f"{keys[chosen[role]]} is {kind}, expected text")
            value = text
        values[role] = value
    if "\\u" in line:  # an escape may be half of a surrogate pair: text in no encoding
        values = {role: without_surrogates(value) for role, value in values.items()}
    return Row(number, values, line)


def as_text(value: Any) -> str | None:
    """A JSON value as text: texts and numbers themselves, null "", a list of texts one a line; None: no text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "\n".join(value) if all(item.__class__ is str for item in value) else None
    return None if isinstance(value, dict) else str(value)


def read_parquet(path: str, mapping: ColumnMapping, scratch: Path) -> Iterator[list[Row]]:
    """The rows of a parquet file; columns of other types than text are cast, null is "".

    Args:
        path: the file; a .gz is unpacked to `scratch` while it is read, parquet has to be read from its end.
        mapping: finds the roles' columns.
        scratch: folder for the unpacked file.
    """
    if not path.lower().endswith(".gz"):
        yield from _parquet_rows(path, path, mapping)
        return
    handle, unpacked = tempfile.mkstemp(suffix=".parquet", dir=scratch)
    try:
        with os.fdopen(handle, "wb") as stream:
            for block in byte_blocks(path):
                stream.write(block)
        yield from _parquet_rows(unpacked, path, mapping)
    finally:
        os.unlink(unpacked)


def _parquet_rows(file: str, path: str, mapping: ColumnMapping) -> Iterator[list[Row]]:
    if (is_remote(file) or os.path.exists(file)) and not fingerprint(file)["bytes"]:
        raise empty(path)
    number = 0
    try:
        with open_raw(file) if is_remote(file) else nullcontext(file) as source, pq.ParquetFile(source) as table:
            names = table.schema_arrow.names
            chosen = mapping.resolve(names)
            for role, place in chosen.items():
                _check_type(table.schema_arrow.field(place), role, path)
            wanted = sorted({names[place] for place in chosen.values()})
            for batch in table.iter_batches(batch_size=_batch_size(table.metadata), columns=wanted):
                columns = {role: _texts(batch.column(names[place])) for role, place in chosen.items()}
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


def _check_type(column: pa.Field, role: str, path: str) -> None:
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    if pa.types.is_nested(kind):
        raise UserError(
            f"{path}: column {column.name!r}, wanted for {role}, holds {column.type}; expected text or a list of "
            f"texts; name another column in preprocess.columns"
        )


def _texts(column: pa.Array) -> list[str | None]:
    """A column as texts; None where the bytes are no valid UTF-8."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = pc.binary_join(column.cast(pa.list_(pa.string())), "\n")
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


def _batch_rows(before: int, count: int, columns: dict[str, list[str | None]], mapping: ColumnMapping) -> list[Row]:
    absent: list[str | None] = [""] * count
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
