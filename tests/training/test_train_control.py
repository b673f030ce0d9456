"""What steers training: early stopping, the metric that decides, clipping, numbers that are not finite, trackers."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoTokenizer

from hanflow.data.shards import Shard
from hanflow.errors import UserError
from hanflow.storage.artifacts import read_manifest, read_training
from hanflow.tasks import get_task
from hanflow.tasks.summarization import Summarization, SummarizationTrain
from hanflow.training.backends.torch import TorchBackend, compiles, system_compiler
from hanflow.training.evaluation import compare, exhausted
from hanflow.training.optimizer import make_optimizer
from hanflow.training.state import LoopState
from hanflow.training.workers import worker
from tests.steps.test_train import trained
from tests.support.corpora import ARCHITECTURE

GOLDEN = Path(__file__).parents[1] / "golden" / "loss_curve.json"


def judged(losses: list[float], **settings: Any) -> tuple[LoopState, int]:
    """(state, validations until early stopping; all of them if it never came) of a run with these validation losses."""
    config = SummarizationTrain(**settings)
    state = LoopState({})
    for count, loss in enumerate(losses, 1):
        state.step = count
        compare({"step": count, "loss": loss, "rouge_sum": -loss}, state, config, get_task("summarization"))
        if exhausted(state, config):
            return state, count
    return state, len(losses)


@pytest.mark.parametrize(
    ("losses", "settings", "best", "stops_after"),
    [
        ([3, 2, 2.5, 2.4, 2.3], {"patience": 2}, 2, 4),
        ([3, 2, 2.5, 1.9, 2.3, 2.2], {"patience": 2}, 4, 6),
        # Better by less than the threshold: still the best model, but patience runs out.
        ([3, 2.9995, 2.999, 2.9985], {"patience": 3, "threshold": 0.001}, 4, 4),
        ([3, 3, 3, 3], {"patience": 0}, 1, 4),
        ([3, 2, 1], {"best_metric": "rouge_sum", "patience": 1}, 3, 3),
        ([1, 2, 3], {"best_metric": "rouge_sum", "patience": 1}, 1, 2),
        ([1, 2, 3], {"best_mode": "max"}, 3, 3),
        ([float("nan"), 3, 2, float("nan")], {}, 3, 4),
        ([float("nan")] * 3, {"patience": 2}, -1, 2),
        ([float("inf"), 3], {}, 2, 2),
        ([float("inf")] * 3, {"patience": 2}, -1, 2),
    ],
)
def test_best_and_patience_by_hand(losses: list[float], settings: dict[str, Any], best: int, stops_after: int) -> None:
    state, stopped = judged(losses, **settings)
    assert (state.best_step, stopped) == (best, stops_after)


def test_an_unknown_metric_is_refused_with_those_measured() -> None:
    with pytest.raises(UserError, match="best_metric=rougeL_morpheme: no such validation figure; measured are loss"):
        judged([1.0], best_metric="rougeL_morpheme")


def test_early_stopping_ends_the_run_and_keeps_the_best(shards: Path, tmp_path: Path) -> None:
    training, weights = trained(
        shards, tmp_path / "model", epochs=50, patience=2, learning_rate=0.3, warmup_ratio=0.0, warmup_steps=40
    )
    points = training["history"]["validation"]
    assert len(points) < 50
    assert [p["loss"] for p in points[-2:]] == sorted(p["loss"] for p in points[-2:]) or points[-1]["loss"] > min(
        p["loss"] for p in points
    )
    assert training["best"]["step"] == points[-3]["step"], "two validations without improvement after the best"
    best = tmp_path / "model.checkpoints" / f"step-{training['best']['step']:08d}" / "model.safetensors"
    assert torch.equal(load_file(best)["model.shared.weight"], weights["model.shared.weight"])


@pytest.mark.parametrize("engine", ["hanflow", "transformers"])
def test_early_stopping_before_the_first_logged_step_leaves_a_model(shards: Path, tmp_path: Path, engine: str) -> None:
    hopeless = {"epochs": 9, "patience": 1, "threshold": 1e9, "log_every": 1000}
    training, _ = trained(shards, tmp_path / "model", engine=engine, **hopeless)
    assert training["history"]["train"] == [] and len(training["history"]["validation"]) == 2
    figures = read_manifest(tmp_path / "model", "model").details["figures"]
    assert figures["steps"] == training["steps"] and "train_loss" not in figures


def test_scores_of_generated_texts_can_decide(shards: Path, tmp_path: Path) -> None:
    training, _ = trained(shards, tmp_path / "model", validation_rows=3, best_metric="rouge_sum")
    for point in training["history"]["validation"]:
        parts = [point[f"rouge{n}_morpheme"] for n in ("1", "2", "L")]
        assert point["rouge_sum"] == pytest.approx(sum(parts))
    values = [p["rouge_sum"] for p in training["history"]["validation"]]
    assert training["best"]["rouge_sum"] == max(values)


@pytest.mark.parametrize("clip", [0.0, 0.5, 1e9])
def test_clipping_by_hand(clip: float) -> None:
    parameters = [torch.nn.Parameter(torch.tensor([1.0, 2.0])), torch.nn.Parameter(torch.tensor([[3.0]]))]
    expected = [p.detach().clone() for p in parameters]
    for p, grad in zip(parameters, ([3.0, 4.0], [[12.0]]), strict=True):  # norm 13
        p.grad = torch.tensor(grad)
    scale = min(1.0, clip / (13.0 + 1e-6)) if clip else 1.0
    norm = TorchBackend("fp32").step(torch.optim.SGD(parameters, lr=0.1, fused=True), parameters, clip)
    assert float(norm) == pytest.approx(13.0)
    for p, before, grad in zip(parameters, expected, ([3.0, 4.0], [[12.0]]), strict=True):
        torch.testing.assert_close(p.detach(), before - 0.1 * scale * torch.tensor(grad))
        assert p.grad is None


@pytest.mark.parametrize(
    ("setting", "device", "compiler", "expected"),
    [
        ("off", "cuda", "gcc", False),
        ("auto", "cuda", "gcc", True),
        ("auto", "cuda", None, False),
        ("auto", "cpu", "g++", False),
        ("on", "cpu", "g++", True),
    ],
)
def test_what_is_compiled(setting: str, device: str, compiler: str | None, expected: bool) -> None:
    assert compiles(setting, device, compiler) is expected


def test_an_image_without_compiler_trains_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert system_compiler("cuda") is None
    with pytest.raises(UserError, match="train.compile=on: .* found none"):
        compiles("on", "cuda", system_compiler("cuda"))
    for name in ("clang", "g++"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    assert system_compiler("cuda") == str(tmp_path / "clang") and system_compiler("cpu") == str(tmp_path / "g++")
    monkeypatch.setenv("CC", "no-such-compiler")
    assert system_compiler("cuda") is None, "CC outranks what is found"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_without_a_finite_gradient_changes_nothing(bad: float) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = make_optimizer(model, SummarizationTrain())
    backend = TorchBackend("fp32")

    def step(value: float) -> torch.Tensor:
        for p in model.parameters():
            p.grad = torch.full_like(p, value)
        return backend.step(optimizer, list(model.parameters()), 1.0)

    step(0.3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    moments = [v.clone() for p in model.parameters() for v in optimizer.state[p].values()]
    assert not torch.isfinite(step(bad))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    after = [v for p in model.parameters() for v in optimizer.state[p].values()]
    assert all(map(torch.equal, moments, after))
    assert torch.isfinite(step(0.3))
    assert not torch.equal(before["weight"], model.weight)


def test_layers_norms_are_parts_of_the_whole_in_fp16_too(shards: Path, tmp_path: Path) -> None:
    """fp16 multiplies the loss by a large factor; what is logged is the gradient without it."""
    training, _ = trained(shards, tmp_path / "model", precision="fp16", epochs=1)
    board = EventAccumulator(str(tmp_path / "model.checkpoints" / "tensorboard")).Reload()
    layers = [tag for tag in board.Tags()["scalars"] if tag.startswith("gradient_norm/")]
    compared = 0
    for place, point in enumerate(training["history"]["train"]):
        if math.isfinite(point["gradient_norm"]):
            whole = math.sqrt(sum(board.Scalars(tag)[place].value ** 2 for tag in layers))
            assert whole == pytest.approx(point["gradient_norm"], rel=1e-4)  # float32 sums in another order
            compared += 1
    assert len(layers) > 3 and compared


class Exploding(Summarization):
    """Its loss is NaN for some batches: those whose first target is a multiple of `every`."""

    name = "summarization"
    every = 3

    def loss(self, model, batch, label_smoothing):  # type: ignore[no-untyped-def]
        total, count = super().loss(model, batch, label_smoothing)
        explodes = model.training and int(batch["targets"][0]) % self.every == 0
        return (total * float("nan") if explodes else total), count


class AlwaysExploding(Exploding):
    every = 1


def test_single_bad_steps_are_skipped_and_counted(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(worker.__dict__, "get_task", lambda name: Exploding())
    training, weights = trained(shards, tmp_path / "model", epochs=3, batch_size=4, batch_tokens=10**6)
    assert 0 < training["skipped_steps"] < training["steps"]
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    bad = [p for p in training["history"]["train"] if p["gradient_norm"] is None]
    assert len(bad) == training["skipped_steps"], "logged as they were: not hidden"
    assert read_training(tmp_path / "model") == training, "which the next step reads"
    assert read_manifest(tmp_path / "model", "model").details["figures"]["steps"] == training["steps"]


def test_many_in_a_row_stop_the_run_and_name_the_rows(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(worker.__dict__, "get_task", lambda name: AlwaysExploding())
    with pytest.raises(UserError, match=r"not finite in 4 steps in a row, up to step 4 \(rows \d+") as caught:
        trained(shards, tmp_path / "model", nonfinite_limit=4, nonfinite_dump=True)
    assert not (tmp_path / "model").exists()
    dump = tmp_path / "model.checkpoints" / "nonfinite-00000003"
    assert str(dump) in str(caught.value)
    rows = json.loads((dump / "rows.json").read_text())["rows"]
    assert ", ".join(map(str, rows[:20])) in str(caught.value)
    # The dump reproduces the loss of that step's batch.
    task = get_task("summarization")
    model = task.new_model(
        SummarizationTrain(architecture=ARCHITECTURE), AutoTokenizer.from_pretrained(shards / "tokenizer"), {}
    )
    model.load_state_dict(load_file(dump / "model.safetensors"), strict=False)
    batch = load_file(dump / "rank-0-batch-0.safetensors")
    source = Shard(shards / "train.arrow", task.sequences)[rows[0]][0]
    assert batch["input_ids"][0, : len(source)].tolist() == source.tolist()
    assert torch.isfinite(task.loss(model, batch, 0.0)[0])


def test_every_rank_leaves_its_own_part_of_a_bad_step(shards: Path, tmp_path: Path) -> None:
    """A learning rate that overflows: on two ranks, where the weights' files are written once."""
    with pytest.raises(
        UserError, match="not finite in 2 steps in a row, up to step .*Weights and batches of that step"
    ):
        trained(
            shards,
            tmp_path / "model",
            processes=2,
            epochs=9,
            learning_rate=1e30,
            warmup_ratio=0.0,
            clip_norm=0.0,
            nonfinite_limit=2,
            nonfinite_dump=True,
        )
    (dump,) = (tmp_path / "model.checkpoints").glob("nonfinite-*")
    parts = [f"rank-{rank}-batch-0.safetensors" for rank in range(2)]
    assert sorted(path.name for path in dump.iterdir()) == ["model.safetensors", *parts, "rows.json"]
    first, second = (load_file(dump / name)["input_ids"] for name in parts)
    assert len(first) + len(second) == len(json.loads((dump / "rows.json").read_text())["rows"])


def test_weights_and_biases_by_the_switch_alone(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    trained(shards, tmp_path / "on", epochs=1, wandb=True, wandb_tags=["시험"])
    (log,) = (tmp_path / "on.checkpoints" / "wandb").glob("offline-run-*/run-*.wandb")
    content = log.read_bytes()
    for figure in (b"train/loss", b"train/learning_rate", b"gradient_norm/model.encoder.layers.0", b"validation/loss"):
        assert figure in content
    for place in ("on", "elsewhere"):  # gone on from, and another run of the same settings
        folder = str(tmp_path / f"{place}.checkpoints")
        trained(shards, tmp_path / f"{place} again", checkpoints=folder, epochs=1, wandb=True, wandb_tags=["시험"])
    ids = {
        place: {
            path.name.rpartition("-")[2] for path in (tmp_path / f"{place}.checkpoints" / "wandb").glob("offline-*")
        }
        for place in ("on", "elsewhere")
    }
    assert len(ids["on"]) == len(ids["elsewhere"]) == 1 and ids["on"] != ids["elsewhere"]
    code = (
        "import sys\nfrom hanflow.steps.train import run\n"
        "from hanflow.tasks.summarization import SummarizationTrain\n"
        f"run(SummarizationTrain(architecture={ARCHITECTURE!r}, max_steps=1), task='summarization', "
        f"output={str(tmp_path / 'off')!r}, shards={str(shards)!r})\nprint('wandb' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")


def test_the_loss_curve_is_the_golden_one(shards: Path, tmp_path: Path) -> None:
    """A change that computes nothing new must leave the curve as it is. Renew: HANFLOW_GOLDEN=1 make test."""
    import os

    training, _ = trained(shards, tmp_path / "model", epochs=3, accumulation=2, label_smoothing=0.1, schedule="cosine")
    curve = [[p["step"], p["loss"], p["gradient_norm"], p["learning_rate"]] for p in training["history"]["train"]]
    curve += [[p["step"], p["loss"]] for p in training["history"]["validation"]]
    if os.environ.get("HANFLOW_GOLDEN"):
        GOLDEN.write_text(json.dumps(curve, indent=1) + "\n", encoding="utf-8")
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    # Exact on one machine; other processors add float32 in other orders (7 digits, a few dozen steps of AdamW).
    assert len(curve) == len(golden)
    for ours, expected in zip(curve, golden, strict=True):
        assert ours == pytest.approx(expected, rel=1e-4)
