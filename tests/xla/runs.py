"""Runs of the train step on virtual devices: each in a process of its own, forked from one that imported torch_xla."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hanflow.steps.tokenize import run as tokenize
from hanflow.tasks.summarization import SummarizationTokenize
from tests.support import tasks
from tests.support.corpora import ARCHITECTURE, petitions, write_corpus
from tests.support.forked import Zygote

TASKS = ("summarization", "classification", "language_modeling")
ARCHITECTURES: dict[str, dict[str, Any]] = {
    task: {**({"summarization": ARCHITECTURE} | tasks.ARCHITECTURES)[task], "dropout": 0.0} for task in TASKS
}
"""Without dropout: XLA draws other random numbers than torch."""


def make_shards(folder: Path, task: str) -> Path:
    """Shards of real rows, of several lengths."""
    if task != "summarization":
        return tasks.make_shards(folder, task, tasks.reviews(240)).shards
    rows = petitions(72)
    corpus = write_corpus(folder / "corpus", {"train": rows[:60], "validation": rows[60:], "test": rows[:1]})
    config = SummarizationTokenize(vocabulary_size=500, max_source_tokens=64, max_target_tokens=24)
    tokenize(config, task=task, output=str(folder / "shards"), corpus=str(corpus))
    return folder / "shards"


class Run:
    """One run's folders, settings and devices; further settings of the train step replace those here."""

    def __init__(self, folder: Path, shards: Path, zygote: Zygote, task: str = "summarization", **settings: Any):
        self.folder, self.shards, self.zygote, self.task = folder, shards, zygote, task
        self.checkpoints = folder / "checkpoints"
        self.config = {
            "architecture": ARCHITECTURES[task],
            "backend": "xla",
            "epochs": 100,
            "max_steps": 24,
            "batch_tokens": 512,
            "learning_rate": 1e-3,
            "precision": "fp32",
            "log_every": 1,
            "save_every": 4,
            "validate_every": 8,
            "checkpoints": str(self.checkpoints),
            **settings,
        }

    def go(self, devices: int = 4, **how: Any) -> int:
        """The exit status."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.zygote.run(
            config=self.config,
            task=self.task,
            output=str(self.folder / "model"),
            shards=str(self.shards),
            environment={"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": str(devices), "TF_CPP_MIN_LOG_LEVEL": "2"},
            **({"compilations": str(self.folder / "compilations")} if self.config["backend"] == "xla" else {}),
            **how,
        )

    @property
    def compilations(self) -> int:
        """Graphs that torch_xla compiled in the last process that came to its end."""
        return int((self.folder / "compilations").read_text())

    @property
    def log(self) -> str:
        return (self.checkpoints / "train.log").read_text(encoding="utf-8")

    def training(self) -> dict[str, Any]:
        return json.loads((self.folder / "model" / "training.json").read_text())

    def history(self) -> dict[str, Any]:
        """What must not depend on clocks."""
        history = self.training()["history"]
        for point in history["train"]:
            del point["tokens_per_second"], point["memory_gb"]
        return history

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "model" / "model.safetensors")


def environment(devices: int) -> dict[str, str]:
    """Of a process with virtual devices."""
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": str(devices), "PYTHONPATH": root}
