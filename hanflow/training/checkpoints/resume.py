"""Where a run's checkpoints are, which of them it resumes from, and the best one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from hanflow.config import TrainConfig, to_mapping
from hanflow.config.training import FREE_SETTINGS
from hanflow.errors import UserError
from hanflow.progress import log
from hanflow.storage import hold, is_remote, local_path
from hanflow.storage.artifacts import Manifest
from hanflow.training.backends.base import Backend
from hanflow.training.checkpoints.local import Checkpoints
from hanflow.training.state import LoopState, TrainingRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def identity_of(config: TrainConfig, shards: Manifest) -> dict[str, Any]:
    """What must be the same in a run and its continuation."""
    settings = {key: value for key, value in to_mapping(config).items() if key not in FREE_SETTINGS}
    return {**settings, "shards": shards.digest}


def open_checkpoints(run: TrainingRun, backend: Backend) -> Checkpoints:
    """The run's checkpoints, in a folder or in a bucket."""
    limit, background = run.config.save_total_limit, backend.saves_in_background
    if not is_remote(run.checkpoints):
        return Checkpoints(local_path(run.checkpoints), limit, background=background)
    from hanflow.training.checkpoints.remote import RemoteCheckpoints

    return RemoteCheckpoints(run.checkpoints, limit, background=background)


def resume(checkpoints: Checkpoints, config: TrainConfig, identity: dict[str, Any], backend: Backend) -> LoopState:
    """The state that every rank resumes from, the same one; that of a new run where there is no checkpoint.

    One rank chooses: listings of a shared volume, or of a bucket, may differ from one moment and machine to the next.

    Raises:
        UserError: the requested checkpoint, or the best one, is not intact; they are another run's, or another process
            trains with them.
    """
    requested = None if config.resume in ("auto", "never") else checkpoints.step_of(config.resume)
    first_here = int(os.environ.get("LOCAL_RANK", 0)) == 0
    chooses = first_here if checkpoints.fetches else backend.is_main
    if chooses:
        hold(checkpoints.place)
    step = checkpoints.choose(requested) if chooses else -1
    backend.barrier()  # choosing may take long: checkpoints are fetched and their digests computed
    (agreed,) = backend.agree(step)
    if chooses and agreed != step:  # one was committed between two machines' listings
        checkpoints.choose(agreed, exactly=True)
    backend.barrier()  # no rank writes before all have listed what is there
    state = LoopState(identity)
    if agreed >= 0:
        state = _read_state(agreed, checkpoints, backend)
        _check_may_resume(checkpoints.place, config, state.identity, identity)
        log.info("resuming from %s", checkpoints.path(agreed))
    if requested is not None:
        state.resumed = requested
        log.info("train.resume=%s: training continues from step %d", config.resume, agreed)
    if backend.is_main:
        checkpoints.begin()
    return state


def _read_state(step: int, checkpoints: Checkpoints, backend: Backend) -> LoopState:
    path = checkpoints.path(step)
    try:
        return checkpoints.read_state(path)
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: another worker sees this checkpoint, this one (rank {backend.reader}) does not; set "
            "train.checkpoints to a folder that all workers share, or to a bucket"
        ) from error


def _check_may_resume(place: str, config: TrainConfig, found: dict[str, Any], identity: dict[str, Any]) -> None:
    if config.resume == "never":
        raise UserError(
            f"{place}: holds checkpoints, and train.resume=never; give another train.checkpoints folder, or remove "
            "this one"
        )
    differing = [key for key in identity if found.get(key) != identity[key]]
    if differing:
        raise UserError(
            f"{place}: holds the checkpoints of another run (it differs in {', '.join(differing)}); "
            "give another train.checkpoints folder, or remove this one to start again"
        )


def best_model(model: PreTrainedModel, checkpoints: Checkpoints, state: LoopState, backend: Backend) -> PreTrainedModel:
    """The model in main memory, in evaluation mode; on the main rank with the weights of the best validation, if any."""
    model = backend.on_cpu(model)
    if backend.is_main and state.best_step >= 0:
        checkpoints.load(checkpoints.path(state.best_step), model)
    return model.eval()
