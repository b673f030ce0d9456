"""What a user would lose: rows that vanish, rows that swallow their neighbours, a run that dies of one bad line."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import os
import re
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hanflow.config import PreprocessConfig
from hanflow.data import delimited
from hanflow.data.lines import ROW_LIMIT
from hanflow.data.readers import format_of, raw_files, read, read_texts, text_source
from hanflow.data.schema import Column, Row, Source, corpus_source
from hanflow.data.writers import encoded, one_line
from hanflow.errors import UserError
from tests.support.pipes import pipe_in

PAIR = (
    Column("source", ("news", "document")),
    Column("target", ("summary", "abstractive", "title")),
    Column("id", ("id",), required=False),
)
TEXT = (Column("text", ("document", "text")),)


def rows_of(path: Path, wanted: tuple[Column, ...] = PAIR, **settings: Any) -> list[Row]:
    config = PreprocessConfig(source=str(path), **settings)
    return [row for batch in read(corpus_source(str(path), wanted, config), path.parent) for row in batch]


def good(rows: list[Row]) -> list[tuple[str, ...]]:
    return [tuple(row.values.values()) for row in rows if row.values is not None]


def bad(rows: list[Row]) -> list[tuple[int, str]]:
    return [(row.number, row.reason) for row in rows if row.values is None]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def refusal(path: Path, wanted: tuple[Column, ...] = PAIR, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        rows_of(path, wanted, **settings)
    assert str(path) in str(caught.value)
    return str(caught.value)


PAIRS = [("기사 하나", "요약 하나", ""), ("기사 둘", "요약 둘", "")]


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "news,summary\n기사 하나,요약 하나\n기사 둘,요약 둘\n"),
        ("a.tsv", "news\tsummary\n기사 하나\t요약 하나\n기사 둘\t요약 둘"),
        ("a.txt", "news\tsummary\n기사 하나\t요약 하나\n기사 둘\t요약 둘\n"),
        ("a.jsonl", '{"news": "기사 하나", "summary": "요약 하나"}\n\n{"summary": "요약 둘", "news": "기사 둘"}\n'),
        ("A.NDJSON", '{"news": "기사 하나", "summary": "요약 하나"}\n{"summary": "요약 둘", "news": "기사 둘"}'),
        ("crlf.tsv", '\ufeff" News "\t SUMMARY\r\n기사 하나\t요약 하나\r\n\r\n기사 둘\t요약 둘\r\n'),
        ("crlf.csv", '\ufeff"NEWS","Summary"\r\n"기사 하나","요약 하나"\r\n기사 둘,요약 둘\r\n'),
    ],
)
def test_text_formats(tmp_path: Path, name: str, content: str, packed: str) -> None:
    rows = rows_of(write(tmp_path, name + packed, content))
    assert good(rows) == PAIRS
    assert bad(rows) == []


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_parquet(tmp_path: Path, packed: str) -> None:
    plain = tmp_path / "plain"
    table = pa.table({"summary": ["요약", None], "id": [7, 8], "x": [[1], [2]], "news": [["문장 하나", "둘"], ["셋"]]})
    pq.write_table(table, plain)
    path = write(tmp_path, f"a.parquet{packed}", plain.read_bytes())
    assert rows_of(path) == [
        Row(1, {"source": "문장 하나\n둘", "target": "요약", "id": "7"}, None),
        Row(2, {"source": "셋", "target": "", "id": "8"}, None),
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, "plain"]


def test_txt_is_one_text_a_line(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", '하나\t탭\r\n\n"둘\u2028둘\x85둘\n셋')
    assert good(rows_of(path, TEXT)) == [("하나\t탭",), ('"둘\u2028둘\x85둘',), ("셋",)]
    assert [row.number for row in rows_of(path, TEXT)] == [1, 3, 4]
    assert "this task needs source and target" in refusal(path)


def test_multi_member_gzip(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv.gz"
    path.write_bytes(
        gzip.compress("news\tsummary\n기사 하나\t요약".encode()) + gzip.compress(" 하나\n기사 둘\t요약 둘".encode())
    )
    assert good(rows_of(path)) == PAIRS


# Columns


def test_columns_by_setting_and_by_order_of_aliases(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "id,Title,abstractive,body,document\n7,제목,추상,본문,문서\n")
    assert good(rows_of(path)) == [("문서", "추상", "7")]
    assert good(rows_of(path, columns={"source": "BODY", "target": "title"})) == [("본문", "제목", "7")]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_unknown_columns(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.parquet":
        pq.write_table(pa.table({"news": ["글"], "요지": ["줄임"]}), path)
    else:
        path.write_text("news,요지\n글,줄임\n" if name == "a.csv" else '{"news": "글", "요지": "줄임"}\n')
    message = refusal(path)
    assert "no column for target (looked for summary, abstractive, title); columns found: news, 요지" in message
    assert """preprocess.columns='{"source": "news", "target": "..."}'""" in message
    assert "preprocess.columns names '없음'" in refusal(path, columns={"target": "없음"})
    assert good(rows_of(path, columns={"target": "요지"})) == [("글", "줄임", "")]


def test_unknown_role(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "news,summary\n")
    with pytest.raises(UserError, match=r"no role 'sorce'; did you mean source\? Roles: source, target, id"):
        rows_of(path, columns={"sorce": "news"})


# Quotes


def test_unquoted_tsv_keeps_stray_quotes(tmp_path: Path) -> None:
    lines = ['"열기만 하고\t요약', '기사\t"요약', '"한 사람"과 "다른 사람"\t"말"이라고', '앞 "가운데" 뒤\t끝"', '"\t"']
    rows = rows_of(write(tmp_path, "a.tsv", "news\tsummary\n" + "\n".join(lines) + "\n"))
    assert good(rows) == [(*line.split("\t"), "") for line in lines]
    assert [row.number for row in rows] == [2, 3, 4, 5, 6]


def test_quoted_tsv(tmp_path: Path) -> None:
    content = (
        'id\tdocument\tsummary\n1\t"첫 줄\n\n""둘째"" 줄\t탭"\t"요약"\n2\t기사\t"여러 줄\n요약"\n'
        '3\t"[""안녕?"", ""응""]"\t줄임\n4\t["하나", "둘"]\t줄임\n5\t["\\ud800가"]\t["x", 1]'
    )
    rows = rows_of(write(tmp_path, "a.tsv", content))
    assert good(rows) == [
        ('첫 줄\n\n"둘째" 줄\t탭', "요약", "1"),
        ("기사", "여러 줄\n요약", "2"),
        ("안녕?\n응", "줄임", "3"),
        ("하나\n둘", "줄임", "4"),
        ("가", '["x", 1]', "5"),
    ]
    assert [row.number for row in rows] == [2, 5, 7, 8, 9]


def test_a_bad_tsv_line_loses_only_itself(tmp_path: Path) -> None:
    content = 'news\tsummary\n"홀로\n가\t나\n다\t라\t마\n바\t"사\n아\t자"\n차\t카'
    rows = rows_of(write(tmp_path, "a.tsv", content))
    assert bad(rows) == [(2, "expected 2 columns, found 1"), (4, "expected 2 columns, found 3")]
    assert good(rows) == [("가", "나", ""), ("바", '"사', ""), ("아", '자"', ""), ("차", "카", "")]


def test_quoted_csv(tmp_path: Path) -> None:
    content = 'news,summary\n"첫 줄\r\n둘째, ""줄""",요약\n기사 "인용" 끝,"요약"\n"",""\n'
    rows = rows_of(write(tmp_path, "a.csv", content))
    assert good(rows) == [('첫 줄\n둘째, "줄"', "요약", ""), ('기사 "인용" 끝', "요약", ""), ("", "", "")]
    assert [row.number for row in rows] == [2, 4, 5]


@pytest.mark.parametrize("where", [2, 3, 5000, 9999])
def test_an_unclosed_quote_in_csv_loses_only_its_line(tmp_path: Path, where: int) -> None:
    lines = ["news,summary", *(f"기사 {n},요약 {n}" for n in range(2, 10_000))]
    lines[where - 1] = '"열린 기사,요약'
    lines[9_000] = '"닫힌 기사","여러\n줄 요약"'
    rows = rows_of(write(tmp_path, "a.csv", "\n".join(lines)))
    assert [row.number for row in rows if row.values is None] == [where + (where > 9_001)]
    assert "quote" in bad(rows)[0][1] and rows[where - 2].raw == '"열린 기사,요약'
    assert len(good(rows)) == 9_997


def test_csv_rows_of_wrong_width(tmp_path: Path) -> None:
    rows = rows_of(write(tmp_path, "a.csv", 'news,summary\n가,나,다\n라\n"마\n마",바,사\n자,차\n'))
    assert bad(rows) == [
        (2, "expected 2 columns, found 3"),
        (3, "expected 2 columns, found 1"),
        (4, "expected 2 columns, found 3"),
    ]
    assert good(rows) == [("자", "차", "")]


def test_quoted_rows_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hanflow.data.lines.BLOCK", 7)
    monkeypatch.setattr("hanflow.data.lines.HEAD", 7)
    for name, mark in (("a.csv", ","), ("a.tsv", "\t")):
        content = f'news{mark}summary\n"첫\n둘\n넷"{mark}요약\n기사{mark}"요\n약"\n끝{mark}끝\n'
        rows = rows_of(write(tmp_path, name, content))
        assert good(rows) == [("첫\n둘\n넷", "요약", ""), ("기사", "요\n약", ""), ("끝", "끝", "")]
        assert [row.number for row in rows] == [2, 5, 7]


@pytest.mark.parametrize("text", ["첫\n둘\n셋", '첫"\n"둘'])
def test_rows_that_reach_into_every_next_block_do_not_pile_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    for size in ("BLOCK", "HEAD"):
        monkeypatch.setattr(f"hanflow.data.lines.{size}", 1 << 10)
    path = write(tmp_path, "a.csv", "news,summary\n" + f'"{text}",요약\n' * 2_000)
    source = corpus_source(str(path), PAIR, PreprocessConfig(source=str(path)))
    batches = [len(batch) for batch in read(source)]
    assert max(batches) < 200 and sum(batches) == (2_000 if "셋" in text else 4_000)


def test_an_open_quote_is_not_followed_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "LOOKAHEAD", 3)
    rows = rows_of(write(tmp_path, "a.csv", 'news,summary\n"a\nb\nc\nd",e\nf,g\n'))
    assert good(rows)[-1] == ("f", "g", "")
    assert [row.number for row in rows] == [2, 3, 4, 5, 6]


# What begins like a JSON list may be one, of utterances: those are joined.
FIELD = st.text(alphabet='가나 ,\t"\n[]x', max_size=8).filter(lambda text: not text.startswith('["'))


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.tuples(FIELD, FIELD), min_size=1, max_size=6), st.sampled_from([",", "\t"]))
def test_what_pythons_csv_writes_fully_quoted_is_read(tmp_path_factory: Any, pairs: Any, mark: str) -> None:
    import csv
    import io

    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=mark, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([("news", "summary"), *pairs])
    if mark == "\t":  # a quoted tab or newline can read as a whole row of an unquoted TSV, which is the likelier case
        pairs = [pair for pair in pairs if not {"\t", "\n"} & set("".join(pair))]
        buffer = io.StringIO()
        writer = csv.writer(buffer, delimiter=mark, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerows([("news", "summary"), *pairs])
    path = write(tmp_path_factory.mktemp("quoted"), "a.csv" if mark == "," else "a.tsv", buffer.getvalue())
    assert good(rows_of(path)) == [(*pair, "") for pair in pairs]


# Bytes


def test_bad_bytes_lose_only_their_row(tmp_path: Path) -> None:
    content = "news\tsummary\n가\t나\n".encode() + b"\xff\xfe bad\tx\n" + "다\t라\n".encode() + b"\xea\xb0"
    rows = rows_of(write(tmp_path, "a.tsv", content))
    assert good(rows) == [("가", "나", ""), ("다", "라", "")]
    assert bad(rows) == [(3, "not valid UTF-8 (byte 1 of the row)"), (5, "not valid UTF-8 (byte 1 of the row)")]
    assert rows[1].raw == "\\xff\\xfe bad\tx"


def test_cp949_is_reported_by_its_bytes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "news,summary\n기사 하나,요약 하나\n기사 둘,요약 둘\n"
    path = write(tmp_path, "a.csv", text.encode("cp949"))
    assert good(rows_of(path)) == PAIRS
    assert good(rows_of(path, encoding="euc-kr")) == PAIRS
    with_a_flaw = write(tmp_path, "b.csv", text.encode() + "뷁,요약\n".encode("cp949"))
    rows = rows_of(with_a_flaw)
    assert good(rows) == PAIRS and len(bad(rows)) == 1
    with pytest.raises(UserError, match="'cp-949x' is no text encoding; give auto, utf-8, cp949"):
        rows_of(path, encoding="cp-949x")
    with pytest.raises(UserError, match="no text encoding"):
        rows_of(path, encoding="base64")


@pytest.mark.parametrize(
    ("codec", "mark"),
    [("utf-8", codecs.BOM_UTF8), ("utf-16-le", codecs.BOM_UTF16_LE), ("utf-16-be", codecs.BOM_UTF16_BE)],
)
@pytest.mark.parametrize("setting", ["auto", "the codec"])
def test_byte_order_marks(tmp_path: Path, codec: str, mark: bytes, setting: str) -> None:
    text = "news\tsummary\n기사 하나\t요약 하나\r\n기사 둘\t요약 둘"
    path = write(tmp_path, "a.tsv", mark + text.encode(codec))
    encoding = setting if setting == "auto" else codec.removesuffix("-le").removesuffix("-be")
    assert good(rows_of(path, encoding=encoding)) == PAIRS


def test_utf16_without_a_mark_is_read_as_windows_writes_it(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", "news\tsummary\n기사 하나\t요약 하나\n기사 둘\t요약 둘".encode("utf-16-le"))
    assert good(rows_of(path, encoding="utf-16")) == PAIRS


def test_bad_utf16_loses_only_its_row(tmp_path: Path) -> None:
    def encoded(text: str) -> bytes:
        return text.encode("utf-16-le")

    content = codecs.BOM_UTF16_LE + encoded("news\tsummary\n가\t나\n") + b"\x00\xdc" + encoded("x\ty\n다\t라\n")
    rows = rows_of(write(tmp_path, "a.tsv", content))
    assert good(rows) == [("가", "나", ""), ("다", "라", "")]
    assert bad(rows) == [(3, "not valid UTF-16 (byte 1 of the row)")]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt", "a.jsonl"])
def test_a_huge_line_is_rejected_in_little_memory(tmp_path: Path, name: str) -> None:
    columns = TEXT if name == "a.txt" else PAIR
    header = {"a.csv": b"news,summary\n", "a.tsv": b"news\tsummary\n"}.get(name, b"")
    row = {"a.csv": b"a,b", "a.tsv": b"a\tb", "a.txt": b"a", "a.jsonl": b'{"news": "a", "summary": "b"}'}[name]
    with (tmp_path / name).open("wb") as stream:
        stream.write(header + row + b"\n")
        for _ in range(30):
            stream.write("가".encode() * 500_000)
        stream.write(b"\n" + row + b"\n")
    tracemalloc.start()
    rows = rows_of(tmp_path / name, columns)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [row.values is None for row in rows] == [False, True, False]
    assert rows[1].reason == "the row is longer than 10 MB" and len(rows[1].raw or "") == 10_000
    assert peak < 4 * ROW_LIMIT


def test_nul_bytes_reach_the_cleaning(tmp_path: Path) -> None:
    assert good(rows_of(write(tmp_path, "a.csv", 'news,summary\n가\0,"나\0"\n'))) == [("가\0", "나\0", "")]


# JSON


def test_jsonl_values(tmp_path: Path) -> None:
    lines = [
        '{"news": ["하나", "둘"], "summary": null, "id": 12345678901234567890.50}',
        '{"news": true, "summary": "\\ud800짝\\ud83d\\ude00", "other": {"a": 1}}',
        "{broken",
        "[1, 2]",
        '{"news": {"a": "b"}, "summary": "x"}',
        '{"news": [1], "summary": "x"}',
        '{"news": "x"}',
        "[" * 100_000,
        '{"news": ' + "1" * 5000 + ', "summary": "x"}',
    ]
    rows = rows_of(write(tmp_path, "a.jsonl", "\n".join(lines)))
    assert good(rows) == [("하나\n둘", "", "12345678901234567890.50"), ("true", "짝😀", ""), ("1" * 5000, "x", "")]
    reasons = dict(bad(rows))
    assert list(reasons) == [3, 4, 5, 6, 7, 8]
    assert reasons[3].startswith("not valid JSON")
    assert reasons[4] == "not a JSON object"
    assert reasons[5] == "news is an object, expected text"
    assert reasons[6] == "news is a list of other things than texts, expected text"
    assert reasons[7] == "the object has no key for target"
    assert reasons[8].startswith("not valid JSON")


def dialogue(*turns: tuple[str, str], summary: str = "요약") -> dict[str, Any]:
    return {
        "header": {"dialogueInfo": {"topic": "식음료", "dialogueID": "d1"}},
        "body": {"dialogue": [{"participantID": who, "utterance": said} for who, said in turns], "summary": summary},
    }


DIALOGUE = {
    "numberOfItems": 1,
    "data": [dialogue(("P09", "밥 먹었어?"), ("P02", "응"), ("P02", "너는?"), ("P09", "아니"))],
}
DIALOGUE_COLUMNS = (
    Column("source", ("dialogue",)),
    Column("target", ("summary",)),
    Column("topic", ("topic",), required=False),
)


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "bom.json", "cp949.json"])
def test_aihub_dialogue(tmp_path: Path, name: str) -> None:
    text = json.dumps(DIALOGUE, ensure_ascii=False)
    content = text.encode("cp949" if name.startswith("cp") else "utf-8-sig" if name.startswith("bom") else "utf-8")
    path = write(tmp_path, name, content)
    expected = "#Person1#: 밥 먹었어?\n#Person2#: 응\n#Person2#: 너는?\n#Person1#: 아니"
    assert rows_of(path, DIALOGUE_COLUMNS) == [Row(1, {"source": expected, "target": "요약", "topic": "식음료"}, None)]
    ids = good(rows_of(path, DIALOGUE_COLUMNS, speaker_format="[{id}] "))[0][0]
    assert ids.startswith("[P09] 밥") and good(rows_of(path, DIALOGUE_COLUMNS, speaker_format=""))[0][0].startswith(
        "밥"
    )
    with pytest.raises(UserError, match=r"preprocess.speaker_format: .*placeholder \{name\}; known are \{n\}"):
        rows_of(path, DIALOGUE_COLUMNS, speaker_format="{name}: ")


def test_aihub_documents(tmp_path: Path) -> None:
    document = {
        "id": 290741778,
        "title": "제목",
        "text": [[{"index": 0, "sentence": "첫째."}, {"index": 1, "sentence": "둘째."}], [], [{"sentence": "셋째."}]],
        "extractive": [0],
        "abstractive": ["요약."],
    }
    path = write(tmp_path, "a.json", json.dumps({"name": "신문", "documents": [document]}))
    assert good(rows_of(path)) == [("첫째. 둘째.\n\n셋째.", "요약.", "290741778")]
    assert good(rows_of(path, columns={"target": "title"})) == [("첫째. 둘째.\n\n셋째.", "제목", "290741778")]


def test_a_bad_aihub_record_loses_only_itself(tmp_path: Path) -> None:
    data = {"data": [dialogue(("a", "안녕")), {"header": {}}, "x", dialogue(("a", "끝"))]}
    content = json.dumps(data, ensure_ascii=False).encode().replace("안녕".encode(), b"\xff")
    rows = rows_of(write(tmp_path, "a.json", content), DIALOGUE_COLUMNS)
    assert [row.number for row in rows if row.values is None] == [1, 2, 3]
    assert rows[0].reason == "not valid text in the file's encoding"


@pytest.mark.parametrize(
    ("content", "reported"),
    [
        ('{"a": 1}', "unknown layout, without source and target; its keys: a; known are AI-Hub dialogue summarization"),
        ('[{"news": "x"}]', "its keys: none, it is a list; in item: news;"),
        ('{"data": [{"news": "x"}]}', "its keys: data; in data.item: news;"),
        ('{"news": "x"}\n{"news": "y"}', "name the file .jsonl"),
        (json.dumps(DIALOGUE)[:-2], "is no valid JSON after record 1"),
        ("아무 글", "is no valid JSON"),
    ],
)
def test_json_of_another_layout(tmp_path: Path, content: str, reported: str) -> None:
    message = refusal(write(tmp_path, "a.json", content), DIALOGUE_COLUMNS)
    assert reported in message
    assert ".jsonl" in message or "fetch it again" in message


# Whole files


@pytest.mark.parametrize(
    "name", ["a.csv", "a.tsv", "a.txt", "a.jsonl", "a.json", "a.parquet", "a.csv.gz", "a.parquet.gz"]
)
def test_empty_files(tmp_path: Path, name: str) -> None:
    assert "is empty" in refusal(write(tmp_path, name, b""))


def test_a_file_with_blank_lines_or_a_mark_alone_is_empty(tmp_path: Path) -> None:
    assert "is empty" in refusal(write(tmp_path, "a.csv", "\n\n"))
    assert "is empty" in refusal(write(tmp_path, "b.tsv", codecs.BOM_UTF8))
    assert rows_of(write(tmp_path, "c.tsv", "news\tsummary\n")) == []


@pytest.mark.parametrize("name", ["a.tsv.gz", "a.jsonl.gz", "a.json.gz", "a.parquet.gz"])
def test_damaged_gzip(tmp_path: Path, name: str) -> None:
    packed = gzip.compress(b"news\tsummary\n" + b"x\ty\n" * 100)
    for damage in (packed[:-6], packed[:20], packed[:30] + b"\0\0\0\0" + packed[34:], b"no gzip at all"):
        (tmp_path / name).write_bytes(damage)
        assert "cut short or damaged" in refusal(tmp_path / name)


def test_damaged_parquet(tmp_path: Path) -> None:
    path = write(tmp_path, "a.parquet", b"PAR1 not really")
    assert "cannot be read as parquet" in refusal(path)
    pq.write_table(pa.table({"news": ["글" * 1000] * 100, "summary": ["요약"] * 100}), path)
    path.write_bytes(path.read_bytes()[:-100])
    assert "cannot be read as parquet" in refusal(path)
    pq.write_table(pa.table({"news": ["글"], "요약": ["요약"]}), path)
    path.write_bytes(path.read_bytes().replace("요약".encode(), b"\xed\xa0\x80\xff\xff\xff"))
    assert "cannot be read as parquet" in refusal(path)
    pq.write_table(pa.table({"news": [{"a": "b"}], "summary": ["x"]}), path)
    assert "column 'news', wanted for source, holds struct" in refusal(path)


def test_endings(tmp_path: Path) -> None:
    path = write(tmp_path, "a.xlsx", b"x")
    with pytest.raises(UserError) as caught:
        raw_files(str(path))
    message = str(caught.value)
    assert str(path) in message and ".csv, .csv.gz" in message and ".json.gz" in message
    write(tmp_path, "b.tsv", "x")
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub", "C.JSONL.GZ", "x")
    expected = [str(tmp_path / "b.tsv"), str(tmp_path / "sub" / "C.JSONL.GZ")]
    assert raw_files(str(tmp_path)) == expected
    assert raw_files(f"{tmp_path}/**") == expected


# One reader, whoever reads

ODD = [
    "첫째 글",
    '"열린 따옴표',
    "쉼표, 그리고 '인용'",
    "=1+1",
    "'=1",
    "''-5도",
    "줄\n바꿈",
    "옛 맥\r줄",
    '안 "인용" 밖',
    "끝",
]


def written(folder: Path, name: str, texts: list[str]) -> Path:
    """The texts as the column `document` beside an id, as our own writers and common tools write that format."""
    path, kind = folder / name, format_of(name)
    rows = [{"id": str(number), "document": text} for number, text in enumerate(texts)]
    if kind == "parquet":
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), buffer)
        content = buffer.getvalue()
    elif kind == "json":
        documents = [
            {"id": row["id"], "text": [[{"sentence": row["document"]}]], "abstractive": ["요약"]} for row in rows
        ]
        content = json.dumps({"documents": documents}).encode()
    elif kind == "lines":
        content = "".join(f"{text}\n" for text in texts).encode()
    else:
        content = encoded(kind, rows, header=True)
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "txt", "jsonl", "parquet", "json"])
def test_preprocess_predict_and_score_read_the_same_rows(tmp_path: Path, kind: str, packed: str) -> None:
    texts = ODD if kind not in ("tsv", "txt") else [one_line(text) for text in ODD]
    path = written(tmp_path, f"a.{kind}{packed}", texts)
    columns = (Column("text", ("text", "document")), Column("id", ("id",), required=False))
    kept = rows_of(path, columns)
    assert [row.values["text"] for row in kept if row.values] == texts
    found = list(read_texts(Source(str(path), columns, every_row=True)))
    assert [row.texts for row in found] == [[text] for text in texts]
    ids = [str(number) for number in range(len(texts))]
    assert [row.id for row in found] == ([None] * len(texts) if kind == "txt" else ids)
    assert [row.texts for row in read_texts(text_source(str(path), usual=["DOCUMENT"]))] == [[text] for text in texts]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "json"])
@pytest.mark.parametrize("way", ["pipe", "standard input"])
def test_what_comes_only_once_is_read_in_every_format(
    tmp_path: Path, kind: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = written(tmp_path, f"a.{kind}", ODD).read_bytes()
    path = "-"
    if way == "pipe":
        path = str(tmp_path / "pipe")
        os.mkfifo(path)
        threading.Thread(target=Path(path).write_bytes, args=(content,)).start()
    else:
        pipe_in(monkeypatch, content)
    source = replace(text_source(path, usual=["document"]), format=kind)
    assert [row.texts for row in read_texts(source)] == [[text] for text in ODD]


@pytest.mark.parametrize(
    ("name", "content", "good_rows", "number"),
    [
        ("a.csv", 'text\n하나\n"둘\n셋\n', ["하나", "셋"], 3),
        ("a.csv", "id,text\n1,하나\n2,둘,더\n3,셋\n", ["하나", "셋"], 3),
        ("a.tsv", "id\ttext\n1\t하나\n\n2\n3\t셋\n", ["하나", "셋"], 4),
        ("a.jsonl", '{"text": "하나"}\n\n{"text": {}}\n"셋"\n', ["하나", "셋"], 3),
        ("a.txt", "하나\n".encode() + b"\xff\n" + "셋\n".encode(), ["하나", "셋"], 2),
        ("a.txt.gz", "하나\n".encode() + b"\xff\n" + "셋\n".encode(), ["하나", "셋"], 2),
    ],
)
def test_a_bad_row_is_kept_with_its_reason_or_refused(
    tmp_path: Path, name: str, content: str | bytes, good_rows: list[str], number: int
) -> None:
    """The same row by the same rule; `every_row` alone decides what becomes of it."""
    path = write(tmp_path, name, content)
    rows = rows_of(path, (Column("text", ("text",)),))
    assert good(rows) == [(text,) for text in good_rows]
    ((bad_number, reason),) = bad(rows)
    assert bad_number == number
    every = read_texts(text_source(str(path), usual=["text"]))
    assert next(every).texts == good_rows[:1], "what stands before it comes out"
    with pytest.raises(UserError, match=re.escape(f"{path}: line {number}: {reason}")):
        next(every)


def test_a_stray_quote_takes_no_row_along(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", 'id\tdocument\n1\t"그 말은 맞다\n2\t다음 줄은 따로다\n3\t끝에 따옴표"\n')
    texts = ['"그 말은 맞다', "다음 줄은 따로다", '끝에 따옴표"']
    assert good(rows_of(path, TEXT)) == [(text,) for text in texts]
    assert [row.texts for row in read_texts(text_source(str(path), usual=["document"]))] == [[text] for text in texts]


def test_a_cell_of_thousands_of_lines_is_one_row(tmp_path: Path) -> None:
    text = "한 줄\n" * 12_500
    path = write(tmp_path, "a.csv", f'text\n"{text}"\n끝\n')
    assert good(rows_of(path, TEXT)) == [(text,), ("끝",)]


def test_the_only_column_is_taken_whatever_its_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, content in (("a.csv", "내용\n하나\n둘\n"), ("a.jsonl", '{"내용": "하나"}\n{"내용": "둘"}\n')):
        path = write(tmp_path, name, content)
        assert [row.texts for row in read_texts(text_source(str(path)))] == [["하나"], ["둘"]]
        assert f"{path}: its only column, '내용', is taken for prediction" in caplog.text
    assert good(rows_of(tmp_path / "a.csv", TEXT)) == [("하나",), ("둘",)]
    other = write(tmp_path, "b.jsonl", '{"내용": "하나"}\n{"text": "둘"}\n')
    with pytest.raises(UserError, match="line 2: the object has no key for prediction"):
        list(read_texts(text_source(str(other))))
    several = write(tmp_path, "c.csv", "번호|본문\n1|글\n")
    with pytest.raises(
        UserError,
        match=r"columns found: 번호\|본문; its values seem to be separated by '\|': put the line sep=\| before the first, or save it with commas; or name it with --column",
    ):
        list(read_texts(text_source(str(several))))
    assert r"columns found: 번호|본문" in refusal(several, TEXT)


def test_names_of_columns_are_compared_without_case(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "ID, Body Text \n1,글 하나\n2,글 둘\n")
    assert good(rows_of(path, TEXT, columns={"text": "body text"})) == [("글 하나",), ("글 둘",)]
    assert [row.texts for row in read_texts(text_source(str(path), "body text"))] == [["글 하나"], ["글 둘"]]


def test_lists_of_texts_are_joined_or_kept(tmp_path: Path) -> None:
    parquet, jsonl = tmp_path / "a.parquet", tmp_path / "a.jsonl"
    pq.write_table(pa.table({"document": [["하나", "둘"], ["셋"]]}), parquet)
    jsonl.write_text('{"document": ["하나", "둘"]}\n{"document": ["셋"]}\n')
    for path in (parquet, jsonl):
        assert good(rows_of(path, TEXT)) == [("하나\n둘",), ("셋",)]
        assert [row.texts for row in read_texts(text_source(str(path), usual=["document"]))] == [["하나", "둘"], ["셋"]]


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1", "'=1"),
        ("'=1", "''=1"),
        ("''=1", "'''=1"),
        ("-5도", "'-5도"),
        ("'-5도", "''-5도"),
        ("'가", "'가"),
        ("가", "가"),
    ],
)
def test_a_guarded_cell_comes_back_as_the_text_that_it_was(tmp_path: Path, text: str, cell: str) -> None:
    assert delimited.safe_cell(text) == cell
    for name in ("a.csv", "a.tsv"):
        path = write(tmp_path, name, f"text\n{cell}\n")
        assert good(rows_of(path, TEXT)) == [(text,)]
