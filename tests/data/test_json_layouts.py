"""JSON as other programs write it: no record is lost, none is made up, and no word stands for a missing value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hanflow.config import PreprocessConfig
from hanflow.data.readers import read
from hanflow.data.schema import Row, corpus_source
from hanflow.errors import UserError
from hanflow.tasks import get_task


def rows_of(folder: Path, content: str, name: str = "a.json", task: str = "summarization") -> list[Row]:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    source = corpus_source(str(path), get_task(task).columns, PreprocessConfig(source=str(path)))
    return [row for batch in read(source) for row in batch]


def sources(rows: list[Row]) -> list[str]:
    return [row.values["source"] if row.values else row.reason for row in rows]


@pytest.mark.parametrize("block", [1, 2, 3, 5, 1 << 18])
def test_what_python_writes_for_no_number_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr("hanflow.data.lines.BLOCK", block)
    texts = ["NaN", 'a "NaN, NaN" \\', "-Infinity\\\\", "N", '\\"NaN']
    records: list[dict[str, Any]] = [{"document": text, "summary": float("nan")} for text in texts]
    records.append({"document": float("inf"), "summary": "끝"})
    content = json.dumps(records)
    assert "NaN" in content and "Infinity" in content
    rows = rows_of(tmp_path, content)
    assert sources(rows) == ["", *texts[1:], ""]
    assert [row.values["target"] for row in rows if row.values] == ["", "", "", "", "", "끝"]


def test_all_lists_of_records_are_read(tmp_path: Path) -> None:
    value = {
        "version": 1,
        "train": [{"document": f"글 {n}", "summary": "요약"} for n in range(3000)],
        "more": {"validation": [{"document": "글 v", "summary": "요약"}]},
    }
    assert sources(rows_of(tmp_path, json.dumps(value))) == [*(f"글 {n}" for n in range(3000)), "글 v"]


def test_all_lists_of_a_known_layout_are_read(tmp_path: Path) -> None:
    train, test = ([{"text": [[{"sentence": text}]], "abstractive": ["요약"]}] for text in ("글 하나", "글 둘"))
    assert sources(rows_of(tmp_path, json.dumps({"train": train, "more": {"test": test}}))) == ["글 하나", "글 둘"]


def test_a_list_without_the_columns_needed_is_said_to_be_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    value = {"train": [{"document": "글", "summary": "요약"}], "test": [{"document": "글", "notes": [{"by": "나"}]}]}
    with caplog.at_level("INFO", "hanflow"):
        assert sources(rows_of(tmp_path, json.dumps(value))) == ["글"]
    assert "passed over: test" in caplog.text


def test_a_record_with_records_inside_is_one(tmp_path: Path) -> None:
    value = {"text": "본문", "comments": [{"text": "댓글"}, {"text": "댓글"}]}
    (row,) = rows_of(tmp_path, json.dumps(value), task="language_modeling")
    assert row.values == {"text": "본문", "id": ""}


def test_a_name_that_stands_twice_is_found_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"a": {"document": "가"}, "b": {"document": "나"}, "summary": "x"}]', encoding="utf-8")
    config = PreprocessConfig(source=str(path), columns={"source": "b.document"})
    ((row,),) = read(corpus_source(str(path), get_task("summarization").columns, config))
    assert row.values is not None and row.values["source"] == "나"
    with pytest.raises(UserError, match="without source; its keys"):
        rows_of(tmp_path, path.read_text(encoding="utf-8"))


def test_missing_parts_take_no_neighbour_along(tmp_path: Path) -> None:
    lines = [
        {"article_original": ["첫 문장.", None, "nan", "셋째 문장."], "abstractive": "요약"},
        {"article_original": None, "abstractive": "요약"},
        {"article_original": ["글."], "abstractive": "None"},
    ]
    rows = rows_of(tmp_path, "".join(json.dumps(line) + "\n" for line in lines), "a.jsonl")
    assert sources(rows) == ["첫 문장.\n셋째 문장.", "", "글."]
    assert rows[2].values is not None and rows[2].values["target"] == ""
    sentences = [[{"sentence": "하나."}, {"sentence": None}, None], [{"sentence": "둘."}]]
    value = {"documents": [{"id": 1, "text": sentences, "abstractive": ["요약."]}]}
    assert sources(rows_of(tmp_path, json.dumps(value))) == ["하나.\n둘."]


def test_columns_whose_rows_have_other_names_are_rejected(tmp_path: Path) -> None:
    value = {"document": {"0": "가", "1": "나"}, "summary": {"0": "a", "2": "b"}}
    rows = rows_of(tmp_path, json.dumps(value))
    assert [row.values is None for row in rows] == [False, True]
    assert rows[1].number == 2 and "1" in rows[1].shown() and "2" in rows[1].shown()


def test_an_empty_first_record_takes_no_other_along(tmp_path: Path) -> None:
    """Of AI-Hub's documents: it has the keys of the others, but nothing that shows their layout."""
    texts: list[list[Any]] = [[], [[]], [[{"sentence": "글."}]], [], [[{"sentence": "둘."}]]]
    records = [{"id": str(n), "text": text, "abstractive": ["요약."]} for n, text in enumerate(texts)]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    for content, name in ((lines, "a.jsonl"), (json.dumps({"documents": records}), "a.json")):
        rows = rows_of(tmp_path, content, name, task="language_modeling")
        assert len(rows) == 5
        assert [row.values["text"] for row in rows if row.values and row.values["text"]] == ["글.", "둘."]


def test_a_record_of_another_form_takes_no_other_along(tmp_path: Path) -> None:
    records = [{"text": [["kein Satz"]]}, {"text": [[{"sentence": "글."}]]}, {"text": [[{"sentence": "둘."}]]}]
    rows = rows_of(tmp_path, "".join(json.dumps(r) + "\n" for r in records), "a.jsonl", task="language_modeling")
    assert [row.values and row.values["text"] for row in rows] == [None, "글.", "둘."]
