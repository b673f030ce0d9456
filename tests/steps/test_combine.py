"""Combining trained models: one artifact that evaluate, export and predict take like any other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hanflow.config import CombineConfig, ExportConfig
from hanflow.errors import UserError
from hanflow.serving.bundle import answer, open_bundle
from hanflow.steps.combine import run as combine
from hanflow.steps.evaluate import run as evaluate
from hanflow.steps.export import run as export
from hanflow.steps.runner import main
from hanflow.storage.artifacts import read_manifest
from hanflow.tasks import get_task
from hanflow.tasks.classification import ClassificationEvaluate
from tests.support import tasks
from tests.support.model_fixtures import Chain

TASK = "classification"
MEMBERS = [{"name": "rnn", "epochs": 1}, {"name": "cnn"}]
RNN = {"type": "rnn", "embedding_size": 8, "hidden_size": 8, "n_layers": 1, "dropout": 0.1}


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[Chain]:
    folder = tmp_path_factory.mktemp("members")
    cnn = tasks.make_shards(folder, TASK, tasks.reviews(160))
    rnn = replace(cnn, model=folder / "model-rnn")
    tasks.trained(rnn, TASK, architecture=RNN)
    return [rnn, tasks.trained(cnn, TASK)]


@pytest.fixture(scope="module")
def combined(members: list[Chain]) -> Chain:
    chain = replace(members[0], model=members[0].model.with_name("ensemble"))
    report = combine(
        CombineConfig(members=MEMBERS, weights=[1, 3]),
        task=TASK,
        output=str(chain.model),
        shards=str(chain.shards),
        models=[str(member.model) for member in members],
    )
    assert report.figures["members"] == "rnn, cnn"
    return chain


@pytest.fixture(scope="module")
def evaluation(combined: Chain) -> Path:
    output = combined.model.with_name("evaluation")
    report = evaluate(ClassificationEvaluate(), task=TASK, output=str(output), **combined.inputs)
    assert {"accuracy", "rnn_accuracy", "cnn_accuracy"} <= set(report.figures)
    return output


def test_probabilities_are_the_weighted_mean_of_the_members(members: list[Chain], combined: Chain) -> None:
    task = get_task(TASK)
    encoding = tasks.ENCODING["classification"]
    found = []
    for chain in (*members, combined):
        predictor = task.open_predictor(str(chain.model), ClassificationEvaluate())
        rows = task.inputs(["정말 재미있어요", "돈이 아깝다", ""], predictor.tokenizer, encoding)
        found.append(predictor(rows).measures["probabilities"])
    np.testing.assert_allclose(found[2], (found[0] + 3 * found[1]) / 4, atol=1e-6)


def test_scores_stand_beside_those_of_the_members(members: list[Chain], evaluation: Path, tmp_path: Path) -> None:
    systems = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))["systems"]
    assert list(systems)[:3] == ["trained model", "rnn model", "cnn model"]
    for chain, name in zip(members, ("rnn model", "cnn model"), strict=True):
        output = tmp_path / chain.model.name
        evaluate(ClassificationEvaluate(), task=TASK, output=str(output), **chain.inputs)
        alone = json.loads((output / "metrics.json").read_text(encoding="utf-8"))["systems"]["trained model"]
        assert systems[name] == pytest.approx(alone, abs=1e-6)
    page = (evaluation / "report.html").read_text(encoding="utf-8")
    for heading in ("Loss of the member rnn", "Training settings of the member cnn"):
        assert f"<h2>{heading}</h2>" in page


def test_its_bundle_predicts(combined: Chain, evaluation: Path, tmp_path: Path) -> None:
    inputs = {"model": str(combined.model), "shards": str(combined.shards), "evaluation": str(evaluation)}
    export(ExportConfig(check_rows=4), task=TASK, output=str(tmp_path / "bundle"), **inputs)
    bundle = open_bundle(str(tmp_path / "bundle"))
    assert set(answer(bundle, bundle.predictor(), ["재미있다", "지루하다"]).predictions.texts) <= {"0", "1"}
    card = (tmp_path / "bundle" / "README.md").read_text(encoding="utf-8")
    assert "The member rnn: " in card and "| cnn model |" in card


def test_its_manifest_names_what_it_was_made_of(members: list[Chain], combined: Chain) -> None:
    parents = read_manifest(combined.model, "model", task=TASK).parents
    assert parents["shards"] == read_manifest(combined.shards, "shards").digest
    for chain, name in zip(members, ("model 1", "model 2"), strict=True):
        assert parents[name] == read_manifest(chain.model, "model").digest


def test_the_command_line_is_the_same_step(members: list[Chain], combined: Chain, tmp_path: Path) -> None:
    arguments = ["--task", TASK, "--shards", str(combined.shards), "--output", str(tmp_path / "model")]
    models = ["--models", *(str(member.model) for member in members)]
    settings = ["--members", json.dumps(MEMBERS), "--weights", "[1, 3]"]
    assert main("combine", combine, ("shards",), [*arguments, *models, *settings], lists=("models",)) == 0
    weights = (folder / "model.safetensors" for folder in (combined.model, tmp_path / "model"))
    assert next(weights).read_bytes() == next(weights).read_bytes()


def test_what_cannot_be_combined_is_refused(members: list[Chain], combined: Chain, tmp_path: Path) -> None:
    def refused(message: str, config: CombineConfig, *models: Path, task: str = TASK) -> None:
        with pytest.raises(UserError, match=message):
            combine(
                config,
                task=task,
                output=str(tmp_path / "refused"),
                shards=str(combined.shards),
                models=[str(model) for model in models],
            )
        assert not (tmp_path / "refused").exists()

    rnn, cnn = (member.model for member in members)
    refused("names 2 .*but there are 1 models", CombineConfig(members=MEMBERS), rnn)
    refused("names have to differ", CombineConfig(members=[MEMBERS[0]] * 2), rnn, cnn)
    refused("every member needs a name", CombineConfig(members=["rnn", "cnn"]), rnn, cnn)
    refused("3 weights for 2 models", CombineConfig(weights=[1, 1, 1]), rnn, cnn)
    refused("none may be negative", CombineConfig(weights=[-1, 2]), rnn, cnn)
    refused("is itself an ensemble", CombineConfig(), rnn, combined.model)
    other = tasks.make_shards(tmp_path, TASK, tasks.reviews(120))
    refused("is not the shards", CombineConfig(), rnn, tasks.trained(other, TASK, epochs=1).model)
    with pytest.raises(UserError, match="ensemble, which has no untrained model"):
        evaluate(ClassificationEvaluate(untrained=True), task=TASK, output=str(tmp_path / "x"), **combined.inputs)


def test_other_tasks_refuse(tmp_path: Path) -> None:
    for task in ("summarization", "language_modeling"):
        with pytest.raises(UserError, match=f"{task} cannot be combined"):
            get_task(task).combine({"a": str(tmp_path)}, [])
