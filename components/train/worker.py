"""The train step: shards to a trained model. Every worker of a distributed run calls `run`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from components.shared import artifacts
from components.shared.artifacts import Manifest
from components.shared.config import TrainConfig, UserError, to_mapping
from components.shared.progress import log
from components.shared.shards import Shard
from components.shared.steps import Report
from components.shared.storage import local_path, staged
from components.shared.tasks import get_task
from components.shared.tasks.base import Task
from components.train.backends.base import Backend
from components.train.backends.torch_ddp import TorchBackend
from components.train.checkpoint import Checkpoints, LoopState, state_as_json
from components.train.loop import Data, fit

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FREE_SETTINGS = ("checkpoints", "save_total_limit", "log_every")
"""Settings that may differ between a run and its resumption: they do not change what is learnt."""


def run(config: TrainConfig, *, task: str, output: str, shards: str) -> Report:
    """Train a model on token ids; the model with the best validation loss is the one that is kept."""
    from transformers import AutoTokenizer

    learnt = get_task(task)
    problems = learnt.check_model(config)
    if problems:
        raise UserError("\n".join(problems))
    folder = local_path(shards)
    parent = artifacts.read_manifest(folder, "shards", task=task)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    train = Data.of(Shard(folder / "train.arrow", learnt.sequences), learnt, config, shuffle=True)
    validation = Data.of(Shard(folder / "validation.arrow", learnt.sequences), learnt, config, shuffle=False)
    if not len(train.shard):
        raise UserError(f"{shards}: its train split is empty: there is nothing to learn from")
    backend = TorchBackend(config.precision)
    try:
        model = learnt.new_model(config, tokenizer)
        _check_fit(model, train, validation, learnt)
        checkpoints = Checkpoints(_checkpoint_folder(config, output), config.save_total_limit)
        state = _resume(checkpoints, _identity(config, parent))
        _describe(model, train, backend)
        state = fit(
            model, learnt, config, backend, train, validation if len(validation.shard) else None, checkpoints, state
        )
        if state.best_step >= 0:
            checkpoints.load(checkpoints.path(state.best_step), model)
        if backend.is_main:
            _write_model(output, config, learnt, model.cpu().eval(), tokenizer, parent, train, state, backend)
    finally:
        backend.close()
    return Report(_figures(model, train, state))


def _checkpoint_folder(config: TrainConfig, output: str) -> Path:
    return local_path(config.checkpoints) if config.checkpoints else Path(f"{local_path(output)}.checkpoints")


def _identity(config: TrainConfig, parent: Manifest) -> dict[str, Any]:
    settings = {key: value for key, value in to_mapping(config).items() if key not in FREE_SETTINGS}
    return {**settings, "shards": parent.digest}


def _resume(checkpoints: Checkpoints, identity: dict[str, Any]) -> LoopState:
    """The state to go on from: that of the newest intact checkpoint, else the beginning."""
    newest = checkpoints.newest()
    if newest is None:
        return LoopState(identity)
    state = checkpoints.read_state(newest)
    differing = [key for key in identity if state.identity.get(key) != identity[key]]
    if differing:
        raise UserError(
            f"{checkpoints.folder}: holds the checkpoints of another run (it differs in {', '.join(differing)}); "
            "give another train.checkpoints folder, or remove this one to start anew"
        )
    log.info("resuming from %s", newest)
    return state


def _check_fit(model: PreTrainedModel, train: Data, validation: Data, task: Task) -> None:
    """Refuse shards that the model cannot take."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None:
        return
    for data in (train, validation):
        for name, longest in zip(task.sequences, data.plan.lengths.max(axis=0, initial=0), strict=True):
            if longest > positions:
                raise UserError(
                    f"a {name} has {longest} tokens, the model takes {positions}: set tokenize.max_{name}_tokens to at "
                    f"most {positions}, or raise train.architecture.max_position_embeddings for a model made from nothing"
                )


def _describe(model: PreTrainedModel, train: Data, backend: Backend) -> None:
    log.info(
        "%s parameters; %s rows in %d batches of %d shapes an epoch, padding efficiency %.3f; %s on %s × %d",
        f"{model.num_parameters():,}",
        f"{len(train.shard):,}",
        train.plan.batches_per_epoch,
        len(train.plan.shapes),
        train.plan.padding_efficiency,
        backend.precision,
        backend.device.type,
        backend.world_size,
    )


def _figures(model: PreTrainedModel, train: Data, state: LoopState) -> dict[str, Any]:
    speeds = sorted(point["tokens_per_second"] for point in state.train)
    figures: dict[str, Any] = {
        "steps": state.step,
        "parameters": model.num_parameters(),
        "train_loss": round(state.train[-1]["loss"], 4),
        "tokens_per_second": round(speeds[len(speeds) // 2]),
        "padding_efficiency": round(train.plan.padding_efficiency, 4),
    }
    if state.best_step >= 0:
        figures |= {"validation_loss": round(state.best_loss, 4), "best_step": state.best_step}
    return figures


def _write_model(
    output: str,
    config: TrainConfig,
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    parent: Manifest,
    train: Data,
    state: LoopState,
    backend: Backend,
) -> None:
    training = {
        "settings": to_mapping(config),
        **state_as_json(state),
        "parameters": model.num_parameters(),
        "precision": backend.precision,
        "device": backend.device.type,
        "world_size": backend.world_size,
        "torch": torch.__version__,
        "padding_efficiency": train.plan.padding_efficiency,
    }
    with staged(output) as target:
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
        (target / "training.json").write_text(json.dumps(training, indent=1) + "\n", encoding="utf-8")
        counts = {"steps": state.step, "parameters": training["parameters"]}
        artifacts.write_manifest(
            target, Manifest("model", task.name, to_mapping(config), counts, {}, artifacts.lineage(parent))
        )
