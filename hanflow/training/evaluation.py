"""Evaluation while training: validation loss, scores of generated texts, the best model, early stopping."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from hanflow.config import EvaluateConfig, TrainConfig
from hanflow.data.batches import batches
from hanflow.progress import Progress
from hanflow.tasks.base import Task
from hanflow.tasks.predictor import Chunkable, Predictor
from hanflow.training.backends.base import Backend
from hanflow.training.best import check_measured, greater_is_better
from hanflow.training.loader import Data
from hanflow.training.state import LoopState

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


BATCH_TOKENS = 8192
"""Padded source tokens times beams that are predicted between two looks for a stop."""


class Validator:
    """Measures the validation split and remembers what was best.

    Args:
        task, model, tokenizer: what is validated.
        objective: the model with its loss, as the backend prepared it.
        data: the validation split; empty: nothing is measured.
        config: which figure decides, and the patience.
        backend: where it runs.
        longest: longest target of the shards, in tokens: how much is generated.
    """

    def __init__(
        self,
        task: Task,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        objective: torch.nn.Module,
        data: Data,
        config: TrainConfig,
        backend: Backend,
        longest: int,
    ):
        self._task, self._model, self._tokenizer, self._objective = task, model, tokenizer, objective
        self._data, self._config, self._backend, self._longest = data, config, backend, longest

    def run(self, state: LoopState, stop: Callable[[], bool]) -> dict[str, float] | None:
        """Figures after step `state.step`, with the best step and the patience in `state` brought up to date.

        Args:
            state: the run's state.
            stop: asked between batches whether to give up (agreed by all ranks).

        Returns:
            The figures, `loss` in nats a target token; None: given up, nothing was changed.

        Raises:
            UserError: the metric that decides is not among the figures.
        """
        loss = self._loss(stop)
        if loss is None:
            return None
        figures = {"step": state.step, "loss": loss}
        if self._config.validation_rows:
            scores = self._scores(stop)
            if scores is None:
                return None
            # The scores' own loss, where a task has one, is of a few rows only.
            figures = {**figures, **scores, **figures}
        state.validation.append(figures)
        state.validated_step = state.step
        self._compare(figures, state)
        return figures

    def _compare(self, figures: dict[str, float], state: LoopState) -> None:
        check_measured(self._config, figures)
        value = figures[self._config.best_metric]
        sign = 1.0 if greater_is_better(self._config, self._task) else -1.0
        gain = math.inf if state.best_step < 0 else sign * (value - state.best_value)
        if math.isnan(value):  # nothing would ever be better
            gain = -math.inf
        state.bad_validations = 0 if gain > self._config.threshold else state.bad_validations + 1
        if gain > 0:
            state.best_step, state.best_value = state.step, value

    def exhausted(self, state: LoopState) -> bool:
        """Whether early stopping's patience is over."""
        return 0 < self._config.patience <= state.bad_validations

    @torch.no_grad()
    def _loss(self, stop: Callable[[], bool]) -> float | None:
        """Mean loss over the split's target tokens; without dropout and label smoothing."""
        self._objective.eval()
        total, targets = (self._backend.send(torch.zeros(1, dtype=torch.float64)) for _ in range(2))
        batches = self._data.plan.epoch(0)
        with Progress("validating", total=len(batches), unit="batches") as progress:
            for batch in batches:
                if stop():
                    self._objective.train()
                    return None
                tensors = self._backend.put(self._data.collate(batch, self._task, self._model, self._backend))
                with self._backend.autocast():
                    part, count = self._objective(tensors)
                total += part.double()
                targets += count.double()
                self._backend.flush()
                progress.update(1)
        self._objective.train()
        # Counted, not planned: a label that the train split does not have is no target.
        count = float(self._backend.sum(targets))
        return float(self._backend.sum(total)) / count if count else math.nan

    def _scores(self, stop: Callable[[], bool]) -> dict[str, float] | None:
        """Scores of the first rows; every process predicts its share of them; None: given up.

        A traced device would compile a graph for every length that a search reaches: there the processors predict.
        """
        count = min(self._config.validation_rows, len(self._data.shard))
        mine = range(self._backend.reader, count, self._backend.readers)
        options = self._task.validation_settings(self._config, self._longest, BATCH_TOKENS)
        model = self._backend.on_cpu(self._model) if self._backend.traced else self._model
        predictor = row_predictor(self._task, model, self._tokenizer, options)
        copies = self._task.copies(options)
        lengths = [len(row[0]) for row in self._data.shard.rows(mine)]
        # The predictor's own batches, one at a time, as many on every process: between them it can be given up.
        parts = [[mine[at] for at in part] for part in batches(lengths, options.batch_tokens, copies=copies)] or [[]]
        (most,) = self._backend.agree(len(parts))
        everywhere: dict[str, torch.Tensor] = {}
        with Progress("predicting", total=len(mine)) as progress:
            for at in range(most):
                if stop():
                    self._model.train()
                    return None
                if at >= len(parts):
                    continue
                for name, values in self._measures(predictor, parts[at], model, progress).items():
                    everywhere.setdefault(name, torch.zeros(count, dtype=torch.float64))[parts[at]] = values
        self._model.train()
        return self._task.overall({n: self._backend.sum_of_readers(v).numpy() for n, v in everywhere.items()})

    def _measures(
        self, predictor: Predictor, rows: list[int], model: PreTrainedModel, progress: Progress
    ) -> dict[str, torch.Tensor]:
        """`Task.score` of some rows of the split: float64 of shape (rows,)."""
        given = self._data.shard.rows(rows)
        references = [self._task.reference_of(row, self._tokenizer, model) for row in given]
        measures = self._task.score(predictor(given, progress), references)
        return {name: torch.from_numpy(values) for name, values in measures.items()}


def row_predictor(
    task: Task, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: EvaluateConfig
) -> Predictor:
    """A model made ready to predict rows of the shards for `Task.score`."""
    predictor = task.predictor(model, tokenizer, options, scoring=True)
    return predictor.for_chunks() if task.packs and isinstance(predictor, Chunkable) else predictor
