"""The Trainer's own checkpoints and log, as this project reads them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hanflow.config import TrainConfig
from hanflow.errors import UserError
from hanflow.progress import log
from hanflow.storage import local_path
from hanflow.training.checkpoints.resume import asked_for, check_may_go_on
from hanflow.training.state import LoopState

IDENTITY = "run.json"
"""File beside the Trainer's checkpoints: the settings and data that they belong to."""

_TRAINER_STATE = "trainer_state.json"
_NOT_FIGURES = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


def problem(path: Path) -> str | None:
    """What is wrong with a checkpoint of the Trainer; None: it can be resumed from.

    The Trainer writes without a commit record, so a killed save leaves a folder that looks like a checkpoint
    (huggingface/transformers#35782). Its state file is written last; every other file must be whole too. Unlike with
    our own engine, a flipped byte goes unnoticed.
    """
    try:
        json.loads((path / _TRAINER_STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"was never finished (no {_TRAINER_STATE})"
    except (OSError, ValueError):
        return f"{_TRAINER_STATE} is damaged"
    weights = sorted(path.glob("model*.safetensors"))
    if not weights:
        return "has no weights"
    for file in weights:
        try:
            with safe_open(file, "numpy"):  # compares the header with the file's size
                pass
        except (OSError, SafetensorError):
            return f"{file.name} is damaged"
    for pattern in ("optimizer.pt", "scheduler.pt", "rng_state*.pth"):
        files = sorted(path.glob(pattern))
        if not files:
            return f"has no {pattern}"
        for file in files:
            if not zipfile.is_zipfile(file):  # the directory of a zip stands at its end
                return f"{file.name} is truncated"
    return None


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that can be resumed from; others are passed over with a warning."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.split("-")[-1].isdigit()]
    for path in sorted(found, key=lambda path: int(path.name.split("-")[-1]), reverse=True):
        wrong = problem(path)
        if wrong is None:
            return path
        log.warning("%s: %s; looking for an older one", path, wrong)
    return None


def start(folder: Path, config: TrainConfig, identity: Mapping[str, Any]) -> Path | None:
    """The checkpoint to go on from, by `config.resume`; None: the beginning.

    Raises:
        UserError: the one asked for cannot be used, or the folder holds another run's.
    """
    asked = asked_for(config)
    if asked is None:
        path = newest(folder)
    else:
        path = local_path(asked)
        wrong = problem(path)
        if wrong or path.parent.resolve() != folder.resolve():
            raise UserError(
                f"train.resume={asked}: {wrong or f'is not in the checkpoint folder {folder}'}; "
                "give auto, never, or the path of a checkpoint in the `transformers` folder of train.checkpoints"
            )
    if path is None:
        return None
    try:
        known = json.loads((folder / IDENTITY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    check_may_go_on(folder, config, known, identity)
    log.info("resuming from %s", path)
    return path


def read(path: Path) -> dict[str, Any]:
    """The Trainer's state of a whole checkpoint."""
    return json.loads((path / _TRAINER_STATE).read_text(encoding="utf-8"))


def ended(state: Mapping[str, Any]) -> bool:
    """Whether nothing was left to train when that state was saved (the last step, or early stopping)."""
    control = state.get("stateful_callbacks", {}).get("TrainerControl", {})
    stopping = control.get("attributes", {}).get("should_training_stop", False) or control.get("args", {}).get(
        "should_training_stop", False
    )
    return bool(stopping) or state["global_step"] >= state["max_steps"]


def train_point(logs: Mapping[str, Any], step: int) -> dict[str, float] | None:
    """What the Trainer logged after a training step, in the names of our own engine; None: it is something else."""
    if "loss" not in logs:
        return None
    return {
        "step": step,
        "epoch": round(logs.get("epoch", 0.0), 6),
        "loss": logs["loss"],
        "learning_rate": logs["learning_rate"],
        "gradient_norm": logs.get("grad_norm", float("nan")),
        "tokens": logs.get("tokens", 0),
        "tokens_per_second": logs.get("tokens_per_second", 0.0),
        "memory_gb": logs.get("memory_gb", 0.0),
        "skipped_steps": 0,
    }


def validation_point(logs: Mapping[str, Any], step: int) -> dict[str, float] | None:
    """What the Trainer logged after a validation, in the names of our own engine; None: it is something else."""
    if "eval_loss" not in logs:
        return None
    named = {key.removeprefix("eval_"): value for key, value in logs.items() if key.startswith("eval_")}
    return {"step": step, **{name: value for name, value in named.items() if name not in _NOT_FIGURES}}


def padding_efficiency(logs: Iterable[Mapping[str, Any]], otherwise: float) -> float:
    """The last one that the Trainer's log holds; `otherwise`: no step was logged."""
    logged = [(entry["step"], entry["padding_efficiency"]) for entry in logs if "padding_efficiency" in entry]
    return max(logged)[1] if logged else otherwise


def take_up(state: LoopState, logs: Iterable[Mapping[str, Any]]) -> None:
    """Add to the state's history what the Trainer's log (`log_history`) holds."""
    for entry in logs:
        train, validation = train_point(entry, entry["step"]), validation_point(entry, entry["step"])
        if train:
            state.train.append(train)
        if validation:
            state.validation.append(validation)
