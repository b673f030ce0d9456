"""Seconds to save and to restore a KoBART-size model with its optimizer, ours and torch's; prints one JSON line."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
from transformers import BartConfig, BartForConditionalGeneration

from hanflow.config import TrainConfig
from hanflow.training.checkpoints.local import Checkpoints
from hanflow.training.optimizer import make_optimizer
from hanflow.training.state import LoopState
from tests.benchmarks.data import KOBART


def main() -> None:
    place = Path(sys.argv[1])
    settings = {key: value for key, value in KOBART.items() if key != "type"}
    model = BartForConditionalGeneration(BartConfig(vocab_size=30_000, **settings))
    optimizer = make_optimizer(model, TrainConfig())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    size = 3 * sum(p.nbytes for p in model.parameters()) / 1e6
    checkpoints = Checkpoints(place / "ours", 1)
    measured: dict[str, list[float]] = {"save": [], "torch_save": [], "load": [], "torch_load": []}

    def timed(name: str, work) -> None:  # type: ignore[no-untyped-def]
        started = time.perf_counter()
        work()
        measured[name].append(size / (time.perf_counter() - started))

    def torch_save() -> None:
        with (place / "theirs.pt").open("wb") as stream:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, stream)
            stream.flush()
            os.fsync(stream.fileno())

    def ours_load() -> None:
        checkpoints.load(checkpoints.path(checkpoints.choose()), model, optimizer)

    def torch_load() -> None:
        saved = torch.load(place / "theirs.pt", weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])

    for step in range(1, 4):
        timed("save", lambda step=step: checkpoints.save(model, optimizer, LoopState({}, step=step)))  # type: ignore[misc]
        timed("torch_save", torch_save)
        timed("load", ours_load)
        timed("torch_load", torch_load)
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
