"""train.engine=transformers: the same experiment, artifact and figures by transformers' own Trainer."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoTokenizer, Seq2SeqTrainer, TrainingArguments

from hanflow.data.shards import Shard, ShardWriter
from hanflow.errors import UserError
from hanflow.progress import Progress
from hanflow.steps.train import run
from hanflow.tasks import get_task
from hanflow.tasks.summarization import SummarizationEvaluate, SummarizationTrain
from hanflow.training.backends.torch import TorchBackend
from hanflow.training.checkpoints.local import Checkpoints
from hanflow.training.state import LoopState, TrainingRun
from hanflow.training.stop import StopRequest
from hanflow.training.trackers import Trackers
from hanflow.training.trainer import Sizes, TaskTrainer, differences, fit, sizes, training_arguments
from tests.support.corpora import ARCHITECTURE

STILL = {**ARCHITECTURE, "dropout": 0.0}


def settings(**values: Any) -> SummarizationTrain:
    usual: dict[str, Any] = {
        "architecture": ARCHITECTURE,
        "epochs": 2,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "precision": "fp32",
        "log_every": 1,
        "engine": "transformers",
    }
    return SummarizationTrain(**{**usual, **values})


def trained(shards: Path, output: Path, **values: Any) -> dict[str, Any]:
    """training.json of a run."""
    run(settings(**values), task="summarization", output=str(output), shards=str(shards))
    return json.loads((output / "training.json").read_text())


def training_run(shards: Path, folder: Path, **values: Any) -> TrainingRun:
    config, task = settings(**values), get_task("summarization")
    tokenizer = AutoTokenizer.from_pretrained(shards / "tokenizer")
    train, validation = (Shard(shards / f"{split}.arrow", task.sequences) for split in ("train", "validation"))
    model = task.new_model(config, tokenizer, {})
    return TrainingRun(task, config, tokenizer, model, train, validation, str(folder), {})


@contextlib.contextmanager
def trainer_of(shards: Path, folder: Path, **values: Any) -> Iterator[TaskTrainer]:
    made = training_run(shards, folder, **values)
    sized, state, checkpoints = sizes(made.config, made.train.lengths(), 1), LoopState({}), Checkpoints(folder, 2)
    with (
        Trackers(folder, state, made.config, place=str(folder)) as trackers,
        Progress("training") as progress,
        StopRequest() as stop,
    ):
        yield TaskTrainer(made, TorchBackend("fp32"), checkpoints, state, sized, stop, trackers, progress)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_it_learns_and_leaves_what_our_own_engine_leaves(shards: Path, tmp_path: Path) -> None:
    theirs = trained(shards, tmp_path / "theirs", epochs=3)
    ours = trained(shards, tmp_path / "ours", engine="hanflow", epochs=1)
    points = theirs["history"]["validation"]
    assert points[-1]["loss"] < points[0]["loss"] and theirs["steps"] == 15
    assert theirs["best"] == min(points, key=lambda p: p["loss"])
    assert names(tmp_path / "theirs") == names(tmp_path / "ours")
    assert theirs.keys() == ours.keys()
    for split in ("train", "validation"):
        assert theirs["history"][split][0].keys() == ours["history"][split][0].keys()
    assert all(point["tokens_per_second"] > 0 for point in theirs["history"]["train"])
    assert 0 < theirs["padding_efficiency"] < 1
    weights = [load_file(tmp_path / engine / "model.safetensors") for engine in ("theirs", "ours")]
    assert weights[0].keys() == weights[1].keys()
    configs = [json.loads((tmp_path / e / "generation_config.json").read_text()) for e in ("theirs", "ours")]
    assert configs[0] == configs[1]

    folder = tmp_path / "theirs.checkpoints"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines if line["split"] == "train"] == [
        p["loss"] for p in theirs["history"]["train"]
    ]
    tags = set(EventAccumulator(str(folder / "tensorboard")).Reload().Tags()["scalars"])
    assert {"train/loss", "train/learning_rate", "train/gradient_norm", "validation/loss"} <= tags
    assert {path.name for path in folder.glob(".*")} == {".lock"}, "the Trainer's own folder is gone"


def test_validation_generates_and_the_best_by_rouge_is_kept(shards: Path, tmp_path: Path) -> None:
    training = trained(
        shards, tmp_path / "model", epochs=12, learning_rate=3e-2, validation_rows=20, validation_beams=2,
        best_metric="rouge_sum", architecture=STILL,
    )  # fmt: skip
    points = training["history"]["validation"]
    assert training["best"]["rouge_sum"] == max(point["rouge_sum"] for point in points) > 0
    task = get_task("summarization")
    model, tokenizer = task.load_model(str(tmp_path / "model")), AutoTokenizer.from_pretrained(tmp_path / "model")
    validation = Shard(shards / "validation.arrow", task.sequences)
    rows = validation.rows(range(len(validation)))
    longest = int(Shard(shards / "train.arrow", task.sequences).lengths()[:, 1].max())
    search = SummarizationEvaluate(beams=2, max_new_tokens=longest, engine="transformers")
    predictions = task.predictor(model, tokenizer, search)(rows)
    scores = task.overall(task.score(predictions, [task.reference_of(row, tokenizer, model) for row in rows]))
    best = next(point for point in points if point["step"] == training["best"]["step"])
    assert {name: best[name] for name in scores} == pytest.approx(scores)  # the same search, texts and metrics


def test_early_stopping_ends_the_run_and_stays_ended(shards: Path, tmp_path: Path) -> None:
    place = {"checkpoints": str(tmp_path / "checkpoints"), "epochs": 6, "patience": 1, "threshold": 100.0}
    training = trained(shards, tmp_path / "model", **place)
    assert training["steps"] == 10 and len(training["history"]["validation"]) == 2
    again = trained(shards, tmp_path / "again", **place)
    assert all(again[name] == training[name] for name in ("history", "best", "padding_efficiency"))
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "again"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_it_resumes_from_its_last_intact_checkpoint(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    place = {"checkpoints": str(folder), "epochs": 3, "save_every": 3}
    straight = trained(shards, tmp_path / "first", **place)
    assert {"step-00000012", "step-00000015"} <= names(folder)
    shutil.rmtree(folder / "step-00000015")
    resumed = trained(shards, tmp_path / "second", **place)  # in the middle of an epoch
    assert resumed["steps"] == 15
    assert [p["step"] for p in resumed["history"]["train"]] == list(range(1, 16))
    assert resumed["history"]["train"][:12] == straight["history"]["train"][:12]
    # Same rows, weights, moments, schedule and random states: no more is promised than that the curve goes on.
    losses = [[point["loss"] for point in training["history"]["train"]] for training in (resumed, straight)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    with pytest.raises(UserError, match="train.resume=never"):
        trained(shards, tmp_path / "out", **place, resume="never")
    with pytest.raises(UserError, match="another run .it differs in learning_rate."):
        trained(shards, tmp_path / "out", **place, learning_rate=1e-3)
    with pytest.raises(UserError, match="another run .it differs in engine."):
        trained(shards, tmp_path / "out", **place, engine="hanflow")
    with pytest.raises(UserError, match="was never committed"):
        trained(shards, tmp_path / "out", **place, resume=str(folder / "step-00000007"))


def test_without_a_validation_split_the_last_model_is_kept(shards: Path, tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "empty.arrow", ("source", "target")):
        pass
    for _ in range(2):  # the second finds the first one's end
        made = training_run(shards, tmp_path / "checkpoints", epochs=1, save_every=2)
        made = TrainingRun(**{**vars(made), "validation": Shard(tmp_path / "empty.arrow", made.task.sequences)})
        result = fit(made)
        assert (result.state.step, result.state.best_step, result.state.validation) == (5, -1, [])
        last = load_file(tmp_path / "checkpoints" / "step-00000005" / "model.safetensors")
        assert torch.equal(result.model.state_dict()["model.shared.weight"], last["model.shared.weight"])


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json", "rng_state.pth"])
def test_damage_is_noticed(shards: Path, tmp_path: Path, name: str) -> None:
    fit(training_run(shards, tmp_path, max_steps=1))
    checkpoints = Checkpoints(tmp_path, 2)
    path = checkpoints.path(1)
    assert checkpoints.problem(path) is None
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[:-20])
    assert checkpoints.problem(path) == f"{name} is truncated"
    (path / name).write_bytes(content[:-20] + bytes(20))
    assert checkpoints.problem(path) == f"{name} is damaged (its sha256 differs)"


def test_without_the_switch_wandb_is_never_imported(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "__init__.py").write_text("raise SystemExit('wandb was imported')")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}", "WANDB_API_KEY": "x" * 40}
    places = [f"--shards={shards}", f"--output={tmp_path / 'model'}", f"--architecture={json.dumps(ARCHITECTURE)}"]
    command = [sys.executable, "-m", "hanflow.steps.train", *places, "--engine=transformers", "--max-steps=2"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model" / "model.safetensors").is_file() and done.stdout == ""


@pytest.mark.parametrize(("part", "smoothing"), [(40, 0.0), (20, 0.0), (40, 0.1), (20, 0.1)])
def test_one_step_costs_what_ours_costs(shards: Path, tmp_path: Path, part: int, smoothing: float) -> None:
    """Loss and gradient of one batch: the mean over its targets, also where the batch comes in two parts."""
    values: dict[str, Any] = {"batch_size": part, "accumulation": 40 // part, "label_smoothing": smoothing}
    made = training_run(shards, tmp_path, architecture=STILL, max_steps=1, clip_norm=0.0, **values)
    task, model, rows = made.task, made.model, made.train.rows(range(40))
    total, count = task.loss(model, task.collate(rows, (40, 64, 24), model), smoothing)
    (total / count).backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    point = fit(made).state.train[0]
    # float32: rows in another order and padded to other lengths are summed in another order.
    assert (point["loss"], point["gradient_norm"]) == pytest.approx(
        (float(total.detach() / count), float(norm)), rel=1e-5
    )


def test_two_processes_give_the_same_curve(shards: Path, tmp_path: Path) -> None:
    """Gradients are normalised by the targets of all workers' passes (transformers' own would be twice as large)."""
    still = {"architecture": STILL, "clip_norm": 0.0, "epochs": 1, "validation_rows": 3}
    one = trained(shards, tmp_path / "one", **still)
    two = trained(shards, tmp_path / "two", processes=2, **still)
    assert two["world_size"] == 2 and two["steps"] == one["steps"]
    for name in ("loss", "gradient_norm", "learning_rate"):
        curves = [[point[name] for point in run["history"]["train"]] for run in (one, two)]
        # float32 sums in another order, amplified over five optimizer steps
        assert curves[0] == pytest.approx(curves[1], rel=1e-4), name
    assert two["history"]["validation"][0] == pytest.approx(one["history"]["validation"][0], rel=1e-4)


def test_batches_are_rows_padded_to_their_longest(shards: Path, tmp_path: Path) -> None:
    with trainer_of(shards, tmp_path, batch_size=4) as trainer:
        assert isinstance(trainer, Seq2SeqTrainer)
        lengths = trainer.run.train.lengths()[:4]
        batch = trainer.data_collator([trainer.train_dataset[row] for row in range(4)])
        assert batch["tensors"]["input_ids"].shape == (4, lengths[:, 0].max())
        assert batch["tensors"]["decoder_input_ids"].shape == (4, lengths[:, 1].max())
        assert (batch["targets"], batch["tokens"]) == (lengths[:, 1].sum(), lengths.sum())
        assert trainer.padding_efficiency == lengths.sum() / (4 * lengths.max(axis=0).sum())


def test_mistakes_are_reported(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train.best_metric=rouge_sum: .* scores need train.validation_rows above 0"):
        trained(shards, tmp_path / "model", best_metric="rouge_sum", epochs=1)
    with pytest.raises(UserError, match="the gradient was not finite up to step"):
        trained(shards, tmp_path / "model", learning_rate=1e30, clip_norm=0.0)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="train.precision=fp16"):
            trained(shards, tmp_path / "model", precision="fp16", checkpoints=str(tmp_path / "other"))
    assert not (tmp_path / "model").exists()


LENGTHS = np.array([[100, 20]] * 30 + [[412, 100]])


@pytest.mark.parametrize(
    ("values", "world_size", "expected"),
    [
        ({"batch_size": 8, "epochs": 3}, 1, Sizes(8, 4, 12)),
        ({"batch_size": 8, "epochs": 3, "accumulation": 3}, 1, Sizes(8, 2, 6)),
        ({"batch_size": 9, "epochs": 1}, 2, Sizes(5, 4, 4)),
        ({"batch_tokens": 2048, "epochs": 1}, 1, Sizes(4, 8, 8)),
        ({"batch_tokens": 2048, "epochs": 1}, 2, Sizes(2, 8, 8)),
        ({"batch_tokens": 64, "epochs": 1}, 4, Sizes(1, 8, 8)),
        ({"batch_size": 8, "epochs": 3, "max_steps": 5}, 1, Sizes(8, 4, 5)),
        ({"batch_size": 8, "epochs": 3, "max_steps": 50}, 1, Sizes(8, 4, 12)),
    ],
)
def test_sizes(values: dict[str, Any], world_size: int, expected: Sizes) -> None:
    assert sizes(SummarizationTrain(**values), LENGTHS, world_size) == expected


def arguments(*, device: str = "cpu", precision: str = "fp32", world_size: int = 1, **values: Any) -> Any:
    return training_arguments(
        SummarizationTrain(**values), Sizes(8, 4, 12), precision=precision, device=device, world_size=world_size
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"epochs": 3}, {"max_steps": 12, "per_device_train_batch_size": 8}),
        ({"epochs": 3, "accumulation": 4}, {"gradient_accumulation_steps": 4}),
        ({"epochs": 3, "warmup_ratio": 0.3}, {"warmup_steps": 4}),
        ({"epochs": 3, "warmup_steps": 7}, {"warmup_steps": 7}),
        ({"schedule": "constant"}, {"lr_scheduler_type": "constant_with_warmup"}),
        ({"schedule": "cosine", "learning_rate": 1e-4}, {"lr_scheduler_type": "cosine", "learning_rate": 1e-4}),
        ({"weight_decay": 0.1, "clip_norm": 0.0}, {"weight_decay": 0.1, "max_grad_norm": 0.0}),
        ({"seed": 7}, {"seed": 7, "data_seed": 7}),
        ({"precision": "bf16"}, {"bf16": True, "fp16": False, "use_cpu": True}),
        ({"compile": "auto"}, {"torch_compile": False}),
        ({"compile": "on"}, {"torch_compile": True}),
        ({"wandb": True}, {"report_to": "none", "push_to_hub": False, "disable_tqdm": True}),
    ],
)
def test_settings_mean_what_they_say(values: dict[str, Any], expected: dict[str, Any]) -> None:
    given = arguments(**{"precision": "fp32", **values})
    assert {name: given[name] for name in expected} == expected


def test_the_arguments_are_those_of_this_transformers(tmp_path: Path) -> None:
    made = TrainingArguments(str(tmp_path), **arguments(validate_every=4, precision="bf16"))
    assert made.optim == "adamw_torch_fused" and made.report_to == [] and made.bf16
    backends = [arguments(device=device, world_size=2)["ddp_backend"] for device in ("cpu", "cuda")]
    assert backends == ["gloo", "nccl"]


def test_settings_that_differ_are_named() -> None:
    assert differences(SummarizationTrain(batch_size=8, batch_tokens=64, save_minutes=5.0)) == []
    named = " ".join(differences(SummarizationTrain(nonfinite_limit=3, nonfinite_dump=True, batch_tokens=64)))
    assert all(f"train.{name}" in named for name in ("nonfinite_limit", "nonfinite_dump", "batch_tokens"))
