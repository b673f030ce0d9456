"""Checkpoints in a folder: either complete or not there.

A checkpoint is a folder `step-00000500/` with `model.safetensors`, `optimizer.safetensors` and `state.json` (position
in the data, best step, history), and `commit.json`, the commit record with the size and sha256 of each file, written
last; the folder is then renamed into place. One without an intact commit record does not count. Our own engine pickles
nothing; transformers' Trainer leaves files of its own in place of the optimizer's (`Checkpoints.adopt`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hanflow.errors import UserError
from hanflow.own_files import json_text
from hanflow.progress import log
from hanflow.storage import local_path, readable_by_umask
from hanflow.storage.artifacts import file_sha256
from hanflow.strict_json import json_ready
from hanflow.training.state import LoopState

MODEL, OPTIMIZER, STATE, COMMIT = "model.safetensors", "optimizer.safetensors", "state.json", "commit.json"
"""Files of a checkpoint."""
NAME = re.compile(r"step-\d{8}")
"""Name of a checkpoint's folder."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they are; made if missing.
        limit: newest checkpoints kept; the best one of each is kept beside them.
        background: write them in a thread, from a copy, while training continues.
    """

    fetches = False
    """Whether every machine has to fetch the checkpoint that it resumes from."""

    def __init__(self, folder: Path, limit: int, *, background: bool = False):
        self.folder, self.limit = folder, limit
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if background else None
        self._pending: Future[None] | None = None
        self._best: dict[int, int] = {}
        """Step of a checkpoint → the best step when it was saved, where that is known."""
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def place(self) -> str:
        """Where they are, for messages."""
        return str(self.folder)

    def step_of(self, place: str) -> int:
        """The step of the checkpoint that a setting names.

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
        """Write and commit the checkpoint of `state.step`, then delete those that need not stay (see `to_keep`).

        Raises:
            UserError: the disk is full. Earlier checkpoints stay intact; with `background`, the next call raises it.
        """
        weights, moments = on_host(model_tensors(model)), on_host(optimizer_tensors(model, optimizer))
        text, best = _text_of(state), state.best_step
        if self._writer is None:
            self._write(state.step, weights, moments, text, best)
            return
        self.wait()
        self._pending = self._writer.submit(self._write, state.step, _copied(weights), _copied(moments), text, best)

    def wait(self) -> None:
        """Return when the checkpoint that is being written is committed."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _write(
        self, step: int, weights: dict[str, torch.Tensor], moments: dict[str, torch.Tensor], state: str, best: int
    ) -> None:
        staging = self.folder / f".{self.path(step).name}.partial"
        try:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            save_file(weights, staging / MODEL)
            save_file(moments, staging / OPTIMIZER)
            (staging / STATE).write_text(state, encoding="utf-8")
            self._commit(staging, self.path(step))
        except (OSError, SafetensorError) as error:
            shutil.rmtree(staging, ignore_errors=True)
            full = shutil.disk_usage(self.folder).free < sum(t.nbytes for t in (*weights.values(), *moments.values()))
            raise self._write_error(step, "the disk is full" if full else str(error)) from error
        self._committed(self.path(step), best)

    def adopt(self, staging: Path, state: LoopState) -> None:
        """Commit files that something else has written, `model.safetensors` among them, as the checkpoint of `state.step`.

        Args:
            staging: their folder, on the file system of the checkpoints; it is renamed.
            state: is added to them.

        Raises:
            UserError: the checkpoint cannot be written.
        """
        try:
            (staging / STATE).write_text(_text_of(state), encoding="utf-8")
            self._commit(staging, self.path(state.step))
        except OSError as error:
            raise self._write_error(state.step, str(error)) from error
        self._committed(self.path(state.step), state.best_step)

    @staticmethod
    def _commit(staging: Path, target: Path) -> None:
        readable_by_umask(staging)
        record = {}
        for path in sorted(staging.iterdir()):
            record[path.name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
            _sync(path)
        (staging / COMMIT).write_text(json.dumps(record), encoding="utf-8")
        _sync(staging / COMMIT)
        shutil.rmtree(target, ignore_errors=True)  # a damaged one of the same step
        os.replace(staging, target)
        _sync(target.parent)

    def _write_error(self, step: int, reason: str) -> UserError:
        return UserError(
            f"{self.path(step)}: the checkpoint cannot be written: {reason}; earlier checkpoints are intact: free some "
            "space and start the same command again"
        )

    def _committed(self, target: Path, best: int) -> None:
        """Delete what need not stay, now that `target` is complete; `best`: the best step when it was saved."""
        saved = int(target.name[5:])
        self._best[saved] = best
        for step in self._local_steps() - to_keep(self._local_steps(), saved, self.limit, self._best_of):
            if not self._in_use(self.path(step)):
                shutil.rmtree(self.path(step), ignore_errors=True)

    def _local_steps(self) -> set[int]:
        return {int(path.name[5:]) for path in self.folder.glob("step-*") if NAME.fullmatch(path.name)}

    def _in_use(self, path: Path) -> bool:
        """Whether a checkpoint must not be deleted yet."""
        return False

    def choose(self, requested: int | None = None, *, exactly: bool = False) -> int:
        """The step to resume from: that of the newest checkpoint that is committed and intact; -1: there is none.

        Damaged ones are passed over with a warning.

        Args:
            requested: the step of the checkpoint that `train.resume` names: chosen is the newest of those that an earlier
                run of the same command has saved after it, or else itself.
            exactly: itself alone.

        Raises:
            UserError: the requested one is not intact, or the best one so far is not.
        """
        steps = sorted(self._available_steps(), reverse=True)
        if requested is not None:
            later = [s for s in steps if s > requested and self._raw_state(s).get("resumed") == requested]
            steps = [*([] if exactly else later), requested]
        for step in steps:
            problem = self._unusable(step)
            if problem is None:
                self._check_best(step)
                return step
            if step == requested:
                raise UserError(
                    f"train.resume={self.place}/{self.path(step).name}: {problem}; give auto, never, or a committed "
                    "checkpoint in train.checkpoints"
                )
            log.warning("%s/%s: %s; looking for an older one", self.place, self.path(step).name, problem)
        return -1

    def _available_steps(self) -> set[int]:
        """Steps of the checkpoints to choose from."""
        return self._local_steps()

    def _unusable(self, step: int) -> str | None:
        """What is wrong with a checkpoint; None: it is intact, and on this machine."""
        return self.problem(self.path(step))

    def _check_best(self, step: int) -> None:
        best = self.read_state(self.path(step)).best_step
        problem = None if best in (-1, step) else self._unusable(best)
        if problem is not None:
            raise UserError(
                f"{self.place}/{self.path(best).name}, the best checkpoint so far: {problem}; give an earlier "
                "checkpoint in train.resume"
            )

    def _raw_state(self, step: int) -> dict[str, Any]:
        """The state of a checkpoint that need not be intact; empty if it cannot be read."""
        try:
            return json.loads((self.path(step) / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def _best_of(self, step: int) -> int:
        if step not in self._best:
            self._best[step] = self._raw_state(step).get("best_step", -1)
        return self._best[step]

    def begin(self) -> None:
        """Called by the one process that writes: remove what a killed save left half-written."""
        for path in self.folder.glob(".step-*.partial"):
            shutil.rmtree(path, ignore_errors=True)

    def problem(self, path: Path) -> str | None:
        """What is wrong with a checkpoint; None: it is intact."""
        try:
            for name, expected in read_record((path / COMMIT).read_bytes()).items():
                if (path / name).stat().st_size != expected["bytes"]:
                    return f"{name} is truncated"
                if file_sha256(path / name) != expected["sha256"]:
                    return f"{name} is damaged (its sha256 differs)"
        except FileNotFoundError as error:
            return f"was never committed (no {Path(str(error.filename)).name})"
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"{COMMIT} is damaged"
        return None

    def read_state(self, path: Path) -> LoopState:
        """The state of an intact checkpoint."""
        return LoopState(**json.loads((path / STATE).read_text(encoding="utf-8")))

    def load(self, path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Put the tensors of an intact checkpoint into a model and its optimizer.

        Raises:
            UserError: they do not fit the model.
        """
        try:
            saved = load_file(path / MODEL)
            ours = model_tensors(model)
            if saved.keys() != ours.keys() or any(saved[name].shape != ours[name].shape for name in saved):
                raise UserError(f"{path}: its weights do not fit this model; give another train.checkpoints folder")
            with torch.no_grad():
                for name, tensor in ours.items():
                    tensor.copy_(saved[name])
        except SafetensorError as error:
            raise UserError(f"{path}: cannot be read: {error}") from error
        if optimizer is not None:
            load_optimizer(model, optimizer, load_file(path / OPTIMIZER))

    def keep(self, files: Sequence[Path]) -> None:
        """Store files of this machine's folder where the checkpoints are: in a folder they are there already."""


def _text_of(state: LoopState) -> str:
    return json_text(json_ready(state.__dict__))


def read_record(content: bytes) -> dict[str, dict[str, Any]]:
    """A commit record: file name → its `bytes` and `sha256`.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is damaged.
    """
    record = json.loads(content)
    if any(Path(name).name != name for name in record):
        raise ValueError("a file outside of the checkpoint")
    return {name: record[name] for name in (MODEL, STATE, *record)}


def to_keep(steps: Iterable[int], saved: int, limit: int, best_of: Callable[[int], int]) -> set[int]:
    """Steps of the checkpoints that stay once `saved` is committed.

    Those are the newest up to it, and the best one of each, without which it could not be resumed from. A later step is
    damaged, or was abandoned when an earlier checkpoint was requested.

    Args:
        steps: of all checkpoints, `saved` among them.
        saved: the step that was saved last.
        limit: how many of the newest stay.
        best_of: step → the best step when it was saved; -1: there was none.
    """
    newest = sorted(step for step in steps if step <= saved)[-limit:]
    return {*newest, *map(best_of, newest)}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def on_host(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors that can be written: those of a CPU or a GPU themselves, a TPU's as copies."""
    return {name: t.detach().cpu() if t.device.type == "xla" else t.detach() for name, t in tensors.items()}


def _copied(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies in main memory, which training does not change."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def model_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Name → tensor of every parameter and persistent buffer; tied ones once, under their first name."""
    seen: set[int] = set()
    tensors = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor
    return tensors


def optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """`<parameter>/<slot>` → tensor of the optimizer's state."""
    return {
        f"{name}/{slot}": value
        for name, parameter in model.named_parameters()
        for slot, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, torch.Tensor]) -> None:
    """Put what `optimizer_tensors` gave into an optimizer of the same model, in the shapes that it has already."""
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
