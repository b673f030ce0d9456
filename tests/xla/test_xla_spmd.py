"""Training on virtual devices by torch_xla: the same learning as the torch backend's, few graphs, nothing lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hanflow.cluster.job import Origin
from hanflow.cluster.runtimes import build, pod_templates
from hanflow.config import JobConfig, TrainConfig
from hanflow.config.worker_spec import WorkerSpec
from hanflow.data.shards import Shard
from hanflow.storage.artifacts import read_manifest
from hanflow.tasks import get_task
from hanflow.training.loader import Data
from tests.support.forked import Zygote
from tests.xla.runs import ARCHITECTURES, TASKS, Run, environment, make_shards

WARNING = "compiled after warm-up"


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as zygote:
        yield zygote


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {task: make_shards(tmp_path_factory.mktemp(task), task) for task in TASKS}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, shards: dict[str, Path], zygote: Zygote) -> dict[str, Run]:
    """A run of every task on 4 devices, not interrupted."""
    folder = tmp_path_factory.mktemp("straight")
    runs = {task: Run(folder / task, shards[task], zygote, task) for task in TASKS}
    for run in runs.values():
        assert run.go() == 0
    return runs


def assert_curves_equal(ours: dict[str, Any], theirs: dict[str, Any], rel: float = 1e-4) -> None:
    """The same figures at the same steps; `rel` is argued where it is used."""
    for split in ("train", "validation"):
        assert len(ours[split]) == len(theirs[split]) > 0
        for a, b in zip(ours[split], theirs[split], strict=True):
            assert a == pytest.approx(b, rel=rel)


def shapes_of(run: Run) -> int:
    """Static shapes of the run's plans: those of training and those of validation."""
    task, config = get_task(run.task), TrainConfig(**run.config)
    return sum(
        len(
            Data.of(
                Shard(run.shards / f"{split}.arrow", task.sequences), task, config, shuffle=split == "train"
            ).plan.shapes
        )
        for split in ("train", "validation")
    )


@pytest.mark.parametrize("task", TASKS)
def test_the_loss_curve_is_the_torch_backends(
    task: str, tmp_path: Path, straight: dict[str, Run], shards: dict[str, Path], zygote: Zygote
) -> None:
    """24 steps with warm-up, decay, clipping and validations, on 4 devices against one processor."""
    torch_run = Run(tmp_path, shards[task], zygote, task, backend="torch")
    assert torch_run.go() == 0
    # Both compute in float32 (7 digits) and add in other orders; AdamW's first steps divide by tiny second moments,
    # which some dozen steps make ten times as much. A wrong mask, scale, order or row shows in the second digit.
    assert_curves_equal(straight[task].history(), torch_run.history())
    assert straight[task].training()["order"] == torch_run.training()["order"]


def test_accumulation_and_smoothing_too(tmp_path: Path, shards: dict[str, Path], zygote: Zygote) -> None:
    """Steps of 3 forward passes, of which an epoch's last one has fewer: gradients of all, divided by their targets."""
    settings = {"accumulation": 3, "label_smoothing": 0.1, "schedule": "cosine", "clip_norm": 0.3}
    runs = [Run(tmp_path / b, shards["summarization"], zygote, backend=b, **settings) for b in ("torch", "xla")]
    assert [run.go() for run in runs] == [0, 0]
    assert_curves_equal(runs[1].history(), runs[0].history())  # float32 in another order, as above
    assert WARNING not in runs[1].log
    assert runs[1].compilations <= 2 * shapes_of(runs[1]) + 2


@pytest.mark.parametrize("task", TASKS)
def test_few_graphs_and_none_after_warm_up(task: str, straight: dict[str, Run]) -> None:
    """Over training, validations and checkpoints: one graph for each shape of training and one for each of validation."""
    run = straight[task]
    assert 0 < run.compilations <= shapes_of(run) + 1
    assert WARNING not in run.log


def test_bf16_learns_as_fp32_does(
    tmp_path: Path, straight: dict[str, Run], shards: dict[str, Path], zygote: Zygote
) -> None:
    run = Run(tmp_path, shards["summarization"], zygote, precision="bf16")
    assert run.go() == 0
    fp32, bf16 = (r.history()["train"] for r in (straight["summarization"], run))
    assert [p["loss"] for p in bf16] != [p["loss"] for p in fp32]
    for a, b in zip(bf16, fp32, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-2)  # 8 bits of mantissa
    assert run.weights()["model.shared.weight"].dtype == torch.float32
    assert WARNING not in run.log


def test_dropout_is_drawn_anew_every_step_and_the_same_every_time(
    tmp_path: Path, straight: dict[str, Run], shards: dict[str, Path], zygote: Zygote
) -> None:
    settings = {"architecture": {**ARCHITECTURES["language_modeling"], "dropout": 0.3}, "max_steps": 8}
    runs = [Run(tmp_path / n, shards["language_modeling"], zygote, "language_modeling", **settings) for n in "ab"]
    assert [run.go() for run in runs] == [0, 0]
    assert runs[0].history() == runs[1].history()
    without = straight["language_modeling"].history()["train"]
    assert all(a["loss"] != b["loss"] for a, b in zip(runs[0].history()["train"], without[:8], strict=True))
    assert WARNING not in runs[0].log


def test_killed_and_resumed_is_as_if_nothing_had_happened(
    tmp_path: Path, straight: dict[str, Run], shards: dict[str, Path], zygote: Zygote
) -> None:
    """Killed without a word, then asked to stop, in the middle of epochs: weights, history and order are the same bits."""
    reference = straight["summarization"]
    run = Run(tmp_path, shards["summarization"], zygote)
    assert run.go(signal_at_step=7, signum=int(signal.SIGKILL)) == -signal.SIGKILL
    assert run.go(signal_at_step=14) == 128 + signal.SIGTERM
    assert run.go() == 0
    assert run.history() == reference.history()
    assert run.training()["order"] == reference.training()["order"]
    weights, expected = run.weights(), reference.weights()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert WARNING not in run.log


@pytest.mark.parametrize("first", ["torch", "xla"])
def test_a_checkpoint_moves_between_the_backends(
    first: str, tmp_path: Path, straight: dict[str, Run], shards: dict[str, Path], zygote: Zygote
) -> None:
    """torch → xla → torch, and the other way round."""
    reference = straight["summarization"]
    run = Run(tmp_path, shards["summarization"], zygote)
    backends = ("torch", "xla", "torch") if first == "torch" else ("xla", "torch", "xla")
    for backend, stop in zip(backends, (6, 15, 0), strict=True):
        run.config["backend"] = backend
        status = run.go(signal_at_step=stop) if stop else run.go()
        assert status == (143 if stop else 0)
    assert run.training()["order"] == reference.training()["order"]
    assert_curves_equal(run.history(), reference.history())  # float32 in another order, as above
    assert run.weights().keys() == reference.weights().keys()


def test_scores_of_a_validation_come_from_the_processors(
    tmp_path: Path, shards: dict[str, Path], zygote: Zygote
) -> None:
    """Without a graph for each length, and as the torch backend has them."""
    settings = {"validation_rows": 20, "best_metric": "accuracy", "max_steps": 16}
    runs = [
        Run(tmp_path / b, shards["classification"], zygote, "classification", backend=b, **settings)
        for b in ("torch", "xla")
    ]
    assert [run.go() for run in runs] == [0, 0]
    (theirs, ours) = (run.training() for run in runs)
    assert [p["accuracy"] for p in ours["history"]["validation"]] == [
        p["accuracy"] for p in theirs["history"]["validation"]
    ]
    assert ours["best"]["step"] == theirs["best"]["step"]
    assert runs[1].compilations <= shapes_of(runs[1]) + 1 and WARNING not in runs[1].log


def test_every_host_of_a_v4_32_reads_its_own_rows(shards: dict[str, Path]) -> None:
    """16 devices in the slice's shape, 4 simulated hosts: each row lies on one device, that of the host that read it."""
    folder = shards["summarization"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.xla.placement", str(folder)], env=environment(16), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    reported = json.loads(done.stdout.splitlines()[-1])
    shard = Shard(folder / "train.arrow", get_task("summarization").sequences)
    seen: list[int] = []
    for batch in reported:
        assert len(batch["devices"]) == 16
        sizes = {len(rows) for rows in batch["devices"]}
        assert len(sizes) == 1, "static: every device has as many rows"
        by_tokens = {tuple(shard[row][0].tolist()): row for row in batch["rows"]}
        assert len(by_tokens) == len(batch["rows"])
        for host in range(4):
            lines = [row for device in batch["devices"][4 * host : 4 * host + 4] for row in device]
            pad = next(line[-1] for device in batch["devices"] for line in device if len(set(line)) == 1)
            texts = [tuple(np.trim_zeros(np.array(line) - pad, "b") + pad) for line in lines]
            rows = [by_tokens[text] for text in texts if text]
            assert rows == batch["rows"][host::4], "its rows, all of them, no others"
            seen += rows
    assert sorted(seen) == list(range(len(shard))), "none lost, none twice"


def test_sixteen_devices_learn_what_four_do(
    tmp_path: Path, straight: dict[str, Run], shards: dict[str, Path], zygote: Zygote
) -> None:
    run = Run(tmp_path, shards["summarization"], zygote, topology="2x2x4", max_steps=8)
    assert run.go(devices=16) == 0
    four = {
        split: points[: 8 if split == "train" else 1] for split, points in straight["summarization"].history().items()
    }
    ours = run.history()
    for point in (*ours["train"], *four["train"]):  # warm-up and decay follow the number of steps
        del point["learning_rate"]
    assert ours["train"][0] == pytest.approx(four["train"][0], rel=1e-5)  # one float32 step, added in another order
    assert run.training()["world_size"] == 16
    assert run.compilations <= shapes_of(run) + 1 and WARNING not in run.log


def job_command(task: str, shards: Path, folder: Path) -> list[str]:
    """What the container of a JobSet for a v4-32 runs."""
    config = TrainConfig(
        architecture=ARCHITECTURES[task], max_steps=3, batch_tokens=512, checkpoints=str(folder / "checkpoints")
    )
    job = JobConfig(runtime="tpu", accelerator="v4-32")
    objects = build(job, WorkerSpec(task, config, str(shards), str(folder / "model")), Origin("a-run"))
    (template,) = pod_templates(*objects)
    (container,) = template["spec"]["containers"]
    command = [*container["command"], *container.get("args", [])]
    assert command[:3] == ["python", "-m", "hanflow.training.workers.worker"]
    return [sys.executable, *command[1:]]


def test_the_command_of_the_job_set_trains_on_virtual_devices(tmp_path: Path, shards: dict[str, Path]) -> None:
    command = job_command("summarization", shards["summarization"], tmp_path)
    done = subprocess.run(command, env=environment(16), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (
        "compiled: training of" in done.stderr
        and "compiled: validation of" in done.stderr
        and WARNING not in done.stderr
    )
    manifest = read_manifest(tmp_path / "model", "model", task="summarization")
    assert manifest.config["topology"] == "2x2x4" and manifest.config["backend"] == "xla"
    assert json.loads((tmp_path / "model" / "training.json").read_text())["world_size"] == 16


def test_another_slice_than_the_jobs_is_refused(tmp_path: Path, shards: dict[str, Path]) -> None:
    command = job_command("summarization", shards["summarization"], tmp_path)
    done = subprocess.run(command, env=environment(4), capture_output=True, text=True)
    assert done.returncode == 1
    assert "train.topology=2x2x4 has 16 chips" in done.stderr and "set CPU_NUM_DEVICES=16" in done.stderr
    assert not (tmp_path / "model").exists()


def test_compiled_graphs_are_kept(tmp_path: Path, shards: dict[str, Path], zygote: Zygote) -> None:
    """What is written is checked here; that it is read back too, only a TPU can show (a CPU's runtime cannot)."""
    cache = tmp_path / "cache"
    run = Run(
        tmp_path / "run", shards["classification"], zygote, "classification", compilation_cache=str(cache), max_steps=3
    )
    assert run.go() == 0
    assert len(list(cache.iterdir())) == run.compilations > 0


def test_what_cannot_work_is_reported(tmp_path: Path, shards: dict[str, Path]) -> None:
    for settings, reported in (
        (["--precision=fp16"], "TPUs multiply bf16"),
        (["--processes=2"], "one process drives all chips of its host"),
        (["--engine=transformers"], "set train.engine=hanflow"),
    ):
        arguments = [f"--shards={shards['classification']}", f"--output={tmp_path / 'model'}", "--task=classification"]
        command = [
            sys.executable,
            "-m",
            "hanflow.steps.train",
            *arguments,
            '--architecture={"type": "cnn"}',
            "--backend=xla",
        ]
        done = subprocess.run([*command, *settings], env=environment(2), capture_output=True, text=True)
        assert done.returncode == 1 and reported in done.stderr, done.stderr[-1000:]
        assert "Traceback" not in done.stderr


def test_hanflow_run_takes_it(tmp_path: Path) -> None:
    """`hanflow run … --set train.backend=xla`, as a person would try it."""
    settings = ["train.backend=xla", "train.epochs=1", "train.max_steps=4", "train.precision=fp32"]
    command = [
        sys.executable,
        "-m",
        "hanflow",
        "run",
        "classification",
        "--limit-rows=300",
        f"--output={tmp_path / 'run'}",
    ]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(command, env={**environment(4), "COLUMNS": "120"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    training = json.loads((tmp_path / "run" / "model" / "training.json").read_text())
    assert training["device"] == "xla" and training["world_size"] == 4
    assert os.path.isdir(tmp_path / "run" / "bundle")
