"""train.engine=transformers: the same experiment, artifact and figures by transformers' own Trainer."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Seq2SeqTrainer, TrainingArguments

from hanflow.data.shards import Shard, ShardWriter
from hanflow.errors import UserError
from hanflow.tasks import get_task
from hanflow.tasks.summarization import Summarization, SummarizationEvaluate, SummarizationTrain
from hanflow.training.trainer import state as trainer_state
from hanflow.training.trainer.arguments import Sizes, sizes, training_arguments, without_counterpart
from hanflow.training.trainer.engine import fit, make_trainer
from hanflow.training.trainer.kinds import TaskTrainer
from hanflow.training.workers.worker import run
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


def trainer_of(shards: Path, folder: Path, task: Any = None, *, overrides: Any = (), **values: Any) -> TaskTrainer:
    config, task = settings(**values), task or get_task("summarization")
    tokenizer = AutoTokenizer.from_pretrained(shards / "tokenizer")
    splits = [Shard(shards / f"{split}.arrow", task.sequences) for split in ("train", "validation")]
    return make_trainer(
        config, task, task.new_model(config, tokenizer, {}), tokenizer, *splits, folder, **dict(overrides)
    )


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


def test_validation_generates_and_the_best_by_rouge_is_kept(shards: Path, tmp_path: Path) -> None:
    training = trained(
        shards, tmp_path / "model", epochs=12, learning_rate=3e-2, validation_rows=3, validation_beams=2,
        best_metric="rouge_sum", architecture=STILL,
    )  # fmt: skip
    points = training["history"]["validation"]
    assert training["best"]["rouge_sum"] == max(point["rouge_sum"] for point in points) > 0
    task = get_task("summarization")
    model, tokenizer = task.load_model(str(tmp_path / "model")), AutoTokenizer.from_pretrained(tmp_path / "model")
    rows = Shard(shards / "validation.arrow", task.sequences).rows(range(3))
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


def test_it_goes_on_from_its_last_whole_checkpoint(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = {"checkpoints": str(tmp_path / "checkpoints"), "epochs": 3}
    folder = tmp_path / "checkpoints" / "transformers"
    straight = trained(shards, tmp_path / "first", **place)
    (folder / "checkpoint-15" / "trainer_state.json").unlink()  # as if killed while it was saved
    assert trainer_state.newest(folder) == folder / "checkpoint-10"
    resumed = trained(shards, tmp_path / "second", **place)
    assert resumed["steps"] == 15
    assert [p["step"] for p in resumed["history"]["train"]] == list(range(1, 16))
    assert resumed["history"]["train"][:10] == straight["history"]["train"][:10]
    with pytest.raises(UserError, match="train.resume=never"):
        trained(shards, tmp_path / "out", **place, resume="never")
    with pytest.raises(UserError, match="another run .it differs in learning_rate."):
        trained(shards, tmp_path / "out", **place, learning_rate=1e-3)
    with pytest.raises(UserError, match="was never finished"):
        trained(shards, tmp_path / "out", **place, resume=str(folder / "checkpoint-7"))


def test_without_a_validation_split_the_last_model_is_kept(shards: Path, tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "empty.arrow", ("source", "target")):
        pass
    task, config = get_task("summarization"), settings(epochs=1, save_every=2)
    tokenizer = AutoTokenizer.from_pretrained(shards / "tokenizer")
    train, empty = (Shard(path, task.sequences) for path in (shards / "train.arrow", tmp_path / "empty.arrow"))
    for _ in range(2):  # the second finds the first one's end
        model = task.new_model(config, tokenizer, {})
        state, _ = fit(model, tokenizer, task, config, train, empty, tmp_path / "checkpoints", {})
        assert (state.step, state.best_step, state.validation) == (5, -1, [])
        last = load_file(tmp_path / "checkpoints" / "transformers" / "checkpoint-5" / "model.safetensors")
        assert torch.equal(model.state_dict()["model.shared.weight"], last["model.shared.weight"])


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json", "rng_state.pth"])
def test_a_truncated_file_is_noticed(shards: Path, tmp_path: Path, name: str) -> None:
    trainer = trainer_of(shards, tmp_path, max_steps=1, overrides={"eval_strategy": "no", "save_strategy": "steps",
        "load_best_model_at_end": False}.items())  # fmt: skip
    trainer.train()
    path = tmp_path / "checkpoint-1"
    assert trainer_state.problem(path) is None
    (path / name).write_bytes((path / name).read_bytes()[:-20])
    assert name in str(trainer_state.problem(path))


def test_without_the_switch_wandb_is_never_imported(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "__init__.py").write_text("raise SystemExit('wandb was imported')")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}", "WANDB_API_KEY": "x" * 40}
    command = [
        sys.executable,
        "-m",
        "hanflow.steps.train",
        "--shards",
        str(shards),
        "--output",
        str(tmp_path / "model"),
    ]
    command += ["--architecture", json.dumps(ARCHITECTURE), "--engine", "transformers", "--max-steps", "2"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model" / "model.safetensors").is_file() and done.stdout == ""


def test_one_step_costs_what_ours_costs(shards: Path, tmp_path: Path) -> None:
    """Loss and gradient of one batch: the model's own mean over targets, also where the batch comes in two parts."""
    once = {"architecture": STILL, "max_steps": 1, "clip_norm": 0.0}
    quiet = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}.items()
    for part, smoothing in ((40, 0.0), (20, 0.0), (40, 0.1), (20, 0.1)):
        trainer = trainer_of(
            shards,
            tmp_path,
            batch_size=part,
            accumulation=40 // part,
            label_smoothing=smoothing,
            overrides=quiet,
            **once,
        )
        task, model = trainer.task, trainer.model
        rows = Shard(shards / "train.arrow", task.sequences).rows(range(40))
        total, count = task.loss(model, task.collate(rows, (40, 64, 24), model), smoothing)
        (total / count).backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None))
        model.zero_grad()
        expected = (float(total.detach() / count), norm)
        trainer.train()
        first = trainer.state.log_history[0]
        # float32: rows in another order and padded to other lengths are summed in another order.
        assert (first["loss"], first["grad_norm"]) == pytest.approx(expected, rel=1e-5)


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


def test_its_validation_loss_is_ours(shards: Path, tmp_path: Path) -> None:
    trainer = trainer_of(shards, tmp_path, batch_size=3)
    rows = trainer.validation.rows(range(len(trainer.validation)))
    with torch.no_grad():
        total, count = trainer.task.loss(trainer.model, trainer._task_batch(rows, trainer.model), 0.0)
    # float32 logits, summed in another order
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(total / count), rel=1e-6)


def test_batches_are_those_of_the_trainers_users(shards: Path, tmp_path: Path) -> None:
    trainer = trainer_of(
        shards, tmp_path, batch_size=4, overrides={"train_sampling_strategy": "group_by_length"}.items()
    )
    assert isinstance(trainer, Seq2SeqTrainer)
    batch = next(iter(trainer.get_train_dataloader()))
    assert type(trainer._get_train_sampler()).__name__ == "LengthGroupedSampler"
    rows = [trainer.train_dataset[row] for row in range(4)]
    batch = trainer.data_collator([dict(row) for row in rows])
    plain = DataCollatorForSeq2Seq(trainer.tokenizer, model=trainer.model)([dict(row) for row in rows])
    assert batch.keys() == plain.keys() == {"input_ids", "attention_mask", "labels", "decoder_input_ids"}
    assert all(torch.equal(batch[name], plain[name]) for name in plain)
    longest = max(len(row["labels"]) for row in rows)
    assert batch["labels"].shape == (4, longest) and (batch["labels"] == -100).any()


class Plain(Summarization):
    """As if it did not generate."""

    generates = False


def test_a_task_that_does_not_generate_is_trained_by_its_own_loss(shards: Path, tmp_path: Path) -> None:
    trainer = trainer_of(shards, tmp_path, Plain(), epochs=3, validation_rows=2, accumulation=2)
    assert not isinstance(trainer, Seq2SeqTrainer)
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert losses[-1] < losses[0] and 0 < trainer.clock.efficiency < 1
    assert "eval_rouge_sum" in trainer.state.log_history[-2]


def test_mistakes_are_told(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train.best_metric=rouge_sum: .* scores need train.validation_rows above 0"):
        trained(shards, tmp_path / "model", best_metric="rouge_sum", epochs=1)
    with pytest.raises(UserError, match="the training loss was not finite"):
        trained(shards, tmp_path / "model", learning_rate=1e30, clip_norm=0.0)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="train.precision=fp16"):
            trained(shards, tmp_path / "model", precision="fp16", checkpoints=str(tmp_path / "other"))
    assert not (tmp_path / "model").exists()


LENGTHS = np.array([[100, 20]] * 30 + [[412, 100]])


@pytest.mark.parametrize(
    ("values", "world_size", "expected"),
    [
        ({"batch_size": 8, "epochs": 3}, 1, Sizes(8, 4, 12, 1)),
        ({"batch_size": 8, "epochs": 3, "accumulation": 3}, 1, Sizes(8, 2, 6, 1)),
        ({"batch_size": 9, "epochs": 1}, 2, Sizes(5, 4, 4, 2)),
        ({"batch_tokens": 2048, "epochs": 1}, 1, Sizes(4, 8, 8, 1)),
        ({"batch_tokens": 2048, "epochs": 1}, 2, Sizes(2, 8, 8, 2)),
        ({"batch_tokens": 64, "epochs": 1}, 4, Sizes(1, 8, 8, 4)),
        ({"batch_size": 8, "epochs": 3, "max_steps": 5}, 1, Sizes(8, 4, 5, 1)),
        ({"batch_size": 8, "epochs": 3, "max_steps": 50}, 1, Sizes(8, 4, 12, 1)),
    ],
)
def test_sizes(values: dict[str, Any], world_size: int, expected: Sizes) -> None:
    assert sizes(SummarizationTrain(**values), LENGTHS, world_size) == expected


SIZES = Sizes(8, 4, 12, 1)


def arguments(sized: Sizes = SIZES, *, device: str = "cpu", precision: str = "fp32", **values: Any) -> Any:
    return training_arguments(
        SummarizationTrain(**values), sized, Path("x"), precision=precision, device=device, validates=True
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"epochs": 3}, {"num_train_epochs": 3, "max_steps": -1, "per_device_train_batch_size": 8}),
        ({"epochs": 3, "accumulation": 4}, {"gradient_accumulation_steps": 4}),
        ({"epochs": 3, "warmup_ratio": 0.3}, {"warmup_steps": 4}),
        ({"epochs": 3, "warmup_steps": 7}, {"warmup_steps": 7}),
        ({"schedule": "constant"}, {"lr_scheduler_type": "constant_with_warmup"}),
        ({"schedule": "cosine", "learning_rate": 1e-4}, {"lr_scheduler_type": "cosine", "learning_rate": 1e-4}),
        ({"weight_decay": 0.1, "clip_norm": 0.0}, {"weight_decay": 0.1, "max_grad_norm": 0.0}),
        ({"label_smoothing": 0.1, "seed": 7}, {"label_smoothing_factor": 0.1, "seed": 7, "data_seed": 7}),
        ({"precision": "bf16"}, {"bf16": True, "fp16": False, "use_cpu": True, "tf32": None}),
        ({"validate_every": 0}, {"eval_strategy": "epoch", "save_strategy": "epoch"}),
        ({"validate_every": 5}, {"eval_strategy": "steps", "eval_steps": 5, "save_steps": 5}),
        ({}, {"metric_for_best_model": "loss", "greater_is_better": False, "load_best_model_at_end": True}),
        ({"best_metric": "rouge_sum"}, {"metric_for_best_model": "rouge_sum", "greater_is_better": True}),
        ({"best_metric": "rouge_sum", "best_mode": "min"}, {"greater_is_better": False}),
        ({"save_total_limit": 3, "log_every": 2}, {"save_total_limit": 3, "logging_steps": 2}),
        ({"compile": "auto"}, {"torch_compile": False}),
        ({"compile": "on"}, {"torch_compile": True}),
        ({"wandb": True}, {"report_to": "none", "push_to_hub": False, "disable_tqdm": True}),
    ],
)
def test_settings_mean_what_they_say(values: dict[str, Any], expected: dict[str, Any]) -> None:
    given = arguments(**{"precision": "fp32", **values})
    assert {name: given[name] for name in expected} == expected


def test_the_arguments_are_those_of_this_transformers(tmp_path: Path) -> None:
    values = {**arguments(validate_every=4, precision="bf16"), "output_dir": str(tmp_path)}
    made = TrainingArguments(**values)
    assert made.optim == "adamw_torch_fused" and made.report_to == [] and made.bf16
    assert arguments(Sizes(8, 4, 5, 1))["max_steps"] == 5
    assert arguments(Sizes(8, 4, 12, 2))["ddp_backend"] == "gloo"
    assert arguments(Sizes(8, 4, 12, 2), device="cuda")["ddp_backend"] == "nccl"


def test_what_means_nothing_here_is_named() -> None:
    assert without_counterpart(SummarizationTrain(batch_size=8, save_minutes=5.0)) == []
    told = " ".join(without_counterpart(SummarizationTrain(nonfinite_limit=3, nonfinite_dump=True)))
    assert "train.nonfinite_limit" in told and "train.nonfinite_dump" in told
