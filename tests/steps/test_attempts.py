"""A step that is tried again after its pod was lost: what it had committed is its result, anything else is in the way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl

import hanflow
from hanflow import resources
from hanflow.experiment import settings_of
from hanflow.signals import Terminated, exit_status
from hanflow.steps.preprocess import run
from hanflow.steps.runner import in_pipeline, main
from hanflow.storage.artifacts import read_manifest

LINE = "document\tlabel\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "reviews.tsv"
    path.write_text(LINE + "".join(f"영화가 정말 좋았어요 {n}\t{n % 2}\n" for n in range(40)), encoding="utf-8")
    return path


def preprocess(source: Path, output: Path, *more: str) -> int:
    arguments = ["--task=classification", f"--source={source}", f"--output={output}", *more]
    return main("preprocess", run, (), arguments)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}


def test_another_attempt_keeps_what_the_first_one_committed(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "corpus"
    assert preprocess(source, output, "--keep-finished") == 0
    before = contents(output)
    capsys.readouterr()
    assert preprocess(source, output, "--keep-finished") == 0
    assert "was done by an earlier attempt" in capsys.readouterr().err
    assert contents(output) == before


def test_without_being_asked_nothing_is_kept(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "corpus"
    assert preprocess(source, output) == 0
    assert preprocess(source, output) == 1
    assert "already exists" in capsys.readouterr().err


def test_another_artifact_is_in_the_way(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "corpus"
    assert preprocess(source, output) == 0
    before = contents(output)
    assert preprocess(source, output, "--keep-finished", "--seed=7") == 1
    assert "already exists" in capsys.readouterr().err
    assert contents(output) == before


def test_what_other_code_made_is_not_kept(source: Path, tmp_path: Path) -> None:
    """A copy of the library in which one file that the step can run is another one by a comment."""
    output = tmp_path / "corpus"
    assert preprocess(source, output) == 0
    copy = shutil.copytree(Path(hanflow.__file__).parent, tmp_path / "library" / "hanflow")
    shutil.copytree(resources.folder("experiments"), tmp_path / "library" / "pipelines" / "experiments")
    with (copy / "data" / "ingest.py").open("a", encoding="utf-8") as file:
        file.write("# a change\n")
    command = [sys.executable, "-m", "hanflow.steps.preprocess", "--task=classification", f"--source={source}"]
    again = subprocess.run(
        [*command, f"--output={output}", "--keep-finished"],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "library")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 1
    assert "preprocess runs again: the code changed since" in again.stderr and "already exists" in again.stderr


def test_a_source_of_other_content_is_noticed_whatever_its_size_and_time_say(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "corpus"
    assert preprocess(source, output) == 0
    before, found = contents(output), source.stat()
    source.write_text(source.read_text(encoding="utf-8").replace("영화", "음악"), encoding="utf-8")
    os.utime(source, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert (source.stat().st_size, source.stat().st_mtime_ns) == (found.st_size, found.st_mtime_ns)
    capsys.readouterr()
    assert preprocess(source, output, "--keep-finished") == 1
    assert "preprocess runs again: the sources changed since" in capsys.readouterr().err
    assert contents(output) == before
    source.unlink()
    assert preprocess(source, output, "--keep-finished") == 0, "what was read need not be kept"
    assert "its sources are no longer there" in capsys.readouterr().err


def test_sigterm_is_no_error_that_others_take_for_an_answer() -> None:
    assert not issubclass(Terminated, Exception) and exit_status(Terminated()) == 143


def test_a_damaged_artifact_is_not_kept(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "corpus"
    assert preprocess(source, output) == 0
    with (output / "train.parquet").open("ab") as stream:
        stream.write(b"x")
    assert preprocess(source, output, "--keep-finished") == 1


def test_a_retried_pod_of_kubeflow_keeps_it_and_reports_its_figures(source: Path, tmp_path: Path) -> None:
    def attempt() -> tuple[str, dict[str, Any], str]:
        corpus = dsl.Dataset(name="corpus", uri=str(tmp_path / "out" / "corpus"))
        metrics = dsl.Metrics(name="metrics", uri=str(tmp_path / "out" / "metrics"))
        report = dsl.HTML(name="report", uri=str(tmp_path / "out" / "report"))
        settings = {s.name: s.default for s in settings_of("preprocess", "classification")} | {"source": str(source)}
        arguments = {
            "task": "classification",
            "corpus": corpus,
            "metrics": metrics,
            "report": report,
            "settings": settings,
        }
        reported = in_pipeline("preprocess", run, arguments, inputs=(), output="corpus")
        return reported, metrics.metadata, Path(report.path).read_text(encoding="utf-8")

    uri, figures, report = attempt()
    before = contents(Path(uri))
    again, reported, page = attempt()
    assert (again, page) == (uri, report) and contents(Path(uri)) == before
    counts = read_manifest(Path(uri), "corpus").counts
    assert figures["rows"] == reported["read"] == counts["read"] == 40, "what the manifest counts can still be reported"
