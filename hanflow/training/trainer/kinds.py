"""The Trainers of `train.engine=transformers`: Seq2SeqTrainer and Trainer with this project's data, loss and scores."""

from __future__ import annotations

import functools
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
    Trainer,
    TrainingArguments,
)
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction

from hanflow.config import TrainConfig
from hanflow.data.shards import Shard
from hanflow.generation import decode
from hanflow.models.kernels.cross_entropy import IGNORED
from hanflow.progress import Progress
from hanflow.tasks.base import Task
from hanflow.tasks.data import Predictions
from hanflow.training.allocator import peak_bytes
from hanflow.training.best import check_measured
from hanflow.training.evaluation import BATCH_TOKENS, row_predictor
from hanflow.training.trainer.arguments import Sizes
from hanflow.training.trainer.parts import Clock, Collator, RawRows, Rows, Saves, token_mean

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TaskTrainer(Trainer):
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

    def _scores(self, predictions: Predictions, references: Sequence[str]) -> dict[str, float]:
        return self.task.overall(self.task.score(predictions, references))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the Trainer does, with speed and memory beside the training loss."""
        if "loss" in logs:
            tokens, seconds = self.clock.window()
            logs["tokens"] = tokens * self.args.world_size  # the others work on as much
            logs["tokens_per_second"] = logs["tokens"] / max(seconds, 1e-9)
            logs["padding_efficiency"] = self.clock.efficiency
            logs["memory_gb"] = peak_bytes(self.args.device) / 1e9
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
        check_measured(self.config, [name.removeprefix(f"{metric_key_prefix}_") for name in output.metrics])
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


class GeneratingTrainer(TaskTrainer, Seq2SeqTrainer):
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
        return super(TaskTrainer, self).evaluation_loop(
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
            references.append(self.task.reference_of((target[:0], target), self.tokenizer, self.model))
        texts = decode(self.model, self.tokenizer, predicted.predictions.tolist())
        return self._scores(Predictions(texts), references)


class LossTrainer(TaskTrainer):
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
        config = self.task.validation_settings(self.config, self.longest, BATCH_TOKENS)
        predictions = row_predictor(self.task, self.model, self.tokenizer, config)(rows)
        references = [self.task.reference_of(row, self.tokenizer, self.model) for row in rows]
        scores = self._scores(predictions, references)
        return EvalLoopOutput(None, None, {f"{prefix}_{name}": value for name, value in scores.items()}, len(rows))
