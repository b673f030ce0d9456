"""Both engines train, validate, resume and export every task with every architecture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from hanflow.config import ExportConfig
from hanflow.errors import UserError
from hanflow.experiment import step_config
from hanflow.serving.bundle import answer
from hanflow.serving.sources import open_source
from hanflow.steps.evaluate import run as evaluate
from hanflow.steps.export import run as export
from hanflow.steps.train import run
from hanflow.storage.artifacts import read_manifest
from hanflow.tasks import get_task
from hanflow.training.engine import ENGINES
from tests.support import tasks
from tests.support.corpora import ARCHITECTURE

NARROW = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
ARCHITECTURES: list[tuple[str, dict[str, Any]]] = [
    ("summarization", ARCHITECTURE),
    ("classification", tasks.ARCHITECTURES["classification"]),
    ("classification", {"type": "rnn", "embedding_size": 16, "hidden_size": 8}),
    ("classification", {"type": "bert", **NARROW}),
    ("language_modeling", tasks.ARCHITECTURES["language_modeling"]),
    ("language_modeling", {"type": "ffn", "d_model": 16, "d_ffn": 32, "n_layers": 1}),
]
STEPS = 6


def test_each_architecture_of_each_task_is_tried() -> None:
    known = {
        (name, kind)
        for name in ("summarization", "classification", "language_modeling")
        for kind in get_task(name).models().ARCHITECTURES.by_type
    }
    assert {(task, architecture["type"]) for task, architecture in ARCHITECTURES} == known


@pytest.fixture(scope="module")
def shards_of(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> dict[str, Path]:
    made = {"summarization": shards}
    for task in ("classification", "language_modeling"):
        made[task] = tasks.make_shards(tmp_path_factory.mktemp(task), task, tasks.reviews(120)).shards
    return made


def trained(shards: Path, task: str, output: Path, **settings: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(training.json, weights) of a short run."""
    values: dict[str, Any] = {
        "epochs": 9,
        "max_steps": STEPS,
        "batch_size": 16,
        "learning_rate": 1e-2,
        "precision": "fp32",
        "log_every": 1,
        "validate_every": 3,
        "validation_rows": 2,
        **settings,
    }
    run(step_config("train", values, task), task=task, output=str(output), shards=str(shards))
    return json.loads((output / "training.json").read_text()), load_file(output / "model.safetensors")


def exported(shards: Path, task: str, folder: Path) -> None:
    """The model below a folder becomes a bundle that predicts."""
    parents = {"shards": str(shards), "model": str(folder / "straight")}
    few = {"limit_rows": 2} | ({} if task == "classification" else {"max_new_tokens": 4})
    evaluation = str(folder / "evaluation")
    scoring = step_config("evaluate", few, task)
    evaluate(scoring, task=task, output=evaluation, corpus=str(shards.parent / "corpus"), **parents)
    formats = ExportConfig(check_rows=1, formats=["huggingface"])
    export(formats, task=task, output=str(folder / "bundle"), evaluation=evaluation, **parents)
    bundle = open_source(str(folder / "bundle"))
    assert len(answer(bundle, bundle.predictor(), ["정말 좋았습니다"]).predictions.texts) == 1


@pytest.mark.parametrize("engine", sorted(ENGINES))
@pytest.mark.parametrize(("task", "architecture"), ARCHITECTURES, ids=lambda value: dict(value).get("type") if isinstance(value, dict) else value)  # fmt: skip
def test_it_trains_validates_and_resumes(
    task: str, architecture: dict[str, Any], engine: str, shards_of: dict[str, Path], tmp_path: Path
) -> None:
    settings = {"architecture": architecture, "engine": engine, "checkpoints": str(tmp_path / "checkpoints")}
    straight, expected = trained(shards_of[task], task, tmp_path / "straight", **settings)
    assert [point["step"] for point in straight["history"]["train"]] == list(range(1, STEPS + 1))
    assert [point["step"] for point in straight["history"]["validation"]] == [3, 6]
    assert all(
        0 < point["gradient_norm"] < float("inf") and point["loss"] > 0 for point in straight["history"]["train"]
    )
    assert len(straight["history"]["validation"][0]) > 2, "scores beside the loss"
    learnt = get_task(task)
    loaded = learnt.load_model(str(tmp_path / "straight"))
    assert loaded.num_parameters() == read_manifest(tmp_path / "straight", "model").counts["parameters"]

    exported(shards_of[task], task, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / f"step-{STEPS:08d}")  # as if killed before it was committed
    resumed, weights = trained(shards_of[task], task, tmp_path / "resumed", **settings)
    curves = [[point["loss"] for point in training["history"]["train"]] for training in (straight, resumed)]
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    assert resumed["best"]["step"] == straight["best"]["step"]
    if engine == "hanflow":  # what it promises
        assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_a_pretrained_classifier_is_trained(engine: str, shards_of: dict[str, Path], tmp_path: Path) -> None:
    shards = shards_of["classification"]
    tokenizer = AutoTokenizer.from_pretrained(shards / "tokenizer")
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    BertForSequenceClassification(BertConfig(**NARROW, **sizes)).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    training, _ = trained(
        shards, "classification", tmp_path / "model", pretrained=str(tmp_path / "bert"), engine=engine
    )
    assert training["steps"] == STEPS


def test_what_an_engine_cannot_do_is_reported_before_anything_is_loaded(tmp_path: Path) -> None:
    def check(**settings: Any) -> str:
        config = step_config("train", {"architecture": {"type": "cnn"}, "backend": "xla", **settings}, "classification")
        with pytest.raises(UserError) as caught:
            run(config, task="classification", output=str(tmp_path / "model"), shards=str(tmp_path / "nowhere"))
        return str(caught.value)

    assert "set train.engine=hanflow" in check(engine="transformers")
    assert "TPUs multiply bf16" in check(precision="fp16")
    both = check(processes=2, precision="fp16")
    assert "one process drives all chips of its host" in both and "TPUs multiply bf16" in both
