"""`train.engine=transformers`: the same experiment run by Seq2SeqTrainer (tasks that generate) or Trainer.

For people who want the Trainer, and the peer that our own engine is measured against. Data, model, metrics, trackers
and the model artifact are shared with our engine. What is not: batches are a fixed number of rows padded to their
longest, checkpoints are the Trainer's own (optimizer and scheduler pickled, no commit record) under
`<checkpoints>/transformers/`, resuming goes on from the last whole one but is not promised to be bitwise exact, and
SIGTERM ends the process where it stands (`steps.Terminated`): a polite stop with everything saved is our own engine's.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Seq2SeqTrainingArguments, TrainingArguments

from hanflow.config import TrainConfig
from hanflow.data.shards import Shard
from hanflow.errors import UserError
from hanflow.generation import GenerationOptions, generation_config
from hanflow.progress import Progress, log
from hanflow.tasks.base import Task
from hanflow.training.backends.torch import native_precision
from hanflow.training.best import greater_is_better
from hanflow.training.evaluation import BATCH_TOKENS
from hanflow.training.state import LoopState
from hanflow.training.trackers import Trackers
from hanflow.training.trainer import state as trainer_state
from hanflow.training.trainer.arguments import sizes, training_arguments, without_counterpart
from hanflow.training.trainer.kinds import GeneratingTrainer, LossTrainer, TaskTrainer
from hanflow.training.trainer.parts import Reporter

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    config: TrainConfig,
    train: Shard,
    validation: Shard,
    checkpoints: Path,
    identity: dict[str, Any],
) -> tuple[LoopState, dict[str, Any]]:
    """Train `model` in place; it ends as the best one, where there was a validation.

    Args:
        checkpoints: gets `metrics.jsonl`, `train.log`, `tensorboard/` and the Trainer's checkpoints in `transformers/`.
        identity: the settings and data that the run is made of; another run's checkpoints are refused.

    Returns:
        Steps, history and best as our own engine keeps them, and facts for `training.json`.

    Raises:
        UserError: checkpoints that do not fit, a setting that cannot be had here, a loss that is not finite.
    """
    folder, own_search = checkpoints / "transformers", model.generation_config
    is_main = int(os.environ.get("RANK", 0)) == 0
    folder.mkdir(parents=True, exist_ok=True)
    begin = trainer_state.start(folder, config, identity)
    ignored = without_counterpart(config)
    if ignored and is_main:
        log.warning("train.engine=transformers gives other meanings to: %s", "; ".join(ignored))
    state = LoopState(identity)
    end = trainer_state.read(begin) if begin else {}
    if begin:
        state.step = end["global_step"]
        trainer_state.take_up(state, end["log_history"])
    try:
        trainer = make_trainer(config, task, model, tokenizer, train, validation, folder)
        if is_main:
            (folder / trainer_state.IDENTITY).write_text(json.dumps(identity), encoding="utf-8")
            log.info(
                "%s parameters; %d × %d × %d rows a step, %d steps an epoch; %s on %s, by transformers",
                f"{model.num_parameters():,}",
                trainer.args.world_size,
                config.accumulation,
                trainer.args.per_device_train_batch_size,
                trainer.sizes.steps_per_epoch,
                trainer.precision,
                trainer.args.device.type,
            )
        with (
            Trackers(checkpoints, state, config, place=str(checkpoints), enabled=is_main) as trackers,
            Progress("training", total=trainer.sizes.steps, unit="steps", done=state.step) as progress,
        ):
            if begin and trainer_state.ended(end):
                trainer.take_best(end)
            else:
                trainer.add_callback(Reporter(state, trackers, progress))
                trainer.train(resume_from_checkpoint=str(begin) if begin else None)
                end = dict(vars(trainer.state))
        if end["best_global_step"]:
            state.best_step, state.best_value = end["best_global_step"], end["best_metric"]
        facts = {
            "precision": trainer.precision,
            "device": trainer.args.device.type,
            "world_size": trainer.args.world_size,
            "padding_efficiency": trainer_state.padding_efficiency(end["log_history"], trainer.clock.efficiency),
        }
    finally:
        model.generation_config = own_search
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return state, facts


def make_trainer(
    config: TrainConfig,
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Shard,
    validation: Shard,
    folder: Path,
    **overrides: Any,
) -> TaskTrainer:
    """A Seq2SeqTrainer, or a Trainer for tasks that do not generate, ready for `train()`.

    Args:
        folder: where its checkpoints go.
        overrides: arguments of `TrainingArguments` that win over what the settings say, for example
            `train_sampling_strategy="group_by_length"`.

    Raises:
        UserError: a setting that cannot be had with this engine or hardware.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = native_precision(torch.device(device)) if config.precision == "auto" else config.precision
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if precision == "fp16" and device == "cpu":
        raise UserError("train.precision=fp16: the Trainer has fp16 on GPUs only; set train.precision=bf16 or fp32")
    if world_size > 1 and not task.generates:
        raise UserError(
            f"train.engine=transformers: the task {task.name} is trained by one process; set train.processes=1, or "
            "train.engine=hanflow"
        )
    sized = sizes(config, train.lengths(), world_size)
    arguments = training_arguments(
        config,
        sized,
        folder,
        precision=precision,
        device=device,
        validates=len(validation) > 0,
        best_is_highest=greater_is_better(config, task),
    )
    if task.generates and config.validation_rows:
        longest = int(train.lengths().max(axis=0)[-1])
        options = task.validation_settings(config, longest, BATCH_TOKENS)
        search = generation_config(model, GenerationOptions.of(options))
        arguments |= {"predict_with_generate": True, "generation_config": search}
    kinds = (Seq2SeqTrainingArguments, GeneratingTrainer) if task.generates else (TrainingArguments, LossTrainer)
    args = kinds[0](**{**arguments, **overrides})
    if device == "cuda" and args.n_gpu > 1:
        args._n_gpu = 1  # else one process would spread every batch over all GPUs (DataParallel)
    return kinds[1](config, task, model, tokenizer, train, validation, args, sized, precision)
