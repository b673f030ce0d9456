"""Checkpoints: whole or not there.

A checkpoint is a folder `step-00000500/` with `model.safetensors`, `optimizer.safetensors` and `state.json` (position
in the data, best step, history), and `commit.json`, the commit record with the size and sha256 of each, written last
and renamed into place. A folder without an intact commit record does not count. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hanflow.errors import UserError
from hanflow.progress import log
from hanflow.storage import local_path, readable_by_umask
from hanflow.storage.artifacts import file_sha256
from hanflow.training.checkpoints.retention import staying
from hanflow.training.checkpoints.tensors import copied, in_memory, load_optimizer, model_tensors, optimizer_tensors
from hanflow.training.state import LoopState

COMMIT = "commit.json"
FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
NAME = re.compile(r"step-\d{8}")
"""Name of a checkpoint's folder."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they are; made if missing.
        limit: newest checkpoints kept; the best one of each is kept beside them.
        behind: write them in a thread, from a copy, while training goes on.
    """

    fetches = False
    """Whether every machine has to fetch what it goes on from."""

    def __init__(self, folder: Path, limit: int, *, behind: bool = False):
        self.folder, self.limit = folder, limit
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if behind else None
        self._pending: Future[None] | None = None
        self._best: dict[int, int] = {}
        """Step of a checkpoint → the best step when it was saved, where that is known."""
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def place(self) -> str:
        """Where they are, as a person would write it."""
        return str(self.folder)

    def step_of(self, place: str) -> int:
        """The step of one checkpoint, from what a person calls it.

        Raises:
            UserError: it is not in this folder.
        """
        path = local_path(place)
        if path.parent.resolve() != self.folder.resolve() or not NAME.fullmatch(path.name):
            raise UserError(
                f"train.resume={place}: is not in the checkpoint folder {self.folder}; give auto, never, or the path of a "
                "committed checkpoint in train.checkpoints"
            )
        return int(path.name[5:])

    def path(self, step: int) -> Path:
        """Folder of the checkpoint of that step."""
        return self.folder / f"step-{step:08d}"

    def save(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, state: LoopState) -> None:
        """Write and commit the checkpoint of `state.step`, then delete those that need not stay (see `staying`).

        Raises:
            UserError: the disk is full. Earlier checkpoints stand; behind, it is raised by the next call.
        """
        weights, moments = in_memory(model_tensors(model)), in_memory(optimizer_tensors(model, optimizer))
        text, best = json.dumps(state.__dict__), state.best_step
        if self._writer is None:
            self._write(state.step, weights, moments, text, best)
            return
        self.wait()
        self._pending = self._writer.submit(self._write, state.step, copied(weights), copied(moments), text, best)

    def wait(self) -> None:
        """Until what is being written is committed."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _write(
        self, step: int, weights: dict[str, torch.Tensor], moments: dict[str, torch.Tensor], state: str, best: int
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
        self._committed(target, best)

    def _committed(self, target: Path, best: int) -> None:
        """What follows when `target` is whole; `best`: the best step when it was saved."""
        saved = int(target.name[5:])
        self._best[saved] = best
        for step in self._steps_here() - staying(self._steps_here(), saved, self.limit, self._best_of):
            if not self._in_use(self.path(step)):
                shutil.rmtree(self.path(step), ignore_errors=True)

    def _steps_here(self) -> set[int]:
        return {int(path.name[5:]) for path in self.folder.glob("step-*") if NAME.fullmatch(path.name)}

    def _in_use(self, path: Path) -> bool:
        """Whether a checkpoint must not be deleted yet."""
        return False

    def choose(self, asked: int | None = None, *, exactly: bool = False) -> int:
        """The step to go on from: that of the newest checkpoint that is committed and intact; -1: there is none.

        Damaged ones are passed over with a warning.

        Args:
            asked: the step of the checkpoint that was asked for: chosen is then the newest of those that went on from it
                when it was asked for before, or else itself.
            exactly: itself alone.

        Raises:
            UserError: the one asked for is not intact, or the best one so far is not.
        """
        steps = sorted(self._steps_there(), reverse=True)
        if asked is not None:
            later = [] if exactly else [s for s in steps if s > asked and self._told(s).get("resumed") == asked]
            steps = [*later, asked]
        for step in steps:
            problem = self._usable(step)
            if problem is None:
                self._check_best(step)
                return step
            if step == asked:
                raise UserError(
                    f"train.resume={self.place}/{self.path(step).name}: {problem}; give auto, never, or a committed "
                    "checkpoint in train.checkpoints"
                )
            log.warning("%s/%s: %s; looking for an older one", self.place, self.path(step).name, problem)
        return -1

    def _steps_there(self) -> set[int]:
        """Steps of the checkpoints that are to choose from."""
        return self._steps_here()

    def _usable(self, step: int) -> str | None:
        """What is wrong with a checkpoint; None: it is intact, and on this machine."""
        return self.problem(self.path(step))

    def _check_best(self, step: int) -> None:
        best = self.read_state(self.path(step)).best_step
        problem = None if best in (-1, step) else self._usable(best)
        if problem is not None:
            raise UserError(
                f"{self.place}/{self.path(best).name}, the best checkpoint so far: {problem}; give an earlier "
                "checkpoint in train.resume"
            )

    def _told(self, step: int) -> dict[str, Any]:
        """The state of a checkpoint that need not be intact; empty if it cannot be read."""
        try:
            return json.loads((self.path(step) / FILES[2]).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def _best_of(self, step: int) -> int:
        if step not in self._best:
            self._best[step] = self._told(step).get("best_step", -1)
        return self._best[step]

    def begin(self) -> None:
        """Be the one who writes: remove what a killed save left half-written."""
        for path in self.folder.glob(".step-*.partial"):
            shutil.rmtree(path, ignore_errors=True)

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
            ours = model_tensors(model)
            if saved.keys() != ours.keys() or any(saved[name].shape != ours[name].shape for name in saved):
                raise UserError(f"{path}: its weights do not fit this model; give another train.checkpoints folder")
            with torch.no_grad():
                for name, tensor in ours.items():
                    tensor.copy_(saved[name])
        except SafetensorError as error:
            raise UserError(f"{path}: cannot be read: {error}") from error
        if optimizer is not None:
            load_optimizer(model, optimizer, load_file(path / FILES[1]))

    def keep(self, files: Sequence[Path]) -> None:
        """Have files of this machine's folder where the checkpoints are: in a folder they are already."""


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
