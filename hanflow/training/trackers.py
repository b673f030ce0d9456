"""Where training figures go: metrics.jsonl, TensorBoard, a log file and, by a switch, Weights & Biases."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hanflow.config import TrainConfig, to_mapping, without_places
from hanflow.errors import UserError
from hanflow.own_files import json_text
from hanflow.progress import log
from hanflow.strict_json import json_ready
from hanflow.training.state import LoopState


class Trackers:
    """Writes figures as they come; use as a context manager.

    Args:
        folder: gets `metrics.jsonl` (one object a line: `{"split", "step", …}`), `train.log` and `tensorboard/`.
        state: a resumed run's state: what it had logged is kept, what came after it is dropped.
        config: the run's settings; its switches decide about Weights & Biases.
        place: of the run's checkpoints, the same on every machine: it identifies the run when it is resumed.
        enabled: False on ranks that do not log.

    Raises:
        UserError: Weights & Biases is switched on but not installed.
    """

    def __init__(self, folder: Path, state: LoopState, config: TrainConfig, *, place: str, enabled: bool = True):
        self._enabled = enabled
        if not enabled:
            return
        from torch.utils.tensorboard import SummaryWriter

        self._path = folder / "metrics.jsonl"
        known = [("train", point) for point in state.train] + [("validation", point) for point in state.validation]
        known.sort(key=lambda pair: pair[1]["step"])
        self._path.write_text("".join(_line(split, point) for split, point in known), encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=state.step + 1)
        self._file = logging.FileHandler(folder / "train.log", encoding="utf-8")
        self._file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(self._file)
        self._wandb = _start_wandb(folder, config, _run_id(place, state)) if config.wandb else None

    def write(self, split: str, figures: Mapping[str, float], layers: Mapping[str, torch.Tensor] | None = None) -> None:
        """Log the figures of one step.

        Args:
            split: train or validation.
            figures: by name; `step` is the number of optimizer steps done.
            layers: gradient norm of each layer, float32 scalars.
        """
        if not self._enabled:
            return
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(_line(split, figures))
        step = int(figures["step"])
        named = {f"{split}/{name}": value for name, value in figures.items() if name != "step"}
        named |= {f"gradient_norm/{layer}": float(norm) for layer, norm in (layers or {}).items()}
        for name, value in named.items():
            self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(named, step=step)
        summary = ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if name != "step")
        # Training figures are on the progress bar already; the log file has them all.
        level = logging.DEBUG if split == "train" else logging.INFO
        log.log(level, "%s at step %d: %s", split, step, summary)
        if level == logging.DEBUG:
            self._file.handle(
                log.makeRecord(log.name, logging.INFO, "", 0, f"{split} at step {step}: {summary}", (), None)
            )

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._enabled:
            return
        self._board.close()
        log.removeHandler(self._file)
        self._file.close()
        if self._wandb is not None:
            self._wandb.finish()


def _run_id(place: str, state: LoopState) -> str:
    """Id of a run in Weights & Biases: the same when it is resumed, another one from a requested earlier checkpoint."""
    made_of = json.dumps([place, state.identity, state.resumed], sort_keys=True)
    return hashlib.sha256(made_of.encode()).hexdigest()[:16]


def _start_wandb(folder: Path, config: TrainConfig, run_id: str) -> Any:
    try:
        import wandb
    except ImportError:
        raise UserError("train.wandb=true: the wandb package is not installed: pip install 'hanflow[wandb]'") from None
    return wandb.init(
        project=config.wandb_project,
        tags=config.wandb_tags,
        dir=str(folder),
        config=without_places(to_mapping(config)),
        id=run_id,
        resume="allow",
    )


def _line(split: str, figures: Mapping[str, float]) -> str:
    return json_text(json_ready({"split": split, **figures})) + "\n"
