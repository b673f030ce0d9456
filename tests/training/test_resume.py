"""Nothing is lost when training is killed: the process is really killed, the weights are really compared."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support import tasks
from tests.support.corpora import ARCHITECTURE
from tests.support.forked import Zygote

STEPS = 40


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as zygote:
        yield zygote


class Run:
    """One run's folders and settings."""

    def __init__(self, folder: Path, shards: Path, zygote: Zygote, task: str = "summarization", **settings: Any):
        self.folder, self.shards, self.zygote, self.task = folder, shards, zygote, task
        self.checkpoints = folder / "checkpoints"
        self.config = {
            "architecture": ARCHITECTURE,
            "epochs": 100,
            "max_steps": STEPS,
            "batch_tokens": 512,
            "learning_rate": 3e-3,
            "precision": "fp32",
            "log_every": 3,
            "save_every": 4,
            "validate_every": 10,
            "checkpoints": str(self.checkpoints),
            **settings,
        }

    def go(self, **how: Any) -> int:
        return self.zygote.run(
            config=self.config, task=self.task, output=str(self.folder / "model"), shards=str(self.shards), **how
        )

    def steps(self) -> list[int]:
        return sorted(int(path.name[5:]) for path in self.checkpoints.glob("step-*"))

    def result(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """(weights, what must be equal of training.json: history without clocks and memory, order of the samples)"""
        training = json.loads((self.folder / "model" / "training.json").read_text())
        for point in training["history"]["train"]:
            del point["tokens_per_second"], point["memory_gb"]
        return load_file(self.folder / "model" / "model.safetensors"), {
            k: training[k] for k in ("history", "order", "best")
        }


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, shards: Path, zygote: Zygote) -> Run:
    run = Run(tmp_path_factory.mktemp("straight"), shards, zygote)
    assert run.go() == 0
    return run


def assert_same(ours: Run, reference: Run) -> None:
    (weights, facts), (expected, expected_facts) = ours.result(), reference.result()
    assert facts == expected_facts
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, expected[name]), f"{name} is not bitwise equal"


def test_killed_at_random_moments_and_resumed(tmp_path: Path, straight: Run, shards: Path, zygote: Zygote) -> None:
    """Killed again and again, twice within one epoch too, until it gets through."""
    moments = random.Random(7)
    run = Run(tmp_path, shards, zygote)
    for step in (3, 9, 12, 24, 33):
        delay = moments.uniform(0.0, 0.15)
        assert run.go(signal_at_step=step, delay=delay, signum=int(signal.SIGKILL)) == -signal.SIGKILL
        assert not (tmp_path / "model").exists()
    assert run.go() == 0
    assert_same(run, straight)


@pytest.mark.parametrize("task", ["classification", "language_modeling"])
def test_every_task_resumes_exactly(tmp_path: Path, zygote: Zygote, task: str) -> None:
    """Dropout, schedule and the order of the data included: killed twice, the weights are those of a straight run."""
    shards = tasks.make_shards(tmp_path, task, tasks.reviews(300)).shards
    settings = {"architecture": tasks.ARCHITECTURES[task], "task": task}
    reference = Run(tmp_path / "straight", shards, zygote, **settings)
    assert reference.go() == 0
    run = Run(tmp_path / "killed", shards, zygote, **settings)
    for step in (9, 24):
        assert run.go(signal_at_step=step, signum=int(signal.SIGKILL)) == -signal.SIGKILL
    assert run.go() == 0
    assert_same(run, reference)


def test_killed_at_every_file_operation_of_a_save(tmp_path: Path, straight: Run, shards: Path, zygote: Zygote) -> None:
    short = {"max_steps": 12, "save_total_limit": 1}
    whole = Run(tmp_path / "whole", shards, zygote, **short)
    assert whole.go(kill_at_event=-1, events=str(tmp_path / "events")) == 0
    events = int((tmp_path / "events").read_text())
    per_save = events // 4  # steps 4, 8, 10, 12
    assert per_save > 5
    # All of the second save and of the deletion after it, with one committed checkpoint behind them.
    for event in range(per_save, 2 * per_save + 3):
        run = Run(tmp_path / str(event), shards, zygote, **short)
        assert run.go(kill_at_event=event) == -signal.SIGKILL
        assert run.go() == 0, f"killed at file operation {event}"
        assert_same(run, whole)
        assert not list(run.checkpoints.glob(".*partial")), "what a killed save left is cleared away"


def newest(run: Run) -> Path:
    return run.checkpoints / f"step-{run.steps()[-1]:08d}"


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "commit.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path,
    straight: Run,
    shards: Path,
    zygote: Zygote,
    name: str,
    damage: str,
) -> None:
    run = Run(tmp_path, shards, zygote)
    assert run.go(signal_at_step=18) == 128 + signal.SIGTERM
    before = run.steps()
    path = newest(run) / name
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    elif damage == "truncate":
        path.write_bytes(data[:-3])
    else:
        path.unlink()
    assert run.go() == 0
    log = (run.checkpoints / "train.log").read_text()
    assert run.steps()[-1] == STEPS and len(before) >= 2
    assert_same(run, straight)
    assert log  # the warning itself goes to standard error: see the command line test


def test_sigterm_saves_and_ends_with_143(tmp_path: Path, straight: Run, shards: Path, zygote: Zygote) -> None:
    run = Run(tmp_path, shards, zygote, save_every=0)
    assert run.go(signal_at_step=15) == 143
    assert run.steps()[-1] >= 15, "saved where it stopped, not at the last regular checkpoint"
    assert not (tmp_path / "model").exists()
    assert run.go(signal_at_step=27) == 143
    assert run.go() == 0
    assert_same(run, straight)


def test_an_earlier_checkpoint_is_asked_for_and_the_same_command_goes_on(
    tmp_path: Path, straight: Run, shards: Path, zygote: Zygote
) -> None:
    run = Run(tmp_path, shards, zygote, save_every=2, save_total_limit=20)
    assert run.go(signal_at_step=18) == 143
    given_up = run.steps()[-1]
    (run.checkpoints / "metrics.jsonl").unlink()  # what the test waits for is in it already
    run.config["resume"] = str(run.checkpoints / "step-00000008")
    assert run.go(signal_at_step=9) == 143
    states = {
        step: json.loads((run.checkpoints / f"step-{step:08d}" / "state.json").read_text()) for step in run.steps()
    }
    assert [states[step]["resumed"] for step in run.steps() if step > 8] == [8] * sum(step > 8 for step in run.steps())
    assert run.steps()[-1] > 8 and given_up > 8
    last = newest(run) / "commit.json"
    written = last.stat().st_mtime_ns
    shutil.rmtree(run.config["resume"])  # as retention does in a longer run
    assert run.go() == 0
    assert last.stat().st_mtime_ns == written, "what was saved is not computed again"
    assert_same(run, straight)


def two_processes(folder: Path, shards: Path, zygote: Zygote) -> subprocess.Popen[str]:
    """The command line of a run with two worker processes, once its first checkpoint is committed."""
    run = Run(folder, shards, zygote, max_steps=100_000, epochs=100_000)
    values = {key: json.dumps(v) if isinstance(v, dict) else v for key, v in run.config.items()}
    options = [f"--{key.replace('_', '-')}={value}" for key, value in values.items()]
    places = [f"--shards={shards}", f"--output={folder / 'model'}", "--processes=2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "hanflow.steps.train", *places, *options], stderr=subprocess.PIPE, text=True
    )
    while not run.steps():
        assert process.poll() is None
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_command_of_several_processes_ends_with_the_signals_status(
    tmp_path: Path, shards: Path, zygote: Zygote, signum: signal.Signals
) -> None:
    process = two_processes(tmp_path, shards, zygote)
    os.kill(process.pid, signum)
    _, reported = process.communicate(timeout=300)
    assert process.returncode == 128 + signum, reported
    assert f"stopped by {signum.name} after step" in reported and "the same command continues from there" in reported


def test_a_rank_that_dies_ends_the_others_and_is_named(tmp_path: Path, shards: Path, zygote: Zygote) -> None:
    process = two_processes(tmp_path, shards, zygote)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    by_rank = {Path(f"/proc/{pid}/environ").read_bytes().split(b"\0RANK=")[1][:1]: int(pid) for pid in children}
    os.kill(by_rank[b"1"], signal.SIGKILL)
    _, reported = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "train worker of rank 1: was killed by SIGKILL" in reported
    assert all(not Path(f"/proc/{pid}").exists() for pid in children)


def test_one_two_and_one_ranks_see_the_same_samples(
    tmp_path: Path, straight: Run, shards: Path, zygote: Zygote
) -> None:
    run = Run(tmp_path, shards, zygote)
    assert run.go(signal_at_step=9) == 143
    run.config["processes"] = 2
    assert run.go(signal_at_step=24) == 143
    assert run.steps()[-1] < STEPS
    run.config["processes"] = 1
    assert run.go() == 0
    (_, reported), (_, expected) = run.result(), straight.result()
    assert reported["order"] == expected["order"]
    steps = [point["step"] for point in reported["history"]["train"]]
    assert steps == [point["step"] for point in expected["history"]["train"]]
