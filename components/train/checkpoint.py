"""Checkpoints: whole or not there.

A checkpoint is a folder `step-00000500/` with `model.safetensors`, `optimizer.safetensors` and `state.json` (position
in the data, best step, history), and `commit.json`, the commit record with the size and sha256 of each, written last
and renamed into place. A folder without an intact commit record does not count. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from components.shared.artifacts import file_sha256
from components.shared.config import UserError
from components.shared.progress import log

COMMIT = "commit.json"
FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


@dataclass
class LoopState:
    """Where training stands, beside weights and optimizer."""

    identity: dict[str, Any]
    """The settings and data that the run is made of; another run must not resume from it."""
    step: int = 0
    """Optimizer steps done. Epoch and place within it, learning rate and dropout seeds all follow from this."""
    best_step: int = -1
    """Step with the best validation so far; -1: none yet."""
    best_loss: float = float("inf")
    """Its validation loss, nats a target token."""
    train: list[dict[str, float]] = field(default_factory=list)
    """Logged training figures, in order."""
    validation: list[dict[str, float]] = field(default_factory=list)
    """Logged validation figures, in order."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they are; made if missing.
        limit: newest checkpoints kept; the best one is kept beside them.
    """

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit = folder, limit
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, step: int) -> Path:
        """Folder of the checkpoint of that step."""
        return self.folder / f"step-{step:08d}"

    def save(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, state: LoopState) -> None:
        """Write and commit the checkpoint of `state.step`, then delete those beyond the limit."""
        target = self.path(state.step)
        staging = self.folder / f".{target.name}.partial"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        save_file(_model_tensors(model), staging / FILES[0])
        save_file(_optimizer_tensors(model, optimizer), staging / FILES[1])
        (staging / FILES[2]).write_text(json.dumps(state.__dict__), encoding="utf-8")
        record = {
            name: {"bytes": (staging / name).stat().st_size, "sha256": file_sha256(staging / name)} for name in FILES
        }
        for name in FILES:
            _sync(staging / name)
        (staging / COMMIT).write_text(json.dumps(record), encoding="utf-8")
        _sync(staging / COMMIT)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(staging, target)
        _sync(self.folder)
        self._delete_old(keep=state.best_step)

    def newest(self) -> Path | None:
        """The newest checkpoint that is committed and intact; damaged ones are passed over with a warning."""
        for path in sorted(self.folder.glob("step-*"), reverse=True):
            problem = self.problem(path)
            if problem is None:
                return path
            log.warning("%s: %s; looking for an older one", path, problem)
        return None

    def problem(self, path: Path) -> str | None:
        """What is wrong with a checkpoint; None: it is intact."""
        try:
            record = json.loads((path / COMMIT).read_text(encoding="utf-8"))
            for name in FILES:
                if (path / name).stat().st_size != record[name]["bytes"]:
                    return f"{name} is truncated"
                if file_sha256(path / name) != record[name]["sha256"]:
                    return f"{name} is damaged (its sha256 differs)"
        except FileNotFoundError as error:
            return f"was never committed (no {Path(str(error.filename)).name})"
        except (ValueError, KeyError, TypeError):
            return f"{COMMIT} is damaged"
        return None

    def read_state(self, path: Path) -> LoopState:
        """The state of an intact checkpoint."""
        return LoopState(**json.loads((path / FILES[2]).read_text(encoding="utf-8")))

    def load(self, path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Put the tensors of an intact checkpoint into a model and its optimizer.

        Raises:
            UserError: they do not fit the model.
        """
        try:
            saved = load_file(path / FILES[0])
            ours = _model_tensors(model)
            if saved.keys() != ours.keys() or any(saved[name].shape != ours[name].shape for name in saved):
                raise UserError(f"{path}: its weights do not fit this model; give another train.checkpoints folder")
            with torch.no_grad():
                for name, tensor in ours.items():
                    tensor.copy_(saved[name])
        except SafetensorError as error:
            raise UserError(f"{path}: cannot be read: {error}") from error
        if optimizer is not None:
            _load_optimizer(model, optimizer, load_file(path / FILES[1]))

    def _delete_old(self, keep: int) -> None:
        paths = sorted(self.folder.glob("step-*"))
        for path in paths[: -self.limit]:
            if path != self.path(keep):
                shutil.rmtree(path, ignore_errors=True)


def _model_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Name → tensor of every parameter and persistent buffer; tied ones once, under their first name."""
    seen: set[int] = set()
    tensors = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() in seen and tensor.numel():
            continue
        seen.add(tensor.data_ptr())
        tensors[name] = tensor
    return tensors


def _optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """`<parameter>/<slot>` → tensor of the optimizer's state."""
    return {
        f"{name}/{slot}": value
        for name, parameter in model.named_parameters()
        for slot, value in optimizer.state.get(parameter, {}).items()
    }


def _load_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, torch.Tensor]) -> None:
    parameters = dict(model.named_parameters())
    slots: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in saved.items():
        name, _, slot = key.rpartition("/")
        slots.setdefault(name, {})[slot] = value
    for name, values in slots.items():
        parameter = parameters[name]
        optimizer.state[parameter] = {
            slot: value.to(parameter.device) if slot != "step" or parameter.is_cuda else value
            for slot, value in values.items()
        }


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def state_as_json(state: LoopState) -> dict[str, Any]:
    """The history and the best step, as training.json tells them."""
    return {
        "history": {"train": state.train, "validation": state.validation},
        "best": {"step": state.best_step, "loss": state.best_loss} if state.best_step >= 0 else None,
        "steps": state.step,
    }
