"""The end of a run whose gradient stays not finite, and the files that help to find out why."""

from __future__ import annotations

import json
from typing import NoReturn

import torch
from safetensors.torch import save_file

from hanflow.config import TrainConfig
from hanflow.errors import UserError
from hanflow.training.backends.base import Backend
from hanflow.training.checkpoints.local import Checkpoints, model_tensors, on_host
from hanflow.training.loader import StepData
from hanflow.training.state import LoopState


def give_up(
    data: StepData,
    state: LoopState,
    model: torch.nn.Module,
    config: TrainConfig,
    checkpoints: Checkpoints,
    backend: Backend,
) -> NoReturn:
    """End the run after too many steps without a finite gradient; called by all workers.

    Raises:
        UserError: names the rows of the last step.
    """
    rows = [int(row) for batch in data.batches for row in batch.rows]
    shown = ", ".join(map(str, rows[:20])) + (f" and {len(rows) - 20} more" if len(rows) > 20 else "")
    dumped = ""
    if config.nonfinite_dump:
        place = _dump(data, rows, model, checkpoints, backend)
        backend.barrier()  # the first worker that fails ends the others
        dumped = f" Weights and batches of that step are in {place}."
    raise UserError(
        f"the gradient was not finite in {state.skipped_in_row} steps in a row, up to step {state.step} (rows {shown} of "
        "the train split); lower train.learning_rate, set train.precision=fp32 or look at these rows."
        f"{dumped} Checkpoints from before are in {checkpoints.place}"
    )


def _dump(data: StepData, rows: list[int], model: torch.nn.Module, checkpoints: Checkpoints, backend: Backend) -> str:
    """Save what reproduces a step; returns where.

    `rank-<r>-batch-<n>.safetensors` are the tensors of each worker's forward passes; `model.safetensors` (the weights
    before the step, which changed nothing) and `rows.json` are written by one of them.
    """
    folder = checkpoints.folder / f"nonfinite-{data.step:08d}"
    folder.mkdir(exist_ok=True)
    files = []
    for number, batch in enumerate(data.tensors):
        files.append(folder / f"rank-{backend.reader}-batch-{number}.safetensors")
        save_file(batch, files[-1])
    if backend.is_main:
        files += [folder / "model.safetensors", folder / "rows.json"]
        save_file(on_host(model_tensors(model)), files[-2])
        files[-1].write_text(json.dumps({"step": data.step, "rows": rows}), encoding="utf-8")
    checkpoints.keep(files)
    return f"{checkpoints.place}/{folder.name}"
