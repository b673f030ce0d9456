"""The training loop, over a backend and a task."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from components.shared.config import TrainConfig, UserError
from components.shared.progress import Progress
from components.shared.shards import Shard
from components.shared.tasks.base import Task
from components.train.backends.base import Backend
from components.train.batches import Batch, BatchPlan
from components.train.checkpoint import Checkpoints, LoopState
from components.train.optim import learning_rate, make_optimizer
from components.train.trackers import Trackers


class Objective(torch.nn.Module):
    """A model with its task's loss as `forward`, so that DistributedDataParallel sees one module."""

    def __init__(self, model: torch.nn.Module, task: Task, label_smoothing: float):
        super().__init__()
        self.model, self._task, self._label_smoothing = model, task, label_smoothing

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Sum of the loss over the batch's target tokens, float32 scalar."""
        smoothing = self._label_smoothing if self.training else 0.0
        return self._task.loss(self.model, batch, smoothing)[0]


@dataclass
class Data:
    """A split, its batch plan, and what each row adds to the loss."""

    shard: Shard
    plan: BatchPlan
    targets: torch.Tensor
    """Target tokens of each row: int64 of shape (rows,)."""

    @classmethod
    def of(cls, shard: Shard, task: Task, config: TrainConfig, *, shuffle: bool) -> Data:
        lengths = shard.lengths()
        plan = BatchPlan(
            lengths,
            seed=config.seed,
            batch_tokens=config.batch_tokens,
            batch_size=config.batch_size,
            shuffle=shuffle,
        )
        return cls(shard, plan, torch.from_numpy(task.targets(lengths)))

    def load(self, batch: Batch, task: Task, model: torch.nn.Module, backend: Backend) -> dict[str, torch.Tensor]:
        """This rank's part of a global batch, on its device."""
        rows, shape = batch.share(backend.rank, backend.world_size)
        if not backend.static_shapes:
            shape = (max(len(rows), 1), *shape[1:])
        return backend.put(task.collate(self.shard.rows(rows), shape, model))  # type: ignore[arg-type]


def total_steps(config: TrainConfig, per_epoch: int) -> int:
    """Optimizer steps of the whole run."""
    steps = config.epochs * per_epoch
    return min(steps, config.max_steps) if config.max_steps else steps


def fit(
    model: torch.nn.Module,
    task: Task,
    config: TrainConfig,
    backend: Backend,
    train: Data,
    validation: Data | None,
    checkpoints: Checkpoints,
    state: LoopState,
) -> LoopState:
    """Train until the last step, from wherever `state` and the newest checkpoint stand; returns the final state.

    The gradient of a step is that of the mean loss over all its target tokens, whatever batches and workers they are
    spread over.
    """
    objective = backend.prepare(Objective(model, task, config.label_smoothing))
    optimizer = make_optimizer(model, config)
    if state.step:
        checkpoints.load(checkpoints.path(state.step), model, optimizer)
    per_epoch = -(-train.plan.batches_per_epoch // config.accumulation)
    last_step = total_steps(config, per_epoch)
    every = config.validate_every or per_epoch
    window = _Window(backend)
    objective.train()
    with (
        Trackers(checkpoints.folder, state) as trackers,
        Progress("training", total=last_step, unit="steps", done=state.step) as progress,
    ):
        for batches in _steps(train.plan, state.step, last_step, per_epoch, config.accumulation):
            step = state.step
            count = int(sum(train.targets[batch.rows].sum() for batch in batches))
            for micro, batch in enumerate(batches):
                tensors = train.load(batch, task, model, backend)
                backend.seed(config.seed, step, micro)
                with backend.accumulate(objective, last=micro == len(batches) - 1):
                    with backend.autocast():
                        loss = objective(tensors)
                    # DistributedDataParallel averages over the workers; the sum is wanted.
                    (loss * (backend.world_size / count)).backward()
                window.add(loss.detach(), int(train.plan.lengths[batch.rows].sum()))
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm or float("inf"))
            rate = learning_rate(step, last_step, config)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            state.step = step + 1
            window.targets += count
            if state.step % config.log_every == 0 or state.step == last_step:
                figures = window.close(state.step, epoch=state.step / per_epoch, rate=rate, norm=norm)
                state.train.append(figures)
                trackers.write("train", figures)
                progress.update(0, loss=figures["loss"], tokens_per_s=figures["tokens_per_second"])
            if state.step % every == 0 or state.step == last_step:
                _validate(objective, task, backend, validation, state, trackers)
                if backend.is_main:
                    checkpoints.save(model, optimizer, state)
                backend.barrier()
                window.restart_clock()
            progress.update(1)
    return state


def _steps(plan: BatchPlan, first: int, last: int, per_epoch: int, accumulation: int) -> Iterator[list[Batch]]:
    """The global batches of each optimizer step, from step `first` up to `last`."""
    batches: list[Batch] = []
    for step in range(first, last):
        epoch, index = divmod(step, per_epoch)
        if index == 0 or not batches:
            batches = plan.epoch(epoch)
        yield batches[index * accumulation : (index + 1) * accumulation]


def _validate(
    objective: torch.nn.Module,
    task: Task,
    backend: Backend,
    validation: Data | None,
    state: LoopState,
    trackers: Trackers,
) -> None:
    """Measure the validation loss and remember the best step."""
    if validation is None:
        return
    loss = validation_loss(objective, task, backend, validation)
    figures = {"step": state.step, "loss": loss}
    state.validation.append(figures)
    if loss < state.best_loss:
        state.best_step, state.best_loss = state.step, loss
    trackers.write("validation", figures)


@torch.no_grad()
def validation_loss(objective: torch.nn.Module, task: Task, backend: Backend, data: Data) -> float:
    """Mean loss over a split's target tokens, in nats a token; without dropout and label smoothing."""
    objective.eval()
    model = getattr(objective, "module", objective).model
    total = torch.zeros((), dtype=torch.float64, device=backend.device)
    batches = data.plan.epoch(0)
    with Progress("validating", total=len(batches), unit="batches") as progress:
        for batch in batches:
            with backend.autocast():
                total += objective(data.load(batch, task, model, backend)).double()
            progress.update(1)
    objective.train()
    return float(backend.sum(total)) / int(data.targets.sum())


class _Window:
    """Figures gathered on the device between two logged steps; read, and so waited for, only when logged."""

    def __init__(self, backend: Backend):
        self._backend = backend
        self._reset()

    def _reset(self) -> None:
        self._loss = torch.zeros((), device=self._backend.device)
        self.targets, self._tokens = 0, 0
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave out of the speed what was not training (a validation, a save)."""
        self._tokens_timed, self._started = 0, time.perf_counter()

    def add(self, loss: torch.Tensor, tokens: int) -> None:
        self._loss += loss
        self._tokens_timed += tokens

    def close(self, step: int, *, epoch: float, rate: float, norm: torch.Tensor) -> dict[str, float]:
        loss = float(self._backend.sum(self._loss)) / self.targets
        if loss != loss:
            raise UserError(
                f"the training loss is not a number at step {step}; lower train.learning_rate or set train.precision=fp32"
            )
        seconds = time.perf_counter() - self._started
        figures = {
            "step": step,
            "epoch": epoch,
            "loss": loss,
            "learning_rate": rate,
            "gradient_norm": float(norm),
            "tokens_per_second": self._tokens_timed / max(seconds, 1e-9),
        }
        self._reset()
        return figures

