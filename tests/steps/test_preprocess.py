"""The preprocess step as people run it: real files in, a corpus or a clear message out."""

from __future__ import annotations

import gzip
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hanflow.data.ingest import TEST, TRAIN, VALIDATION, Intake
from hanflow.errors import UserError
from hanflow.reports.step_report import Report
from hanflow.steps.preprocess import assign, run
from hanflow.storage.artifacts import SPLITS, file_sha256, read_manifest
from hanflow.tasks.summarization import SummarizationPreprocess
from tests.support.disks import small_disk

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "pipelines" / "sample_data" / "petitions.tsv.gz"


def preprocess(source: Path | str, output: Path, **settings: Any) -> Report:
    return run(SummarizationPreprocess(source=str(source), **settings), task="summarization", output=str(output))


def table(output: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(output / f"{name}.parquet").to_pylist()


def sources(output: Path, name: str) -> list[str]:
    return [row["source"] for row in table(output, name)]


def tsv(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("news\tsummary\n" + "".join(f"{news}\t{summary}\n" for news, summary in rows))
    return path


def numbered(start: int, stop: int) -> list[tuple[str, str]]:
    return [(f"기사 본문 번호 {n}", f"요약 {n}") for n in range(start, stop)]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hanflow.steps.preprocess", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "LC_ALL": "C"},
    )


def test_the_sample_becomes_a_corpus(tmp_path: Path) -> None:
    output = tmp_path / "corpus"
    done = command("--source", str(SAMPLE), "--output", str(output))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "rejected 3 of 1,000 rows" in done.stderr
    manifest = read_manifest(output, "corpus", task="summarization")
    assert manifest.counts["rows"] == {"train": 896, "validation": 50, "test": 51}
    assert manifest.counts["read"] == 1000 and manifest.counts["rejected"] == 3
    assert manifest.counts["reasons"] == {"the row is a duplicate of an earlier one": 3}
    assert set(manifest.details["lengths"]) == {"source", "target"}
    assert manifest.details["sources"] == [
        {"split": "train", "file": str(SAMPLE), "bytes": SAMPLE.stat().st_size, "sha256": file_sha256(SAMPLE)}
    ]
    assert set(manifest.files) == {*(f"{name}.parquet" for name in (*SPLITS, "rejected")), "report.html"}
    for name in SPLITS:
        schema = pq.read_schema(output / f"{name}.parquet")
        assert schema.names == ["source", "target", "id", "topic"] and set(schema.types) == {pa.string()}
    rejected = pq.read_table(output / "rejected.parquet")
    assert rejected.schema.names == ["file", "row", "reason", "raw"] and rejected.schema.field("row").type == pa.int64()
    with gzip.open(SAMPLE, "rt", encoding="utf-8", newline="\n") as stream:
        lines = stream.read().split("\n")
    for row in rejected.to_pylist():
        assert row["raw"] == lines[row["row"] - 1][:10_000]
    page = (output / "report.html").read_text()
    assert "<svg" in page and "the row is a duplicate of an earlier one" in page and "speaker_format" in page


def test_same_input_and_settings_same_bytes(tmp_path: Path) -> None:
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    preprocess(SAMPLE, first)
    preprocess(SAMPLE, again)
    preprocess(SAMPLE, other, seed=43)
    digest = read_manifest(first, "corpus").digest
    assert read_manifest(again, "corpus").digest == digest
    assert sources(other, "test") != sources(first, "test")


# The split


@settings(deadline=None)  # a busy machine is no failure
@given(
    st.lists(st.integers(0, 30), min_size=3, max_size=60),
    st.floats(0.01, 0.49),
    st.floats(0.01, 0.49),
    st.randoms(use_true_random=False),
)
def test_every_text_goes_to_one_split_whatever_the_order(
    texts: list[int], test: float, validation: float, shuffler: random.Random
) -> None:
    digests = np.array(texts, np.uint64) * np.uint64(2**58)
    distinct = len(set(texts))
    ratios = {TEST: test, VALIDATION: validation}
    given_split = np.full(len(texts), TRAIN, np.int8)
    if distinct < 3:
        with pytest.raises(UserError, match=f"{distinct} distinct source text"):
            assign(given_split, digests, ratios, "source")
        return
    parts = assign(given_split, digests, ratios, "source")
    split_of = dict(zip(texts, parts.tolist(), strict=True))
    assert [split_of[text] for text in texts] == parts.tolist()
    count = {split: list(split_of.values()).count(split) for split in (TRAIN, VALIDATION, TEST)}
    assert all(count.values())
    if round(test * distinct) + max(round(validation * distinct), 1) < distinct:
        assert count[TEST] == max(round(test * distinct), 1)
        assert count[VALIDATION] == max(round(validation * distinct), 1)
    order = list(range(len(texts)))
    shuffler.shuffle(order)
    assert assign(given_split, digests[order], ratios, "source").tolist() == parts[order].tolist()


def test_the_split_is_exact_and_rows_keep_their_order(tmp_path: Path) -> None:
    rows = numbered(0, 200) + [(f"기사 본문 번호 {n}", f"다른 요약 {n}") for n in range(200)]
    report = preprocess(tsv(tmp_path / "a.tsv", rows), tmp_path / "a", test_ratio=0.1, validation_ratio=0.05)
    assert report.figures == {"rows": 400, "train": 340, "validation": 20, "test": 40, "rejected": 0}
    found = {name: table(tmp_path / "a", name) for name in SPLITS}
    for part in found.values():
        assert [(row["source"], row["target"]) for row in part] == [
            row for row in rows if row[0] in {kept["source"] for kept in part}
        ]
    texts = {name: {row["source"] for row in part} for name, part in found.items()}
    assert not texts["train"] & texts["test"] and not texts["train"] & texts["validation"]
    assert not texts["validation"] & texts["test"]
    random.Random(1).shuffle(rows)
    (tmp_path / "parts").mkdir()
    tsv(tmp_path / "parts" / "x.tsv", rows[:150])
    tsv(tmp_path / "parts" / "b.tsv", rows[150:])
    preprocess(tmp_path / "parts", tmp_path / "b", test_ratio=0.1, validation_ratio=0.05)
    assert {name: set(sources(tmp_path / "b", name)) for name in SPLITS} == texts


def test_given_splits_never_leak(tmp_path: Path) -> None:
    train = tsv(tmp_path / "train.tsv", [("글 하나", "가"), *numbered(0, 10)])
    validation = tsv(tmp_path / "validation.tsv", [*numbered(8, 12), ("글 둘 둘", "나")])
    test = tsv(tmp_path / "test.tsv", [*numbered(10, 13), *numbered(12, 13), ("글  하나", "다")])
    output = tmp_path / "corpus"
    preprocess(train, output, validation_source=str(validation), test_source=str(test))
    assert sources(output, "test") == ["기사 본문 번호 10", "기사 본문 번호 11", "기사 본문 번호 12", "글 하나"]
    assert sources(output, "validation") == ["기사 본문 번호 8", "기사 본문 번호 9", "글 둘 둘"]
    assert sources(output, "train") == [f"기사 본문 번호 {n}" for n in range(8)]
    rejected = {(Path(row["file"]).name, row["row"]): row["reason"] for row in table(output, "rejected")}
    assert rejected == {
        ("test.tsv", 5): "the row is a duplicate of an earlier one",
        ("validation.tsv", 4): "the text is also in the test split",
        ("validation.tsv", 5): "the text is also in the test split",
        ("train.tsv", 2): "the text is also in the test split",
        ("train.tsv", 11): "the text is also in the validation split",
        ("train.tsv", 12): "the text is also in the validation split",
    }


def test_a_ratio_of_zero_makes_an_empty_file(tmp_path: Path) -> None:
    output = tmp_path / "corpus"
    preprocess(tsv(tmp_path / "a.tsv", numbered(0, 1)), output, validation_ratio=0, test_ratio=0)
    empty = pq.read_table(output / "test.parquet")
    assert empty.num_rows == 0 and empty.schema == pq.read_schema(output / "train.parquet")


def test_settings_reach_the_rows(tmp_path: Path) -> None:
    rows = [
        ("<b>가나다라마</b>ㅋㅋㅋㅋ", "요<br>약"),
        ("가나다라마ㅋㅋ", "요\\n약"),
        ("가나", "다"),
        ("짧다", "짧지 않다"),
    ]
    path = tsv(tmp_path / "a.tsv", [*rows, rows[0]])
    kept = tmp_path / "kept"
    preprocess(path, kept, deduplicate=False, validation_ratio=0, test_ratio=0, max_repeats=2, min_source_chars=3)
    assert [(row["source"], row["target"]) for row in table(kept, "train")] == [
        ("가나다라마ㅋㅋ", "요\n약"),
        ("가나다라마ㅋㅋ", "요\\n약"),
        ("가나다라마ㅋㅋ", "요\n약"),
    ]
    reasons = read_manifest(kept, "corpus").counts["reasons"]
    assert reasons == {"the source text has N characters, fewer than N": 2}
    limited = tmp_path / "limited"
    report = preprocess(path, limited, validation_ratio=0, test_ratio=0, limit_rows=3)
    assert report.figures["rows"] == 3 and report.figures["rejected"] == 0


def test_mixed_folders_and_hostile_rows(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    tsv(raw / "a.tsv", numbered(0, 5))
    (raw / "b.csv.gz").write_bytes(gzip.compress("summary,news\n요약,\x00기사 본문\ufeff\n요약,\n".encode()))
    (raw / "c.jsonl").write_bytes(
        b'{"news": "\xff", "summary": "x"}\n{"news": "\\ud800\xea\xb8\xb0\xec\x82\xac", "summary": "y"}'
    )
    pq.write_table(pa.table({"news": ["파케이 본문"], "summary": ["요약"]}), raw / "d.parquet")
    (raw / ".hidden.csv").write_text("x")
    (raw / "notes.md").write_text("x")
    output = tmp_path / "corpus"
    preprocess(raw, output, validation_ratio=0, test_ratio=0)
    assert sources(output, "train")[5:] == ["기사 본문", "기사", "파케이 본문"]
    reasons = read_manifest(output, "corpus").counts["reasons"]
    assert reasons == {"the source text is empty": 1, "not valid UTF-8 (byte N of the row)": 1}
    rejected = table(output, "rejected")
    assert [(Path(row["file"]).name, row["row"], row["reason"]) for row in rejected] == [
        ("b.csv.gz", 3, "the source text is empty"),
        ("c.jsonl", 1, "not valid UTF-8 (byte 11 of the row)"),
    ]


# What goes wrong


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        (["--source", "{dir}/none.tsv"], "none.tsv: no such file or folder"),
        (["--source", "{dir}/a.xlsx"], "a.xlsx: no reader for files of this ending"),
        (["--source", "{dir}/a.tsv", "--columns", '{"target": "요지"}'], "preprocess.columns names '요지'"),
        (["--source", "{dir}/a.tsv", "--task", "summarisation"], "did you mean summarization"),
    ],
)
def test_the_command_line_reports_what_is_wrong(tmp_path: Path, arguments: list[str], reported: str) -> None:
    tsv(tmp_path / "a.tsv", numbered(0, 50))
    (tmp_path / "a.xlsx").write_text("x")
    done = command(
        *(text.replace("{dir}", str(tmp_path)) for text in arguments), "--output", str(tmp_path / "out" / "c")
    )
    assert done.returncode == 1
    assert reported in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "c").exists()


def test_nothing_usable(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(UserError, match=r"a.tsv: no rows, only headers"):
        preprocess(tsv(tmp_path / "a.tsv", []), output)
    with pytest.raises(UserError) as caught:
        preprocess(tsv(tmp_path / "b.tsv", [("짧다", "짧지 않다"), ("글", "")]), output)
    message = str(caught.value)
    assert "all 2 rows were rejected" in message and "1 × the summary is empty" in message
    assert f"the first: {tmp_path}/b.tsv:2: the source text is no longer than its summary" in message
    assert "preprocess.columns" in message and "preprocess.drop_short_sources" in message
    with pytest.raises(UserError, match=r"b\.tsv: no usable row to train on"):
        preprocess(tmp_path / "b.tsv", output, test_source=str(tsv(tmp_path / "c.tsv", numbered(0, 3))))
    with pytest.raises(
        UserError, match="2 distinct source texts cannot fill test and validation and train, at least 3"
    ):
        preprocess(tsv(tmp_path / "d.tsv", numbered(0, 2)), output)
    with pytest.raises(UserError, match=r"is 1\.1: nothing is left"):
        preprocess(tmp_path / "d.tsv", output, test_ratio=0.6, validation_ratio=0.5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tsv", "b.tsv", "c.tsv", "d.tsv"]


def test_an_existing_corpus_is_left_alone(tmp_path: Path) -> None:
    output = tmp_path / "corpus"
    output.mkdir()
    (output / "precious").write_text("x")
    with pytest.raises(UserError, match="already exists and is not empty"):
        preprocess(SAMPLE, output)
    assert [p.name for p in tmp_path.iterdir()] == ["corpus"] and (output / "precious").read_text() == "x"


@pytest.mark.parametrize("moment", ["_take", "_flush_rejected", "refuse_nothing"])
def test_an_interrupt_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    proceed = getattr(Intake, moment)

    def interrupted(*given: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return proceed(*given)

    monkeypatch.setattr(Intake, moment, interrupted)
    with pytest.raises(KeyboardInterrupt):
        preprocess(SAMPLE, tmp_path / "corpus")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    preprocess(SAMPLE, tmp_path / "whole")
    size = sum(path.stat().st_size for path in (tmp_path / "whole").iterdir())
    for number, share in enumerate((0.0, 0.3, 0.6, 0.9)):
        with small_disk(tmp_path / f"disk-{number}", max(int(size * share), 1 << 13)):
            with pytest.raises(UserError, match="(?i)no space|disk is full|is full"):
                preprocess(SAMPLE, tmp_path / f"disk-{number}" / "corpus")
            assert list((tmp_path / f"disk-{number}").iterdir()) == []


def test_a_damaged_file_leaves_nothing(tmp_path: Path) -> None:
    damaged = tmp_path / "a.tsv.gz"
    damaged.write_bytes(SAMPLE.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"a\.tsv\.gz: is cut short or damaged"):
        preprocess(damaged, tmp_path / "corpus")
    assert list(tmp_path.iterdir()) == [damaged]


def test_it_runs_in_kubeflow(tmp_path: Path) -> None:
    script = (
        "from kfp import local\n"
        "from components.preprocess.component import preprocess\n"
        f"local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root={str(tmp_path / 'root')!r})\n"
        f"task = preprocess(task='summarization', settings={{'source': {str(SAMPLE)!r}}})\n"
        "assert task.outputs['metrics'].metadata['train'] == 896, task.outputs['metrics'].metadata\n"
        "print('corpus at', task.outputs['Output'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    output = Path(done.stdout.rpartition("corpus at ")[2].strip())
    assert read_manifest(output, "corpus", task="summarization").counts["read"] == 1000
    assert (output.parent / "report").read_text().startswith("<!")
