"""Checkpoints: whole or not there.

A checkpoint is a folder `step-00000500/` with `model.safetensors`, `optimizer.safetensors` and `state.json` (position
in the data, best step, history), and `commit.json`, the commit record with the size and sha256 of each, written last
and renamed into place. A folder without an intact commit record does not count. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from components.shared.artifacts import file_sha256
from components.shared.config import UserError
from components.shared.progress import log
from components.shared.storage import local_path, readable_by_umask

COMMIT = "commit.json"
FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


@dataclass
class LoopState:
    """Where training stands, beside weights and optimizer."""

    identity: dict[str, Any]
    """The settings and data that the run is made of; another run must not resume from it."""
    step: int = 0
    """Optimizer steps done. Epoch and place within it, learning rate and dropout seeds all follow from this."""
    validated_step: int = 0
    """Last step after which a validation was finished."""
    best_step: int = -1
    """Step with the best validation so far; -1: none yet."""
    best_value: float = 0.0
    """Its value of the metric that decides."""
    bad_validations: int = 0
    """Validations in a row without an improvement."""
    skipped: int = 0
    """Steps skipped because their gradient was not finite."""
    skipped_in_row: int = 0
    """How many of them were the last ones."""
    order: str = ""
    """Chained sha256 over the row numbers of all global batches so far: equal digests mean equal samples in equal order."""
    window: dict[str, float] = field(default_factory=dict)
    """Sums since the last logged step."""
    backend: dict[str, Any] = field(default_factory=dict)
    """What the backend needs (the fp16 scaler)."""
    train: list[dict[str, float]] = field(default_factory=list)
    """Logged training figures, in order."""
    validation: list[dict[str, float]] = field(default_factory=list)
    """Logged validation figures, in order."""

    def saw(self, batches: Iterable[np.ndarray]) -> None:
        """Note the rows of one step's global batches, int64 arrays."""
        for rows in batches:
            self.order = hashlib.sha256(self.order.encode() + rows.astype("<i8").tobytes()).hexdigest()


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they are; made if missing.
        limit: newest checkpoints kept; the best one is kept beside them.
        behind: write them in a thread, from a copy, while training goes on.
    """

    def __init__(self, folder: Path, limit: int, *, behind: bool = False):
        self.folder, self.limit = folder, limit
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if behind else None
        self._pending: Future[None] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def place(self) -> str:
        """Where they are, as a person would write it."""
        return str(self.folder)

    def local(self, place: str) -> Path:
        """The path of one checkpoint, from what a person calls it.

        Raises:
            UserError: it is not in this folder.
        """
        path = local_path(place)
        if path.parent.resolve() != self.folder.resolve():
            raise UserError(
                f"train.resume={place}: is not in the checkpoint folder {self.folder}; give auto, never, or the path of a "
                "committed checkpoint in train.checkpoints"
            )
        return path

    def path(self, step: int) -> Path:
        """Folder of the checkpoint of that step."""
        return self.folder / f"step-{step:08d}"

    def save(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, state: LoopState) -> None:
        """Write and commit the checkpoint of `state.step`, then delete those beyond the limit.

        Raises:
            UserError: the disk is full. Earlier checkpoints stand; behind, it is raised by the next call.
        """
        weights, moments = _in_memory(_model_tensors(model)), _in_memory(_optimizer_tensors(model, optimizer))
        text, keep = json.dumps(state.__dict__), state.best_step
        if self._writer is None:
            self._write(state.step, weights, moments, text, keep)
            return
        self.wait()
        self._pending = self._writer.submit(self._write, state.step, _copied(weights), _copied(moments), text, keep)

    def wait(self) -> None:
        """Until what is being written is committed."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _write(
        self, step: int, weights: dict[str, torch.Tensor], moments: dict[str, torch.Tensor], state: str, keep: int
    ) -> None:
        target = self.path(step)
        staging = self.folder / f".{target.name}.partial"
        try:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            save_file(weights, staging / FILES[0])
            save_file(moments, staging / FILES[1])
            (staging / FILES[2]).write_text(state, encoding="utf-8")
            readable_by_umask(staging)
            record = {}
            for name in FILES:
                record[name] = {"bytes": (staging / name).stat().st_size, "sha256": file_sha256(staging / name)}
                _sync(staging / name)
            (staging / COMMIT).write_text(json.dumps(record), encoding="utf-8")
            _sync(staging / COMMIT)
            shutil.rmtree(target, ignore_errors=True)  # a damaged one of the same step
            os.replace(staging, target)
            _sync(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(staging, ignore_errors=True)
            full = shutil.disk_usage(self.folder).free < sum(t.nbytes for t in (*weights.values(), *moments.values()))
            why = "the disk is full" if full else str(error)
            raise UserError(
                f"{target}: the checkpoint cannot be written: {why}; earlier checkpoints stand: make room and start the "
                "same command again"
            ) from error
        self._committed(target, keep)

    def _committed(self, target: Path, keep: int) -> None:
        """What follows when `target` is whole and `keep` is the best step."""
        self._delete_old(keep)

    def _in_use(self, path: Path) -> bool:
        """Whether a checkpoint must not be deleted yet."""
        return False

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

    def dump(
        self, model: torch.nn.Module, step: int, batches: Sequence[dict[str, torch.Tensor]], rows: Sequence[int]
    ) -> str:
        """Leave what reproduces a step: `model.safetensors`, `batch-<n>.safetensors` (this rank's) and `rows.json`.

        Args:
            model: with the weights before the step.
            step: number of the step, from 0.
            batches: the tensors of each forward pass.
            rows: row numbers of the train split in all of them.

        Returns:
            Where that is.
        """
        folder = self.folder / f"nonfinite-{step:08d}"
        folder.mkdir(exist_ok=True)
        save_file(_in_memory(_model_tensors(model)), folder / "model.safetensors")
        for number, batch in enumerate(batches):
            save_file(batch, folder / f"batch-{number}.safetensors")
        (folder / "rows.json").write_text(json.dumps({"step": step, "rows": list(rows)}), encoding="utf-8")
        return str(folder)

    def clean(self) -> None:
        """Remove what a killed save left half-written."""
        for path in self.folder.glob(".step-*.partial"):
            shutil.rmtree(path, ignore_errors=True)

    def _delete_old(self, keep: int) -> None:
        paths = sorted(self.folder.glob("step-*"))
        for path in paths[: -self.limit]:
            if path != self.path(keep) and not self._in_use(path):
                shutil.rmtree(path, ignore_errors=True)


def _in_memory(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors that processors can read: those of a CPU or a GPU themselves, a TPU's as copies."""
    return {name: t.detach().cpu() if t.device.type == "xla" else t.detach() for name, t in tensors.items()}


def _copied(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def _model_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Name → tensor of every parameter and persistent buffer; tied ones once, under their first name."""
    seen: set[int] = set()
    tensors = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
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
        present = optimizer.state.get(parameter, {})
        optimizer.state[parameter] = {
            slot: value.reshape(present[slot].shape if slot in present else value.shape).to(parameter.device)
            for slot, value in values.items()
        }


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
