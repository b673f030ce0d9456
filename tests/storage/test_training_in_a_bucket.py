"""Training with everything in a bucket: killed anywhere, it goes on from what is committed there, bit by bit."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hanflow import storage
from hanflow.errors import UserError
from hanflow.storage import gcs
from hanflow.storage.gcs import service
from hanflow.training.checkpoints.local import COMMIT
from hanflow.training.checkpoints.remote import RemoteCheckpoints
from hanflow.training.state import LoopState
from tests.storage.emulator import Emulator
from tests.support.corpora import ARCHITECTURE
from tests.support.forked import Zygote

STEPS = 16


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as zygote:
        yield zygote


class Run:
    """One run's places and settings; every start is on a new machine, so to say: its cache is empty."""

    def __init__(self, place: str, shards: str, zygote: Zygote, folder: Path, **settings: Any):
        self.place, self.shards, self.zygote, self.folder = place, shards, zygote, folder
        self.checkpoints = f"{place}/checkpoints"
        self.starts = 0
        self.config = {
            "architecture": ARCHITECTURE,
            "epochs": 100,
            "max_steps": STEPS,
            "batch_tokens": 512,
            "learning_rate": 3e-3,
            "precision": "fp32",
            "log_every": 1,
            "save_every": 4,
            "validate_every": 8,
            "checkpoints": self.checkpoints,
            **settings,
        }

    @property
    def cache(self) -> Path:
        return self.folder / f"machine-{self.starts}"

    def go(self, **how: Any) -> int:
        self.starts += 1
        env = {"HANFLOW_CACHE": str(self.cache), "STORAGE_EMULATOR_HOST": os.environ.get("STORAGE_EMULATOR_HOST", "")}
        self.pid_file.parent.mkdir(parents=True, exist_ok=True)
        where = {"output": f"{self.place}/model", "shards": self.shards}
        return self.zygote.run(
            config=self.config, task="summarization", **where, environment=env, pid_file=str(self.pid_file), **how
        )

    @property
    def pid_file(self) -> Path:
        return self.folder / "pid"

    def committed(self) -> list[int]:
        return [
            int(name[5:13])
            for name, one in gcs.listing(self.checkpoints).items()
            if name.endswith(COMMIT) and gcs.claim_note(gcs.content(one)) is None
        ]

    def result(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        folder, _ = storage.fetched(f"{self.place}/model", "model")
        training = json.loads((folder / "training.json").read_text())
        for point in training["history"]["train"]:
            del point["tokens_per_second"], point["memory_gb"]
        return load_file(folder / "model.safetensors"), {k: training[k] for k in ("history", "order", "best")}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, shards: Path, zygote: Zygote) -> Run:
    """The uninterrupted run, all of it on this machine."""
    folder = tmp_path_factory.mktemp("straight")
    run = Run(str(folder), str(shards), zygote, folder)
    assert run.go() == 0
    return run


@pytest.fixture
def run(bucket: str, shards: Path, zygote: Zygote, tmp_path: Path) -> Run:
    with storage.staged(f"{bucket}/shards", "shards") as folder:
        for path in shards.rglob("*"):
            if path.is_file():
                target = folder / path.relative_to(shards)
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(path.read_bytes())
    return Run(bucket, f"{bucket}/shards", zygote, tmp_path)


def assert_same(ours: Run, reference: Run) -> None:
    (weights, facts), (expected, expected_facts) = ours.result(), reference.result()
    assert facts == expected_facts
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, expected[name]), f"{name} is not bitwise equal"


def test_an_uninterrupted_run(run: Run, straight: Run) -> None:
    assert run.go() == 0
    assert_same(run, straight)
    reported = run.result()[1]
    bests = [
        min(p["loss"] for p in reported["history"]["validation"] if p["step"] <= step) for step in (STEPS - 4, STEPS)
    ]
    steps = {p["step"] for p in reported["history"]["validation"] if p["loss"] in bests}
    assert run.committed() == sorted({*steps, STEPS - 4, STEPS}), "the limit holds in the bucket, the best are kept"
    names = {name.split("/")[0] for name in gcs.listing(run.checkpoints)}
    assert names == {
        *(f"step-{step:08d}" for step in run.committed()),
        "metrics.jsonl",
        "train.log",
        "tensorboard",
        "started.json",
    }
    lines = gcs.read(f"{run.checkpoints}/metrics.jsonl")
    assert lines and len(lines[0].splitlines()) == STEPS + 2


KILLS = (
    "^upload checkpoints/step-00000004/commit.json",  # the claim
    "^upload checkpoints/step-00000008/optimizer.safetensors",
    "^upload checkpoints/step-00000008/state.json",
    "^upload checkpoints/step-00000012/model.safetensors",
    "^delete checkpoints/step-00000004",
    "^upload model/model.json",
    "^upload model/model.safetensors",
)


def test_killed_during_one_upload_after_the_other(run: Run, straight: Run, emulator: Emulator) -> None:
    """Each start is killed by the server in the middle of an upload or a removal; each time on a new machine."""
    for kill in KILLS:
        emulator.order({"kind": "kill", "pid_file": str(run.pid_file), "match": kill})
        assert run.go() == -signal.SIGKILL
        assert emulator.fired == [1], kill
        with pytest.raises(UserError, match="never finished|holds no model.json"):
            storage.fetched(f"{run.place}/model", "model")
    emulator.order()
    assert run.go() == 0
    assert_same(run, straight)


def test_faults_while_training(run: Run, straight: Run, emulator: Emulator) -> None:
    kinds = ("503", "drop", "lost", "truncate")
    faults = [
        {"kind": k, "match": "^(upload|start|list|stat|delete) checkpoints", "skip": 5 * i + 3}
        for i, k in enumerate(kinds)
    ]
    emulator.order(*faults)
    assert run.go() == 0
    assert emulator.fired == [1] * len(kinds)
    assert_same(run, straight)


def test_sigterm_ends_with_everything_in_the_bucket(run: Run, straight: Run) -> None:
    assert run.go(signal_at_step=5) == 143
    assert run.committed()[-1] >= 5
    assert run.go(signal_at_step=10) == 143
    assert run.go() == 0
    assert_same(run, straight)


def test_transformers_trainer_resumes_from_the_bucket(run: Run) -> None:
    run.config["engine"] = "transformers"
    assert run.go(signal_at_step=5) == 143
    assert run.committed()[-1] >= 5
    assert run.go() == 0
    history = run.result()[1]["history"]
    assert [point["step"] for point in history["train"]] == list(range(1, STEPS + 1))
    assert [point["step"] for point in history["validation"]] == [8, 16]


@pytest.mark.parametrize("damage", ["flip", "delete", "commit.json"])
def test_a_damaged_checkpoint_is_passed_over(run: Run, straight: Run, damage: str) -> None:
    assert run.go(signal_at_step=10) == 143
    *_, older, newest = run.committed()
    name = "commit.json" if damage == "commit.json" else "optimizer.safetensors"
    there = gcs.stat(f"{run.checkpoints}/step-{newest:08d}/{name}")
    assert there
    data = bytearray(gcs.content(there))
    data[len(data) // 2] ^= 4
    if damage == "delete":
        there.blob.delete()
    else:
        gcs.put(there.uri, bytes(data))
    checkpoints = RemoteCheckpoints(run.checkpoints, 2)
    assert checkpoints.choose() == older
    assert [path.name for path in checkpoints.folder.glob("step-*")][-1] == f"step-{older:08d}"
    assert run.go() == 0
    assert_same(run, straight)


def test_two_workers_go_on_where_one_stopped(run: Run, straight: Run) -> None:
    assert run.go(signal_at_step=5) == 143
    run.config["processes"] = 2
    assert run.go() == 0
    assert run.result()[1]["order"] == straight.result()[1]["order"]


def test_no_worker_leaves_before_the_last_upload_is_done(run: Run, emulator: Emulator) -> None:
    """Whoever leaves first has the others killed 15 seconds later: a slow upload would be cut off."""
    emulator.order({"kind": "hold", "match": "^upload checkpoints/step-.*/model.safetensors"})
    run.config |= {"processes": 2, "save_every": 0, "validate_every": 1000}
    alive: list[str] = []

    def look() -> None:
        while not any(emulator.fired):
            time.sleep(0.05)
        time.sleep(2.0)  # to end, a worker needs a fraction of that
        threads = Path(f"/proc/{run.pid_file.read_text()}/task").glob("*/children")
        alive.extend(child for path in threads for child in path.read_text().split())
        emulator.release()

    thread = threading.Thread(target=look)
    thread.start()
    assert run.go(signal_at_step=5) == 143
    thread.join()
    assert len(alive) == 2
    assert run.committed()[-1] >= 5


def test_refusals(run: Run, emulator: Emulator, tmp_path: Path) -> None:
    def reported() -> str:
        assert run.go(stderr=str(tmp_path / "stderr")) == 1
        return (tmp_path / "stderr").read_text()

    emulator.order({"kind": "deny", "match": "^upload checkpoints/started.json"})
    assert "no permission" in reported()
    emulator.order()
    assert run.go(signal_at_step=5) == 143
    run.config["resume"] = "never"
    assert f"{run.checkpoints}: holds checkpoints, and train.resume=never" in reported()
    run.config |= {"resume": "auto", "learning_rate": 1e-3}
    assert "holds the checkpoints of another run (it differs in learning_rate)" in reported()
    run.config |= {"learning_rate": 3e-3, "resume": f"{run.checkpoints}/step-00000003"}
    assert "step-00000003: was never committed" in reported()
    run.config["resume"] = "gs://elsewhere/step-00000004"
    assert f"is not in the checkpoint folder {run.checkpoints}" in reported()
    run.config["resume"] = f"{run.checkpoints}/step-00000004"
    assert run.go() == 0
    assert 4 not in run.committed()
    run.place = f"{run.place}/again"
    assert run.go() == 0, "the checkpoint is gone by now: the same command goes on from what its course has saved"


def test_a_course_that_was_given_up_leaves_the_bucket(run: Run) -> None:
    run.config |= {"save_every": 2, "save_total_limit": 5}
    assert run.go(signal_at_step=11) == 143
    given_up = [step for step in run.committed() if step > 4]
    checkpoints = RemoteCheckpoints(run.checkpoints, 2)
    assert checkpoints.choose(4) == 4
    checkpoints.begin()
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    checkpoints.save(model, optimizer, LoopState({}, step=5, resumed=4))
    checkpoints.wait()
    assert run.committed() == [4, 5] and len(given_up) > 2
    assert checkpoints.choose(4) == 5


def test_training_stops_when_uploads_keep_failing(
    run: Run, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first failure is made up for by the next upload; the third in a row is an error."""
    monkeypatch.setattr(service, "RETRY_SECONDS", 0.2)
    checkpoints = RemoteCheckpoints(run.checkpoints, 2)
    assert checkpoints.choose() == -1
    checkpoints.begin()

    def save(step: int) -> None:
        path = checkpoints.path(step)
        path.mkdir()
        for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
            (path / name).write_text(name)
        (path / COMMIT).write_text("{}")
        checkpoints._committed(path, -1)
        for upload in checkpoints._uploads:
            upload.exception()

    emulator.order(
        {"kind": "503", "match": "^list checkpoints|^upload checkpoints/step|^stat checkpoints/step", "times": 10_000}
    )
    save(1)
    save(2)
    assert run.committed() == []
    emulator.order()
    save(3)
    assert run.committed() == [2, 3]
    emulator.order({"kind": "503", "match": "^upload checkpoints/step|^stat checkpoints/step", "times": 10_000})
    for step in (4, 5, 6):
        save(step)
    with pytest.raises(UserError, match="Google Cloud Storage cannot be used"):
        save(7)
    with pytest.raises(UserError, match="Google Cloud Storage cannot be used"):
        checkpoints.wait()
    emulator.order()
    checkpoints.wait()
    assert run.committed() == [6, 7]
