"""`hanflow score`: anyone's predictions, in anyone's files; a wrong pairing of rows would be a wrong score."""

from __future__ import annotations

import csv
import gzip
import json
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hanflow.cli import use
from hanflow.cli.main import main
from hanflow.config.steps import MISSING
from hanflow.data.readers import read_texts, text_source
from hanflow.metrics import rouge
from hanflow.steps import score as compare
from hanflow.text import scoring_tokens as tokenizations
from tests.support import nasty
from tests.support.pipes import pipe_in

PREDICTIONS = ["정부는 청원에 답변했다", "ㅋㅋㅋ", "", "국민 청원"]
REFERENCES = ["정부가 청원에 답변했다", "ㅋㅋ 좋아요", "답하라", "국민 청원"]


def run(capsys: pytest.CaptureFixture[str], *options: str | Path) -> tuple[int, str, str]:
    status = main(["score", *map(str, options)])
    said = capsys.readouterr()
    return status, said.out, said.err


def scored(capsys: pytest.CaptureFixture[str], *options: str | Path) -> dict:
    status, out, err = run(capsys, *options, "--json")
    assert status == 0, err
    return json.loads(out)


def failed(capsys: pytest.CaptureFixture[str], *options: str | Path) -> str:
    status, out, err = run(capsys, *options)
    assert status == 1
    assert out == ""
    assert err.startswith("error: ")
    return err


def texts_of(path: Path, encoding: str = "auto") -> list[list[str]]:
    return [row.texts for row in read_texts(text_source(str(path), encoding=encoding))]


def write_csv(path: Path, texts: Sequence[str], column: str = "prediction", delimiter: str = ",") -> Path:
    with path.open("w", encoding="utf-8", errors="replace", newline="") as stream:
        writer = csv.writer(stream, delimiter=delimiter)
        writer.writerow(["id", column])
        writer.writerows([number, text] for number, text in enumerate(texts))
    return path


def write_jsonl(path: Path, texts: Sequence[str | Sequence[str]], column: str = "prediction") -> Path:
    path.write_text("".join(json.dumps({"id": number, column: text}) + "\n" for number, text in enumerate(texts)))
    return path


def write_lines(path: Path, texts: Sequence[str], encoding: str = "utf-8") -> Path:
    path.write_text("".join(f"{text}\n" for text in texts), encoding=encoding)
    return path


@pytest.fixture
def lines(tmp_path: Path) -> tuple[str, Path, str, Path]:
    predictions = write_lines(tmp_path / "predictions.txt", PREDICTIONS)
    return "--predictions", predictions, "--references", write_lines(tmp_path / "references.txt", REFERENCES)


def test_scores_are_rouge_s(capsys: pytest.CaptureFixture[str], lines: tuple[str, Path, str, Path]) -> None:
    found = scored(capsys, *lines)
    expected = rouge.score_rows(PREDICTIONS, REFERENCES)
    assert found["scores"] == pytest.approx({name: values.mean() for name, values in expected.items()}, abs=1e-12)
    assert found["rows"] == 4
    assert found["empty_predictions"] == 1
    assert found["references_per_row"] == [1, 1]
    assert found["tokenizations"] == ["morpheme"]
    assert found["confidence"] == {"level": 0.95, "method": "percentile bootstrap", "resamples": 1000, "seed": 0}
    for name, (low, high) in found["intervals"].items():
        assert low <= found["scores"][name] <= high
    assert any(low < high for low, high in found["intervals"].values())


def test_the_table_names_the_tokenization_of_every_score(
    capsys: pytest.CaptureFixture[str], lines: tuple[str, Path, str, Path]
) -> None:
    status, out, err = run(capsys, *lines, "--tokenization", "word", "character", "--tokenization", "dacon")
    assert (status, err) == (0, "")
    # By words: 청원에 답변했다 of 3, nothing, nothing, all: (2/3 + 0 + 0 + 1) / 4.
    (row,) = [line.split() for line in out.splitlines() if line.startswith("rouge1_word ")]
    assert row[1] == "0.4167"
    assert row[3:] == ["0.4167", "0.4167"]
    for variant in rouge.VARIANTS:
        for name in ("word", "character", "dacon"):
            assert f"{variant}_{name} " in out
    assert "4 rows" in out
    assert "1 predictions are empty and score 0" in out
    assert max(map(len, out.splitlines())) <= 80


def test_predictions_come_from_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    references = write_lines(tmp_path / "r.txt", REFERENCES)
    pipe_in(monkeypatch, "\n".join(REFERENCES).encode())
    found = scored(capsys, "--predictions", "-", "--references", references, "--tokenization", "word")
    assert (found["rows"], found["scores"]["rouge1_word"]) == (4, 1.0)


def test_no_intervals(capsys: pytest.CaptureFixture[str], lines: tuple[str, Path, str, Path]) -> None:
    assert "intervals" not in scored(capsys, *lines, "--confidence", "0")
    assert "interval" not in run(capsys, *lines, "--confidence", "0")[1]
    wide, narrow = (scored(capsys, *lines, "--confidence", level)["intervals"] for level in ("0.99", "0.5"))
    assert wide["rouge1_morpheme"][0] < narrow["rouge1_morpheme"][0]


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("kind", ["txt", "csv", "tsv", "jsonl"])
def test_every_format_holds_the_same_texts(tmp_path: Path, kind: str, packed: str) -> None:
    texts = ["첫 줄, 쉼표", '따옴표 "안" 밖', '"온통 따옴표"', "", "'인용", "끝\u2028가운데", '"열린 채', "ㅋㅋ"]
    path = tmp_path / f"texts.{kind}"
    if kind == "txt":
        write_lines(path, texts)
    elif kind == "jsonl":
        write_jsonl(path, texts)
    elif kind == "csv":
        write_csv(path, texts)
    else:
        # As most tools write it: nothing is quoted.
        path.write_text("id\tprediction\n" + "".join(f"1\t{text}\n" for text in texts), encoding="utf-8")
        texts[2] = "온통 따옴표"  # reads as a quoted cell
        path.write_text(path.read_text(encoding="utf-8").replace('"열린 채', '열린 채"'), encoding="utf-8")
        texts[6] = '열린 채"'
    if packed:
        path = path.with_name(path.name + packed)
        path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))
    assert texts_of(path) == [[text] for text in texts]


def test_a_tsv_that_quotes_newlines_and_tabs(tmp_path: Path) -> None:
    texts = ["한\t칸", "두\n줄", 'a "b" c', "끝"]
    assert texts_of(write_csv(tmp_path / "t.tsv", texts, delimiter="\t")) == [[text] for text in texts]


def test_windows_files(tmp_path: Path) -> None:
    """Byte-order marks, CP949, UTF-16 and \\r\\n leave no trace in the texts."""
    content = "prediction\r\n국민 청원\r\n답하라\r\n"
    for encoding in ("utf-8-sig", "cp949", "utf-16", "utf-8"):
        for name, skipped in (("a.csv", 1), ("a.txt", 0)):
            (tmp_path / name).write_bytes(content.encode(encoding))
            rows = texts_of(tmp_path / name)
            assert rows == [["prediction"], ["국민 청원"], ["답하라"]][skipped:]
    (tmp_path / "a.csv").write_bytes(content.encode("utf-16-le"))
    assert texts_of(tmp_path / "a.csv", "utf-16-le") == [["국민 청원"], ["답하라"]]


def test_columns_are_named_or_known(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """predictions.csv of the evaluate step needs no option."""
    both = tmp_path / "both.csv"
    with both.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["row", "prompt", "reference", "prediction", "other"])
        writer.writerows(zip(range(4), "abcd", REFERENCES, PREDICTIONS, ["국민"] * 4, strict=True))
    usual = scored(capsys, "--predictions", both, "--references", both)["scores"]
    assert usual["rouge1_morpheme"] == pytest.approx(rouge.f1_rows(PREDICTIONS, REFERENCES)["rouge1_morpheme"].mean())
    named = scored(
        capsys,
        *("--predictions", both, "--references", both),
        *("--prediction-column", "reference", "--reference-column", "prediction"),
    )["scores"]
    assert named["rouge1_morpheme_precision"] == pytest.approx(usual["rouge1_morpheme_recall"], abs=1e-12)
    same = scored(capsys, "--predictions", both, "--references", both, "--column", "other")["scores"]
    assert same["rouge1_morpheme"] == 1.0


def test_a_guarded_formula_is_the_text_that_it_guards(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from hanflow.data.delimited import safe_cell

    texts = [f"{mark}국민 청원" for mark in "=+-@\t\r＝"]
    guarded = write_csv(tmp_path / "p.csv", [safe_cell(text) for text in texts])
    assert texts_of(guarded) == [[text] for text in texts]
    plain = write_jsonl(tmp_path / "r.jsonl", texts, "reference")
    scores = scored(capsys, "--predictions", guarded, "--references", plain, "--tokenization", "character")["scores"]
    assert scores["rougeL_character"] == 1.0
    unquoted = tmp_path / "p.tsv"
    unquoted.write_bytes("".join(f"{cell}\n" for cell in ("prediction", "'\r국민 청원", "'=1+1")).encode())
    assert texts_of(unquoted) == [["\r국민 청원"], ["=1+1"]]


def test_several_references_in_files_and_in_lists(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    predictions = write_lines(tmp_path / "p.txt", ["가 나", "가"])
    first, second = (
        write_lines(tmp_path / "r1.txt", ["가 나 다 라", "가"]),
        write_lines(tmp_path / "r2.txt", ["마", "나"]),
    )
    lists = write_jsonl(tmp_path / "r.jsonl", [["가 나 다 라", "마"], ["가", "나"]], "reference")
    options = ("--predictions", predictions, "--tokenization", "word")
    # F1 2/3 and 0, 1 and 0: means of 1/3 and 1/2, best of 2/3 and 1.
    for references in ([first, second], [first, "--references", second], [lists]):
        found = scored(capsys, *options, "--references", *references)
        assert found["scores"]["rouge1_word"] == pytest.approx(5 / 12, abs=1e-12)
        assert found["scores"]["rouge1_word_best"] == pytest.approx(5 / 6, abs=1e-12)
        assert found["references_per_row"] == [2, 2]
    uneven = write_jsonl(tmp_path / "u.jsonl", [["가 나 다 라", "마"], "가"], "reference")
    found = scored(capsys, *options, "--references", uneven)
    assert found["scores"]["rouge1_word"] == pytest.approx(2 / 3, abs=1e-12)
    assert found["references_per_row"] == [1, 2]
    assert "1 to 2 references" in run(capsys, *options, "--references", uneven)[1]


def test_newlines_end_sentences(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    predictions = write_jsonl(tmp_path / "p.jsonl", ["다 라\n가 나"])
    references = write_csv(tmp_path / "r.csv", ["가 나\n다 라"], "reference")
    found = scored(capsys, "--predictions", predictions, "--references", references, "--tokenization", "word")
    assert found["scores"]["rougeL_word"] == 0.5
    assert found["scores"]["rougeLsum_word"] == 1.0


def test_the_model_s_own_tokenizer(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, lines: tuple[str, Path, str, Path]
) -> None:
    core = Tokenizer(models.WordLevel({"<unk>": 0, "국민": 1, "청원": 2}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=core).save_pretrained(tmp_path / "tokenizer")
    found = scored(capsys, *lines, "--tokenization", "model", "--tokenizer", tmp_path / "tokenizer")
    # Unknown words stand for themselves, so these are words here: 2/3 + 0 + 0 + 1 over 4.
    assert found["scores"]["rouge1_model"] == pytest.approx(5 / 12, abs=1e-12)
    assert found["tokenizer"] == str(tmp_path / "tokenizer")
    assert "--tokenizer" in failed(capsys, *lines, "--tokenization", "model")
    error = failed(capsys, *lines, "--tokenization", "model", "--tokenizer", tmp_path / "nothing")
    assert f"{tmp_path / 'nothing'}: no such folder" in error


def test_rows_are_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, lines: tuple[str, Path, str, Path]
) -> None:
    out = tmp_path / "rows.csv"
    found = scored(capsys, *lines, "--rows", out, "--tokenization", "word")
    with out.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["row"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["rouge1_word"] for row in rows] == ["0.666667", "0.000000", "0.000000", "1.000000"]
    assert list(rows[0]) == ["row", *found["scores"]]
    assert "its folder does not exist" in failed(capsys, *lines, "--rows", tmp_path / "no" / "rows.csv")
    assert "is a folder; give a file in it" in failed(capsys, *lines, "--rows", tmp_path)


@pytest.mark.parametrize("writer", [write_csv, write_jsonl])
def test_nasty_rows(
    writer: Callable[[Path, Sequence[str]], Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """200 rows in, 200 scores out, whatever they hold."""
    rows = nasty.rows()
    predictions = writer(tmp_path / f"p.{'csv' if writer is write_csv else 'jsonl'}", rows)
    references = write_jsonl(tmp_path / "r.jsonl", rows, "reference")
    out = tmp_path / "rows.csv"
    options = ("--predictions", predictions, "--references", references, "--rows", out)
    found = scored(capsys, *options, "--tokenization", "morpheme", "character")
    assert found["rows"] == 200
    with out.open(encoding="utf-8", newline="") as stream:
        scores = [float(row["rougeL_character"]) for row in csv.DictReader(stream)]
    tokens = [row not in MISSING and len(tokenizations.TOKENIZATIONS["character"](row)) > 0 for row in rows]
    # csv cannot carry a lone surrogate, and a text that looks like a guarded formula is taken for one.
    odd = [
        writer is write_csv and (row.startswith("'=") or any("\ud800" <= character <= "\udfff" for character in row))
        for row in rows
    ]
    for value, some, lost in zip(scores, tokens, odd, strict=True):
        assert lost or value == float(some)
    assert sum(odd) < 6


def test_a_pipe_is_read_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`hanflow score --predictions <(my-system) …`."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def scored_from(texts: list[str], *options: str | Path) -> tuple[int, str, str]:
        thread = threading.Thread(target=write_lines, args=(pipe, texts))
        thread.start()
        try:
            return run(capsys, "--predictions", pipe, *options)
        finally:
            thread.join()

    references = write_lines(tmp_path / "r.txt", REFERENCES)
    assert json.loads(scored_from(PREDICTIONS, "--references", references, "--json")[1])["rows"] == 4
    status, _, error = scored_from(PREDICTIONS[:3], "--references", references)
    assert status == 1
    assert f"{pipe} 3, {references} 4" in error


def test_memory_does_not_grow_with_the_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Texts are scored a chunk at a time, and the chunks' scores are put together in order."""
    predictions = write_lines(tmp_path / "p.txt", PREDICTIONS * 5)
    references = write_lines(tmp_path / "r.txt", REFERENCES * 5)
    sizes: list[int] = []
    score_rows = compare.score_rows

    def watched(chunk: list[str], *rest: object, **options: bool) -> dict[str, np.ndarray]:
        sizes.append(len(chunk))
        return score_rows(chunk, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(compare, "score_rows", watched)
    monkeypatch.setattr(compare, "CHUNK_ROWS", 3)
    found = compare.score_files(
        text_source(str(predictions)), [text_source(str(references), usual=["reference"])], ["word"]
    )
    assert sizes == [3] * 6 + [2]
    expected = rouge.score_rows(PREDICTIONS * 5, REFERENCES * 5, "word")
    assert list(found.scores) == list(expected)
    assert all(values.tolist() == expected[name].tolist() for name, values in found.scores.items())


def test_chunks_with_one_reference_join_those_with_several(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    predictions = write_lines(tmp_path / "p.txt", ["가 나", "가", "나"])
    references = write_jsonl(tmp_path / "r.jsonl", ["가 나 다 라", ["마", "가"], "나"], "reference")
    monkeypatch.setattr(compare, "CHUNK_ROWS", 1)
    found = compare.score_files(
        text_source(str(predictions)), [text_source(str(references), usual=["reference"])], ["word"]
    )
    assert found.references == (1, 2)
    assert found.scores["rouge1_word"] == pytest.approx([2 / 3, 1 / 2, 1.0], abs=1e-12)
    assert found.scores["rouge1_word_best"] == pytest.approx([2 / 3, 1.0, 1.0], abs=1e-12)
    assert found.scores["rouge1_word_best_recall"].tolist() == [0.5, 1.0, 1.0]


def test_differing_rows_are_reported_with_both_counts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    predictions = write_lines(tmp_path / "p.txt", ["가"] * 3)
    references = write_lines(tmp_path / "r.txt", ["가"] * 1200)
    error = failed(capsys, "--predictions", predictions, "--references", references)
    assert f"{predictions} 3, {references} 1,200" in error
    assert "one prediction for every reference" in error


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"id,prediction\n", "holds no row"),
        ("a.jsonl", b"\n\n", "holds no row"),
        (
            "a.csv",
            "id,본문,제목\n1,가,나\n".encode(),
            "has no column for prediction (looked for prediction, summary, script, abstractive, target, title); columns found: id, 본문, 제목; name it with --prediction-column",
        ),
        ("a.csv", b"id,prediction\n1,a\n2,b,c\n", "line 3: expected 2 columns, found 3"),
        ("a.tsv", b"id\tprediction\n1\ta\n2\n", "line 3: expected 2 columns, found 1"),
        ("a.csv", b'id,prediction\n1,"a\nb"\n2\n', "line 4: expected 2 columns, found 1"),
        ("a.jsonl", b'{"prediction": "a"}\n{"prediction": }\n', "line 2: not valid JSON"),
        (
            "a.jsonl",
            b'{"prediction": "a"}\n\n{"x": "a"}\n',
            """line 3: the object has no key for prediction: '{"x": "a"}'""",
        ),
        ("a.jsonl", b'{"prediction": {"a": 3}}\n', "line 1: prediction is an object"),
        ("a.jsonl", b'{"prediction": []}\n', "line 1: prediction is an empty list"),
        ("a.jsonl", b'{"prediction": ["a", "b"]}\n', "row 1 has 2 predictions"),
        ("a.jsonl", b'{"x": "a", "y": "b"}\n', "has no column for prediction"),
        ("a.txt", b"\xff\xfe\x00\xd8\n\x00", "line 1: not valid UTF-16"),
        ("a.txt", "가\n".encode() * 20_000 + b"\xff\n", "line 20001: not valid UTF-8"),
        ("a.txt", b"\x80\xff\n", "line 1: not valid UTF-8"),
        ("a.txt.gz", b"no gzip", "is cut short or damaged"),
        ("a.txt.gz", gzip.compress("가나다\n".encode() * 9, mtime=0)[:-9], "is cut short or damaged"),
    ],
)
def test_files_that_cannot_be_scored(
    name: str, content: bytes, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    references = write_lines(tmp_path / "r.txt", ["가"])
    error = failed(capsys, "--predictions", path, "--references", references)
    assert str(path) in error
    assert message in error


def test_missing_things_are_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, lines: tuple[str, Path, str, Path]
) -> None:
    table = write_csv(tmp_path / "t.csv", PREDICTIONS)
    error = failed(capsys, "--predictions", table, *lines[2:], "--prediction-column", "summary")
    assert f"{table}: has no column for prediction (--prediction-column names 'summary'); columns found: id" in error
    assert "--prediction-column" in error
    missing = failed(capsys, "--predictions", tmp_path / "no.txt", *lines[2:])
    assert f"{tmp_path / 'no.txt'}: cannot be read (No such file or directory)" in missing
    assert "cannot be read (Is a directory)" in failed(capsys, "--predictions", tmp_path, *lines[2:])
    assert "'klingon' is no text encoding" in failed(capsys, *lines, "--encoding", "klingon")
    assert "--confidence: 95.0" in failed(capsys, *lines, "--confidence", "95")
    assert "--seed" in failed(capsys, *lines, "--seed", "-1")


def test_the_wrong_encoding_is_reported_and_can_be_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    late = "a\n" * 50_000 + "국민\n"  # beyond what the encoding is told from
    (tmp_path / "p.txt").write_bytes(late.encode("cp949"))
    both = ("--predictions", tmp_path / "p.txt", "--references", tmp_path / "p.txt")
    error = failed(capsys, *both)
    assert "line 50001: not valid UTF-8" in error
    assert "--encoding" in error
    assert scored(capsys, *both, "--encoding", "cp949", "--tokenization", "word")["scores"]["rouge1_word"] == 1.0


def test_the_parser_s_names_are_the_tokenizations() -> None:
    assert sorted(use.TOKENIZATIONS) == sorted(tokenizations.NAMES)
    assert use.TOKENIZATIONS[0] == "morpheme"
    with pytest.raises(SystemExit):
        main(["score", "--predictions", "a", "--references", "b", "--tokenization", "syllable"])
