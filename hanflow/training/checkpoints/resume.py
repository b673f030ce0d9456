"""Where a run's checkpoints are, which of them it goes on from, and whether it may."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from hanflow.config import TrainConfig, to_mapping
from hanflow.errors import UserError
from hanflow.progress import log
from hanflow.storage import is_remote, local_path
from hanflow.storage.artifacts import Manifest
from hanflow.training.backends.base import Backend
from hanflow.training.checkpoints.local import Checkpoints
from hanflow.training.state import LoopState

FREE_SETTINGS = (
    "backend",
    "checkpoints",
    "compilation_cache",
    "compile",
    "log_every",
    "nonfinite_dump",
    "processes",
    "resume",
    "save_every",
    "save_minutes",
    "save_total_limit",
    "topology",
    "wandb",
    "wandb_project",
    "wandb_tags",
)
"""Settings that may differ between a run and its resumption: they do not change what is learnt."""


def checkpoint_place(config: TrainConfig, output: str) -> str:
    """Folder or URI of a run's checkpoints: the one that was set, or beside its output."""
    if config.checkpoints:
        return config.checkpoints
    return f"{output.rstrip('/')}.checkpoints" if is_remote(output) else f"{local_path(output)}.checkpoints"


def identity_of(config: TrainConfig, shards: Manifest) -> dict[str, Any]:
    """What must be the same in a run and its resumption."""
    settings = {key: value for key, value in to_mapping(config).items() if key not in FREE_SETTINGS}
    return {**settings, "shards": shards.digest}


def asked_for(config: TrainConfig) -> str | None:
    """The checkpoint that `train.resume` names; None: whichever is the newest."""
    return None if config.resume in ("auto", "never") else config.resume


def check_may_go_on(place: object, config: TrainConfig, known: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Refuse to go on from checkpoints that are there.

    Args:
        place: where they are.
        config: the run's settings.
        known: `identity_of` the run that left them.
        identity: that of this one.

    Raises:
        UserError: the settings want a new beginning, or they are another run's.
    """
    if config.resume == "never":
        raise UserError(
            f"{place}: holds checkpoints, and train.resume=never; give another train.checkpoints folder, or remove "
            "this one"
        )
    differing = [key for key in identity if known.get(key) != identity[key]]
    if differing:
        raise UserError(
            f"{place}: holds the checkpoints of another run (it differs in {', '.join(differing)}); "
            "give another train.checkpoints folder, or remove this one to start anew"
        )


def open_checkpoints(config: TrainConfig, output: str, backend: Backend) -> Checkpoints:
    """The run's checkpoints, in a folder or in a bucket."""
    place = checkpoint_place(config, output)
    if not is_remote(place):
        return Checkpoints(local_path(place), config.save_total_limit, behind=backend.saves_behind)
    from hanflow.training.checkpoints.remote import RemoteCheckpoints

    return RemoteCheckpoints(place, config.save_total_limit, behind=backend.saves_behind)


def resume(checkpoints: Checkpoints, config: TrainConfig, identity: dict[str, Any], backend: Backend) -> LoopState:
    """The state that every worker goes on from, the same one; the beginning where there is no checkpoint.

    One worker chooses: listings of a shared volume, or of a bucket, may differ from one moment and machine to the next.

    Raises:
        UserError: the checkpoint that was asked for, or the best one, is not intact; they are another run's.
    """
    name = asked_for(config)
    asked = None if name is None else checkpoints.step_of(name)
    first_here = int(os.environ.get("LOCAL_RANK", 0)) == 0
    looks = first_here if checkpoints.fetches else backend.is_main
    step = checkpoints.choose(asked) if looks else -1
    backend.barrier()  # looking takes as long as it takes
    (agreed,) = backend.agree(step)
    if looks and agreed != step:  # committed between two machines' looks
        checkpoints.choose(agreed, exactly=True)
    backend.barrier()  # nobody writes before everybody has looked for what is there
    state = LoopState(identity) if agreed < 0 else _state_of(agreed, checkpoints, config, identity, backend)
    if asked is not None:
        state.resumed = asked
        log.info("%s: going on from step %d", name, agreed)
    if backend.is_main:
        checkpoints.begin()
    return state


def _state_of(
    step: int, checkpoints: Checkpoints, config: TrainConfig, identity: dict[str, Any], backend: Backend
) -> LoopState:
    path = checkpoints.path(step)
    try:
        state = checkpoints.read_state(path)
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: another worker sees this checkpoint, this one (rank {backend.reader}) does not; set "
            "train.checkpoints to a folder that all workers share, or to a bucket"
        ) from error
    check_may_go_on(checkpoints.place, config, state.identity, identity)
    log.info("resuming from %s", path)
    return state
