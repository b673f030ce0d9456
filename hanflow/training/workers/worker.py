"""The train step: shards to a trained model. `run` starts the worker processes, or is one of them."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import torch

from hanflow.config import TrainConfig, to_mapping
from hanflow.data.shards import Shard
from hanflow.errors import UserError
from hanflow.progress import log
from hanflow.reports.step_report import Report
from hanflow.reports.training import render
from hanflow.storage import artifacts, fetched, is_remote, local_path, staged, with_fetched_model
from hanflow.storage.artifacts import Manifest
from hanflow.tasks import get_task
from hanflow.tasks.base import Task
from hanflow.training.allocator import keep_freed_memory
from hanflow.training.backends.base import Backend
from hanflow.training.checkpoints.resume import checkpoint_place, identity_of, open_checkpoints, resume
from hanflow.training.loader import Data
from hanflow.training.loop import fit
from hanflow.training.state import LoopState

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def run(config: TrainConfig, *, task: str, output: str, shards: str) -> Report:
    """Train a model on token ids; the model that validates best is the one that is kept.

    Raises:
        Stopped, WorkersStopped: asked to stop; everything is saved, the same command goes on.
        UserError: a setting, the shards or the checkpoints do not fit; training cannot go on; says what to change.
    """
    if "RANK" not in os.environ and _processes(config) > 1:
        from hanflow.training.workers.processes import run_processes

        return run_processes(config, _processes(config), task=task, output=output, shards=shards)
    return work(config, task=task, output=output, shards=shards)


def _processes(config: TrainConfig) -> int:
    return 1 if _uses_xla(config) else config.processes or max(torch.cuda.device_count(), 1)


def _uses_xla(config: TrainConfig) -> bool:
    return config.backend == "xla" or (config.backend == "auto" and os.environ.get("PJRT_DEVICE") == "TPU")


def _backend(config: TrainConfig) -> Backend:
    """The device layer that the settings and this machine ask for.

    Raises:
        UserError: it is not installed, or does not fit the settings.
    """
    if not _uses_xla(config):
        from hanflow.training.backends.torch import TorchBackend

        return TorchBackend(config.precision, config.compile)
    try:
        import hanflow.training.backends.xla as xla_spmd
    except ImportError as error:
        raise UserError(
            f"train.backend=xla: torch_xla cannot be imported ({error}); install it in an environment of its own: "
            "pip install 'hanflow[tpu]', or `make test-xla` for one with virtual devices"
        ) from None
    return xla_spmd.XlaBackend(config)


def work(config: TrainConfig, *, task: str, output: str, shards: str) -> Report:
    """What one worker does: all of a run, or its share.

    Raises:
        Stopped, UserError: as `run`.
    """
    keep_freed_memory()
    from hanflow.loading.pretrained import load_tokenizer

    learnt = get_task(task)
    if config.engine == "transformers" and _uses_xla(config):
        raise UserError("train.engine=transformers: the Trainer runs on CPUs and GPUs here; set train.engine=hanflow")
    folder, parent = fetched(shards, "shards", task=task, only=_needed)
    problems = learnt.check_model(config)
    if problems:
        raise UserError("\n".join(problems))
    tokenizer = load_tokenizer(folder / "tokenizer")
    train = Data.of(Shard(folder / "train.arrow", learnt.sequences), learnt, config, shuffle=True)
    validation = Data.of(Shard(folder / "validation.arrow", learnt.sequences), learnt, config, shuffle=False)
    if not len(train.shard):
        raise UserError(f"{shards}: its train split is empty: there is nothing to learn from")
    if config.engine == "transformers":
        place, identity = checkpoint_place(config, output), identity_of(config, parent)
        if is_remote(place):
            raise UserError(
                f"train.checkpoints={place}: transformers' Trainer keeps its checkpoints in a local folder; set "
                "train.checkpoints to one, or train.engine=hanflow"
            )
        from hanflow.training.trainer import engine as trainer

        model = learnt.new_model(with_fetched_model(config, "pretrained"), tokenizer, parent.details["facts"])
        _check_fit(model, train, validation, learnt)
        folder = local_path(place)
        state, facts = trainer.fit(model, tokenizer, learnt, config, train.shard, validation.shard, folder, identity)
        if int(os.environ.get("RANK", 0)) == 0:
            _write_model(output, config, learnt, model.cpu().eval(), tokenizer, parent, state, facts)
        return Report(_figures(model, state, config, facts), html="report.html")
    backend = _backend(config)
    try:
        model = learnt.new_model(with_fetched_model(config, "pretrained"), tokenizer, parent.details["facts"])
        _check_fit(model, train, validation, learnt)
        checkpoints = open_checkpoints(config, output, backend)
        state = resume(checkpoints, config, identity_of(config, parent), backend)
        efficiency = _padding_efficiency(train, backend)
        _describe(model, train, backend, efficiency)
        state = fit(model, tokenizer, learnt, config, backend, train, validation, checkpoints, state)
        model = backend.on_cpu(model)
        if backend.is_main and state.best_step >= 0:
            checkpoints.load(checkpoints.path(state.best_step), model)
        facts = {
            "precision": backend.precision,
            "device": backend.device.type,
            "world_size": backend.devices,
            "padding_efficiency": efficiency,
        }
        if backend.is_main:
            _write_model(output, config, learnt, model.eval(), tokenizer, parent, state, facts)
    finally:
        backend.close()
    return Report(_figures(model, state, config, facts), html="report.html")


def _needed(shards: Manifest) -> list[str]:
    return [name for name in shards.files if name != "test.arrow"]


def _check_fit(model: PreTrainedModel, train: Data, validation: Data, task: Task) -> None:
    """Refuse shards that the model cannot take."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None:
        return
    for data in (train, validation):
        for setting, needed in task.positions(data.plan.lengths).items():
            longest = int(needed.max(initial=0))
            if longest > positions:
                raise UserError(
                    f"the shards have rows of {longest} tokens, the model takes {positions}: set tokenize.{setting} to at most "
                    f"{positions}, or raise train.architecture.max_position_embeddings for a model made from nothing"
                )


def _describe(model: PreTrainedModel, train: Data, backend: Backend, efficiency: float) -> None:
    if backend.is_main:
        log.info(
            "%s parameters; %s rows in %d batches of %d shapes an epoch, padding efficiency %.3f; %s on %s × %d",
            f"{model.num_parameters():,}",
            f"{len(train.shard):,}",
            train.plan.batches_per_epoch,
            len(train.plan.shapes),
            efficiency,
            backend.precision,
            backend.device.type,
            backend.devices,
        )


def _padding_efficiency(data: Data, backend: Backend) -> float:
    trimmed = not backend.static_shapes
    return data.plan.padding_efficiency(
        trimmed=trimmed, devices=1 if trimmed else backend.readers * backend.row_multiple
    )


def _figures(model: PreTrainedModel, state: LoopState, config: TrainConfig, facts: dict[str, Any]) -> dict[str, Any]:
    figures: dict[str, Any] = {"steps": state.step, "parameters": model.num_parameters()}
    if state.train:  # early stopping may come before the first logged step
        speeds = sorted(point["tokens_per_second"] for point in state.train)
        figures["train_loss"] = round(state.train[-1]["loss"], 4)
        figures["tokens_per_second"] = round(speeds[len(speeds) // 2])
    figures["padding_efficiency"] = round(facts["padding_efficiency"], 4)
    if state.best_step >= 0:
        figures |= {f"validation_{config.best_metric}": round(state.best_value, 4), "best_step": state.best_step}
    return figures


def _write_model(
    output: str,
    config: TrainConfig,
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    parent: Manifest,
    state: LoopState,
    facts: dict[str, Any],
) -> None:
    """Write the model artifact; `facts`: precision, device, world size and padding efficiency of the run."""
    best = {"step": state.best_step, config.best_metric: state.best_value} if state.best_step >= 0 else None
    training = {
        "settings": to_mapping(config),
        "history": {"train": state.train, "validation": state.validation},
        "best": best,
        "steps": state.step,
        "skipped_steps": state.skipped,
        "order": state.order,
        "parameters": model.num_parameters(),
        "torch": torch.__version__,
        **facts,
    }
    with staged(output, "model") as target:
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
        (target / "report.html").write_text(render(training), encoding="utf-8")
        (target / "training.json").write_text(json.dumps(training, indent=1) + "\n", encoding="utf-8")
        counts = {"steps": state.step, "parameters": training["parameters"]}
        details = {"figures": _figures(model, state, config, facts), **artifacts.text_settings(parent)}
        artifacts.write_manifest(
            target, Manifest("model", task.name, to_mapping(config), counts, details, artifacts.lineage(parent))
        )
