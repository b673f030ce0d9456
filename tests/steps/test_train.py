"""Train: it learns, keeps the best, resumes exactly, and says what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from hanflow.errors import UserError
from hanflow.steps.train import run
from hanflow.storage.artifacts import read_manifest
from hanflow.tasks.summarization import SummarizationTrain
from tests.support import tasks
from tests.support.corpora import ARCHITECTURE


def trained(shards: Path, output: Path, **settings: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(training.json, weights) of a run."""
    values = {
        "architecture": ARCHITECTURE,
        "epochs": 2,
        "batch_tokens": 512,
        "learning_rate": 3e-3,
        "precision": "fp32",
    }
    run(
        SummarizationTrain(**{**values, "log_every": 1, **settings}),
        task="summarization",
        output=str(output),
        shards=str(shards),
    )
    return json.loads((output / "training.json").read_text()), load_file(output / "model.safetensors")


def test_it_learns_and_leaves_a_loadable_model(shards: Path, tmp_path: Path) -> None:
    training, weights = trained(shards, tmp_path / "model", epochs=4)
    points = training["history"]["validation"]
    assert points[-1]["loss"] < points[0]["loss"]
    assert training["best"] == min(points, key=lambda p: p["loss"])
    manifest = read_manifest(tmp_path / "model", "model", task="summarization")
    assert manifest.parents == {"shards": read_manifest(shards, "shards").digest}
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert model.config.vocab_size == len(tokenizer) == 500
    assert torch.equal(model.lm_head.weight, weights["model.shared.weight"])


def test_figures_go_to_metrics_and_tensorboard(shards: Path, tmp_path: Path) -> None:
    training, _ = trained(shards, tmp_path / "model")
    folder = tmp_path / "model.checkpoints"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines if line["split"] == "train"] == [
        p["loss"] for p in training["history"]["train"]
    ]
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert {"train/loss", "train/learning_rate", "train/gradient_norm", "validation/loss"} <= set(
        board.Tags()["scalars"]
    )
    assert len(board.Scalars("train/loss")) == training["steps"]


def test_the_best_model_is_kept_when_later_ones_are_worse(shards: Path, tmp_path: Path) -> None:
    # A learning rate that wrecks the model: the first validation is the best one.
    training, weights = trained(
        shards, tmp_path / "model", epochs=3, learning_rate=3.0, warmup_ratio=1.0, clip_norm=0.0
    )
    losses = {p["step"]: p["loss"] for p in training["history"]["validation"]}
    assert training["best"]["step"] == min(losses, key=lambda step: losses[step]) < max(losses)
    best = tmp_path / "model.checkpoints" / f"step-{training['best']['step']:08d}"
    assert torch.equal(load_file(best / "model.safetensors")["model.shared.weight"], weights["model.shared.weight"])


def test_accumulation_is_one_larger_batch(shards: Path, tmp_path: Path) -> None:
    """Gradients of 2 × 5 rows equal those of 10: the loss is divided by the step's targets, not the batch's."""
    still: dict[str, Any] = {"architecture": {**ARCHITECTURE, "dropout": 0.0}, "epochs": 1, "max_steps": 1}
    from hanflow.data.shards import Shard
    from hanflow.tasks import get_task
    from hanflow.training.backends.torch import TorchBackend
    from hanflow.training.loader import Data
    from hanflow.training.loop import Objective

    task = get_task("summarization")
    config = SummarizationTrain(**still, batch_size=5)
    tokenizer = AutoTokenizer.from_pretrained(shards / "tokenizer")
    backend = TorchBackend("fp32")
    shard = Shard(shards / "train.arrow", task.sequences)

    def gradients(parts: list[list[int]]) -> list[torch.Tensor]:
        model = task.new_model(config, tokenizer, {})
        data = Data.of(shard, task, config, shuffle=False)
        count = sum(int(data.targets[part].sum()) for part in parts)
        objective = Objective(model, task, 0.0)
        for part in parts:
            batch = task.collate(shard.rows(part), (len(part), 64, 24), model)
            (objective(backend.put(batch))[0] / count).backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    for a, b in zip(gradients([list(range(10))]), gradients([[0, 3, 4, 8, 9], [1, 2, 5, 6, 7]]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)  # float32 sums in another order


def test_a_finished_run_resumes_to_the_same_weights(shards: Path, tmp_path: Path) -> None:
    _, straight = trained(shards, tmp_path / "straight", epochs=3)
    place = {"checkpoints": str(tmp_path / "checkpoints"), "epochs": 3}
    _, first = trained(shards, tmp_path / "first", **place)
    for path in sorted((tmp_path / "checkpoints").glob("step-*"))[1:]:
        (path / "commit.json").unlink()  # as if killed before the later ones were committed
    history, resumed = trained(shards, tmp_path / "resumed", **place)
    for name, tensor in straight.items():
        assert torch.equal(tensor, first[name]) and torch.equal(tensor, resumed[name]), name
    assert [p["step"] for p in history["history"]["train"]] == list(range(1, history["steps"] + 1))


def test_mistakes_are_reported_and_leave_nothing(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="did you mean d_model"):
        trained(shards, out, architecture={"d_modell": 32})
    with pytest.raises(UserError, match="rows of 64 tokens, the model takes 32: set tokenize.max_source_tokens"):
        trained(shards, out, architecture={**ARCHITECTURE, "max_position_embeddings": 32})
    with pytest.raises(UserError, match="expected a shards artifact, but this is a corpus artifact"):
        trained(shards.parent / "corpus", out)
    place = {"checkpoints": str(tmp_path / "checkpoints")}
    trained(shards, tmp_path / "model", **place)
    with pytest.raises(UserError, match="checkpoints of another run .it differs in epochs, learning_rate."):
        trained(shards, out, **place, epochs=3, learning_rate=1e-3)
    assert not out.exists()


def curve(training: dict[str, Any]) -> list[float]:
    return [point["loss"] for point in training["history"]["train"]]


@pytest.mark.parametrize("task", ["classification", "language_modeling"])
def test_every_task_gives_the_same_curve_on_two_ranks(tmp_path: Path, task: str) -> None:
    chain = tasks.make_shards(tmp_path, task, tasks.reviews(120))
    still = {**tasks.ARCHITECTURES[task], "dropout": 0.0}  # its random numbers belong to a rank's share of the rows
    curves = []
    for processes in (1, 2):
        output = tmp_path / f"model-{processes}"
        config = tasks.settings(task, architecture=still, processes=processes, batch_size=15)
        run(config, task=task, output=str(output), shards=str(chain.shards))
        training = json.loads((output / "training.json").read_text(encoding="utf-8"))
        assert training["world_size"] == processes
        curves.append([(point["step"], point["loss"]) for point in training["history"]["train"]])
        curves[-1] += [(point["step"], point["loss"]) for point in training["history"]["validation"]]
    # The order of float32 additions differs: 7 digits, amplified by some optimizer steps.
    assert np.allclose(curves[0], curves[1], rtol=2e-5)


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_ranks_gives_the_same_curve(shards: Path, tmp_path: Path, processes: int) -> None:
    still = {"architecture": {**ARCHITECTURE, "dropout": 0.0}, "accumulation": 2, "epochs": 3}
    one, _ = trained(shards, tmp_path / "one", **still)
    many, _ = trained(shards, tmp_path / "many", processes=processes, **still)
    assert many["world_size"] == processes
    # Same batches, same targets: only the order of float32 additions differs (7 digits, losses near 6, amplified by a
    # few dozen optimizer steps). Without dropout, whose random numbers belong to a rank's share of the rows.
    assert curve(many) == pytest.approx(curve(one), rel=2e-5)
    assert many["best"]["step"] == one["best"]["step"]
