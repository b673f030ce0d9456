"""`train.engine=transformers`: the same experiment run by Seq2SeqTrainer (tasks that generate) or Trainer.

For people who want the Trainer, and the peer that our own engine is measured against. Data, model, metrics, trackers
and the model artifact are shared with our engine. What is not: batches are a fixed number of rows padded to their
longest, checkpoints are the Trainer's own (optimizer and scheduler pickled, no commit record) under
`<checkpoints>/transformers/`, resuming goes on from the last whole one but is not promised to be bitwise exact, and
SIGTERM ends the process where it stands (`steps.Terminated`): a polite stop with everything saved is our own engine's.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import (
    DataCollatorForSeq2Seq,
    EarlyStoppingCallback,
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction

from components.shared.config import EvaluateConfig, TrainConfig, UserError
from components.shared.generation import GenerationOptions, decode, generation_config
from components.shared.progress import Progress, log
from components.shared.shards import Shard
from components.shared.tasks.base import Task
from components.train import trainer_state
from components.train.backends.torch_ddp import native_precision
from components.train.checkpoint import LoopState
from components.train.trackers import Trackers
from components.train.trainer_arguments import Sizes, sizes, training_arguments, without_counterpart
from components.train.trainer_parts import (
    IGNORED,
    Clock,
    Collator,
    RawRows,
    Reporter,
    Rows,
    Saves,
    memory_bytes,
    token_mean,
)

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
    before = trainer_state.read(begin) if begin else {}
    if begin:
        state.step = before["global_step"]
        trainer_state.take_up(state, before["log_history"])
    try:
        trainer = make_trainer(config, task, model, tokenizer, train, validation, folder)
        if is_main:
            (folder / trainer_state.IDENTITY).write_text(json.dumps(identity), encoding="utf-8")
        total = trainer.sizes.steps
        with (
            Trackers(checkpoints, state, config, enabled=is_main) as trackers,
            Progress("training", total=total, unit="steps", done=state.step) as progress,
        ):
            if begin and trainer_state.ended(before):
                trainer.take_best(before)
            else:
                trainer.add_callback(Reporter(state, trackers, progress))
                trainer.train(resume_from_checkpoint=str(begin) if begin else None)
                before = {"best_global_step": trainer.state.best_global_step, "best_metric": trainer.state.best_metric}
        if before["best_global_step"]:
            state.best_step, state.best_value = before["best_global_step"], before["best_metric"]
        facts = {
            "precision": trainer.precision,
            "device": trainer.args.device.type,
            "world_size": trainer.args.world_size,
            "padding_efficiency": trainer.clock.efficiency,
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
) -> _TaskTrainer:
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
        config, sized, folder, precision=precision, device=device, validates=len(validation) > 0
    )
    if task.generates and config.validation_rows:
        longest = int(train.lengths().max(axis=0)[-1])
        options = EvaluateConfig(beams=config.validation_beams, max_new_tokens=longest)
        search = generation_config(model, GenerationOptions.of(options))
        arguments |= {"predict_with_generate": True, "generation_config": search}
    kinds = (Seq2SeqTrainingArguments, GeneratingTrainer) if task.generates else (TrainingArguments, LossTrainer)
    args = kinds[0](**{**arguments, **overrides})
    if device == "cuda" and args.n_gpu > 1:
        args._n_gpu = 1  # else one process would spread every batch over all GPUs (DataParallel)
    return kinds[1](config, task, model, tokenizer, train, validation, args, sized, precision)


class _TaskTrainer(Trainer):
    """What both kinds share: the validation's figures are those of our own engine, saves fall where the settings say.

    Args:
        config, task, model, tokenizer, train, validation: the run.
        args: the Trainer's arguments.
        sized: of its batches.
        precision: fp32, bf16 or fp16.
    """

    def __init__(
        self,
        config: TrainConfig,
        task: Task,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        train: Shard,
        validation: Shard,
        args: TrainingArguments,
        sized: Sizes,
        precision: str,
    ):
        self.config, self.task, self.tokenizer, self.validation = config, task, tokenizer, validation
        self.sizes, self.precision = sized, precision
        self.longest = int(train.lengths().max(axis=0)[-1])
        self.collator = Collator(self._collate(model))
        self.clock = Clock()
        # No processing_class: with one the Trainer rewrites special ids of the model's config after the tokenizer's.
        super().__init__(
            model=model,
            args=args,
            data_collator=self.collator,
            train_dataset=self._rows(train),
            eval_dataset=self._rows(validation, config.validation_rows or 1) if len(validation) else None,
            compute_metrics=self._figures,
            compute_loss_func=self._loss_func(args),
            callbacks=[self.clock],
        )
        self.remove_callback(PrinterCallback)  # prints every figure on standard output
        if str(args.save_strategy.value) != "no":
            self.add_callback(Saves(config))
        if config.patience and str(args.eval_strategy.value) != "no":
            self.add_callback(EarlyStoppingCallback(config.patience, config.threshold))

    def _collate(self, model: PreTrainedModel) -> Any:
        raise NotImplementedError

    def _rows(self, shard: Shard, count: int | None = None) -> Rows:
        raise NotImplementedError

    def _loss_func(self, args: TrainingArguments) -> Any:
        return None

    def _figures(self, predicted: EvalPrediction) -> dict[str, float]:
        raise NotImplementedError

    def _scores(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """Scores by name, and the sum of all ROUGE."""
        scores = self.task.score(predictions, references).overall
        rouge = [value for name, value in scores.items() if name.startswith("rouge")]
        return {**scores, **({"rouge_sum": sum(rouge)} if rouge else {})}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the Trainer does, with speed and memory beside the training loss."""
        if "loss" in logs:
            logs["tokens_per_second"] = self.clock.speed() * self.args.world_size  # the others work on as much
            logs["memory_gb"] = memory_bytes(self.args.device) / 1e9
        super().log(logs, start_time)

    def training_step(self, *args: Any, **options: Any) -> torch.Tensor:
        """As the Trainer does, with the batch's tokens counted."""
        if self.collator.ahead:  # loader processes, by an override, keep their counts to themselves
            self.clock.computed(*self.collator.ahead.popleft())
        return super().training_step(*args, **options)

    def evaluation_loop(
        self, dataloader: Any, description: str, *args: Any, metric_key_prefix: str = "eval", **options: Any
    ) -> EvalLoopOutput:
        """The validation: loss over the whole split, and scores of the first `validation_rows` rows."""
        loss = self._validation_loss()
        self.collator.noting = False
        try:
            output = self._scored(dataloader, description, metric_key_prefix, *args, **options)
        finally:
            self.collator.noting = True
        output.metrics[f"{metric_key_prefix}_loss"] = loss
        figures = [name.removeprefix(f"{metric_key_prefix}_") for name in output.metrics]
        if self.config.best_metric not in figures:
            raise UserError(
                f"train.best_metric={self.config.best_metric}: no such validation figure; measured are "
                f"{', '.join(figures)}"
                + ("" if self.config.validation_rows else "; scores need train.validation_rows above 0")
            )
        return output

    def _scored(self, dataloader: Any, description: str, prefix: str, *args: Any, **options: Any) -> EvalLoopOutput:
        raise NotImplementedError

    @torch.no_grad()
    def _validation_loss(self) -> float:
        """Mean loss over the validation split's target tokens; without dropout and label smoothing.

        The Trainer's own figure would be the mean of its batches' means, and smoothed.
        """
        model = self.model.eval()
        rank, world_size = self.args.process_index, self.args.world_size
        mine = np.argsort(self.validation.lengths().sum(axis=1), kind="stable")[rank::world_size]
        total = torch.zeros(2, dtype=torch.float64)
        with Progress("validating", total=len(mine)) as progress:
            for at in range(0, len(mine), self.args.per_device_eval_batch_size):
                rows = self.validation.rows(mine[at : at + self.args.per_device_eval_batch_size])
                with self.accelerator.autocast():
                    loss, count = self.task.loss(model, self._prepare_inputs(self._task_batch(rows, model)), 0.0)
                total += torch.stack([loss.double(), count.double()]).cpu()
                progress.update(len(rows))
        total = self.accelerator.reduce(total.to(self.args.device), "sum").cpu()
        return float(total[0] / total[1])

    def _task_batch(self, rows: Sequence[Sequence[np.ndarray]], model: PreTrainedModel) -> dict[str, torch.Tensor]:
        longest = np.array([[len(sequence) for sequence in row] for row in rows]).max(axis=0)
        return self.task.collate(rows, (len(rows), *map(int, longest)), model)

    def take_best(self, state: dict[str, Any]) -> None:
        """The weights that a finished run ended with."""
        step = state["best_global_step"] or state["global_step"]
        self._load_from_checkpoint(str(Path(self.args.output_dir) / f"checkpoint-{step}"))


class GeneratingTrainer(_TaskTrainer, Seq2SeqTrainer):
    """Tasks that generate: the model's own loss on `labels`, batches by DataCollatorForSeq2Seq."""

    def _collate(self, model: PreTrainedModel) -> Any:
        return DataCollatorForSeq2Seq(self.tokenizer, model=model, label_pad_token_id=IGNORED)

    def _rows(self, shard: Shard, count: int | None = None) -> Rows:
        return Rows(shard, count)

    def _loss_func(self, args: TrainingArguments) -> Any:
        # BART and its like take any keyword, so the Trainer believes that they divide by num_items_in_batch. They do
        # not (transformers 5.23): the gradient would be too large by the number of passes and of workers.
        if args.gradient_accumulation_steps == 1 and args.world_size == 1:
            return None
        return functools.partial(token_mean, label_smoothing=args.label_smoothing_factor)

    def _scored(self, dataloader: Any, description: str, prefix: str, *args: Any, **options: Any) -> EvalLoopOutput:
        if not self.args.predict_with_generate:
            return EvalLoopOutput(None, None, {}, len(self.validation))
        return super(_TaskTrainer, self).evaluation_loop(
            dataloader, description, *args, metric_key_prefix=prefix, **options
        )

    def _figures(self, predicted: EvalPrediction) -> dict[str, float]:
        ends = {IGNORED, self.model.config.pad_token_id}
        references = []
        for labels in predicted.label_ids.tolist():
            while labels and labels[-1] in ends:
                labels.pop()
            if labels[-1:] != [self.tokenizer.eos_token_id]:  # it pads, too
                labels.append(self.tokenizer.eos_token_id)
            target = np.array(labels, dtype=np.int32)
            references.append(self.task.reference_of((target[:0], target), self.tokenizer))
        return self._scores(decode(self.model, self.tokenizer, predicted.predictions.tolist()), references)


class LossTrainer(_TaskTrainer):
    """Tasks that do not generate: the task's own batches and loss, in one process."""

    def _collate(self, model: PreTrainedModel) -> Any:
        return lambda features: self._task_batch([feature["row"] for feature in features], model)

    def _rows(self, shard: Shard, count: int | None = None) -> Rows:
        return RawRows(shard, count)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean loss over the batch's target tokens, float32 scalar."""
        with self.accelerator.autocast():
            total, count = self.task.loss(model, inputs, self.args.label_smoothing_factor)
        return (total / count, {}) if return_outputs else total / count

    def _scored(self, dataloader: Any, description: str, prefix: str, *args: Any, **options: Any) -> EvalLoopOutput:
        if not self.config.validation_rows:
            return EvalLoopOutput(None, None, {}, len(self.validation))
        rows = self.validation.rows(range(min(self.config.validation_rows, len(self.validation))))
        config = EvaluateConfig(beams=self.config.validation_beams, max_new_tokens=self.longest)
        predictions = self.task.predict(self.model, self.tokenizer, rows, config)
        scores = self._scores(predictions, [self.task.reference_of(row, self.tokenizer) for row in rows])
        return EvalLoopOutput(None, None, {f"{prefix}_{name}": value for name, value in scores.items()}, len(rows))
