"""The ensemble's pipeline on this machine, and the mistakes that its experiment can hold."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hanflow.cli.main import main
from hanflow.errors import ConfigError
from hanflow.experiment import EXPERIMENTS, load_experiment, member_settings

SMALL = [
    "--limit-rows=300",
    "--set=tokenize.vocabulary_size=600",
    "--set=tokenize.morphemes=false",
    "--set=train.validation_rows=0",
    "--set=train.best_metric=loss",
    "--set=combine.members=[{name: rnn, epochs: 1, architecture: {type: rnn, hidden_size: 8, embedding_size: 8, n_layers: 1}}, "
    "{name: cnn, epochs: 2, architecture: {type: cnn, n_filters: 4, embedding_size: 8}}]",
]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hanflow", "run", "ensemble", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ensemble")
    done = run("--output", "out", *SMALL, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "out"


def test_members_are_trained_side_by_side_then_combined(output: Path) -> None:
    record = json.loads((output / "run.json").read_text(encoding="utf-8"))
    assert record["status"] == "succeeded"
    names = [step["name"] for step in record["steps"]]
    assert names == ["preprocess", "tokenize", "train-rnn", "train-cnn", "combine", "evaluate", "export"]
    events = [json.loads(line) for line in (output / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    times = {(event["step"], event["event"]): event["time"] for event in events}
    last_start = max(times["train-rnn", "started"], times["train-cnn", "started"])
    first_end = min(times["train-rnn", "finished"], times["train-cnn", "finished"])
    assert last_start < first_end, "one waited for the other"
    systems = json.loads((output / "evaluation" / "metrics.json").read_text(encoding="utf-8"))["systems"]
    assert {"trained model", "rnn model", "cnn model"} <= set(systems)


def test_each_member_has_its_own_settings_model_and_checkpoints(output: Path) -> None:
    for name, epochs in (("rnn", 1), ("cnn", 2)):
        training = json.loads((output / f"model-{name}" / "training.json").read_text(encoding="utf-8"))
        assert training["settings"]["epochs"] == epochs
        assert training["settings"]["architecture"]["type"] == name
        assert training["settings"]["batch_size"] == 64, "shared settings are those of the experiment's train section"
        assert (output / "checkpoints" / name / "metrics.jsonl").is_file()
    assert json.loads((output / "model" / "config.json").read_text(encoding="utf-8"))["names"] == ["rnn", "cnn"]


def test_an_interrupted_run_keeps_what_is_finished(output: Path, tmp_path: Path) -> None:
    """As if it had been killed while evaluating: members and their combination are there and whole."""
    record = json.loads((output / "run.json").read_text(encoding="utf-8"))
    (output / "run.json").write_text(json.dumps({**record, "status": "interrupted"}), encoding="utf-8")
    shutil.rmtree((output / "evaluation").resolve())
    done = run("--experiment", str(output / "experiment.yaml"), "--output", str(output), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    kept = {line.split(":")[0].strip() for line in done.stdout.splitlines() if ": kept" in line}
    # The same evaluation again, so the bundle that was made of it is still right.
    assert kept == {"preprocess", "tokenize", "train-rnn", "train-cnn", "combine", "export"}
    assert (output / "evaluation" / "metrics.json").is_file()


def test_its_bundle_predicts(output: Path, tmp_path: Path) -> None:
    (tmp_path / "reviews.txt").write_text("정말 재미있어요\n돈이 아깝다\n", encoding="utf-8")
    arguments = ["--input", str(tmp_path / "reviews.txt"), "--output", str(tmp_path / "classes.tsv")]
    assert main(["predict", str(output / "bundle"), *arguments]) == 0
    assert len((tmp_path / "classes.tsv").read_text(encoding="utf-8").splitlines()) == 3


def test_mistakes_are_reported_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = EXPERIMENTS / "sample-ensemble.yaml"
    for members, message in (
        ("[{epochs: 3}]", "give a mapping with its `name`"),
        ("[rnn]", "give a mapping with its `name`"),
        ("[{name: a}, {name: a}]", "two are named a"),
        ("[{name: a, epoch: 3}]", "a: train.epoch: no such setting; did you mean train.epochs?"),
        ("[{name: a, epochs: 0}]", "a: train.epochs: must be at least 1"),
        ("[{name: a, job: {runtime: tpu, accelerator: v9}}]", "a: job.accelerator"),
    ):
        with pytest.raises(ConfigError, match="combine.members") as refused:
            load_experiment(sample, [f"combine.members={members}"])
        assert message in str(refused.value)
    for weights, message in (
        ("[1]", "1 weights for 2 members"),
        ("[1, -1]", "none negative"),
        ("[0, 0]", "not all of"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_experiment(sample, [f"combine.weights={weights}"])
    with pytest.raises(ConfigError, match="has no untrained model"):
        load_experiment(sample, ["evaluate.untrained=true"])
    output = ["--output", str(tmp_path / "out")]
    assert main(["run", "classification", "--experiment", "sample-ensemble", *output]) == 1
    assert "not of classification; give ensemble" in capsys.readouterr().err
    assert main(["run", "ensemble", "--set=combine.members=[{name: a, architecture: {type: rnm}}]", *output]) == 1
    assert "a: train.architecture.type: 'rnm'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_members_take_over_what_the_train_section_sets() -> None:
    rnn, cnn = member_settings(load_experiment(EXPERIMENTS / "sample-ensemble.yaml", ["train.epochs=9"]))
    assert (rnn["name"], rnn["settings"]["epochs"], rnn["settings"]["batch_size"]) == ("rnn", 3, 64)
    assert cnn["settings"]["learning_rate"] == 1e-3
    assert "seed" not in rnn["settings"], "defaults stay out of the pipeline's parameter"
