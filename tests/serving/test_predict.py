"""Predict: one row out for every row in, whatever stands there, and nothing lost when it is killed."""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hanflow.cli import use
from hanflow.cli.main import main
from hanflow.config.steps import MISSING
from hanflow.data import writers as output
from hanflow.data.delimited import safe_cell
from hanflow.data.readers import FORMATS, read_texts, text_source
from hanflow.data.writers import one_line
from hanflow.serving import predict as stream
from hanflow.serving.bundle import answer, open_bundle
from tests.support import nasty
from tests.support.corpora import petitions
from tests.support.forked import Zygote
from tests.support.model_fixtures import EVALUATE, Chain
from tests.support.pipes import pipe_in

ROOT = Path(__file__).parents[2]


def write_json(path: Path, texts: Sequence[str], key: str = "source") -> Path:
    path.write_text("".join(json.dumps({"id": 7 + n, key: text}) + "\n" for n, text in enumerate(texts)))
    return path


def read_json(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def predicted(bundle: Path, source: Path | str, output: Path, *options: str) -> Path:
    assert main(["predict", str(bundle), "--input", str(source), "--output", str(output), *options]) == 0
    assert not list(output.parent.glob("*.partial*")), "what only an interrupted run needs is cleared away"
    return output


def failed(capsys: pytest.CaptureFixture[str], *options: str | Path, status: int = 1) -> str:
    assert main(["predict", *map(str, options)]) == status
    return capsys.readouterr().err.splitlines()[-1]


def test_predictions_are_those_that_were_scored(bundle: Path, scored: tuple[Chain, Path], tmp_path: Path) -> None:
    """From the raw text on: cleaned, encoded and searched as the evaluation did it."""
    texts = pq.read_table(scored[0].corpus / "test.parquet").column("source").to_pylist()
    with (scored[1] / "predictions.csv").open(encoding="utf-8", newline="") as file:
        expected = [row["prediction"] for row in csv.DictReader(file)]
    found = predicted(bundle, write_json(tmp_path / "in.jsonl", texts), tmp_path / "out.csv", "--chunk-rows", "4")
    with found.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["prediction"] for row in rows] == expected
    assert [(row["row"], row["id"]) for row in rows] == [(str(n), str(7 + n)) for n in range(len(texts))]
    assert len(set(expected)) > 1


def test_nasty_rows_come_out_one_by_one_in_every_format(bundle: Path, tmp_path: Path) -> None:
    texts = nasty.rows()
    source = write_json(tmp_path / "in.jsonl", texts)
    texts = ["" if text in MISSING else text for text in texts]  # read as preprocess reads them
    exact = read_json(predicted(bundle, source, tmp_path / "out.jsonl", "--with-input", "--chunk-rows", "64"))
    assert [row["input"] for row in exact] == texts
    expected = [row["prediction"] for row in exact]
    assert not expected[texts.index("")] and not expected[texts.index("\u200b")], "nothing is made up about nothing"
    assert expected[texts.index("🙂")], "an emoji is a text"
    for kind, flat in (("csv", str), ("tsv", one_line)):
        path = predicted(bundle, source, tmp_path / f"out.{kind}", "--with-input", "--chunk-rows", "33")
        found = list(read_texts(text_source(str(path), "prediction")))
        assert [row.texts[0] for row in found] == [flat(text) for text in expected]
        with path.open(encoding="utf-8", newline="") as file:
            cells = [row["input"] for row in csv.DictReader(file, delimiter="\t" if kind == "tsv" else ",")]
        assert cells == [safe_cell(flat(text)).encode("utf-8", "replace").decode() for text in texts]
    lines = predicted(bundle, source, tmp_path / "out.txt").read_text(encoding="utf-8").split("\n")
    assert lines == [*map(one_line, expected), ""]


def test_texts_mean_the_same_in_every_format(bundle: Path, tmp_path: Path) -> None:
    texts = [body for body, _ in petitions(5)]
    expected = [
        row["prediction"]
        for row in read_json(predicted(bundle, write_json(tmp_path / "a.jsonl", texts), tmp_path / "a.out.jsonl"))
    ]
    with gzip.open(tmp_path / "b.txt.gz", "wt", encoding="utf-8") as file:
        file.write("".join(text + "\n" for text in texts))
    with (tmp_path / "c.csv").open("w", encoding="cp949", errors="replace", newline="") as file:
        csv.writer(file).writerows([["제목", "News"], *([n, text] for n, text in enumerate(texts))])
    pq.write_table(pa.table({"id": range(5), "news": texts}), tmp_path / "d.parquet")
    documents = [{"text": [[{"sentence": text}]], "abstractive": [""]} for text in texts]
    (tmp_path / "e.json").write_text(json.dumps({"documents": documents}))
    for name in ("b.txt.gz", "c.csv", "d.parquet", "e.json"):
        out = predicted(bundle, tmp_path / name, tmp_path / f"{name}.tsv.gz", "--chunk-rows", "2")
        assert [row.texts[0] for row in read_texts(text_source(str(out), "prediction"))] == expected


def test_a_folders_files_keep_their_own_rows(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    texts = [body for body, _ in petitions(5)]
    write_json(tmp_path / "in" / "b.jsonl", texts[:3])
    write_json(tmp_path / "in" / "a.jsonl", texts[3:])
    (tmp_path / "in" / "notes.pdf").touch()
    rows = read_json(predicted(bundle, tmp_path / "in", tmp_path / "out.jsonl", "--with-input"))
    assert [(Path(row["file"]).name, row["row"]) for row in rows] == [
        ("a.jsonl", 0), ("a.jsonl", 1), ("b.jsonl", 0), ("b.jsonl", 1), ("b.jsonl", 2)
    ]  # fmt: skip
    assert [row["input"] for row in rows] == texts[3:] + texts[:3]
    assert rows == read_json(
        predicted(bundle, str(tmp_path / "in" / "*.jsonl"), tmp_path / "out2.jsonl", "--with-input")
    )


def test_a_pipe_goes_through(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [body for body, _ in petitions(3)]
    expected = [
        row["prediction"]
        for row in read_json(predicted(bundle, write_json(tmp_path / "a.jsonl", texts), tmp_path / "o.jsonl"))
    ]

    def pipe(content: str) -> None:
        pipe_in(monkeypatch, content.encode())

    capsys.readouterr()
    pipe("".join(text + "\n" for text in texts))
    assert main(["predict", str(bundle)]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == expected, "nothing but predictions on standard output"
    assert "3 rows in" in said.err
    pipe("id,body\n" + "".join(f'x,"{text}"\n' for text in texts))
    predicted(bundle, "-", tmp_path / "p.jsonl", "--input-format", "csv")
    assert read_json(tmp_path / "p.jsonl") == [
        {"row": n, "id": "x", "prediction": text} for n, text in enumerate(expected)
    ]


def test_the_search_can_be_changed(bundle: Path, tmp_path: Path) -> None:
    source = write_json(tmp_path / "a.jsonl", [body for body, _ in petitions(6)])
    usual, greedy, short = (
        [row["prediction"] for row in read_json(predicted(bundle, source, tmp_path / f"{n}.jsonl", *options))]
        for n, options in enumerate(((), ("--beams", "1"), ("--max-new-tokens", "3", "--min-new-tokens", "1")))
    )
    assert usual != greedy
    assert all(len(a) < len(b) for a, b in zip(short, usual, strict=True))
    transformers = predicted(bundle, source, tmp_path / "t.jsonl", "--engine", "transformers")
    assert [row["prediction"] for row in read_json(transformers)] == usual
    removed = next(character for character in usual[0] if character.isalnum())
    opened = open_bundle(str(bundle)).with_settings(remove_tokens=[removed])
    assert opened.settings.remove_tokens == [removed] and opened.settings.beams == EVALUATE.beams


def test_what_the_model_does_not_read_is_reported(bundle: Path) -> None:
    opened = open_bundle(str(bundle))
    predictor = opened.predictor()
    found = answer(opened, predictor, ["", "짧은 글", "긴 글 " * 500])
    assert found.empty == [True, False, False]
    assert found.cut[:2] == [0, 0] and found.tokens[0] == 0
    whole = opened.task.clean_input("긴 글 " * 500, opened.cleaning)
    tokens = len(predictor.tokenizer(whole, add_special_tokens=False)["input_ids"])
    assert found.cut[2] == tokens + 1 - 64, "64 positions, one of them for the end of sequence"
    assert found.tokens[2] == tokens + 1


# Killed and restarted


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as zygote:
        yield zygote


ROWS = 60


@pytest.fixture(scope="module")
def job(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], bytes]:
    """(a command without its output, what it writes when nobody disturbs it)"""
    folder = tmp_path_factory.mktemp("job")
    texts = [body for body, _ in petitions(ROWS)]
    source = write_json(folder / "in.jsonl", texts)
    out = predicted(bundle, source, folder / "out.csv", "--chunk-rows", "20")
    return ["predict", str(bundle), "--input", str(source), "--chunk-rows", "20"], out.read_bytes()


def test_killed_at_every_file_operation(tmp_path: Path, job: tuple[list[str], bytes], zygote: Zygote) -> None:
    """Between output and state, between the renames, before the first byte: the same file comes out."""
    command, expected = job
    events = tmp_path / "events"
    straight = tmp_path / "straight" / "out.csv"
    straight.parent.mkdir()
    argv = [*command, "--output", str(straight)]
    assert zygote.run(argv=argv, watch=str(straight.parent), kill_at_event=-1, events=str(events)) == 0
    assert straight.read_bytes() == expected
    number = int(events.read_text())
    assert number > 3 * 2 + 3, "a state for every chunk, at the beginning and at the end"
    for event in range(1, number + 1):
        out = tmp_path / str(event) / "out.csv"
        out.parent.mkdir()
        argv = [*command, "--output", str(out)]
        assert zygote.run(argv=argv, watch=str(out.parent), kill_at_event=event) == -signal.SIGKILL
        assert zygote.run(argv=argv) == 0, f"killed at file operation {event}"
        assert out.read_bytes() == expected, f"killed at file operation {event}"
        assert [path.name for path in out.parent.iterdir()] == ["out.csv"]


def test_killed_at_random_moments_until_it_gets_through(
    tmp_path: Path, job: tuple[list[str], bytes], zygote: Zygote
) -> None:
    command, expected = job
    moments = random.Random(3)
    out = tmp_path / "out.csv"
    argv = [*command, "--output", str(out), "--chunk-rows", "3"]
    for _ in range(6):
        if zygote.run(argv=argv, kill_after=moments.uniform(0.2, 0.8)) == 0:
            break
        partial = tmp_path / "out.csv.partial"
        if partial.exists() and (tmp_path / "out.csv.partial.json").exists():
            with partial.open("ab") as file:
                file.write("찢어진 줄".encode()[:-1])  # a write that the kill cut in two
    assert out.exists() or zygote.run(argv=argv) == 0
    assert out.read_bytes() == expected


def test_sigterm_keeps_what_is_done(tmp_path: Path, job: tuple[list[str], bytes], zygote: Zygote) -> None:
    command, expected = job
    argv = [*command, "--output", str(tmp_path / "out.csv")]
    assert zygote.run(argv=argv, watch=str(tmp_path), kill_at_event=6, signum=signal.SIGTERM) == 128 + signal.SIGTERM
    assert not (tmp_path / "out.csv").exists() and (tmp_path / "out.csv.partial.json").exists()
    assert zygote.run(argv=argv) == 0
    assert (tmp_path / "out.csv").read_bytes() == expected


def interrupted(folder: Path, command: list[str], zygote: Zygote) -> Path:
    out = folder / "out.csv"
    argv = [*command, "--output", str(out)]
    assert zygote.run(argv=argv, watch=str(folder), kill_at_event=7) == -signal.SIGKILL
    assert json.loads((folder / "out.csv.partial.json").read_text())["done"]["rows"] == 20
    return out


def test_what_was_begun_for_something_else_is_not_gone_on_from(
    tmp_path: Path, job: tuple[list[str], bytes], zygote: Zygote, capsys: pytest.CaptureFixture[str]
) -> None:
    command, expected = job
    source = tmp_path / "in.jsonl"
    source.write_bytes(Path(command[3]).read_bytes())
    command = [*command[:3], str(source), *command[4:]]
    tmp_path = tmp_path / "out"
    tmp_path.mkdir()
    out = interrupted(tmp_path, command, zygote)
    again = [*command[1:], "--output", str(out)]
    assert "settings.beams was 2, is 1" in failed(capsys, *again, "--beams", "1")
    assert "with_input was false, is true" in failed(capsys, *again, "--with-input")
    source.write_text(source.read_text() + json.dumps({"source": "한 줄 더"}) + "\n")
    assert "inputs[0].bytes was" in failed(capsys, *again)
    state = tmp_path / "out.csv.partial.json"
    kept = state.read_text()
    state.write_text("{")
    assert "out.csv.partial.json: is damaged" in failed(capsys, *again)
    state.unlink()
    assert "exists without its state" in failed(capsys, *again)
    state.write_text(kept)
    (tmp_path / "out.csv.partial").write_bytes(b"")
    source.write_bytes(Path(job[0][3]).read_bytes())
    assert main(["predict", *again, "--restart"]) == 0
    assert out.read_bytes() == expected


def test_a_whole_output_is_never_lost(
    tmp_path: Path, job: tuple[list[str], bytes], zygote: Zygote, capsys: pytest.CaptureFixture[str]
) -> None:
    command, expected = job
    out = tmp_path / "out.csv"
    out.write_text("유일한 사본")
    again = [*command[1:], "--output", str(out)]
    assert "exists already" in failed(capsys, *again)
    assert zygote.run(argv=["predict", *again, "--force"], watch=str(tmp_path), kill_at_event=6) == -signal.SIGKILL
    assert out.read_text() == "유일한 사본", "the old one stays until the new one is whole"
    assert main(["predict", *again, "--force"]) == 0
    assert out.read_bytes() == expected


def test_mistakes_show_before_the_model_is_loaded(
    bundle: Path,
    scored: tuple[Chain, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("hanflow.serving.bundle.Bundle.predictor", never)
    good = write_json(tmp_path / "in.jsonl", ["국민 청원", "답하라"])
    (tmp_path / "empty.txt").touch()
    (tmp_path / "two.csv").write_text("a,b\n1,2\n")
    (tmp_path / "broken.jsonl").write_text('{"source": "가"}\n{"source": "나"\n')
    out = tmp_path / "out.csv"

    def reported(*options: str | Path) -> str:
        return failed(capsys, *options)

    assert "is a shards artifact, which cannot predict" in reported(scored[0].shards, "--input", good)
    assert "nowhere: no such folder; give a bundle, a run" in reported(Path("nowhere"), "--input", good)
    assert "no such file or folder" in reported(bundle, "--input", tmp_path / "nowhere.csv")
    assert "is empty" in reported(bundle, "--input", tmp_path / "empty.txt", "--output", out)
    assert "columns found: a, b; name it with --column" in reported(bundle, "--input", tmp_path / "two.csv")
    assert "has no column for source (--column names 'c'); columns found: a, b" in reported(
        bundle, "--input", tmp_path / "two.csv", "--column", "c"
    )
    assert "line 2: not valid JSON" in reported(bundle, "--input", tmp_path / "broken.jsonl", "--output", out)
    assert "its folder does not exist" in reported(bundle, "--input", good, "--output", tmp_path / "no" / "out.csv")
    assert "is a folder" in reported(bundle, "--input", good, "--output", tmp_path)
    assert "is one of the input files" in reported(bundle, "--input", good, "--output", good, "--force")
    assert "evaluate.beams: must be at least 1" in reported(bundle, "--input", good, "--beams", "0")
    assert "--chunk-rows" in reported(bundle, "--input", good, "--chunk-rows", "0")
    assert not out.exists()


def test_rows_are_read_when_they_are_needed() -> None:
    """Ten million rows need no more memory than ten thousand."""
    pulled = 0

    def rows() -> Iterator[tuple[dict, str]]:
        nonlocal pulled
        for pulled in count(1):
            yield {"row": pulled}, "가" * 10

    chunks = stream._chunks(rows(), 50)
    assert [len(next(chunks)) for _ in range(3)] == [50, 50, 50]
    assert pulled == 150
    long = stream._chunks(iter([({}, "가" * stream.CHUNK_CHARACTERS)] * 3), 50)
    assert [len(chunk) for chunk in long] == [1, 1, 1]


def test_memory_does_not_follow_the_rows(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in ("BLOCK", "HEAD"):  # else both files are one block each
        monkeypatch.setattr(f"hanflow.data.lines.{size}", 1 << 11)
    options = ("--beams", "1", "--max-new-tokens", "2", "--min-new-tokens", "0", "--chunk-rows", "50")

    def peak(rows: int) -> int:
        path = tmp_path / f"{rows}.txt"
        path.write_text("국민 청원에 답하라\n" * rows, encoding="utf-8")
        tracemalloc.start()
        predicted(bundle, path, tmp_path / f"{rows}.csv", *options)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(50)  # what is loaded once
    few, many = peak(150), peak(3_000)
    # A row kept would cost at least its text, 75 bytes: 200 kB in all. Both hold the same chunk and the same model.
    assert many < few + 150_000


def test_written_out_choices_are_the_real_ones() -> None:
    assert use.FORMATS == FORMATS
    assert use.OUTPUT_FORMATS == output.OUTPUT_FORMATS


def test_it_runs_in_kubeflow_and_as_a_module(bundle: Path, tmp_path: Path) -> None:
    source = write_json(tmp_path / "in.jsonl", [body for body, _ in petitions(5)])
    script = (
        "from kfp import local\n"
        "from components.predict.component import predict\n"
        f"local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root={str(tmp_path / 'root')!r})\n"
        f"task = predict(bundle={str(bundle)!r}, input={str(source)!r}, format='tsv')\n"
        "assert task.outputs['metrics'].metadata['rows'] == 5, task.outputs['metrics'].metadata\n"
        "print('predictions at', task.outputs['Output'])\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    written = Path(done.stdout.rpartition("predictions at ")[2].strip()) / "predictions.tsv"
    module = [sys.executable, "-m", "hanflow", "predict", str(bundle), "--input", str(source), "--output", "out.tsv"]
    done = subprocess.run(module, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert "5 rows" in done.stderr
    assert written.read_bytes() == (tmp_path / "out.tsv").read_bytes()
    done = subprocess.run([*module[:4], "nowhere"], capture_output=True, text=True, cwd=tmp_path, env=env, input="")
    assert done.returncode == 1
    assert done.stderr.startswith("error: nowhere")
