"""Evaluation while training: validation loss, scores of predictions, the best model, early stopping."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from hanflow.config import TrainConfig
from hanflow.data.batches import batches
from hanflow.errors import UserError
from hanflow.progress import Progress
from hanflow.tasks.base import Task, lower_is_better
from hanflow.tasks.predictor import Predictor
from hanflow.training.backends.base import Backend
from hanflow.training.loader import Data
from hanflow.training.state import LoopState, TrainingRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel


BATCH_TOKENS = 8192
"""Padded source tokens times beams that are predicted between two checks for a stop request."""


class Validator:
    """Measures the validation split and keeps track of the best step.

    Args:
        run: what is trained; its settings decide which figure is compared, and the patience.
        objective: the model with its loss, as the engine prepared it.
        backend: where it runs.
    """

    def __init__(self, run: TrainingRun, objective: torch.nn.Module, backend: Backend):
        self._task, self._model, self._tokenizer, self._config = run.task, run.model, run.tokenizer, run.config
        self._objective, self._backend = objective, backend
        self._data = Data.of(run.validation, run.task, run.config, shuffle=False)
        self._longest = int(run.train.lengths().max(axis=0)[-1])
        """Most tokens to generate: those of the longest target that is trained on."""

    def run(self, state: LoopState, stop: Callable[[], bool]) -> dict[str, float] | None:
        """Figures after step `state.step`; they, the best step and the patience are added to `state`.

        Args:
            state: the run's state.
            stop: called between batches: whether to give up (the same answer on all ranks).

        Returns:
            The figures, `loss` in nats per target token; None: stopped, nothing was changed.

        Raises:
            UserError: `train.best_metric` is not among the figures.
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
        compare(figures, state, self._config, self._task)
        return figures

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
        """Scores of rows from all over the split; every process predicts its share of them; None: stopped.

        A traced device would compile a graph for every length that a search reaches: there the CPU predicts.
        """
        size = len(self._data.shard)
        count = min(self._config.validation_rows, size)
        chosen = [place * size // count for place in range(count)]  # files are often sorted: not the first ones
        mine = range(self._backend.reader, count, self._backend.readers)
        options = self._task.validation_settings(self._config, self._longest, BATCH_TOKENS)
        model = self._backend.on_cpu(self._model) if self._backend.traced else self._model
        predictor = self._task.predictor(model, self._tokenizer, options, scoring=True)
        if self._task.packs:
            predictor = predictor.for_chunks()
        copies = self._task.copies(options)
        lengths = [len(row[0]) for row in self._data.shard.rows([chosen[place] for place in mine])]
        # The predictor's own batches, one at a time, as many on every process, so that a stop is possible between them.
        shares = [[mine[at] for at in part] for part in batches(lengths, options.batch_tokens, copies=copies)] or [[]]
        (most,) = self._backend.agree(len(shares))
        measures: dict[str, torch.Tensor] = {}
        with Progress("predicting", total=len(mine)) as progress:
            for at in range(most):
                if stop():
                    self._model.train()
                    return None
                if at >= len(shares):
                    continue
                rows = [chosen[place] for place in shares[at]]
                for name, values in self._measures(predictor, rows, model, progress).items():
                    measures.setdefault(name, torch.zeros(count, dtype=torch.float64))[shares[at]] = values
        self._model.train()
        return self._task.overall({n: self._backend.sum_of_readers(v).numpy() for n, v in measures.items()})

    def _measures(
        self, predictor: Predictor, rows: list[int], model: PreTrainedModel, progress: Progress
    ) -> dict[str, torch.Tensor]:
        """`Task.score` of some rows of the split: float64 of shape (rows,)."""
        given = self._data.shard.rows(rows)
        references = [self._task.reference_of(row, self._tokenizer, model) for row in given]
        measures = self._task.score(predictor(given, progress), references)
        return {name: torch.from_numpy(values) for name, values in measures.items()}


def compare(figures: dict[str, float], state: LoopState, config: TrainConfig, task: Task) -> None:
    """Update the best step and the patience in `state` by the figures of a validation.

    Raises:
        UserError: `train.best_metric` is not among the figures; names those that are.
    """
    if config.best_metric not in figures:
        raise UserError(
            f"train.best_metric={config.best_metric}: no such validation figure; measured are "
            f"{', '.join(name for name in figures if name != 'step')}"
            + ("" if config.validation_rows else "; scores need train.validation_rows above 0")
        )
    value = figures[config.best_metric]
    auto = config.best_metric not in lower_is_better(task)
    maximize = auto if config.best_mode == "auto" else config.best_mode == "max"
    gain = math.inf if state.best_step < 0 else (value - state.best_value) * (1.0 if maximize else -1.0)
    if not math.isfinite(value):  # as the best value NaN would never be surpassed
        gain = -math.inf
    state.bad_validations = 0 if gain > config.threshold else state.bad_validations + 1
    if gain > 0:
        state.best_step, state.best_value = state.step, value


def exhausted(state: LoopState, config: TrainConfig) -> bool:
    """Whether early stopping's patience has run out."""
    return 0 < config.patience <= state.bad_validations
