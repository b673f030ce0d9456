"""Small inputs that went wrong once, each with its right outcome."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hanflow.cli.main import main
from hanflow.data.readers import raw_files, read, read_texts
from hanflow.data.schema import corpus_source
from hanflow.errors import UserError
from hanflow.experiment import step_config
from hanflow.steps.preprocess import run as preprocess
from hanflow.steps.score import text_file
from hanflow.storage.artifacts import read_manifest
from hanflow.tasks import get_task

FILES = Path(__file__).parent / "files"

SUMMARIZATION, CLASSIFICATION, LANGUAGE = "summarization", "classification", "language_modeling"


def rows(path: Path, task: str, **settings: Any) -> tuple[list[dict[str, str]], list[tuple[int, str]]]:
    """(rows given, rows rejected: line and reason)."""
    given, rejected = [], []
    for file in raw_files(str(path)):
        config = step_config("preprocess", {"source": file, **settings}, task)
        for batch in read(corpus_source(file, get_task(task).columns, config)):
            for row in batch:
                if row.values is None:
                    rejected.append((row.number, row.reason))
                else:
                    given.append(row.values)
    return given, rejected


def texts(path: Path, column: str | None = None) -> list[str]:
    """What score reads."""
    return [row.texts[0] for row in read_texts(text_file(str(path), "prediction", column, "auto"))]


def corpus(folder: Path, source: Path, task: str = CLASSIFICATION, **settings: Any) -> tuple[dict[str, list], Counter]:
    """(columns of the train split, reasons of rejected rows)."""
    output = folder / "corpus"
    values = {"source": str(source), "validation_ratio": 0, "test_ratio": 0, "drop_short_sources": False, **settings}
    if task != SUMMARIZATION:
        del values["drop_short_sources"]
    preprocess(step_config("preprocess", values, task), task=task, output=str(output))
    reasons = Counter(pq.read_table(output / "rejected.parquet").to_pydict()["reason"])
    return pq.read_table(output / "train.parquet").to_pydict(), reasons


# Rows


def test_stray_quotes_stay_characters() -> None:
    wanted = ['"그 말은 맞다', "다음 줄은 따로다", '끝에 따옴표"']
    assert texts(FILES / "stray-quote.tsv", "document") == wanted
    assert [row["text"] for row in rows(FILES / "stray-quote.tsv", LANGUAGE)[0]] == wanted


def test_quotes_of_every_kind() -> None:
    given, rejected = rows(FILES / "02-rows" / "quotes.tsv", LANGUAGE)
    assert [row["id"] for row in given] == [*"12345678"] and not rejected
    assert given[1]["text"] == '"배우들이 정말 좋았어요'
    assert given[5]["text"] == '"인용은 바르게" 된 줄'
    assert given[6]["text"] == "두 줄로\n쓴 글"
    assert texts(FILES / "02-rows" / "quotes.tsv", "document") == [row["text"] for row in given]
    assert len(rows(FILES / "02-rows" / "one_column.tsv", LANGUAGE)[0]) == 4


@pytest.mark.parametrize(
    ("name", "task", "count", "line"),
    [
        ("header-twice.tsv", CLASSIFICATION, 2, 3),
        ("02-rows/two_headers.tsv", CLASSIFICATION, 4, 4),
        ("02-rows/two_headers.csv", SUMMARIZATION, 2, 3),
    ],
)
def test_a_repeated_header_is_no_row(
    name: str, task: str, count: int, line: int, caplog: pytest.LogCaptureFixture
) -> None:
    given, rejected = rows(FILES / name, task)
    assert (len(given), rejected) == (count, [(line, "repeats the header")])
    assert len(texts(FILES / name, "document")) == count
    assert f"line {line} repeats the header; it is passed over" in caplog.text


def test_missing_values(tmp_path: Path) -> None:
    given, reasons = corpus(tmp_path, FILES / "02-rows" / "missing.csv")
    assert given["id"] == ["1", "7", "8"] and given["text"][2] == "none"
    assert reasons == {"the text is empty": 5, "the label is empty": 1}


def test_the_words_for_missing_values_are_a_setting(tmp_path: Path) -> None:
    given, reasons = corpus(tmp_path, FILES / "02-rows" / "missing.csv", missing=[])
    assert len(given["id"]) == 8 and reasons == {"the text is empty": 1}


@pytest.mark.parametrize(
    ("name", "count", "reasons"),
    [
        ("02-rows/missing.jsonl", 2, {"the text is empty": 3, "the label is empty": 1}),
        ("nulls.jsonl", 1, {"the text is empty": 1, "the label is empty": 1}),
    ],
)
def test_missing_values_of_json(tmp_path: Path, name: str, count: int, reasons: dict[str, int]) -> None:
    given, found = corpus(tmp_path, FILES / name)
    assert (len(given["text"]), found) == (count, reasons)


def test_a_turn_without_words_is_left_out() -> None:
    ((row,), rejected) = rows(FILES / "dialogue-null.json", SUMMARIZATION)
    assert row["source"] == "#Person1#: 점심 먹었어?\n#Person2#: 아직이야" and not rejected


def test_a_folder_says_what_it_passes_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    given, _ = corpus(tmp_path, FILES / "02-rows" / "folder", LANGUAGE)
    assert len(given["text"]) == 4
    assert "1 files to read; passed over: LICENSE.txt, SOURCE.txt, dataset_infos.json, requirements.txt" in caplog.text
    assert len(rows(FILES / "02-rows" / "folder" / "requirements.txt", LANGUAGE)[0]) == 2


@pytest.mark.parametrize(("name", "mark"), [("semicolon.csv", ";"), ("02-rows/pipe.csv", "|")])
def test_another_delimiter_is_named(name: str, mark: str, tmp_path: Path) -> None:
    for reader in (lambda path: rows(path, LANGUAGE), texts):
        with pytest.raises(UserError, match=rf"seem to be separated by '\{mark}': put the line sep=\{mark} before"):
            reader(FILES / name)
    cured = tmp_path / "cured.csv"
    cured.write_text(f"sep={mark}\n" + (FILES / name).read_text(encoding="utf-8"), encoding="utf-8")
    column = "prediction" if mark == ";" else "본문"
    assert len(texts(cured, column)) == len(rows(cured, LANGUAGE, columns={"text": column})[0]) == 2


def test_the_only_column_is_told(caplog: pytest.LogCaptureFixture) -> None:
    assert len(rows(FILES / "02-rows" / "sole.csv", LANGUAGE)[0]) == 2
    assert "its only column, '내용', is taken for text" in caplog.text


def test_names_of_columns_without_case() -> None:
    path = FILES / "02-rows" / "case.csv"
    assert texts(path, "body text") == ["글 하나", "글 둘"]
    assert [row["text"] for row in rows(path, LANGUAGE, columns={"text": "body text"})[0]] == ["글 하나", "글 둘"]


@pytest.mark.parametrize("name", ["cr-only.csv", "sep-line.csv"])
def test_line_ends_and_lines_of_other_programs(name: str) -> None:
    given, rejected = rows(FILES / name, CLASSIFICATION)
    assert [row["text"] for row in given] == ["좋다", "나쁘다"][: len(given)] and given and not rejected
    assert texts(FILES / name, "document") == [row["text"] for row in given]


def score(capsys: pytest.CaptureFixture[str], predictions: Path, references: Path) -> tuple[int, str, str]:
    options = ["--predictions", str(predictions), "--references", str(references), "--tokenization", "word", "--json"]
    status = main(["score", *options])
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.mark.parametrize(
    ("predictions", "references"),
    [
        ("ids-predictions.csv", "ids-references.csv"),
        ("02-rows/ids_shuffled.csv", "02-rows/ids_gold.csv"),
        ("02-rows/ids_double.csv", "02-rows/ids_double.csv"),
    ],
)
def test_rows_are_joined_by_id(
    predictions: str, references: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    status, out, err = score(capsys, FILES / predictions, FILES / references)
    assert status == 0, err
    found = json.loads(out)["scores"]
    assert [found[f"{name}_word"] for name in ("rouge1", "rouge2", "rougeL", "rougeLsum")] == [1.0] * 4
    assert ("joined by id" in caplog.text) == (predictions != references)


@pytest.mark.parametrize(("name", "named"), [("ids_foreign", ["'d4'", "'b2'"]), ("ids_double", ["'a1'", "'b2'"])])
def test_ids_that_do_not_fit_are_refused(name: str, named: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = score(capsys, FILES / "02-rows" / f"{name}.csv", FILES / "02-rows" / "ids_gold.csv")
    assert (status, out) == (1, "")
    assert all(id in err for id in named) and "cannot be joined by their ids" in err


# Labels


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("labels-bool.csv", {"true": 2, "false": 2}),
        ("labels-nfd.tsv", {"긍정": 2, "부정": 2}),
        ("03-labels/bom_inside.csv", {"0": 2, "1": 2}),
        ("03-labels/spellings.jsonl", {"0": 4, "1.5": 2, "true": 3, "01": 1, "v1.0": 1, "아주 좋음": 2}),
    ],
)
def test_spellings_of_labels(tmp_path: Path, name: str, labels: dict[str, int]) -> None:
    assert Counter(corpus(tmp_path, FILES / name)[0]["label"]) == labels


@pytest.mark.parametrize(
    ("train", "test"),
    [("labels-float-train.csv", "labels-int-test.csv"), ("03-labels/train_float.csv", "03-labels/test_int.csv")],
)
def test_numbers_are_one_label_by_value(tmp_path: Path, train: str, test: str) -> None:
    given, _ = corpus(tmp_path, FILES / train, test_source=str(FILES / test))
    assert set(given["label"]) == {"0", "1"}
    assert set(pq.read_table(tmp_path / "corpus" / "test.parquet").to_pydict()["label"]) == {"0", "1"}
    assert read_manifest(tmp_path / "corpus", "corpus").details["unknown"] == {}


def test_unknown_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train, labels = FILES / "03-labels" / "train_float.csv", FILES / "03-labels"
    corpus(tmp_path, train, test_source=str(labels / "test_unknown.csv"))
    assert "the test split has 1 of 3 rows with a label that the train split lacks: 중립 (1)" in caplog.text
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"test: pos \(1\), neg \(1\); train: 1 \(4\), 0 \(4\)"):
        corpus(tmp_path / "other", train, test_source=str(labels / "test_foreign.csv"))


# Corpora


@pytest.mark.parametrize("ending", ["tsv", "txt"])
def test_a_table_without_a_header(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"headerless.{ending}"
    path.write_bytes((FILES / "13-corpora" / "headerless.tsv").read_bytes())
    given, _ = corpus(tmp_path, path, columns={"label": 1, "text": 2})
    assert Counter(given["label"]) == {"좋음": 2, "나쁨": 2}
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r'its first line looks like a row.*number.*\{"label": 1, "text": 2\}'):
        corpus(tmp_path / "other", path)


CORPORA = {
    "records.json": [
        ("주민 센터가 여름 교실의 수강생을 모으기 시작했다고 알렸다.", "여름 교실 모집"),
        ("공원의 분수는 다음 달 첫째 주부터 다시 켜진다고 한다.", "분수 재가동"),
    ],
    "tree": [
        ("강 옆의 오래된 다리를 올해 안에 고치기로 했다.", "다리 보수"),
        ("시장 안의 빈 가게를 작은 전시관으로 바꾼다.", "시장 전시관"),
    ],
    "report.json": [("올해 쌀 수확은 지난해보다 조금 늘 것으로 보인다.", "쌀 수확 증가")],
    "paper.json": [("이 글은 물의 온도와 소리의 관계를 살펴본 것이다.", "물의 온도와 소리")],
    "sentences.jsonl": [("동네 빵집이 문을 다시 열었다.\n아침마다 줄이 길다.", "빵집이 다시 문을 열었다.")],
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", CORPORA)
def test_layouts(tmp_path: Path, name: str, packed: bool) -> None:
    path = FILES / "13-corpora" / name
    if packed:
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(path.rglob("*.json")) or [path]:
                archive.write(file, f"말뭉치/{file.name}")
        path = tmp_path / "a.zip"
    given, reasons = corpus(tmp_path, path, SUMMARIZATION)
    assert list(zip(given["source"], given["target"], strict=True)) == CORPORA[name] and not reasons


def test_another_summary_of_a_report(tmp_path: Path) -> None:
    columns = {"target": "summary2"}
    assert corpus(tmp_path, FILES / "13-corpora" / "report.json", SUMMARIZATION, columns=columns)[0]["target"] == [
        "수확 늘어"
    ]
    with pytest.raises(UserError, match="the summary is empty"):
        corpus(tmp_path / "null", FILES / "13-corpora" / "report.json", SUMMARIZATION, columns={"target": "summary3"})


def test_a_document_of_nikl_is_one_text_a_paragraph_a_line(tmp_path: Path) -> None:
    given, _ = corpus(tmp_path, FILES / "13-corpora" / "written.json", LANGUAGE)
    assert given["text"] == ["첫 문단의 글이다.\n둘째 문단의 글이다."] and given["id"] == ["N1.1"]


@pytest.mark.parametrize("place", ["", "train", "train/data-00000-of-00001.arrow"])
def test_what_datasets_saves(tmp_path: Path, place: str) -> None:
    table = pa.table({"document": [f"긴 본문이 여기 있습니다 {i}" for i in range(3)], "summary": ["하나", "둘", "셋"]})
    part = tmp_path / "saved" / "train"
    part.mkdir(parents=True)
    with (
        pa.OSFile(str(part / "data-00000-of-00001.arrow"), "wb") as out,
        pa.ipc.new_stream(out, table.schema) as writer,
    ):
        writer.write_table(table)
    (part / "dataset_info.json").write_text('{"features": {}}')
    (part / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert corpus(tmp_path, tmp_path / "saved" / place, SUMMARIZATION)[0]["target"] == ["하나", "둘", "셋"]


def test_an_unknown_layout_is_told_by_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"이름": "x", "목록": [{"본문": "가", "요지": "나"}]}, ensure_ascii=False))
    with pytest.raises(UserError, match=r"its keys: 이름, 목록; in 목록.item: 본문, 요지;"):
        rows(path, SUMMARIZATION)
    columns = {"source": "본문", "target": "요지"}
    assert rows(path, SUMMARIZATION, columns=columns)[0][0]["source"] == "가"
