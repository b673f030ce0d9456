"""The DAG by its command lines with every artifact in a bucket, each step on a machine of its own."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import hanflow
from hanflow import storage
from hanflow.cli.main import main
from hanflow.serving.bundle import open_bundle
from hanflow.serving.sources import open_source
from hanflow.storage import artifacts, gcs
from tests.storage.emulator import Emulator
from tests.support.corpora import ARCHITECTURE, petitions
from tests.support.forked import Zygote


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as zygote:
        yield zygote


def options(**values: object) -> list[str]:
    return [
        f"--{name.replace('_', '-')}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in values.items()
    ]


def steps(place: str) -> dict[str, list[str]]:
    """Step → its command line."""
    names = ("corpus", "shards", "model", "evaluation", "bundle")
    corpus, shards, model, evaluation, bundle = (f"{place}/{name}" for name in names)
    return {
        "preprocess": options(source=f"{place}/raw/*.tsv", output=corpus, test_ratio=0.2, validation_ratio=0.1),
        "tokenize": options(corpus=corpus, output=shards, vocabulary_size=500, max_source_tokens=64, max_target_tokens=24),
        "train": options(
            shards=shards, output=model, architecture=ARCHITECTURE, epochs=2, batch_tokens=2048, precision="fp32", save_every=2
        ),
        "evaluate": options(
            model=model, shards=shards, corpus=corpus, output=evaluation, beams=1, max_new_tokens=8, limit_rows=4, untrained=True
        ),
        "export": options(model=model, evaluation=evaluation, shards=shards, output=bundle, check_rows=2),
    }  # fmt: skip


def start(zygote: Zygote, step: str, argv: Sequence[str], machine: Path) -> int:
    env = {"HANFLOW_CACHE": str(machine / "cache"), "STORAGE_EMULATOR_HOST": os.environ["STORAGE_EMULATOR_HOST"]}
    machine.mkdir(exist_ok=True)
    return zygote.run(
        step=step, argv=list(argv), environment=env, pid_file=str(machine / "pid"), stderr=str(machine / "stderr")
    )


def test_the_dag_and_predict(
    bucket: str, emulator: Emulator, zygote: Zygote, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every step is killed in the middle of its upload once, then started again by the same command line."""
    raw = "body\ttitle\n" + "".join(f"{body}\t{title}\n" for body, title in petitions(60))
    gcs.put(f"{bucket}/run/raw/a.tsv", raw.replace("body\ttitle", "document\tsummary").encode())
    parents = ()
    for step, argv in steps(f"{bucket}/run").items():
        kind = next(kind for kind, maker in artifacts.KINDS.items() if maker == step)
        kill = {
            "kind": "kill",
            "pid_file": str(tmp_path / f"{step}-killed" / "pid"),
            "match": f"^upload run/{kind}/",
            "skip": 2,
        }
        emulator.order(kill)
        assert start(zygote, step, argv, tmp_path / f"{step}-killed") == -signal.SIGKILL
        assert emulator.fired == [1]
        emulator.order()
        machine = tmp_path / step
        assert start(zygote, step, argv, machine) == 0, (machine / "stderr").read_text()
        _, manifest = storage.fetched(f"{bucket}/run/{kind}", kind)
        assert set(manifest.parents) >= set(parents[-1:])
        parents = (*parents, kind)
        assert sorted(path.name for path in machine.iterdir()) == ["cache", "pid", "stderr"]
    assert "train.arrow" not in [path.name for path in (tmp_path / "export").rglob("*")], (
        "only what is needed was fetched"
    )

    bundle = open_bundle(f"{bucket}/run/bundle")
    assert bundle.task.name == "summarization"
    assert open_source(f"{bucket}/run").manifest == bundle.manifest, "a run's folder stands for its bundle"
    model = open_source(f"{bucket}/run/model")
    assert (model.cleaning, model.encoding, model.settings) == (bundle.cleaning, bundle.encoding, bundle.settings)
    frames = hanflow.figures(f"{bucket}/run")
    assert set(frames) == {"training", "validation", "scores", "predictions"}
    given = [f"{bucket}/run/bundle", "--input", f"{bucket}/run/raw/*.tsv", "--output", f"{bucket}/run/predictions.csv"]
    assert main(["predict", *given, "--max-new-tokens", "4", "--beams", "1"]) == 0
    found = gcs.read(f"{bucket}/run/predictions.csv")
    assert found and len(found[0].splitlines()) == 61
    capsys.readouterr()
    assert main(["predict", *given]) == 1
    assert f"{bucket}/run/predictions.csv: exists already" in capsys.readouterr().err
    assert main(["predict", *given, "--max-new-tokens", "4", "--beams", "1", "--force"]) == 0
    assert gcs.read(f"{bucket}/run/predictions.csv")[0] == found[0]  # type: ignore[index]
    column = pq.read_table(storage.fetched(f"{bucket}/run/corpus", "corpus")[0] / "rejected.parquet").column("file")
    assert set(column.to_pylist()) <= {f"{bucket}/run/raw/a.tsv"}
    scored = [
        "--column",
        "prediction",
        "--predictions",
        f"{bucket}/run/predictions.csv",
        "--references",
        f"{bucket}/run/predictions.csv",
    ]
    assert main(["score", *scored, "--tokenization", "word"]) == 0


@pytest.mark.slow
def test_hanflow_run_with_its_artifacts_in_a_bucket(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--set", "train.epochs=1", "--set", "evaluate.limit_rows=8", "--limit-rows", "200"]
    assert main(["run", "classification", "--output", f"{bucket}/실행", *small]) == 0
    reported = capsys.readouterr().out
    names = {name.split("/")[0] for name in gcs.listing(f"{bucket}/실행")}
    kinds = set(artifacts.KINDS)
    assert names == {*kinds, "checkpoints", "experiment.yaml", "run.json", "run.log"}
    for kind in kinds:
        assert storage.fetched(f"{bucket}/실행/{kind}", kind)[1].task == "classification"
    record = json.loads(gcs.read(f"{bucket}/실행/run.json")[0])  # type: ignore[index]
    assert record["status"] == "succeeded"
    assert record["steps"][0]["artifact"] == f"{bucket}/실행/corpus"
    (report,) = Path("runs").glob("*/report.html")
    assert str(report) in reported.replace("\n", "")
    assert not [path for path in tmp_path.rglob("*.safetensors") if "cache" not in path.parts], (
        "no weights beside the cache"
    )
    assert main(["run", "classification", "--output", f"{bucket}/실행", *small]) == 0
    assert "has succeeded already" in capsys.readouterr().out
    assert main(["run", "classification", "--output", "gs://hanflow-missing/x", *small]) == 1
    assert "check that the bucket gs://hanflow-missing exists" in capsys.readouterr().err
