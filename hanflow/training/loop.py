"""`train.engine=hanflow`: the training loop, over a backend and a task."""

from __future__ import annotations

import contextlib
import time

import torch

from hanflow.config import TrainConfig
from hanflow.progress import Progress, log
from hanflow.tasks.base import Task
from hanflow.training.backends.base import Backend, open_backend, uses_xla
from hanflow.training.checkpoints.resume import best_model, open_checkpoints, resume
from hanflow.training.evaluation import Validator, exhausted
from hanflow.training.loader import Data, step_batches, step_data
from hanflow.training.nonfinite import give_up
from hanflow.training.optimizer import learning_rate, make_optimizer, total_steps
from hanflow.training.state import TrainingResult, TrainingRun
from hanflow.training.step_metrics import StepMetrics, gradient_norms
from hanflow.training.stop import Stopped, StopRequest
from hanflow.training.trackers import Trackers


class Objective(torch.nn.Module):
    """A model with its task's loss as `forward`, so that compilers and DistributedDataParallel see one module."""

    def __init__(self, model: torch.nn.Module, task: Task, label_smoothing: float):
        super().__init__()
        self.model, self._task, self._label_smoothing = model, task, label_smoothing

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """(sum of the loss over the batch's target tokens, number of them): float32 and int64 scalars."""
        return self._task.loss(self.model, batch, self._label_smoothing if self.training else 0.0)


def check(config: TrainConfig, task: Task) -> list[str]:
    """See `hanflow.training.engine.Engine`: every task trains; TPUs cannot do everything."""
    problems = []
    if uses_xla(config) and config.precision == "fp16":
        problems.append("train.precision=fp16: TPUs multiply bf16; set train.precision=bf16 or auto")
    if uses_xla(config) and config.processes != 1:
        problems.append(
            f"train.processes={config.processes}: with train.backend=xla one process drives all chips of its host; "
            "leave it at 1"
        )
    return problems


def fit(run: TrainingRun) -> TrainingResult:
    """See `hanflow.training.engine.Engine`."""
    with contextlib.closing(open_backend(run.config)) as backend:
        return train(run, backend)


def train(run: TrainingRun, backend: Backend) -> TrainingResult:
    """Train until the last step, from where the run's checkpoints stand.

    The gradient of a step is that of the mean loss over all its target tokens, whatever batches and workers they are
    spread over.

    Raises:
        Stopped: SIGTERM or Ctrl-C came; everything is saved.
        UserError: checkpoints that do not fit; too many steps in a row had no finite gradient.
    """
    config, task, model = run.config, run.task, run.model
    data = Data.of(run.train, task, config, shuffle=True)
    checkpoints = open_checkpoints(run, backend)
    state = resume(checkpoints, config, run.identity, backend)
    efficiency = _padding_efficiency(data, backend)
    if backend.is_main:
        _log_start(run, data, backend, efficiency)
    objective = backend.prepare(Objective(model, task, config.label_smoothing))
    optimizer = make_optimizer(model, config, traced=backend.traced)
    if state.step:
        checkpoints.load(checkpoints.path(state.step), model, optimizer)
        backend.load_state(state.backend)
    backend.settle(model, optimizer)
    parameters = [p for p in model.parameters() if p.requires_grad]
    per_epoch = -(-data.plan.batches_per_epoch // config.accumulation)
    last = total_steps(config, per_epoch)
    validator = Validator(run, objective, backend)
    validate_every, validates = config.validate_every or per_epoch, len(run.validation) > 0
    metrics = StepMetrics(backend, state)
    saved_step, saved_at = state.step, time.monotonic()
    objective.train()

    def due(every: int) -> bool:
        return state.step == last or (every > 0 and state.step % every == 0)

    def validate() -> None:
        started = time.perf_counter()
        figures = validator.run(state, lambda: any(backend.agree(stop.signum)))
        if figures:
            trackers.write("validation", figures)
        metrics.pause(time.perf_counter() - started)

    def save() -> None:
        nonlocal saved_step, saved_at
        started = time.perf_counter()
        metrics.save_to(state)
        state.backend = backend.state()
        if backend.is_main and saved_step != state.step:
            checkpoints.save(model, optimizer, state)
        backend.barrier()  # a rank that ran ahead would wait in a sum of gradients, whose timeout is short
        saved_step, saved_at = state.step, time.monotonic()
        metrics.pause(time.perf_counter() - started)

    with (
        StopRequest() as stop,
        Trackers(checkpoints.folder, state, config, place=checkpoints.place, enabled=backend.is_main) as trackers,
        Progress("training", total=last, unit="steps", done=state.step) as progress,
    ):
        if validates and state.validated_step < state.step and due(validate_every):
            validate()  # the run was stopped between a step and its validation
        steps = step_batches(data.plan, state.step, last, per_epoch, config.accumulation)
        for batch in step_data(data, task, model, backend, steps, state.step):
            if exhausted(state, config):
                log.info("no improvement in %d validations: stopping early at step %d", config.patience, state.step)
                break
            logs = (batch.step + 1) % config.log_every == 0 or batch.step + 1 == last
            loss = backend.number(0.0)
            scale = backend.number(backend.world_size / batch.targets)
            for micro, tensors in enumerate(batch.tensors):
                backend.seed(config.seed, batch.step, micro)
                with backend.accumulate(objective, last=micro == len(batch.tensors) - 1):
                    with backend.autocast():
                        part, _ = objective(backend.put(tensors))
                    # DistributedDataParallel averages over the workers; the sum is wanted.
                    backend.backward(part * scale)
                    loss = loss + part.detach()
            layers = gradient_norms(model, backend.gradient_scale()) if logs or backend.traced else {}
            rate = learning_rate(batch.step, last, config)
            for group in optimizer.param_groups:
                group["lr"] = backend.number(rate)
            norm = backend.step(optimizer, parameters, config.clip_norm)
            state.step = batch.step + 1
            state.add_to_order(part.rows for part in batch.batches)
            metrics.add(loss, norm, batch.targets, batch.tokens)
            backend.flush()

            if logs:
                figures = metrics.close(state, epoch=state.step / per_epoch, rate=rate, norm=norm)
                state.train.append(figures)
                trackers.write("train", figures, layers)
                progress.update(0, loss=figures["loss"], tokens_per_s=figures["tokens_per_second"])
                if state.skipped_in_row >= config.nonfinite_limit:
                    give_up(batch, state, model, config, checkpoints, backend)
            if validates and due(validate_every):
                validate()
            overdue = config.save_minutes > 0 and time.monotonic() - saved_at > config.save_minutes * 60
            signum, save_now = backend.agree(stop.signum, overdue)
            if signum or save_now or due(config.save_every) or due(validate_every) or due(per_epoch):
                save()
            if signum:
                checkpoints.wait()
                backend.barrier()  # the first worker that ends has the others killed after a short grace period
                raise Stopped(signum, state.step, checkpoints.place)
            progress.update(1)
    checkpoints.wait()
    backend.barrier()
    model = best_model(model, checkpoints, state, backend)
    kind = backend.device.type
    return TrainingResult(model, state, backend.precision, kind, backend.devices, efficiency, backend.is_main)


def _padding_efficiency(data: Data, backend: Backend) -> float:
    trimmed = not backend.static_shapes
    return data.plan.padding_efficiency(
        trimmed=trimmed, devices=1 if trimmed else backend.readers * backend.row_multiple
    )


def _log_start(run: TrainingRun, data: Data, backend: Backend, efficiency: float) -> None:
    log.info(
        "%s parameters; %s rows in %d batches of %d shapes an epoch, padding efficiency %.3f; %s on %s × %d",
        f"{run.model.num_parameters():,}",
        f"{len(run.train):,}",
        data.plan.batches_per_epoch,
        len(data.plan.shapes),
        efficiency,
        backend.precision,
        backend.device.type,
        backend.devices,
    )
