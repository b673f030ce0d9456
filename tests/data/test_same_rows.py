"""The rows of a file are the rows given and the rows rejected, whoever reads it: random and damaged tables in every format."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import random
import zipfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hanflow.config import PreprocessConfig
from hanflow.config.steps import MISSING
from hanflow.data.delimited import REPEATED
from hanflow.data.readers import raw_files, read, read_texts
from hanflow.data.schema import Row, Source, corpus_source
from hanflow.errors import UserError
from hanflow.experiment import step_config
from hanflow.serving.bundle import Bundle, cleaning_of
from hanflow.serving.inputs import Inputs, first_texts, input_source
from hanflow.steps.preprocess import run as preprocess
from hanflow.steps.score import text_file
from hanflow.storage.artifacts import Manifest, read_manifest
from hanflow.tasks import get_task
from tests.support.fuzz import cases

pytestmark = pytest.mark.fuzz

TABLES = ["csv", "tsv", "sep.csv", "numbered.csv", "numbered.tsv", "tab.txt"]
VALUES = [
    "jsonl",
    "list.json",
    "data.json",
    "split.json",
    "index.json",
    "columns.json",
    "table.json",
    "parquet",
    "arrow",
]
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp949"]
ENDS = {"LF": "\n", "CRLF": "\r\n", "CR": "\r"}

WORDS = [
    "재미",
    "있게",
    "봤다",
    "ㅋㅋ",
    "a",
    "1",
    " ",
    " ",
    ",",
    ";",
    "|",
    '"',
    '""',
    "'",
    "[",
    "]",
    "{",
    "=",
    "nan",
    "뷁",
]
LABELS = ["0", "1", "0.0", "긍정", "nan"]

Cells = tuple[str, str, str]
"""Label, text and id of a row."""


def text_of(source: random.Random, *, newlines: bool, tabs: bool) -> str:
    words = [*WORDS, *(["\n"] if newlines else []), *(["\t"] if tabs else [])]
    text = "".join(source.choices(words, k=source.randrange(1, 8)))
    text = source.choice([text] * 9 + [*MISSING, "", "None of it"])
    # A blank line is no row; what begins like a guarded cell or a list of utterances is another text when it is read.
    return "글" + text if text.startswith(("'", "[")) or (text and not text.strip()) else text


def rows_of(source: random.Random, **texts: bool) -> list[Cells]:
    count = source.randrange(1, 7)
    return [(source.choice(LABELS), text_of(source, **texts), str(number)) for number in range(1, count + 1)]


def as_read(rows: list[Cells]) -> list[Cells]:
    return [tuple("" if cell in MISSING else cell for cell in row) for row in rows]  # type: ignore[misc]


NAMES = ("label", "document", "id")


def table_text(source: random.Random, kind: str, rows: list[Cells], end: str) -> str:
    """A delimited table as common tools write it."""
    mark = source.choice(",;|") if kind == "sep.csv" else "," if kind.endswith("csv") else "\t"
    lines = [] if kind.startswith("numbered") else [NAMES]
    quoting = source.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    stream = io.StringIO()
    if mark == "\t":  # most writers of tsv quote nothing
        stream.write("".join("\t".join(row) + end for row in chain(lines, rows)))
    else:
        writer = csv.writer(stream, delimiter=mark, quoting=quoting, lineterminator=end)
        writer.writerows(chain(lines, rows))
    whole = stream.getvalue()
    return (f"sep={mark}{end}" if kind == "sep.csv" else "") + (
        whole.removesuffix(end) if source.random() < 0.3 else whole
    )


def values_bytes(source: random.Random, kind: str, rows: list[Cells]) -> bytes:
    """The rows as JSON, parquet or Arrow."""
    cells = [dict(zip(NAMES, row, strict=True)) for row in rows]
    empty = source.choice(["", None])
    records: list[dict[str, Any]] = [{name: cell or empty for name, cell in row.items()} for row in cells]
    if kind in ("parquet", "arrow"):
        table, stream = pa.table({n: pa.array([r[n] for r in records], pa.string()) for n in NAMES}), io.BytesIO()
        if kind == "parquet":
            pq.write_table(table, stream, row_group_size=source.choice([1, 2, 100]))
        else:
            with source.choice([pa.ipc.new_stream, pa.ipc.new_file])(stream, table.schema) as writer:
                writer.write_table(table, max_chunksize=source.choice([1, 3, 100]))
        return stream.getvalue()
    ascii = source.random() < 0.5
    indent = source.choice([None, 2])
    keys = [str(number) for number in range(len(records))]
    if kind == "jsonl":
        return "".join(json.dumps(record, ensure_ascii=ascii) + "\n" for record in records).encode()
    value = {
        "list.json": records,
        "data.json": {"name": "말뭉치", "totalcount": len(records), "data": records},
        "split.json": {"columns": NAMES, "index": keys, "data": [list(record.values()) for record in records]},
        "index.json": dict(zip(keys, records, strict=True)),
        "columns.json": {name: dict(zip(keys, (r[name] for r in records), strict=True)) for name in NAMES},
        "table.json": {"schema": {"fields": [{"name": name, "type": "string"} for name in NAMES]}, "data": records},
    }[kind]
    return json.dumps(value, ensure_ascii=ascii, indent=indent).encode()


def written(folder: Path, name: str, content: bytes, packed: str) -> str:
    path = folder / f"{name}{packed if packed != '.zip' else ''}"
    if packed == ".zip":
        with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"part/{name}", content)
            archive.writestr("LICENSE.txt", "Free.")
        return str(folder / "a.zip")
    path.write_bytes(gzip.compress(content) if packed else content)
    return str(path)


def columns_of(kind: str) -> dict[str, Any]:
    return {"label": 1, "text": 2, "id": 3} if kind.startswith("numbered") else {}


def by_preprocess(path: str, kind: str, encoding: str) -> list[Row]:
    config = PreprocessConfig(source=path, columns=columns_of(kind), encoding=encoding)
    source = corpus_source(path, get_task("classification").columns, config)
    return [row for batch in read(source) for row in batch]


def bundle() -> Bundle:
    """What a model's folder says of itself; its weights are not needed to read rows."""
    task, cleaning = get_task("classification"), cleaning_of({}, "classification")
    manifest = Manifest("bundle", task.name, {})
    return Bundle(
        Path(), manifest, task, cleaning, step_config("tokenize", {}, task.name), step_config("evaluate", {}, task.name)
    )


def by_predict(path: str, kind: str, encoding: str) -> Iterator[tuple[str, str | None]]:
    source = input_source(bundle(), column="2" if kind.startswith("numbered") else None, encoding=encoding)
    for names, text in Inputs([path], source).rows():
        yield text, names.get("id")


def by_score(path: str, kind: str, encoding: str) -> Iterator[tuple[str, str | None]]:
    source = text_file(path, "prediction", "2" if kind.startswith("numbered") else "document", encoding)
    for row in read_texts(source):
        yield row.texts[0], row.id


def check_all(path: str, kind: str, encoding: str, expected: list[Cells]) -> None:
    (file,) = raw_files(path)
    kept = by_preprocess(file, kind, encoding)
    assert [tuple(row.values.values()) if row.values else row.reason for row in kept] == expected
    ids = [None if kind.startswith("numbered") else cells[2] for cells in expected]
    texts = [cells[1] for cells in expected]
    for reader in (by_predict, by_score):
        assert list(reader(file, kind, encoding)) == list(zip(texts, ids, strict=True)), reader
    if encoding == "auto" and not kind.startswith("numbered"):
        assert first_texts(bundle(), file, 100) == [text for text in texts if text.strip()]


@pytest.mark.parametrize("kind", TABLES)
def test_every_table_gives_its_rows_to_every_reader(tmp_path: Path, kind: str) -> None:
    source = random.Random(kind)
    for number in range(cases(35, 1_700)):
        end = ENDS[source.choice(list(ENDS))]
        quoted = kind.endswith("csv")
        rows = rows_of(source, newlines=quoted and end != "\r", tabs=quoted)
        if not quoted:  # a field in quotes is read as one that was quoted
            rows = [(label, text.replace('"', "'글"), id) for label, text, id in rows]
        codec = source.choice(ENCODINGS)
        content = table_text(source, kind, rows, end).encode(codec)
        if codec == "utf-16-le" and source.random() < 0.5:
            content = codecs.BOM_UTF16_LE + content
        marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        encoding = "auto" if marked or codec.startswith("utf-8") else codec
        name = f"{number}.{kind.rpartition('.')[2]}"
        path = written(tmp_path, name, content, source.choice(["", ".gz", ".zip"]))
        check_all(path, kind, encoding, as_read(rows))


@pytest.mark.parametrize("kind", VALUES)
def test_every_file_of_records_gives_its_rows_to_every_reader(tmp_path: Path, kind: str) -> None:
    source = random.Random(kind)
    for number in range(cases(25, 1_100)):
        rows = rows_of(source, newlines=True, tabs=True)
        rows = [(label, text.replace("=", "=\ufeff\u2028\r"), id) for label, text, id in rows]
        name = f"{number}.{kind.rpartition('.')[2]}"
        path = written(tmp_path, name, values_bytes(source, kind, rows), source.choice(["", ".gz", ".zip"]))
        check_all(path, kind, "auto", as_read(rows))


def damaged(source: random.Random, text: str) -> str:
    """A table with some of what happens to tables."""
    lines = text.split("\n")
    for _ in range(source.randrange(1, 4)):
        at = source.randrange(1, len(lines)) if len(lines) > 1 else 0
        line = lines[at]
        place = source.randrange(len(line) + 1)
        lines[at : at + 1] = source.choice(
            [
                [line[:place] + source.choice(['"', '""', ",", "\t", "\x00", "\u2028", "'", "\\"]) + line[place:]],
                [line[:place]],
                [line[:place], line[place:]],
                [lines[0], line],
                [f"\ufeff{lines[0]}", line],
                ["", line],
                [],
                [line, line],
            ]
        ) or [""]
    return "\n".join(lines)


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_no_line_of_a_damaged_table_is_lost_or_read_twice(tmp_path: Path, kind: str) -> None:
    """Every line that holds something is part of one row, given or rejected, and all readers agree on which."""
    source = random.Random(f"damaged {kind}")
    path = tmp_path / f"a.{kind}"
    for _ in range(cases(120, 2_500)):
        rows = rows_of(source, newlines=kind == "csv", tabs=False)
        text = damaged(source, table_text(source, kind, rows, "\n"))
        path.write_text(text, encoding="utf-8", newline="")
        lines = text.split("\n")
        kept = by_preprocess(str(path), kind, "auto")
        used: dict[int, str] = {}
        for row in kept:
            assert row.raw is not None
            for number, line in enumerate(row.raw.split("\n"), row.number):
                assert number not in used, text
                used[number] = line
        header = next(number for number, line in enumerate(lines, 1) if line.strip())
        for number, line in enumerate(lines, 1):
            if number > header and line.removeprefix("\ufeff"):
                assert used.get(number) == line.removeprefix("\ufeff"), (text, number)
        mark = "," if kind == "csv" else "\t"
        for row in kept:
            if row.values is not None and '"' not in row.raw and "'" not in row.raw:  # type: ignore[operator]
                cells = row.raw.split(mark)  # type: ignore[union-attr]
                assert tuple(row.values.values()) == as_read([tuple(cells)])[0]  # type: ignore[list-item]
        stop = next((row for row in kept if row.values is None and row.reason != REPEATED), None)
        good = [row for row in kept if row.values is not None and (stop is None or row.number < stop.number)]
        for reader in (by_predict, by_score):
            found = []
            try:
                for pair in reader(str(path), kind, "auto"):
                    found.append(pair)
                problem = ""
            except UserError as error:
                problem = str(error)
            assert found == [(row.values["text"], row.values["id"]) for row in good], text  # type: ignore[index]
            assert (f"line {stop.number}: " in problem) if stop else (not problem or "holds no row" in problem)


def test_the_step_counts_every_row(tmp_path: Path) -> None:
    source = random.Random("step")
    for number in range(cases(3, 60)):
        rows = [(label, f"{text} 번호 {id}", id) for label, text, id in rows_of(source, newlines=True, tabs=True)]
        rows += [("0", "영 글", "8"), ("1", "일 글", "9")]
        text = damaged(source, table_text(source, "csv", rows, "\n")) + '\n"1","끝 글","10"\n'
        path, output = tmp_path / f"{number}.csv", tmp_path / f"corpus-{number}"
        path.write_text(text, encoding="utf-8", newline="")
        kept = by_preprocess(str(path), "csv", "auto")
        values = {"source": str(path), "validation_ratio": 0, "test_ratio": 0, "deduplicate": False}
        preprocess(step_config("preprocess", values, "classification"), task="classification", output=str(output))
        counts = read_manifest(output, "corpus").counts
        assert counts["read"] == len(kept) == counts["rejected"] + counts["rows"]["train"]
        rejected = pq.read_table(output / "rejected.parquet").to_pydict()
        assert set(rejected["row"]) >= {row.number for row in kept if row.values is None}
        stored = pq.read_table(output / "train.parquet").to_pydict()["id"]
        good = [row for row in kept if row.values is not None and row.number not in rejected["row"]]
        assert stored == [row.values["id"] for row in good if row.values]


def test_an_archive_s_print_tells_which_of_its_files_are_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("1.json", "2.json"):
            archive.writestr(name, "[]")
    one, two = (Inputs([f"{tmp_path}/a.zip/{name}"], Source("", ())).fingerprint() for name in ("1.json", "2.json"))
    both = Inputs([f"{tmp_path}/a.zip/1.json", f"{tmp_path}/a.zip/2.json"], Source("", ())).fingerprint()
    assert one != two and both not in (one, two) and len(both) == 1


def test_many_files_with_commas_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [f"file-number-{number:03}.csv" for number in range(30)]  # together longer than a file's name may be
    for name in names:
        Path(name).write_text("document,label\n글,1\n", encoding="utf-8")
    assert [path.rpartition("/")[2] for path in raw_files(",".join(names))] == names
